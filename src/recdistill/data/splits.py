"""Train, validation and test: what a model may see and what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recdistill.arrays import Ints, Items, Times
from recdistill.data.columns import instant
from recdistill.data.dataset import Dataset, Sequences
from recdistill.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Cases:
    """Evaluation rows: a user, the history shown, one or more targets, and the items left out of the ranking."""

    users: Ints
    """``(C,)`` dense user of each case."""
    histories: Sequences
    """``C`` rows, what the model is shown; never empty."""
    targets: Sequences
    """``C`` rows, what the user really took next; never empty."""
    masked: Sequences
    """``C`` rows, items that are not ranked: the history, or nothing where ``mask_seen`` is false."""

    def __len__(self) -> int:
        return len(self.users)

    def seen_targets(self, n_items: int) -> npt.NDArray[np.bool_]:
        """``(T,)`` which targets the history of their own case holds; where that is masked they cannot be found."""
        return np.isin(self.targets.pairs(n_items), self.histories.pairs(n_items))

    def take(self, rows: npt.NDArray[np.integer]) -> Cases:
        """Return the chosen cases, in the order given; a view."""
        return Cases(self.users[rows], *(side.take(rows) for side in (self.histories, self.targets, self.masked)))


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One data set cut into training sequences and two sets of evaluation cases."""

    protocol: str
    """The cut in words, e.g. ``leave-one-out, seen items masked``; printed with every number."""
    dataset: Dataset
    train: Sequences
    """One row a user, in the data set's order; a user without training interactions has an empty row."""
    valid: Cases
    test: Cases

    @property
    def masks_seen(self) -> bool:
        """Whether items of the history are left out of the rankings."""
        return bool(self.test.masked.lengths.any())


def leave_one_out(dataset: Dataset, *, mask_seen: bool = True) -> Split:
    """Each user's last item is the test target, the last but one the validation target.

    At test time the validation item is part of the history. Users with fewer than 3 interactions are trained on, but
    not evaluated. Everything is a view.

    Args:
        dataset: what to split.
        mask_seen: leave the items of the history out of the ranking; False for data with repeats, where a target that
            the user took before could otherwise never be found.

    Raises:
        DataError: when no user has 3 interactions.
    """
    sequences = dataset.sequences
    evaluated = np.flatnonzero(sequences.lengths >= 3)
    if len(evaluated) == 0:
        raise DataError("leave-one-out leaves nothing to evaluate: no user has 3 interactions")
    last = sequences.ends[evaluated]
    return _split(
        "leave-one-out (last item test, last but one validation)", dataset, evaluated, last - 2, last - 1, mask_seen
    )


def last_basket(dataset: Dataset, *, mask_seen: bool = True) -> Split:
    """All rows of a user's last time are the test targets, those of the last time but one the validation targets.

    At test time the validation basket is part of the history. Users with fewer than 3 different times are trained on,
    but not evaluated. An item that occurs twice in a basket is one target. Everything else is a view.

    Args:
        dataset: what to split.
        mask_seen: leave the items of the history out of the ranking; False for data with repeats.

    Raises:
        DataError: when there are no times, or no user has 3 different ones.
    """
    times = _times(dataset, "last basket")
    sequences = dataset.sequences
    begins = np.ones(len(times), bool)  # a basket begins with a user's history or with a new time
    begins[1:] = times[1:] != times[:-1]
    begins[sequences.starts[sequences.lengths > 0]] = True
    baskets = np.flatnonzero(begins)
    after = np.searchsorted(baskets, sequences.ends)
    evaluated = np.flatnonzero(after - np.searchsorted(baskets, sequences.starts) >= 3)
    if len(evaluated) == 0:
        raise DataError("last basket leaves nothing to evaluate: no user has interactions at 3 different times")
    valid_from, test_from = baskets[after[evaluated] - 2], baskets[after[evaluated] - 1]
    protocol = "last basket (all rows of the last time test, of the last but one validation)"
    return _split(protocol, dataset, evaluated, valid_from, test_from, mask_seen)


def time_cut(
    dataset: Dataset,
    *,
    at: float | str | None = None,
    valid_at: float | str | None = None,
    mask_seen: bool = True,
) -> Split:
    """Train before one instant for all users, test from it on; validation lies between an earlier instant and it.

    Training is what happened before ``valid_at``, validation targets from ``valid_at`` until before ``at``, test
    targets from ``at`` on; histories are all that came before. A user is evaluated where both history and targets are
    not empty. An item that a user takes twice in a window is one target. Everything else is a view.

    Args:
        dataset: what to split.
        at: the instant, in the unit of the data's times, or as ISO text if these are seconds since 1970; by default
            the time after nine tenths of all interactions.
        valid_at: the earlier instant; by default the time after nine tenths of the interactions before ``at``.
        mask_seen: leave the items of the history out of the ranking; False for data with repeats.

    Raises:
        DataError: when there are no times, or an instant leaves nothing to train on or to evaluate.
    """
    times = _times(dataset, "time cut")
    cut = _instant(times, at)
    if not times.min() < cut <= times.max():
        raise DataError(
            f"the time cut at {at if at is not None else cut} lies outside the data, whose times run from "
            f"{times.min()} to {times.max()}; give the instant in the same unit."
        )
    valid_cut = _instant(times[times < cut], valid_at)
    if not times.min() < valid_cut < cut:
        raise DataError(
            f"the validation instant {valid_at if valid_at is not None else valid_cut} must lie after the first time, "
            f"{times.min()}, and before the cut at {cut}; give another one with valid_at."
        )
    sequences = dataset.sequences
    valid_from, test_from = (sequences.starts + _count(times < t, sequences) for t in (valid_cut, cut))
    protocol = f"time cut at {at if at is not None else cut} (validation from {valid_at or valid_cut})"
    users = np.arange(len(sequences))
    return _split(protocol, dataset, users, valid_from, test_from, mask_seen)


def random_split(dataset: Dataset, *, seed: int = 0, file_order: bool = False, mask_seen: bool = True) -> Split:
    """Eight tenths of each user's interactions train, one tenth validation, one tenth test, drawn at random.

    Of n interactions, max(⌊0.8 n⌋, 1) train and those up to ⌊0.9 n⌋ validate, so a user with 2 to 4 interactions, or 5,
    has a test case but none for validation. At test time the validation items are part of the history. Items keep
    their order of time, also where the parts are drawn at random.

    Args:
        dataset: what to split.
        seed: of the draw.
        file_order: draw nothing: the first eight tenths of each sequence train, and so on, as some published splits
            do; everything is then a view.
        mask_seen: leave the items of the history out of the ranking; False for data with repeats.

    Raises:
        DataError: when nothing is left to evaluate.
    """
    sequences = dataset.sequences
    n = sequences.lengths
    n_train, n_known = np.maximum(n * 8 // 10, 1), np.maximum(n * 9 // 10, 1)
    n_train, n_known = np.minimum(n_train, n), np.minimum(n_known, n)
    users = np.arange(len(sequences))
    if file_order:
        protocol = "8:1:1 per user in file order"
        return _split(protocol, dataset, users, sequences.starts + n_train, sequences.starts + n_known, mask_seen)
    items, offsets = sequences.flat()
    row = np.repeat(users, n)
    # The rank of each interaction in a random order of its user's interactions decides its part.
    order = np.lexsort((np.random.default_rng(seed).random(len(items)), row))
    rank = np.empty(len(items), np.int64)
    rank[order] = np.arange(len(items)) - np.repeat(offsets[:-1], n)
    is_train, is_known = rank < np.repeat(n_train, n), rank < np.repeat(n_known, n)
    train, known = _rows(items, row, is_train, len(users)), _rows(items, row, is_known, len(users))
    valid, test = _rows(items, row, is_known & ~is_train, len(users)), _rows(items, row, ~is_known, len(users))
    return _checked(
        Split(
            protocol=_protocol(f"random 8:1:1 per user, seed {seed}", mask_seen),
            dataset=dataset,
            train=train,
            valid=_cases(users, train, valid, mask_seen),
            test=_cases(users, known, test, mask_seen),
        )
    )


def _split(protocol: str, dataset: Dataset, users: Ints, valid_from: Ints, test_from: Ints, mask_seen: bool) -> Split:
    """Cut the sequences of ``users`` at two places, indices into the flat items; others are only trained on."""
    sequences = dataset.sequences
    train_ends = sequences.ends.copy()
    train_ends[users] = valid_from
    starts, ends = sequences.starts[users], sequences.ends[users]

    def view(begin: Ints, end: Ints) -> Sequences:
        return Sequences(sequences.items, begin, end)

    return _checked(
        Split(
            protocol=_protocol(protocol, mask_seen),
            dataset=dataset,
            train=view(sequences.starts, train_ends),
            valid=_cases(users, view(starts, valid_from), view(valid_from, test_from), mask_seen),
            test=_cases(users, view(starts, test_from), view(test_from, ends), mask_seen),
        )
    )


def _cases(users: Ints, histories: Sequences, targets: Sequences, mask_seen: bool) -> Cases:
    """Keep the cases in which neither history nor targets are empty."""
    full = np.flatnonzero((histories.lengths > 0) & (targets.lengths > 0))
    shown = histories.take(full)
    return Cases(
        users=users[full],
        histories=shown,
        targets=_distinct(targets.take(full)),
        masked=shown if mask_seen else Sequences.empty(len(full)),
    )


def _distinct(rows: Sequences) -> Sequences:
    """Drop items that occur in their row before; the rows themselves where none does."""
    if rows.lengths.max(initial=0) < 2:
        return rows
    items, _ = rows.flat()
    row = np.repeat(np.arange(len(rows)), rows.lengths)
    order = np.lexsort((items, row))
    again = np.zeros(len(items), bool)
    again[order[1:]] = (items[order][1:] == items[order][:-1]) & (row[order][1:] == row[order][:-1])
    return _rows(items, row, ~again, len(rows)) if again.any() else rows


def _rows(items: Items, row: Ints, chosen: npt.NDArray[np.bool_], n_rows: int) -> Sequences:
    """Copy the chosen items; ``row`` is the row of each item, ascending."""
    offsets = np.zeros(n_rows + 1, np.int64)
    np.cumsum(np.bincount(row[chosen], minlength=n_rows), out=offsets[1:])
    return Sequences.from_offsets(items[chosen], offsets)


def _count(which: npt.NDArray[np.bool_], sequences: Sequences) -> Ints:
    """Count the marked interactions of each row; ``which`` is parallel to the flat items."""
    total = np.zeros(len(which) + 1, np.int64)
    np.cumsum(which, out=total[1:])
    counts: Ints = total[sequences.ends] - total[sequences.starts]
    return counts


def _times(dataset: Dataset, protocol: str) -> Times:
    if dataset.times is None:
        raise DataError(
            f"a {protocol} split needs times, but this data has only an order; name the column of times when reading, "
            "or split by leave_one_out or random_split."
        )
    return dataset.times


def _instant(times: Times, at: float | str | None) -> float:
    """Return the instant asked for; by default the time after nine tenths of ``times``."""
    if isinstance(at, str):
        return instant(at)
    if at is not None:
        return at
    place = len(times) * 9 // 10
    default: float = np.partition(times, place)[place].item()
    return default


def _protocol(cut: str, mask_seen: bool) -> str:
    return f"{cut}, seen items {'masked' if mask_seen else 'not masked'}"


def _checked(split: Split) -> Split:
    for name, cases in (("validate", split.valid), ("test", split.test)):
        if len(cases) == 0:
            raise DataError(
                f"{split.protocol}: nothing is left to {name} on, among {split.dataset.n_users:,} users with "
                f"{split.dataset.n_interactions:,} interactions; use another split."
            )
    return split
