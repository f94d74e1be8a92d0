"""A conversation of a declared shape with an API that is a list of replies."""

import json
from collections.abc import Iterator
from typing import Any

from recdistill.data.dataset import IdMap
from recdistill.teachers.answers import Answer, Failure, Request
from recdistill.teachers.exchange import Call, Reply
from recdistill.teachers.shape_settings import ShapeSettings
from recdistill.teachers.shapes import DeclaredShape

URL = "https://shop.example/recommend"
ITEMS = IdMap(["a", "b", "c", "d"], first=1)
BATCH = {
    "body": {"instances": "{questions}"},
    "question": {"history": "{history}"},
    "answers": "predictions[*]",
    "batch_size": 3,
}
SESSION = {"reads": "session", "method": "GET", "query": {"s": "{session}", "i": "{item}"}, "items": "[*]"}


def settings(**given: Any) -> ShapeSettings:
    return ShapeSettings.parse({"url": URL, **given})


def talk(
    declared: ShapeSettings, requests: list[Request], replies: list[Any], k: int = 3
) -> tuple[list[Call], list[Answer | Failure]]:
    """Hold a conversation; returns the calls that were made and the outcomes."""
    names = iter(f"s{n}" for n in range(1, 100))
    conversation = DeclaredShape(declared, new_session=lambda: next(names)).converse(requests, k)
    calls: list[Call] = []
    waiting: Iterator[Any] = iter(replies)
    reply: Reply | None = None
    while True:
        try:
            calls.append(next(conversation) if reply is None else conversation.send(reply))
        except StopIteration as end:
            assert list(waiting) == [], "a reply was not asked for"
            return calls, end.value
        body = next(waiting)
        reply = Reply(200, {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def about(*history: str, user: str | None = None) -> Request:
    return Request(0, list(history), user)


def sent(call: Call) -> Any:
    assert call.body is not None
    return json.loads(call.body)


def answer(outcome: Answer | Failure) -> Answer:
    assert isinstance(outcome, Answer)
    return outcome
