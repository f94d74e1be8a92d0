"""Asking a teacher about training users, and reading from its answers alone how far they can be trusted.

A black box does not say how sure it is. But it can be asked about the same user several times, each time with less of
the history: an answer that stays the same rests on more than the last click. What is measured here is the agreement of
those answers (consistency), how peaked one answer is where the teacher gives scores, and what most answers agree on
(the consensus).

Source: the idea of multi-scale consistency probing is that of Zhou et al., "BAHSD", arXiv 2606.03091. Its formulas are
not public; those below are this library's own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from recdistill.data.dataset import Ints, Items, Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.evaluation.fidelity import rank_biased_overlap
from recdistill.methods.base import Setting
from recdistill.teachers.base import Bools, Ranking, Scores

Floats: TypeAlias = npt.NDArray[np.float64]
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
    """``(R, K)`` the teacher's scores for the whole history, −∞ under padding; ``None`` where it gives none."""

    @property
    def answered(self) -> Bools:
        """``(M, R)`` where there is an answer; a scale that shows no less than the next one up has none of its own."""
        answered: Bools = self.items[:, :, 0] > 0
        return answered

    @property
    def full(self) -> Ranking:
        """The answers to the whole histories."""
        return Ranking(self.items[-1], self.scores)


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
    if teacher.takes == "user" and len(scales) > 1:
        raise SettingsError(
            f"probing shows teacher {teacher.identity!r} parts of a history, but it answers for a user as a whole; "
            "use method 'kd', or set scales to [1.0]."
        )
    if teacher.max_history == 1 and len(scales) > 1:
        raise SettingsError(
            f"probing shows teacher {teacher.identity!r} parts of a history, but it is told the last item alone, with "
            "which every part ends; use method 'kd', or set scales to [1.0]."
        )
    shares, lengths = tuple(sorted(scales)), setting.train.lengths
    read = np.minimum(lengths, min(setting.max_len or sys.maxsize, teacher.max_history or sys.maxsize))
    shown = np.stack([np.ceil(share * read - 1e-9) for share in shares]).astype(np.int64)
    shown[-1] = lengths
    asked = shown > 0
    asked[:-1] &= shown[:-1] < shown[1:]

    k = min(k, setting.n_items)
    items = np.zeros((len(shares), len(lengths), k), np.int32)
    scores = np.full(items.shape[1:], -np.inf, np.float32) if teacher.gives_scores else None
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    done = 0
    for scale in (-1, *range(len(shares) - 1)):
        rows = shuffled[asked[scale][shuffled]]
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            histories = setting.train.take(block)
            shorter = Sequences(histories.items, histories.ends - shown[scale][block], histories.ends)
            users = setting.users[block] if teacher.takes == "user" else None
            ranking, answered = teacher.rank_within_budget(shorter, k, users=users)
            ranking.check(setting.n_items)
            listed = ranking.items
            if teacher.exclude_history and scale != -1:
                listed = without(listed, histories, setting.n_items)
            items[scale, block, : listed.shape[1]] = np.where(answered[:, None], listed, 0)
            if scale == -1 and scores is not None and ranking.scores is not None:
                scores[block, : listed.shape[1]] = np.where(answered[:, None] & (listed > 0), ranking.scores, -np.inf)
            done += len(block)
            setting.progress("asking the teacher", done, int(asked.sum()))
        if scale == -1:
            asked[:-1] &= items[-1, :, 0] > 0
            if not items[-1].any():
                raise TeacherError(
                    f"teacher {teacher.identity!r} answered none of {len(rows):,} histories, so there is nothing "
                    "to distil; raise its budget, or look at what it answers."
                )
    return Probe(shares, items, scores)


def without(lists: Items, histories: Sequences, n_items: int) -> Items:
    """Take the items of each whole history out of the lists ``(B, K)`` that were given for a part of it.

    The answer to the whole history cannot name them, so that they would count as disagreement.
    """
    flat, offsets = histories.flat()
    owner = np.repeat(np.arange(len(histories)), np.diff(offsets))
    seen = np.isin(np.arange(len(lists))[:, None] * (n_items + 1) + lists, owner * (n_items + 1) + flat)
    kept = np.where(seen, 0, lists)
    return np.take_along_axis(kept, np.argsort(kept == 0, axis=1, kind="stable"), axis=1)


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


def consensus(items: Items, n_items: int, *, quorum: float = 0.0) -> tuple[Items, Ints]:
    r"""What the answers say together, in the order of their summed ranks (Borda count).

    .. math:: b_i = \sum_m \max(0, K + 1 - \mathrm{rank}_m(i))

    Args:
        items: ``(M, R, K)`` lists; a list of nothing but padding is no answer. The last of M is the whole history's,
            whose order decides between equal b.
        n_items: N.
        quorum: only items are kept that more than this share of a row's answers list; 0.5 is the majority.

    Returns:
        ``(R, K)`` the K best items, highest b first, 0 for padding, and their b, 0 under padding.
    """
    n_rows, k = items.shape[1:]
    listed, points = np.zeros((n_rows, k), np.int32), np.zeros((n_rows, k), np.int64)
    for start in range(0, n_rows, _BLOCK):
        block = slice(start, min(start + _BLOCK, n_rows))
        listed[block], points[block] = _borda(items[:, block], n_items, quorum)
    return listed, points


def _borda(items: Items, n_items: int, quorum: float) -> tuple[Items, Ints]:
    n_scales, n_rows, k = items.shape
    scale, row, rank = np.nonzero(items)
    cells, cell = np.unique(row * (n_items + 1) + items[scale, row, rank], return_inverse=True)
    owner, item = cells // (n_items + 1), cells % (n_items + 1)
    points = np.bincount(cell, k - rank, len(cells)).astype(np.int64)
    whole = np.bincount(cell, (k - rank) * (scale == n_scales - 1), len(cells))
    votes = np.bincount(cell, minlength=len(cells))
    answers = np.count_nonzero(items[:, :, 0], axis=0)

    kept = np.flatnonzero(votes > quorum * answers[owner])
    kept = kept[np.lexsort((item[kept], -whole[kept], -points[kept], owner[kept]))]
    place = np.arange(len(kept)) - np.searchsorted(owner[kept], owner[kept])
    kept, place = kept[place < k], place[place < k]
    listed, totals = np.zeros((n_rows, k), np.int32), np.zeros((n_rows, k), np.int64)
    listed[owner[kept], place] = item[kept]
    totals[owner[kept], place] = points[kept]
    return listed, totals
