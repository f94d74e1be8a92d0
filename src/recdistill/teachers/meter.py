"""What all callers of one API share: a budget that is a ceiling, and turns that keep to a rate.

Each call waits for its turn, and is charged at the last instant before it is sent. Without a ledger the callers are the
threads of one teacher, and a `Pace` gives them their turns; with one they are all processes that share its file, and it
keeps the budget as well.
"""

from __future__ import annotations

import math
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from recdistill.teachers.answers import Failure, Outcome, Request, Take
from recdistill.teachers.base import OutsideTeacher
from recdistill.teachers.exchange import Shape

Charge: TypeAlias = Literal["queries", "calls", "rows"]
SOON = 0.25
"""Seconds before a turn at which it is given to whoever waits for it; whoever ends before that leaves none behind."""


class Meter(Protocol):
    """Who has to be asked before each call."""

    @property
    def has_answered(self) -> bool:
        """Whether the API is known to have answered before."""
        ...

    def turn(self, gap: float) -> float:
        """Return the seconds until a call may be sent, ``gap`` seconds after the one before.

        Up to `SOON` seconds away the turn is now the caller's; further away it is nobody's, and is asked for again.
        """
        ...

    def charge(self, requests: Sequence[Request]) -> None:
        """Charge a call about some requests, which is sent right after.

        Raises:
            BudgetExhausted: when it costs more than is left; nothing is charged then.
        """
        ...

    def hold(self, seconds: float) -> None:
        """Let nobody send anything for so long."""
        ...

    def held(self) -> float:
        """Return for how many seconds nothing may be sent."""
        ...


class Pace:
    """The meter of threads that share a teacher: turns, and no budget."""

    has_answered = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_turn = self._held_until = -math.inf

    def turn(self, gap: float) -> float:
        """Return the seconds until a call may be sent, and give the turn away if it is soon."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._last_turn + gap, self._held_until)
            if turn - now <= SOON:
                self._last_turn = turn
        return turn - now

    def charge(self, requests: Sequence[Request]) -> None:
        """Charge nothing."""

    def hold(self, seconds: float) -> None:
        """Let no thread send anything for so long."""
        with self._lock:
            self._held_until = max(self._held_until, time.monotonic() + seconds)

    def held(self) -> float:
        """Return for how many seconds nothing may be sent."""
        return max(0.0, self._held_until - time.monotonic())


@dataclass(frozen=True, slots=True, eq=False)
class Unsent(Failure):
    """A question that was not asked, or not to the end: the budget allowed no more calls, or asking was stopped."""


class MeteredTeacher(OutsideTeacher):
    """A teacher that is asked by calls that cost something, which a meter counts."""

    charge: Charge = "queries"
    """What its budget counts; what that means stands in `recdistill.teachers.ledger`."""
    shape: Shape
    """How it is asked, and so how many calls a question takes."""

    @abstractmethod
    def answers(self, take: Take, k: int, meter: Meter | None = None) -> Iterator[list[Outcome]]:
        """Ask whatever ``take`` hands out, each call in the turn that ``meter`` gives; without one, the teacher's own.

        Raises:
            TeacherError: when asking on makes no sense; what was answered until then has been yielded.
        """
