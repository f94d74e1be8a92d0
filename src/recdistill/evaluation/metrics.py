"""Ranking metrics as functions of the positions at which the targets stand.

A case with several targets has several ranks. Everywhere here ``ranks (T,)`` is flat, case after case, and ``offsets
(C+1,)`` cuts it: the ranks of case ``c`` are ``ranks[offsets[c]:offsets[c+1]]``, at least one. Ranks count from 1, no
two of a case are equal, and a target that is not ranked at all has the rank `MISS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from recdistill.arrays import Floats, Ints, Items

Ranks: TypeAlias = npt.NDArray[np.int32]

MISS = int(np.iinfo(np.int32).max)
"""The rank of a target that is not in the ranking: worse than every k."""


def hit_rate(ranks: Ranks, offsets: Ints, k: int) -> Floats:
    """1 for a case with a target among the top ``k``, else 0; shape ``(C,)``."""
    return (_best(ranks, offsets) <= k).astype(np.float64)


def recall(ranks: Ranks, offsets: Ints, k: int) -> Floats:
    """Share of a case's targets that are among the top ``k``; shape ``(C,)``."""
    found: Floats = np.add.reduceat(ranks <= k, offsets[:-1], dtype=np.float64)
    return found / np.diff(offsets)


def reciprocal_rank(ranks: Ranks, offsets: Ints, k: int) -> Floats:
    """1 / rank of a case's best target, 0 where that is below the top ``k``; shape ``(C,)``."""
    best = _best(ranks, offsets)
    return np.where(best <= k, 1.0 / best, 0.0)


def ndcg(ranks: Ranks, offsets: Ints, k: int) -> Floats:
    r"""Discounted gain of the targets over that of the best possible list; shape ``(C,)``.

    .. math:: \frac{\sum_{t:\, r_t \le k} 1 / \log_2(1 + r_t)}{\sum_{r=1}^{\min(k, |targets|)} 1 / \log_2(1 + r)}
    """
    gains = np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)
    ideal = np.cumsum(1.0 / np.log2(1.0 + np.arange(1, k + 1)))
    found: Floats = np.add.reduceat(gains, offsets[:-1])
    possible: Floats = ideal[np.minimum(np.diff(offsets), k) - 1]
    return found / possible


METRICS: dict[str, Callable[[Ranks, Ints, int], Floats]] = {
    "hr": hit_rate,
    "ndcg": ndcg,
    "mrr": reciprocal_rank,
    "recall": recall,
}
"""The metrics of a case by the name that they have in result tables."""


def coverage(lists: Items, n_items: int) -> float:
    """Share of the ``n_items`` items that stand in at least one list ``(C, k)``; 0 in a list is padding."""
    return len(np.unique(lists[lists > 0])) / n_items


def gini(lists: Items, n_items: int) -> float:
    r"""Gini coefficient of how often each of the ``n_items`` items is shown in lists ``(C, k)``.

    .. math:: \frac{\sum_i (2i - N - 1)\, c_i}{N \sum_i c_i}, \quad c_1 \le \dots \le c_N \text{ times shown}

    0 when all are shown equally often, near 1 when a few take all places; NaN when nothing is shown.
    """
    shown = np.sort(np.bincount(lists[lists > 0], minlength=n_items + 1)[1:]).astype(np.float64)
    if shown.sum() == 0:
        return float("nan")
    weights = 2.0 * np.arange(1, n_items + 1) - n_items - 1
    return float(weights @ shown / (n_items * shown.sum()))


def _best(ranks: Ranks, offsets: Ints) -> Ranks:
    best: Ranks = np.minimum.reduceat(ranks, offsets[:-1])
    return best
