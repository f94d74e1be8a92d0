"""How closely one set of ranked lists follows another: a student and its teacher, or a teacher and itself.

A list shorter than others is padded with 0 at its end. Padding agrees with nothing, and ranks at which both lists have
ended are left out, so that a list always agrees fully with itself. Two empty lists agree in nothing.
"""

from __future__ import annotations

import numpy as np

from recdistill.arrays import Floats, Items
from recdistill.errors import DataError

_PAIRS = 1 << 24
"""Pairs of ranks compared at once; bounds memory, not the result."""


def agreement(first: Items, second: Items, k: int) -> Floats:
    """Share of the top ``k`` that two lists have in common, row by row.

    Args:
        first: ``(B, K)`` ranked items, 0 is padding.
        second: ``(B, K')`` the same for the other side.
        k: ranks that are looked at.

    Returns:
        ``(B,)`` in 0…1: items in common over k, or over the longer list's length where both are shorter than k.
    """
    k = min(k, max(1, first.shape[1], second.shape[1]))
    common = _common(first, second, k)
    depths = _depths(first, second, k)
    return common[:, -1] / np.maximum(depths, 1)


def rank_biased_overlap(first: Items, second: Items, k: int, p: float = 0.9) -> Floats:
    r"""Overlap of two lists at every depth to ``k``, the top weighing most, row by row.

    .. math:: \frac{\sum_{t=1}^{k} p^{t-1} o_t}{\sum_{t=1}^{k} p^{t-1}}, \quad
              o_t = \frac{|A_{1:t} \cap B_{1:t}|}{t}

    Args:
        first: ``(B, K)`` ranked items A, 0 is padding.
        second: ``(B, K')`` ranked items B.
        k: greatest depth t; the longer list's length where both are shorter.
        p: weight of each depth relative to the one above, in 0…1.

    Returns:
        ``(B,)`` in 0…1: 1 for equal lists, 0 for lists without a common item.

    After Webber, Moffat and Zobel, "A similarity measure for indefinite rankings", TOIS 2010, whose sum has no end.
    Differs from it: cut at k and divided by the weights up to k, so that equal lists give 1; nothing is extrapolated.
    """
    depth = np.arange(1, k + 1)
    reached = depth <= _depths(first, second, k)[:, None]
    weights = np.where(reached, p ** (depth - 1.0), 0.0)
    overlap = _common(first, second, k) / depth
    overlaps: Floats = (weights * overlap).sum(1) / np.maximum(weights.sum(1), 1e-300)
    return overlaps


def _common(first: Items, second: Items, k: int) -> Floats:
    """Items that the first t of both lists have in common, for t = 1…k; shape ``(B, k)``."""
    if len(first) != len(second):
        raise DataError(f"{len(first)} lists cannot be compared with {len(second)}: give one of each for every row")
    if k < 1:
        raise DataError(f"lists are compared on their top k; k = {k} leaves nothing, give at least 1")
    first, second = first[:, :k], second[:, :k]
    found = np.zeros((len(first), k))
    block = max(1, _PAIRS // max(1, first.shape[1] * second.shape[1]))
    for start in range(0, len(first), block):
        a, b = first[start : start + block, :, None], second[start : start + block, None, :]
        row, i, j = np.nonzero((a == b) & (a > 0))
        np.add.at(found, (start + row, np.maximum(i, j)), 1.0)
    return np.cumsum(found, axis=1)


def _depths(first: Items, second: Items, k: int) -> Items:
    """Ranks to ``k`` that at least one of both lists reaches; shape ``(B,)``."""
    longest = np.maximum(np.count_nonzero(first, axis=1), np.count_nonzero(second, axis=1))
    depths: Items = np.minimum(longest, k).astype(np.int32)
    return depths
