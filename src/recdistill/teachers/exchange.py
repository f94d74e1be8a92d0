"""Where the shape of an API meets the client that makes the calls.

A shape turns questions into calls and replies into answers, and touches no network; the client makes calls, and knows
nothing of what is in them. So a shape is tested without a server, and every fault of a network in one place.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from recdistill.errors import TeacherError
from recdistill.teachers.answers import Answer, Failure, Request

if TYPE_CHECKING:
    from recdistill.teachers.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Call:
    """One call over HTTP that is still to be made."""

    method: str
    url: str
    """With its query."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    repeatable: bool = True
    """Whether it may be sent again when the API may have taken note of it; if not, its conversation is begun anew."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call brought back: always of status 200 to 299, whole, and not too large."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


Conversation: TypeAlias = Generator[Call, Reply, list[Answer | Failure]]
"""Calls one after another, each yielded and answered with its reply; returns an outcome for each question asked.

A reply that makes no sense is raised as `TeacherError`, which names what came back.
"""


class PastTheEnd(Exception):
    """Thrown into a conversation at a call that was refused as one for a page past the last is, which it may end with.

    A conversation that this cannot end lets it through.
    """


class Garbled(TeacherError):
    """A reply that is of no shape at all, such as the page of a site that is being mended."""


WHOLE = 2**31 - 1
"""The depth of lists whose length is not told to the API."""


class Shape(Protocol):
    """How an API wants to be asked, and how it answers."""

    @property
    def batch_size(self) -> int:
        """Most questions in one conversation."""
        ...

    @property
    def tokens(self) -> Tokens | None:
        """The tokens that its calls carry; ``None`` where they carry none that are fetched."""
        ...

    def calls(self, request: Request, k: int) -> int:
        """Return how many calls a conversation about a request takes, retries aside; most, where it may end early."""
        ...

    def depth(self, k: int) -> int:
        """Return how long a list is really asked for where ``k`` items are wanted: the same depth, the same calls."""
        ...

    def converse(self, requests: Sequence[Request], k: int) -> Conversation:
        """Ask about some histories at once: one call, several pages, or the replay of a session."""
        ...

    def sign(self, call: Call, token: str | None) -> Call:
        """Add what proves who is asking, a token if there are any; done anew each time, as signatures hold a time."""
        ...
