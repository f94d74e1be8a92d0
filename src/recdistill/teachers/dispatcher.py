"""Asking about many requests, some of them at once."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from recdistill.errors import TeacherError
from recdistill.teachers.answers import Outcome, Request, Take
from recdistill.teachers.loop import PrivateLoop

_log = logging.getLogger("recdistill.teachers")


@contextmanager
def interrupts_postponed() -> Iterator[None]:
    """Let Ctrl-C wait until the end, so that what was paid for is written down; a second one does not wait.

    Whoever has a handler of their own keeps it.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def note(number: int, frame: object) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


_BORNE = 10
"""How many times as many failures in a row are borne where they say little of the teacher."""


class Streak:
    """Failures in a row, and when they are too many.

    Ten times as many are borne of those that say little of the teacher: of questions that failed in an earlier run, or
    that a teacher which has answered refuses for what they are.

    >>> streak = Streak(2)
    >>> [streak.add(little=little) for little in (False, True, True, False)]
    [0, 0, 0, 2]
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.end()

    def end(self) -> None:
        """Take note of an answer."""
        self._failed = {False: 0, True: 0}

    def add(self, n: int = 1, *, little: bool) -> int:
        """Take note of n failures; return how many of their kind there were where they are too many, else 0."""
        self._failed[little] += n
        return self._failed[little] if self._failed[little] >= self.most * (_BORNE if little else 1) else 0


class Dispatcher(ABC):
    """Asks about the requests that ``take`` hands out, several batches at once on one event loop.

    Args:
        take: hands out requests that are to be asked right now.
        batch_size: most requests that are asked together.
    """

    def __init__(self, take: Take, batch_size: int) -> None:
        self.batch_size = batch_size
        self.stopped = asyncio.Event()
        """Set once nothing more is to be asked."""
        self.gave_up: TeacherError | None = None
        """Why nothing more is asked, where that is the teacher's fault."""
        self._take = take
        self._in_flight: set[asyncio.Task[list[Outcome]]] = set()
        self._landed: asyncio.Queue[asyncio.Task[list[Outcome]]] = asyncio.Queue()
        self._finished: list[Outcome] = []

    @abstractmethod
    def room(self, in_flight: int) -> int:
        """Return how many batches more than those in flight may be asked about."""

    @abstractmethod
    async def ask(self, requests: list[Request]) -> list[Outcome]:
        """Ask about one batch; raises only what is not the teacher's fault."""

    def give_up(self, why: TeacherError) -> None:
        """Ask nothing more; the first reason counts."""
        if self.gave_up is None:
            self.gave_up = why
            self.stopped.set()

    def outcomes(self, loop: PrivateLoop) -> Iterator[list[Outcome]]:
        """Yield what comes back as soon as it is there.

        On Ctrl-C or an error what is in flight is still waited for and yielded; a second Ctrl-C drops what has not come
        back by then. Both are told.
        """
        try:
            while loop.run(self._step()):
                with interrupts_postponed():
                    yield self._collect()
        except (Exception, KeyboardInterrupt) as why:
            if isinstance(why, KeyboardInterrupt) and self._in_flight:
                _log.warning(
                    "stopping: %d calls in flight are waited for, as they may cost something; Ctrl-C again drops them",
                    len(self._in_flight),
                )
            try:
                loop.run(self._finish())
            finally:
                dropped = loop.run(self._drop())
                if dropped:
                    _log.warning(
                        "%d calls in flight were dropped: they may have been paid for, and what they would have told "
                        "is lost; the next run asks them again",
                        dropped,
                    )
                with interrupts_postponed():
                    yield self._collect()
            raise
        finally:
            loop.run(self._drop())

    def next_requests(self, n_batches: int) -> list[Request]:
        """Take what some batches are to ask about; nothing once asking has stopped."""
        return self._take(n_batches * self.batch_size) if n_batches and not self.stopped.is_set() else []

    async def _step(self) -> bool:
        """Ask as much at once as there is room for, until something has come back; false when all is done.

        One batch comes back at a time: its place is taken by another before the next is looked at. Batches that were
        sent together would else be sent together again, and wait for each other for ever.
        """
        requests = self.next_requests(self.room(len(self._in_flight)))
        for start in range(0, len(requests), self.batch_size):
            task = asyncio.create_task(self.ask(requests[start : start + self.batch_size]))
            self._in_flight.add(task)
            task.add_done_callback(self._landed.put_nowait)
        if not self._in_flight:
            return False
        landed = await self._landed.get()
        self._in_flight.remove(landed)
        self._finished += landed.result()  # raises what is not the teacher's fault
        return True

    async def _finish(self) -> None:
        """Ask nothing more, and wait for what is in flight."""
        self.stopped.set()
        if self._in_flight:
            await asyncio.wait(self._in_flight)

    def _collect(self) -> list[Outcome]:
        """Hand over what came back."""
        finished, self._finished = self._finished, []
        return finished

    async def _drop(self) -> int:
        """Cancel what is in flight, keep what came back of it, and return how much did not."""
        dropped = [task for task in self._in_flight if task.cancel()]  # false where it has ended
        for outcomes in await asyncio.gather(*self._in_flight, return_exceptions=True):
            if not isinstance(outcomes, BaseException):
                self._finished += outcomes
        self._in_flight.clear()
        return len(dropped)
