"""Any Python function as a teacher: another library's model, a client of one's own."""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from recdistill.arrays import Ints
from recdistill.data.dataset import IdMap, RawId
from recdistill.errors import SettingsError, TeacherError
from recdistill.teachers.answers import Answer, Failure, Outcome, Request, Take, check_items, check_scores
from recdistill.teachers.base import OutsideTeacher
from recdistill.teachers.dispatcher import Dispatcher, Streak, interrupts_postponed
from recdistill.teachers.loop import PrivateLoop

Function: TypeAlias = Callable[[Any, int], Any]


class CallableTeacher(OutsideTeacher):
    """A function that names the best items, best first: for a batch of histories, or for one, plain or ``async``.

    ============  ======================  =================================  ================================
    ``batched``   it is called            and returns                        or, with ``gives_scores``
    ============  ======================  =================================  ================================
    true          ``fn(histories, k)``    a list of items for each history   ``(lists, scores)``, both by row
    false         ``fn(history, k)``      a list of items                    ``(items, scores)``
    ============  ======================  =================================  ================================

    With ``takes="user"`` it is called with users instead of histories. Arrays and tensors are taken as lists. Lists may
    be shorter than ``k``, never longer.

    A plain function is called in the caller's thread, one call at a time. A function defined with ``async def``, or an
    object whose ``__call__`` is (`inspect.iscoroutinefunction` tells), is called up to ``concurrency`` times at once.
    All its calls run on one event loop of the teacher's own, so a client with open connections can be kept from call to
    call; open it inside the function, at the first call, if it asks for a running loop.

    A call fails when it raises or returns something else than was agreed; it is not made again before the next run.
    Where calls are for one history each, that history goes without an answer, and ``give_up_after`` failed calls in a
    row end the run. A failed batch ends it at once. Under a budget everything in a failed call counts as spent, because
    it may have been paid for: keep ``batch_size`` small where that matters.

    Args:
        fn: the function.
        identity: a name that changes whenever the answers may.
        ids: the items in the function's own ids. Without it the function speaks dense ids, 0 is padding, and
            ``identity`` must change whenever the data do.
        n_items: N; needed without ``ids``.
        takes: whether the function is given histories or users.
        users: the users in the function's own ids, for a function that takes users; without it these are dense.
        batched: whether a call is given a list of histories (or users), or one.
        gives_scores: whether the function returns scores as well.
        exclude_history: whether items of the history are dropped from the lists.
        batch_size: most histories in one call, where calls are batched.
        concurrency: most calls at once, where the function is ``async``.
        give_up_after: failed calls in a row after which no more are made, where calls are not batched; ten times as
            many of those that failed in an earlier run.
    """

    def __init__(
        self,
        fn: Function,
        *,
        identity: str,
        ids: IdMap | None = None,
        n_items: int | None = None,
        takes: Literal["history", "user"] = "history",
        users: IdMap | None = None,
        batched: bool = True,
        gives_scores: bool = False,
        exclude_history: bool = True,
        batch_size: int = 256,
        concurrency: int = 8,
        give_up_after: int = 10,
    ) -> None:
        if (ids is None) == (n_items is None):
            raise SettingsError(
                f"teacher {identity!r}: give either ids, for a function that speaks raw ids, or n_items, for dense ids."
            )
        for name, value in (("batch_size", batch_size), ("concurrency", concurrency), ("give_up_after", give_up_after)):
            if value < 1:
                raise SettingsError(f"teacher {identity!r}: {name} is {value}; it must be at least 1.")
        self.fn = fn
        self.ids = ids
        self.n_items = n_items
        self.takes = takes
        self.user_ids = users
        self.batched = batched
        self.gives_scores = gives_scores
        self.exclude_history = exclude_history
        self.batch_size = batch_size if batched else 1
        self.concurrency = concurrency
        self.give_up_after = 1 if batched else give_up_after
        self._identity = identity
        self._loop = PrivateLoop()
        weakref.finalize(self, self._loop.close)

    @property
    def identity(self) -> str:
        """The name that was given."""
        return self._identity

    @property
    def is_async(self) -> bool:
        """Whether calls of the function are awaited."""
        return inspect.iscoroutinefunction(self.fn) or inspect.iscoroutinefunction(type(self.fn).__call__)

    def answers(self, take: Take, k: int) -> Iterator[list[Outcome]]:
        """Call the function; on Ctrl-C or an error ``async`` calls in flight are still waited for and yielded.

        Raises:
            TeacherError: when a batch failed, or too many calls in a row.
        """
        dispatcher = _Dispatcher(self, take, k)
        yield from dispatcher.outcomes(self._loop) if self.is_async else dispatcher.in_turn()
        if dispatcher.gave_up is not None:
            raise dispatcher.gave_up

    def _dense(self, raw: list[RawId]) -> Ints:
        """Return ``(n,)`` dense ids, −1 for unknown ones."""
        if self.n_items is None:
            return super()._dense(raw)
        known = range(self.n_items + 1)
        return np.array([item if isinstance(item, int) and item in known else -1 for item in raw], np.int64)


class _Dispatcher(Dispatcher):
    """Asks about the requests that ``take`` hands out."""

    def __init__(self, teacher: CallableTeacher, take: Take, k: int) -> None:
        super().__init__(take, teacher.batch_size)
        self.teacher = teacher
        self.k = k
        self.streak = Streak(teacher.give_up_after)

    def in_turn(self) -> Iterator[list[Outcome]]:
        """Make one call after the other, in this thread."""
        while requests := self.next_requests(1):
            try:
                answers = self._read(self.teacher.fn(self._asked(requests), self.k), len(requests))
            except Exception as error:
                outcomes = self._fail(requests, error)
            else:
                outcomes = self._succeed(requests, answers)
            with interrupts_postponed():
                yield outcomes

    def room(self, in_flight: int) -> int:
        """Return how many more calls may be made."""
        return self.teacher.concurrency - in_flight

    async def ask(self, requests: list[Request]) -> list[Outcome]:
        """Make one call, and await what it returns."""
        try:
            answers = self._read(await self.teacher.fn(self._asked(requests), self.k), len(requests))
        except (Exception, asyncio.CancelledError) as error:  # raised by the function itself, it is a fault like others
            return self._fail(requests, error)
        return self._succeed(requests, answers)

    def _asked(self, requests: list[Request]) -> Any:
        """Return what the function is called with."""
        asked = [request.user if self.teacher.takes == "user" else request.history for request in requests]
        return asked if self.teacher.batched else asked[0]

    def _read(self, returned: Any, n: int) -> list[Answer]:
        """Check what the function returned about n histories."""
        teacher = self.teacher
        lists, scores = _parts(returned, teacher.gives_scores)
        if not teacher.batched:
            lists, scores = [lists], [scores]
        rows = _rows(lists, n, "lists")
        scored = _rows(scores, n, "rows of scores") if teacher.gives_scores else [None] * n
        return [_answer(items, given, self.k) for items, given in zip(rows, scored, strict=True)]

    def _succeed(self, requests: list[Request], answers: list[Answer]) -> list[Outcome]:
        self.streak.end()
        return list(zip(requests, answers, strict=True))

    def _fail(self, requests: list[Request], error: BaseException) -> list[Outcome]:
        """Say what went wrong in a call, and stop where it makes no sense to go on."""
        teacher = self.teacher
        reason = f"teacher {teacher.identity!r} {error}"
        if not isinstance(error, _NotAgreed):
            about = teacher.takes if len(requests) == 1 else {"history": "histories", "user": "users"}[teacher.takes]
            reason = (
                f"teacher {teacher.identity!r} raised {type(error).__name__} when asked about {len(requests)} {about}: "
                f"{error}"
            )
        if n := self.streak.add(little=not teacher.batched and requests[0].failed_before):
            gave_up = f"gave up after {n} failed calls in a row (give_up_after); the last: "
            why = TeacherError(reason if teacher.batched else f"{gave_up}{reason}")
            why.__cause__ = error
            self.give_up(why)
        return [(request, Failure(reason)) for request in requests]


class _NotAgreed(Exception):
    """What a function returned is not what was agreed; says so after the teacher's name."""


def _parts(returned: Any, gives_scores: bool) -> tuple[Any, Any]:
    """Tell lists and scores apart."""
    if inspect.iscoroutine(returned):
        returned.close()
        raise _NotAgreed("returned a coroutine; give the async function itself, not one that calls it.")
    if not gives_scores:
        if isinstance(returned, tuple):
            raise _NotAgreed("returned a tuple; return a list, or set gives_scores to true if it has scores as well.")
        return returned, None
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise _NotAgreed(
            f"must return (lists, scores), but returned a {type(returned).__name__}; "
            "set gives_scores to false if it has no scores."
        )
    return returned


def _rows(value: Any, n: int, what: str) -> list[list[Any]]:
    """Return n rows as plain lists; arrays and tensors are taken as well."""
    value = _plain(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _NotAgreed(f"must return {what}, but returned a {type(value).__name__}.")
    rows = [_plain(row) for row in value]
    if len(rows) != n:
        raise _NotAgreed(f"returned {len(rows)} {what} for {n} histories.")
    for row in rows:
        if not isinstance(row, Sequence) or isinstance(row, str):
            raise _NotAgreed(f"must return a list for each history, but one is {row!r}.")
    return [[_plain(cell) for cell in row] for row in rows]


def _answer(items: list[Any], scores: list[Any] | None, k: int) -> Answer:
    if len(items) > k:
        raise _NotAgreed(f"returned {len(items)} items for a top-{k} request; return at most {k}.")
    try:
        return Answer(check_items(items), None if scores is None else check_scores(scores, len(items)))
    except TeacherError as error:
        raise _NotAgreed(f"returned what makes no sense: {error}") from error


def _plain(value: Any) -> Any:
    """Turn arrays, tensors and their scalars into Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value
