"""The one question that every teacher answers: the top K for some histories."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from recdistill.data.dataset import Items, Sequences
from recdistill.errors import TeacherError

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Ranked lists, best item first."""

    items: Items
    """``(B, K)`` dense item ids; a list shorter than K is padded with 0 at its end."""
    scores: Scores | None = None
    """``(B, K)`` the teacher's scores, −∞ under padding; ``None`` where it gives none."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """``(B,)`` number of items listed in each row."""
        lengths: npt.NDArray[np.int64] = np.count_nonzero(self.items > 0, axis=1)
        return lengths

    def check(self, n_items: int) -> Ranking:
        """Return the ranking itself if it makes sense.

        Raises:
            TeacherError: for an unknown item, an item listed twice, padding inside a list, or a score that is not a
                finite number or does not fall along the list.
        """
        items = self.items
        if items.min(initial=0) < 0 or items.max(initial=0) > n_items:
            raise TeacherError(f"a ranking names an item outside 1…{n_items}")
        real = items > 0
        if (real[:, 1:] & ~real[:, :-1]).any():
            raise TeacherError("a ranking has padding in the middle of a list")
        ordered = np.sort(items, axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)).any():
            raise TeacherError("a ranking lists an item twice")
        if self.scores is not None:
            if not np.isfinite(self.scores[real]).all():
                raise TeacherError("a ranking has a score that is not a finite number")
            if (np.diff(self.scores, axis=1)[real[:, 1:]] > 0).any():
                raise TeacherError("a ranking's scores rise along the list; the best item must come first")
        return self


class Teacher(ABC):
    """A recommender that is asked, never looked into.

    Dense ids go in and out; a teacher that speaks raw ids to the outside translates at its own edge.
    """

    gives_scores: bool = False
    """Whether rankings come with scores."""
    takes: Literal["history", "user"] = "history"
    """What a query consists of."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A name that stays the same over runs and differs between teachers; the ledger files answers under it."""

    @abstractmethod
    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Return the top ``k`` for each history (or user), without the items of that history.

        Args:
            histories: B rows of dense item ids, oldest first.
            k: length of the lists.
            users: ``(B,)`` dense users, for teachers that take the user.

        Raises:
            TeacherError: when no sensible answer could be had.
        """
