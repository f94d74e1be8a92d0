"""What the training histories say by themselves: which items went with which, counted, without any training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from recdistill.arrays import Ints, Items
from recdistill.data.dataset import Sequences
from recdistill.errors import DataError, SettingsError
from recdistill.models.scoring import GROUP, best
from recdistill.rankings import Ranking, Scores
from recdistill.teachers.answers import Scorer
from recdistill.teachers.base import Teacher

_NUMBERS = 4 << 20
"""Numbers held at once while histories are followed."""
_PER_ITEM = 500
"""Rules kept of each item; of pairs without an order there are many more than interactions."""
_FAINT = 1e-4
"""What is worth less than this, of all that the newest item is worth, is not listened to."""
_POPULARITY, _PRIOR = 0.1, 100.0
"""With an order. Chosen, with window, fade and decay, on validation items of three data sets, for rules that recommend
by themselves (``benchmarks/bahsd.md``)."""
_POPULARITY_UNORDERED = 0.4
_NEVER = -30.0
"""The score of an item that no rule names: next to nothing, and finite."""


class RulesTeacher(Teacher):
    r"""Recommends what went with the items of a history in other histories.

    .. math:: s_j = \log \frac{1}{Z} \sum_{i \in h} \delta^{\mathrm{age}(i)} \frac{A_{ij}}{m + \sum_l A_{il}}
              n_j^{-\beta}, \quad A_{ij} = \sum_u \sum_{d = 1}^{w} \frac{[u_t = i, u_{t+d} = j]}{d^\phi}
              \;\text{ or }\; \sum_{u \ni i, j} \frac{1}{|u|}

    Ordered, A counts how often j came at most w items after i, near ones more, and the newest items of a history say
    most, as far as enough is known of them: an item that was followed less often than m says less than its neighbours.
    Without an order, all items of a history go with each other, and all say the same: a walk from item to user to item,
    as users of a model that reads no order take it. Of each item only the 500 largest A, with equals of the last, are
    kept there, and l runs over these. n is how many histories hold an item.

    An item of the history gets nothing where lists leave it out; nor without an order, where most of what leads to it
    is the history itself. Scores are logarithms of shares; `scores` gives −30 to what is not among the ``depth`` best.

    Args:
        train: the training histories, one a user.
        n_items: N.
        ordered: which of the two A is.
        window: w, in items.
        fade: φ, at least 0: how much less an item counts that came later; 1 is half as much for twice as far.
        decay: δ in (0, 1]: how much less the next older item of the history says; 1 without an order. What is below a
            ten-thousandth is not heard.
        popularity: β, at least 0: how far popular items are held down; 0.1 by default, 0.4 without an order.
        prior: m, at least 0: what an item must have been followed by to be heard by half; 100 by default, 0 without an
            order.
        depth: items that are scored for each history.
        exclude_history: whether items of the history are left out.
        takes: what the teachers beside it are asked by; it always reads the history.

    Raises:
        SettingsError: for settings that make no sense, or histories without two items in any of them.
        DataError: for an item outside 1…N, here or in what it is asked about.

    Source: with an order the sequential rules of Ludewig and Jannach, "Evaluation of Session-based Recommendation
    Algorithms", UMUAI 2018, who have φ = 1 and neither decay nor prior nor β; without, RP3β of Paudel et al.,
    "Updatable, Accurate, Diverse, and Scalable Recommendations for Interactive Applications", TiiS 2017, with α = 1.
    """

    gives_scores = scores_items = free = True

    def __init__(
        self,
        train: Sequences,
        n_items: int,
        *,
        ordered: bool = True,
        window: int = 10,
        fade: float = 0.5,
        decay: float = 0.7,
        popularity: float | None = None,
        prior: float | None = None,
        depth: int = 500,
        exclude_history: bool = True,
        takes: Literal["history", "user"] = "history",
    ) -> None:
        beta, unsure = (_POPULARITY, _PRIOR) if ordered else (_POPULARITY_UNORDERED, 0.0)
        beta = beta if popularity is None else popularity
        unsure = unsure if prior is None else prior
        if window < 1 or depth < 1 or not 0 < decay <= 1 or min(fade, beta, unsure) < 0:
            raise SettingsError(
                f"rules need window and depth of 1 or more, decay in (0, 1], fade, popularity and prior of 0 or more, "
                f"but these are {window}, {depth}, {decay}, {fade}, {beta} and {unsure}."
            )
        self.n_items: int = n_items
        self.exclude_history, self.takes = exclude_history, takes
        self._known(train.flat()[0])
        self.ordered, self.depth = ordered, min(depth, n_items)
        self.decay = decay if ordered else 1.0
        width = -(-(n_items + 1) // GROUP) * GROUP
        held = _held(train, width)
        counts = _following(train, width, window, fade) if ordered else _together(held)
        if counts.nnz == 0:
            raise SettingsError("no history has two different items, so there is nothing to make rules of.")
        followed = _inverse(counts.sum(axis=1) + unsure)
        dampened = np.power(np.maximum(np.asarray(held.sum(axis=0)).ravel(), 1), -beta)
        self.rules = (sparse.diags(followed) @ counts @ sparse.diags(dampened)).tocsr().astype(np.float32)
        digest = hashlib.sha256(f"{exclude_history} {self.depth} {self.decay} {ordered} {n_items}".encode())
        for part in (self.rules.indptr, self.rules.indices, self.rules.data):
            digest.update(np.ascontiguousarray(part).tobytes())
        self._identity = f"rules-{digest.hexdigest()[:12]}"

    @property
    def identity(self) -> str:
        """A hash of the rules, and of all else that changes the answers."""
        return self._identity

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Return the top ``k`` for each history, equal ones in the order of the items; fewer where rules name fewer."""
        items = np.zeros((len(histories), k), np.int32)
        scores = np.full((len(histories), k), -np.inf, np.float32)
        for rows, listed, logs in self._follow(histories, k):
            items[rows], scores[rows] = listed, logs
        return Ranking(items, scores)

    def scorer(self, histories: Sequences, *, users: npt.NDArray[np.integer] | None = None) -> Scorer:
        """Follow the rules once, and return what looks up chosen items.

        Raises:
            TeacherError: for an item outside 1…N.
        """
        items = np.zeros((len(histories), self.depth), np.int64)
        logs = np.full((len(histories), self.depth), _NEVER, np.float32)
        for rows, listed, known in self._follow(histories, self.depth):
            order = listed.argsort(axis=1)
            items[rows] = np.take_along_axis(listed, order, axis=1)
            logs[rows] = np.take_along_axis(known, order, axis=1)

        def scores(rows: Ints, candidates: Ints | None) -> Scores:
            if candidates is None:
                every = np.full((len(rows), self.n_items + 1), _NEVER, np.float32)
                np.put_along_axis(every, items[rows], logs[rows], axis=1)
                return every[:, 1:]
            self._check_candidates(candidates)
            listed, wanted = torch.from_numpy(items[rows]), torch.from_numpy(np.ascontiguousarray(candidates, np.int64))
            at = torch.searchsorted(listed, wanted).clamp_max(self.depth - 1)
            found = torch.from_numpy(logs[rows]).gather(1, at)
            known: Scores = found.masked_fill(listed.gather(1, at) != wanted, _NEVER).numpy()
            return known

        return scores

    def _follow(self, histories: Sequences, k: int) -> Iterator[tuple[slice, Ints, Scores]]:
        """Yield some rows, their ``(b, k)`` best items, and the logarithm of each one's share in all that rules say."""
        width = self.rules.shape[1]
        if self.ordered and not self.exclude_history and self.decay < 1:  # older items are not heard, nor left out
            histories = histories.newest(math.ceil(math.log(_FAINT, self.decay)))
        for rows in _blocks(histories.lengths, max(1, _NUMBERS // width)):
            some = histories.take(rows)
            (owner, age), items = _positions(some), self._known(some.flat()[0])
            weights = np.power(self.decay, age, dtype=np.float32)
            heard = weights > _FAINT
            says = sparse.csr_matrix((weights[heard], (owner[heard], items[heard])), (len(some), width))
            worth = (says @ self.rules).toarray()
            if self.exclude_history or not self.ordered:
                worth[owner, items] = 0
            shares = torch.from_numpy(worth)
            shares /= shares.sum(1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
            listed, worth = best(shares.masked_fill_(shares <= 0, -torch.inf), k)
            yield rows, listed, np.log(worth, out=worth, where=listed > 0)  # of a few, not of all those zeros

    def _known(self, items: Items) -> Items:
        """Return items that are all among 1…N."""
        if items.size and (items.min() < 1 or items.max() > self.n_items):
            raise DataError(f"a history holds an item outside 1…{self.n_items}, the items that the rules are about.")
        return items


def _blocks(lengths: Ints, height: int) -> Iterator[slice]:
    """Cut rows into blocks of so many at most, and of no more items than are held at once, or one row."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        before = ends[start] - lengths[start]
        within = int(np.searchsorted(ends, before + _NUMBERS, side="right"))
        end = min(start + height, max(within, start + 1))
        yield slice(start, end)
        start = end


def _positions(histories: Sequences) -> tuple[Ints, Ints]:
    """Return the row of each item of flat histories, and how many newer ones its row has."""
    lengths = histories.lengths
    owner = np.repeat(np.arange(len(histories)), lengths)
    return owner, np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(owner))


def _held(train: Sequences, width: int) -> sparse.csr_matrix:
    """Return ``(R, W)`` which items each history holds, as 0 and 1."""
    owner, _ = _positions(train)
    held = sparse.csr_matrix((np.ones(len(owner), np.float32), (owner, train.flat()[0])), (len(train), width))
    held.data[:] = 1
    return held


def _following(train: Sequences, width: int, window: int, fade: float) -> sparse.csr_matrix:
    """Return ``(W, W)`` how often an item came after another one, d to the −``fade`` each time for d steps."""
    owner, _ = _positions(train)
    items = train.flat()[0]

    def later(step: int) -> sparse.csr_matrix:
        here, there = items[:-step], items[step:]
        pair = (owner[:-step] == owner[step:]) & (here != there)
        weights = np.full(int(pair.sum()), step**-fade, np.float32)
        return sparse.csr_matrix((weights, (here[pair], there[pair])), (width, width))

    return reduce(add, map(later, range(1, window + 1)))  # one at a time: there are many more pairs than different ones


def _together(held: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return ``(W, W)`` the sum of 1/|u| over the histories that hold both of two items, the largest of each row."""
    split = sparse.diags(_inverse(held.sum(axis=1))) @ held
    holders = held.T.tocsr()
    width = held.shape[1]
    height = max(1, _NUMBERS // width)
    blocks = []
    for start in range(0, width, height):
        worth = (holders[start : start + height] @ split).toarray()
        worth[np.arange(len(worth)), np.arange(start, start + len(worth))] = 0
        if width > _PER_ITEM:
            least = -np.partition(-worth, _PER_ITEM - 1, axis=1)[:, _PER_ITEM - 1 : _PER_ITEM]
            worth[worth < least] = 0
        blocks.append(sparse.csr_matrix(worth))
    return sparse.csr_matrix(sparse.vstack(blocks))


def _inverse(totals: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return 1/x of what is above 0, and 0 of the rest."""
    flat = np.asarray(totals, np.float64).ravel()
    return np.divide(1.0, flat, out=np.zeros_like(flat), where=flat > 0)
