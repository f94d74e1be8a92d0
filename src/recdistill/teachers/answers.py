"""What goes to a teacher and what comes back: requests, answers and failures, scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np

from recdistill.arrays import Ints
from recdistill.data.dataset import RawId
from recdistill.errors import TeacherError
from recdistill.rankings import Scores


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One question, in the ids that the teacher speaks."""

    row: int
    """Which of the histories asked about this is."""
    history: list[RawId]
    """Items, oldest first."""
    user: RawId | None = None
    """The user, where users were given."""
    failed_before: bool = False
    """Whether an earlier run asked it in vain, so that another failure says nothing new of the teacher."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One list as the teacher gave it: nothing dropped or translated yet."""

    items: list[RawId]
    scores: list[float] | None = None
    calls: int = 1
    """How often the teacher was called until it answered."""


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """A question that the teacher did not answer."""

    reason: str
    calls: int = 1
    paid: bool = True
    """Whether it may have been paid for all the same; false only where the teacher surely did not serve it."""
    final: bool = False
    """Whether it would fare no better another time, so that no later run asks it."""


Outcome: TypeAlias = tuple[Request, Answer | Failure]
Scorer: TypeAlias = Callable[[Ints, Ints | None], Scores]
"""``scorer(rows, candidates)`` gives the scores ``(b, C)`` of ``candidates (b, C)`` for some ``rows (b,)``.

Where ``None`` is asked for they are those of all items 1…N, ``(b, N)``.
"""
Take: TypeAlias = Callable[[int], list[Request]]
"""``take(n)`` hands out at most n requests that are to be asked right now; none when there are no more."""


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """What lies behind a teacher's scores: the score of an item is the product of query and item."""

    queries: Scores
    """``(B, D)`` a vector for each history or user."""
    items: Scores
    """``(N+1, D)`` a vector for each item; row 0 is padding."""


def check_items(items: Sequence[object]) -> list[RawId]:
    """Return the ids of a list.

    Raises:
        TeacherError: when one is neither an integer nor a string, or holds half a character, which no file can.
    """
    if not _are(items, (int, str)):
        wrong = next(item for item in items if not _are([item], (int, str)))
        raise TeacherError(f"item ids must be integers or strings, but one is {wrong!r}")
    checked = cast("list[RawId]", list(items))
    try:
        "".join([item for item in checked if isinstance(item, str)]).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise TeacherError(f"item ids must be whole text, but one holds {half!r}, half of a character") from None
    return checked


def check_scores(scores: Sequence[object], n_items: int) -> list[float]:
    """Return the scores of a list of ``n_items``.

    Raises:
        TeacherError: for another number of scores, one that is not a finite number, or scores that rise.
    """
    if len(scores) != n_items:
        raise TeacherError(f"a list of {n_items} items has {len(scores)} scores; there must be one for each item")
    numbers = cast("Sequence[float]", scores)
    if not _are(scores, (int, float)) or not all(map(_LARGEST.__ge__, map(abs, numbers))):
        wrong = next(score for score in numbers if not _are([score], (int, float)) or not abs(score) <= _LARGEST)
        raise TeacherError(f"scores must be finite numbers, but one is {wrong!r}")
    values = list(map(float, numbers))
    if values != sorted(values, reverse=True):
        raise TeacherError(
            "scores rise along a list; the best item must come first. Where the order is the ranking all the same, "
            "give no scores (gives_scores = false)"
        )
    return values


def _are(values: Sequence[object], types: tuple[type, ...]) -> bool:
    """Say whether all values are of some types, bool being none; quickly, as answers are read by the million."""
    return all(issubclass(kind, types) and kind is not bool for kind in set(map(type, values)))


_LARGEST = float(np.finfo(np.float32).max)
