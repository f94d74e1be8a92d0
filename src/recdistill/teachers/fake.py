"""A function posing as a teacher, for tests: it counts what it is asked, and fails when told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from recdistill.arrays import Items
from recdistill.data.dataset import Sequences
from recdistill.errors import TeacherError
from recdistill.rankings import Ranking
from recdistill.teachers.base import Teacher

Rule = Callable[[Items, int], Sequence[int]]


class FakeTeacher(Teacher):
    """Items stand in a circle, and the answer is those that follow the newest one; N follows 1.

    Its n-th score is 1/n. It fails on the queries whose numbers, from 1, are in ``fails_on``.

    Args:
        n_items: N.
        rule: another answer: a function of one history and k.
        gives_scores: whether rankings come with scores.
        identity: its name.
        batch_size: how many requests it is asked at once.
    """

    n_items: int

    def __init__(
        self,
        n_items: int,
        rule: Rule | None = None,
        *,
        gives_scores: bool = False,
        identity: str = "fake",
        batch_size: int = 1024,
    ) -> None:
        self.n_items = n_items
        self.rule = rule if rule is not None else self._next_in_circle
        self.gives_scores = gives_scores
        self.batch_size = batch_size
        self.asked: list[list[int]] = []
        """Every history it was asked about, in order."""
        self.fails_on: set[int] = set()
        """Numbers of the queries, counted from 1, at which it raises."""
        self._identity = identity

    @property
    def identity(self) -> str:
        """The name that was given."""
        return self._identity

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Return what the rule says.

        Raises:
            TeacherError: on a query in ``fails_on``.
        """
        items = np.zeros((len(histories), k), np.int32)
        for row, history in enumerate(histories):
            self.asked.append(history.tolist())
            if len(self.asked) in self.fails_on:
                raise TeacherError(f"teacher {self.identity!r} was told to fail on query {len(self.asked)}")
            listed = list(self.rule(history, k))
            items[row, : len(listed)] = listed
        if not self.gives_scores:
            return Ranking(items)
        scores = np.where(items > 0, 1 / np.arange(1, k + 1), -np.inf).astype(np.float32)
        return Ranking(items, scores)

    def _next_in_circle(self, history: Items, k: int) -> list[int]:
        seen = set(history.tolist())
        circle = ((int(history[-1]) + step - 1) % self.n_items + 1 for step in range(1, self.n_items))
        return list(islice((item for item in circle if item not in seen), k))
