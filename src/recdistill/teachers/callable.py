"""Any Python function as a teacher: another library's model, a client of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from recdistill.data.dataset import IdMap, Ints, RawId
from recdistill.errors import SettingsError, TeacherError
from recdistill.teachers.base import Answer, Outcome, OutsideTeacher, Take, check_items, check_scores

Function: TypeAlias = Callable[[list[list[RawId]], int], Any]


class CallableTeacher(OutsideTeacher):
    """A function ``fn(histories, k)`` that returns a list of item ids for each history, best first.

    With ``gives_scores`` it returns ``(lists, scores)``, both with one row for each history. Lists may be shorter than
    ``k``, never longer. The function is never called again for what it raised on; under a budget, the whole batch it
    raised on counts as spent, because part of it may have been paid for: keep ``batch_size`` small where that matters.

    Args:
        fn: the function.
        identity: a name that changes whenever the answers may.
        ids: the items in the function's own ids. Without it the function speaks dense ids, 0 is padding, and
            ``identity`` must change whenever the data do.
        n_items: N; needed without ``ids``.
        gives_scores: whether the function returns scores as well.
        exclude_history: whether items of the history are dropped from the lists.
        batch_size: how many histories one call is given.
    """

    def __init__(
        self,
        fn: Function,
        *,
        identity: str,
        ids: IdMap | None = None,
        n_items: int | None = None,
        gives_scores: bool = False,
        exclude_history: bool = True,
        batch_size: int = 256,
    ) -> None:
        if (ids is None) == (n_items is None):
            raise SettingsError(
                f"teacher {identity!r}: give either ids, for a function that speaks raw ids, or n_items, for dense ids."
            )
        self.fn = fn
        self.ids = ids
        self.n_items = n_items
        self.gives_scores = gives_scores
        self.exclude_history = exclude_history
        self.batch_size = batch_size
        self._identity = identity

    @property
    def identity(self) -> str:
        """The name that was given."""
        return self._identity

    def answers(self, take: Take, k: int) -> Iterator[list[Outcome]]:
        """Call the function with a batch of histories at a time.

        Raises:
            TeacherError: when the function raises, or returns something else than was agreed.
        """
        while requests := take(self.batch_size):
            histories = [request.history for request in requests]
            try:
                returned = self.fn(histories, k)
            except Exception as error:
                raise TeacherError(
                    f"teacher {self.identity!r} raised {type(error).__name__} when asked about {len(histories)} "
                    f"histories: {error}"
                ) from error
            yield list(zip(requests, self._read(returned, len(histories), k), strict=True))

    def _dense(self, raw: list[RawId]) -> Ints:
        """Return ``(n,)`` dense ids, −1 for unknown ones."""
        if self.n_items is None:
            return super()._dense(raw)
        known = range(self.n_items + 1)
        return np.array([item if isinstance(item, int) and item in known else -1 for item in raw], np.int64)

    def _read(self, returned: Any, n: int, k: int) -> list[Answer]:
        """Check what the function returned."""
        lists, scores = returned, None
        if self.gives_scores:
            if not isinstance(returned, tuple) or len(returned) != 2:
                raise TeacherError(
                    f"teacher {self.identity!r} must return (lists, scores), but returned a {type(returned).__name__}; "
                    "set gives_scores to false if it has no scores."
                )
            lists, scores = returned
        elif isinstance(returned, tuple):
            raise TeacherError(
                f"teacher {self.identity!r} returned a tuple; return a list of lists, or set gives_scores to true "
                "if it returns (lists, scores)."
            )
        rows = self._rows(lists, n, "lists")
        scored = [None] * n if scores is None else self._rows(scores, n, "rows of scores")
        return [self._answer(items, given, k) for items, given in zip(rows, scored, strict=True)]

    def _answer(self, items: list[Any], scores: list[Any] | None, k: int) -> Answer:
        if len(items) > k:
            raise TeacherError(
                f"teacher {self.identity!r} returned {len(items)} items for a top-{k} request; return at most {k}."
            )
        try:
            checked = check_items(items)
            numbers = None if scores is None else check_scores(scores, len(items))
        except TeacherError as error:
            raise TeacherError(f"teacher {self.identity!r}: {error}") from error
        return Answer(checked, numbers)

    def _rows(self, value: Any, n: int, what: str) -> list[list[Any]]:
        """Return n rows as plain lists; arrays and tensors are taken as well."""
        value = _plain(value)
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TeacherError(f"teacher {self.identity!r} must return {what}, but returned a {type(value).__name__}.")
        rows = [_plain(row) for row in value]
        if len(rows) != n:
            raise TeacherError(f"teacher {self.identity!r} returned {len(rows)} {what} for {n} histories.")
        for row in rows:
            if not isinstance(row, Sequence) or isinstance(row, str):
                raise TeacherError(
                    f"teacher {self.identity!r} must return a list for each history, but one is {row!r}."
                )
        return [[_plain(cell) for cell in row] for row in rows]


def _plain(value: Any) -> Any:
    """Turn arrays, tensors and their scalars into Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value
