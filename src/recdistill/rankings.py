"""Ranked lists, by whoever ranked: a model, a teacher, a file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recdistill.arrays import Ints, Items
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

    @property
    def rows_answered(self) -> Ints:
        """``(r,)`` the rows that list something."""
        return np.flatnonzero(self.items.any(axis=1))

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
            if (self.scores[:, 1:] > self.scores[:, :-1])[real[:, 1:]].any():
                raise TeacherError("a ranking's scores rise along the list; the best item must come first")
        return self
