"""Asking a teacher about training users, and reading from its answers alone how far they can be trusted.

A black box does not say how sure it is. But it can be asked about the same user several times, each time with less of
the history: an answer that stays the same rests on more than the last click. What is measured here is the agreement of
those answers (consistency), how peaked one answer is where the teacher gives scores, and what the answers say together
(the consensus).

Source: the idea of multi-scale consistency probing is that of Zhou et al., "BAHSD", arXiv 2606.03091. Its formulas are
not public; those below are this library's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from recdistill.arrays import Floats, Ints, Items
from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.evaluation.fidelity import rank_biased_overlap
from recdistill.methods.base import Setting
from recdistill.rankings import Ranking, Scores
from recdistill.teachers.base import Teacher

Unmeasured: TypeAlias = Literal["unreliable", "reliable", "typical"]

_BLOCK = 4096
"""Rows handled at once: histories asked between two progress reports, lists aggregated in one sort."""
PERSISTENCE = 0.9
"""p of the rank-biased overlap: each rank weighs 0.9 times the one before it."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What a teacher answered about R histories, each shown at M scales."""

    scales: tuple[float, ...]
    """``M`` shares of the history that were shown, rising; the last is 1, the whole history."""
    items: Items
    """``(M, R, K)`` the lists, best item first; 0 is padding, and fills what was not asked or not answered."""
    scores: Scores | None
    """``(M, R, K)`` the teacher's scores of them, −∞ under padding; ``None`` where it gives none."""

    @property
    def full(self) -> Ranking:
        """The answers to the whole histories."""
        return Ranking(self.items[-1], None if self.scores is None else self.scores[-1])


def probe(setting: Setting, *, scales: Sequence[float] = (1.0,), k: int) -> Probe:
    """Ask the teacher about every training history at every scale, as far as its budget goes.

    The whole histories come first, then the shorter scales from the shortest up, so that a budget that runs short
    still buys an answer, if not its reliability, for as many users as possible. Within a scale users are asked in a
    fixed shuffled order: a short budget then favours nobody, and runs with other seeds share the answers paid for.

    Args:
        setting: the training histories and the teacher.
        scales: shares of the newest part of the history to show; 1, the whole of it, must be among them. The others are
            shares of what student and teacher read of it, since on longer histories half of it could say all the same.
            At least one item is shown, and a scale that shows as many items as the next one up is not asked.
        k: length of the lists; no longer than the catalogue is asked for.

    Raises:
        SettingsError: without a teacher, or for a teacher that cannot be asked with a part of a history.
        TeacherError: when an answer makes no sense, cannot be had for another reason than the budget, or none comes.
    """
    teacher = setting.teacher
    if teacher is None:
        raise SettingsError(
            "this method learns from a teacher's lists, but no teacher is given; give one, or use 'supervised'."
        )
    check_told(teacher, scales)
    shares, lengths = tuple(sorted(scales)), setting.train.lengths
    heard, shown = np.minimum(lengths, teacher.max_history or sys.maxsize), shown_at(setting, scales)
    asked = shown > 0
    asked[:-1] &= shown[:-1] < np.minimum(shown[1:], heard)  # not what the teacher would hear as the same

    lists = _Lists(setting, teacher, (len(shares), len(lengths), min(k, setting.n_items)), total=int(asked.sum()))
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    for scale in (-1, *range(len(shares) - 1)):

        def newest(rows: Ints, shown: Ints = shown[scale]) -> Sequences:
            histories = setting.train.take(rows)
            return Sequences(histories.items, histories.ends - shown[rows], histories.ends)

        lists.ask(scale, shuffled[asked[scale][shuffled]], newest, whole=scale == -1)
        if scale == -1:
            asked[:-1] &= lists.items[-1, :, 0] > 0
            if teacher.silent or not lists.items[-1].any():
                raise TeacherError(
                    f"teacher {teacher.identity!r} answered none of {int(asked[-1].sum()):,} histories, so there is "
                    "nothing to distil; raise its budget, or look at what it answers."
                )
    return Probe(shares, lists.items, lists.scores)


def shown_at(setting: Setting, scales: Sequence[float]) -> Ints:
    """Return ``(M, R)`` how many of its newest items each history is shown by at each scale, rising; see `probe`."""
    teacher, lengths = setting.teacher, setting.train.lengths
    longest = min(setting.max_len or sys.maxsize, (teacher and teacher.max_history) or sys.maxsize)
    read = np.minimum(lengths, longest)
    shown = np.stack([np.ceil(share * read - 1e-9) for share in sorted(scales)]).astype(np.int64)
    shown[-1] = lengths
    return shown


def check_told(teacher: Teacher, scales: Sequence[float]) -> None:
    """Refuse a teacher to whom all parts of a history are the same, where some are to be shown.

    Raises:
        SettingsError: saying what it is told instead.
    """
    if len(scales) > 1 and not teacher.hears_parts:
        told = "user" if teacher.by_user else "last item"
        raise SettingsError(
            f"probing asks about parts of a history, and teacher {teacher.identity!r} is told the {told} alone: "
            "use method 'kd', or set scales to [1.0]"
        )


class _Lists:
    """Answers to several sheets of questions about the same R histories, padded where nothing was answered."""

    def __init__(self, setting: Setting, teacher: Teacher, shape: tuple[int, int, int], *, total: int) -> None:
        self.setting = setting
        self.teacher = teacher
        self.items: Items = np.zeros(shape, np.int32)
        self.scores: Scores | None = np.full(shape, -np.inf, np.float32) if teacher.gives_scores else None
        self.total = total
        self.done = 0

    def ask(self, sheet: int, rows: Ints, shown: Callable[[Ints], Sequences], *, whole: bool) -> None:
        """Ask for ``rows`` in that order; ``shown`` is what the teacher sees of them, the whole history or part."""
        setting, teacher = self.setting, self.teacher
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            users = setting.users[block] if teacher.needs_users else None
            ranking, answered = teacher.rank_within_budget(shown(block), self.items.shape[2], users=users)
            try:
                ranking.check(setting.n_items)
            except TeacherError as error:
                raise TeacherError(
                    f"teacher {teacher.identity!r} was asked for {self.items.shape[2]} items for each of "
                    f"{len(block):,} histories, and {error}. Look at how it makes its lists."
                ) from error
            if teacher.exclude_history and not whole:
                ranking = without(ranking, setting.train.take(block), setting.n_items)
            listed = np.where(answered[:, None], ranking.items, 0)
            self.items[sheet, block, : listed.shape[1]] = listed
            if self.scores is not None and ranking.scores is not None:
                self.scores[sheet, block, : listed.shape[1]] = np.where(listed > 0, ranking.scores, -np.inf)
            self.done += len(block)
            setting.progress("asking the teacher", self.done, self.total)


def without(ranking: Ranking, histories: Sequences, n_items: int) -> Ranking:
    """Take the items of each whole history out of the ``(B, K)`` lists that were given for a part of it.

    The answer to the whole history cannot name them, so that they would count as disagreement.
    """
    rows = np.arange(len(ranking.items))[:, None]
    seen = np.isin(rows * (n_items + 1) + ranking.items, histories.pairs(n_items))
    kept = np.where(seen, 0, ranking.items)
    order = np.argsort(kept == 0, axis=1, kind="stable")
    scores = None if ranking.scores is None else np.where(kept > 0, ranking.scores, -np.inf)[rows, order]
    return Ranking(kept[rows, order], scores)


@dataclass(frozen=True, slots=True, eq=False)
class Prefixes:
    """What a teacher answered about P earlier states of R histories each: their oldest parts."""

    dropped: Ints
    """``(P, R)`` how many of the newest items each was shown without; 0 where nothing was asked."""
    items: Items
    """``(P, R, K)`` the lists; 0 is padding, and fills what was not answered. Items taken later may be among them."""
    scores: Scores | None
    """``(P, R, K)`` the teacher's scores of them, −∞ under padding; ``None`` where it gives none."""


def stack(*told: Probe | Prefixes) -> Ranking:
    """Return all lists of R histories below one another, ``(V · R, K)``: scale by scale, or prefix by prefix."""
    k = told[0].items.shape[2]
    items = np.concatenate([part.items.reshape(-1, k) for part in told])
    scores = [part.scores.reshape(-1, k) for part in told if part.scores is not None]
    return Ranking(items, np.concatenate(scores) if scores else None)


def look_back(setting: Setting, n: int, *, rows: Ints, k: int) -> Prefixes:
    """Ask the teacher about histories as they were at n earlier times.

    What it says of whole histories covers one state a user. These are states that users were in as well, so that a
    student learns from more of them than there are users.

    Args:
        setting: the training histories and the teacher.
        n: P, how often; at no time twice, so that a history of L items has at most L − 1 prefixes. They are cut within
            what the student reads of it.
        rows: ``(r,)`` which histories.
        k: length of the lists; no longer than the catalogue is asked for.

    Returns:
        The answers, as many as its budget buys: one of each history first, users in a fixed shuffled order.
    """
    teacher, generator = setting.teacher, np.random.default_rng(0)
    if teacher is None:
        raise SettingsError("prefixes are asked about, but no teacher is given.")
    read = np.zeros(len(setting.train), np.int64)
    read[rows] = np.minimum(setting.train.lengths[rows], setting.max_len or sys.maxsize)
    dropped = np.zeros((n, len(read)), np.int64)
    for start in range(0, len(read), _BLOCK):
        cuts = np.arange(1, max(2, read[start : start + _BLOCK].max(initial=0)))
        possible = cuts < read[start : start + _BLOCK, None]
        drawn = np.where(possible, generator.random(possible.shape), 2.0).argsort(axis=1)[:, :n]
        chosen = np.where(np.take_along_axis(possible, drawn, axis=1), cuts[drawn], 0)
        dropped[: chosen.shape[1], start : start + _BLOCK] = chosen.T
    lists = _Lists(setting, teacher, (n, len(read), min(k, setting.n_items)), total=int((dropped > 0).sum()))
    for turn, fewer in enumerate(dropped):

        def earlier(rows: Ints, fewer: Ints = fewer) -> Sequences:
            histories = setting.train.take(rows)
            return Sequences(histories.items, histories.starts, histories.ends - fewer[rows])

        lists.ask(turn, generator.permutation(np.flatnonzero(fewer)), earlier, whole=True)
    return Prefixes(dropped, lists.items, lists.scores)


def consistency(items: Items, *, depth: int) -> Floats:
    r"""Agreement of the answers at different scales: the mean rank-biased overlap over all pairs of them.

    .. math:: c = \frac{2}{M(M-1)} \sum_{m<m'} \mathrm{RBO}_{k,p}(R^{(m)}, R^{(m')})

    Args:
        items: ``(M, R, K)`` lists; a list of nothing but padding is no answer, and is left out of M.
        depth: ranks compared, k.

    Returns:
        ``(R,)`` in [0, 1], 1 where the answer does not depend on how much history was shown; NaN where fewer than two
        scales were answered.
    """
    answered = items[:, :, 0] > 0
    total, pairs = np.zeros(items.shape[1]), np.zeros(items.shape[1])
    for m in range(len(items)):
        for other in range(m):
            both = answered[m] & answered[other]
            total[both] += rank_biased_overlap(items[m][both], items[other][both], depth, PERSISTENCE)
            pairs += both
    measured = pairs > 0
    return np.where(measured, total / np.maximum(pairs, 1), np.nan)


def peakedness(scores: Scores) -> Floats:
    r"""How far the softmax of a list's scores is from flat.

    .. math:: \pi = 1 - H(\mathrm{softmax}(g)) / \log n

    Args:
        scores: ``(R, K)``, −∞ under padding; n of them are real.

    Returns:
        ``(R,)`` in [0, 1]: 0 for equal scores, 1 for all the weight on one item; NaN without an answer.
    """
    listed = np.isfinite(scores)
    n = listed.sum(axis=1)
    top = np.where(n > 0, scores.max(axis=1, initial=-np.inf), 0.0)
    weights = np.exp(scores.astype(np.float64) - top[:, None])
    probs = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    entropy = -(probs * np.log(np.where(probs > 0, probs, 1.0))).sum(axis=1)
    spread = np.log(np.maximum(n, 2))
    return np.where(n > 0, np.clip(1 - entropy / spread, 0, 1), np.nan)


def fill_unmeasured(values: Floats, rule: Unmeasured) -> Floats:
    """Replace NaN in ``values (R,)`` of [0, 1] by 0, 1, or the mean of what was measured (0.5 if nothing was)."""
    measured = values[~np.isnan(values)]
    typical = float(measured.mean()) if len(measured) else 0.5
    return np.where(np.isnan(values), {"unreliable": 0.0, "reliable": 1.0, "typical": typical}[rule], values)


def consensus(items: Items, shares: Floats, n_items: int, *, quorum: float = 0.0) -> tuple[Items, Floats]:
    r"""What the answers say together: the mixture of their distributions.

    .. math:: p(i) \propto \sum_m p_m(i)

    Where they agree the mixture is as peaked as they are; where they do not, it is flatter.

    Args:
        items: ``(M, R, K)`` lists; a list of nothing but padding is no answer. The last of M is the whole history's,
            whose order decides between equal p.
        shares: ``(M, R, K)`` p, each list's shares of 1; 0 under padding.
        n_items: N.
        quorum: only items are kept that more than this share of a row's answers list; 0.5 is the majority. Where there
            are none, the answer to the whole history stands for all.

    Returns:
        ``(R, K)`` the K best items, highest p first, 0 for padding, and their p, which add up to 1.
    """
    n_rows, k = items.shape[1:]
    listed, mixed = np.zeros((n_rows, k), np.int32), np.zeros((n_rows, k))
    for start in range(0, n_rows, _BLOCK):
        block = slice(start, min(start + _BLOCK, n_rows))
        listed[block], mixed[block] = _mixture(items[:, block], shares[:, block], n_items, quorum)
    return listed, mixed


def _mixture(items: Items, shares: Floats, n_items: int, quorum: float) -> tuple[Items, Floats]:
    n_scales, n_rows, k = items.shape
    scale, row, rank = np.nonzero(items)
    cells, cell = np.unique(row * (n_items + 1) + items[scale, row, rank], return_inverse=True)
    owner, item = cells // (n_items + 1), cells % (n_items + 1)
    told = shares[scale, row, rank].astype(np.float64)
    mixed = np.bincount(cell, told, len(cells))
    whole = np.bincount(cell, (k - rank) * (scale == n_scales - 1), len(cells))
    votes = np.bincount(cell, minlength=len(cells))
    answers = np.count_nonzero(items[:, :, 0], axis=0)

    enough = votes > quorum * answers[owner]
    shared = np.bincount(owner[enough], minlength=n_rows)[owner] > 0
    mixed = np.where(shared, mixed, np.bincount(cell, told * (scale == n_scales - 1), len(cells)))
    kept = np.flatnonzero(np.where(shared, enough, whole > 0))
    kept = kept[np.lexsort((item[kept], -whole[kept], -mixed[kept], owner[kept]))]
    place = np.arange(len(kept)) - np.searchsorted(owner[kept], owner[kept])
    kept, place = kept[place < k], place[place < k]
    listed, probs = np.zeros((n_rows, k), np.int32), np.zeros((n_rows, k))
    listed[owner[kept], place] = item[kept]
    probs[owner[kept], place] = mixed[kept]
    return listed, probs / np.maximum(probs.sum(1, keepdims=True), 1e-300)
