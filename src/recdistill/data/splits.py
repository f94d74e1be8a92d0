"""Train, validation and test: what a model may see and what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from recdistill.data.dataset import Dataset, Ints, Sequences


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
