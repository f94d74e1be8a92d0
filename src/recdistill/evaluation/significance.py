"""Doubt: bootstrap intervals over users, and a paired test by user.

Users, not cases, are what is drawn at random, so cases of one user are kept together.
"""

from __future__ import annotations

import numpy as np

from recdistill.arrays import Floats, Ints

_SIGNS = 1 << 24
"""Random signs held at once; bounds memory, not the result."""
_EXACT = 13
"""With at most this many differing users all 2^13 = 8,192 sign patterns are tried, fewer than the random draws."""


def bootstrap_interval(
    values: Floats, users: Ints, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
) -> Floats:
    """Percentile bootstrap interval of means over cases, users drawn with replacement.

    Args:
        values: ``(C, M)`` M values of each case; all M share the draws.
        users: ``(C,)`` whose case it is.
        level: probability that the interval is to hold the mean, 0…1.
        n_resamples: how often the users are drawn.
        seed: of the draws.

    Returns:
        ``(2, M)`` lower and upper ends; NaN where there are no cases.
    """
    if len(values) == 0:
        return np.full((2, values.shape[1]), np.nan)
    totals = by_user(np.column_stack([values, np.ones(len(values))]), users)
    generator = np.random.default_rng(seed)
    n_users = len(totals)
    means = np.empty((n_resamples, values.shape[1]))
    for draw in range(n_resamples):
        drawn = np.bincount(generator.integers(n_users, size=n_users), minlength=n_users) @ totals
        means[draw] = drawn[:-1] / drawn[-1]
    tail = (1.0 - level) / 2.0
    ends: Floats = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return ends


def sign_flip_test(differences: Floats, *, n_resamples: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of a paired randomisation test on the mean difference.

    If two systems were equally good, each user's difference could as well have had the other sign. The p-value is the
    share of sign patterns whose mean is at least as far from 0 as the one seen. It tests the mean, the number that is
    reported; users on whom both agree (most of them, with NDCG of one target) neither help nor harm it. The Wilcoxon
    test would drop them and compare ranks of differences, which can contradict the means.

    Args:
        differences: ``(U,)`` one value a user.
        n_resamples: random sign patterns; with at most 13 differing users all patterns are tried instead.
        seed: of the draws.

    Returns:
        p in (0, 1]; at least 1 / (n_resamples + 1) where patterns are drawn.
    """
    differing = differences[differences != 0]
    if len(differing) == 0:
        return 1.0
    seen = abs(differing.sum()) * (1.0 - 1e-12)  # a sum in another order may differ in its last digits
    if len(differing) <= _EXACT:
        patterns = np.arange(2 ** len(differing))[:, None] >> np.arange(len(differing)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ differing) >= seen))
    generator = np.random.default_rng(seed)
    as_extreme = 1
    block = max(1, _SIGNS // len(differing))
    for start in range(0, n_resamples, block):
        rows = min(block, n_resamples - start)
        flips = np.frombuffer(generator.bytes(rows * -(-len(differing) // 8)), np.uint8).reshape(rows, -1)
        flipped = np.unpackbits(flips, axis=1, count=len(differing)) @ differing
        as_extreme += int(np.count_nonzero(np.abs(differing.sum() - 2.0 * flipped) >= seen))
    return as_extreme / (n_resamples + 1)


def by_user(values: Floats, users: Ints) -> Floats:
    """Sum the values ``(C, …)`` of each user's cases; ``(U, …)`` in rising order of users."""
    _, row = np.unique(users, return_inverse=True)
    totals = np.zeros((int(row.max(initial=-1)) + 1, *values.shape[1:]))
    np.add.at(totals, row, values)
    return totals
