"""What a data set is like, and what each split would leave of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recdistill.data.dataset import Dataset
from recdistill.data.splits import Split, last_basket, leave_one_out, random_split, time_cut
from recdistill.errors import DataError

QUANTILES = {"shortest": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "90 %": 0.9, "longest": 1.0}
SPLITS: dict[str, Callable[[Dataset], Split]] = {
    "leave-one-out": leave_one_out,
    "last-basket": last_basket,
    "time-cut": time_cut,
    "random": random_split,
}
"""By the name that ``split.protocol`` of a run file takes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a split with its default settings leaves, or why it cannot be made."""

    protocol: str
    train_interactions: int
    valid_cases: int
    test_cases: int
    seen_targets: float
    """Share of test targets that the history holds already; they cannot be hit while seen items are masked."""


@dataclass(frozen=True, slots=True)
class Description:
    """The figures of a data set."""

    n_users: int
    n_items: int
    n_interactions: int
    density: float
    """Interactions over users × items; repeats count."""
    mean_length: float
    lengths: dict[str, float]
    """Quantiles of the number of interactions of a user, by name."""
    equal_times: float | None
    """Share of interactions at the very time of an earlier one of the same user; None without times."""
    repeats: float
    """Share of interactions with an item that the same user took before."""
    splits: dict[str, Outcome | str]
    """By name: what each split leaves, or why it cannot be made."""


def describe(dataset: Dataset) -> Description:
    """Return the figures of a data set."""
    sequences, n = dataset.sequences, dataset.n_interactions
    lengths = sequences.lengths
    return Description(
        n_users=dataset.n_users,
        n_items=dataset.n_items,
        n_interactions=n,
        density=n / (dataset.n_users * dataset.n_items),
        mean_length=float(lengths.mean()),
        lengths={name: float(np.quantile(lengths, q)) for name, q in QUANTILES.items()},
        equal_times=_equal_times(dataset),
        repeats=1 - len(np.unique(sequences.pairs(dataset.n_items))) / n,
        splits={name: _outcome(split, dataset) for name, split in SPLITS.items()},
    )


def _equal_times(dataset: Dataset) -> float | None:
    if dataset.times is None:
        return None
    times = dataset.times
    equal = np.zeros(len(times), bool)
    equal[1:] = times[1:] == times[:-1]
    equal[dataset.sequences.starts] = False
    return float(equal.mean())


def _outcome(make: Callable[[Dataset], Split], dataset: Dataset) -> Outcome | str:
    try:
        split = make(dataset)
    except DataError as error:
        return str(error)
    return Outcome(
        protocol=split.protocol,
        train_interactions=int(split.train.lengths.sum()),
        valid_cases=len(split.valid),
        test_cases=len(split.test),
        seen_targets=float(split.test.seen_targets(dataset.n_items).mean()),
    )
