"""A teacher of a plain shape that asks by the client, and what an API answers it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from recdistill.data.dataset import IdMap, Sequences
from recdistill.teachers.answers import Answer, Outcome, Request, Take
from recdistill.teachers.client import Client
from recdistill.teachers.exchange import Call, Conversation
from recdistill.teachers.meter import Meter, MeteredTeacher
from recdistill.teachers.transport_settings import TransportSettings

from ..raw_api import Body, RawApi, response

GOOD = response({"items": ["1"]})
BUSY = response(b"busy", "503 Service Unavailable")


@dataclass(frozen=True)
class Paged:
    """Some questions in one call, and as many calls one after another as there are pages."""

    url: str
    batch_size: int = 1
    pages: int = 1
    tokens: None = None

    def calls(self, request: Request, k: int) -> int:
        return self.pages

    def depth(self, k: int) -> int:
        return k

    def converse(self, requests: Sequence[Request], k: int) -> Conversation:
        for page in range(self.pages):
            rows = ",".join(str(request.row) for request in requests)
            yield Call("POST", self.url, body=f'{{"rows": [{rows}], "page": {page}}}'.encode())
        return [Answer([request.row + 1]) for request in requests]

    def sign(self, call: Call, token: str | None) -> Call:
        return call


class Paying(MeteredTeacher):
    """A teacher with a shape of its own."""

    def __init__(self, shape: Paged, **settings: Any) -> None:
        self.shape = shape
        self.client = Client(TransportSettings.parse({"first_wait": 0.001, **settings}))
        self.charge = self.client.settings.charge
        self.ids = IdMap(list(range(1, 1001)), first=1)
        self.exclude_history = False

    @property
    def identity(self) -> str:
        return "paying"

    def answers(self, take: Take, k: int, meter: Meter | None = None) -> Iterator[list[Outcome]]:
        return self.client.answers(self.shape, take, k, meter=meter, hide=lambda text: text.replace("s3cret", "***"))


def histories(n: int) -> Sequences:
    return Sequences.from_lists([[row + 1] for row in range(n)])


def collect(teacher: Paying, n: int, outcomes: list[Outcome]) -> None:
    """Ask n questions and note what comes of them as soon as it is known."""
    waiting = iter(range(n))
    for block in teacher.answers(lambda most: [Request(row, [row + 1]) for row in islice(waiting, most)], 1):
        outcomes += block


def bearing(most: int, *, seconds: float) -> Callable[[Body], Iterator[bytes | float]]:
    """Return what answers so many calls at once, each after some seconds, and refuses any other at once."""
    in_flight = [0]

    def answer(body: Body) -> Iterator[bytes | float]:
        in_flight[0] += 1
        too_much = in_flight[0] > most
        yield 0.0 if too_much else seconds
        in_flight[0] -= 1
        yield response(b"", "429 Too Many Requests") if too_much else GOOD

    return answer


def rows_asked(api: RawApi) -> list[int]:
    return sorted(row for body in api.asked for row in body["rows"])
