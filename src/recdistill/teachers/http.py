"""A recommender behind an API as a teacher.

One shape: ``POST {"history": [ids], "k": 10}`` is answered by ``{"items": [ids]}``, with ``"scores": [numbers]`` where
the API gives them. Ids are the caller's own, integers or strings.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator

from recdistill.data.dataset import IdMap
from recdistill.errors import SettingsError, TeacherError
from recdistill.teachers.base import Answer, Outcome, Request, Take, check_items, check_scores
from recdistill.teachers.client import Client, TransportSettings
from recdistill.teachers.exchange import Call, Conversation
from recdistill.teachers.meter import Meter, MeteredTeacher

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SECRET = re.compile(r"auth|cookie|key|token|secret|passw|signature|credential", re.IGNORECASE)


class HttpConfig(TransportSettings):
    """Where the API is, what it is asked, and how hard."""

    url: str
    """Where requests are posted to; http or https, without secrets in it."""
    identity: str | None = None
    """Name under which answers are kept; change it when the model behind the API changes. By default the url."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of each request; ``${NAME}`` stands for the environment variable NAME, the only place for a secret."""
    gives_scores: bool = False
    """Whether to read ``scores``; an answer without them is then a failure."""
    exclude_history: bool = True
    """Whether items of the history are dropped from the lists."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a full address like https://shop.example/recommend")
        if parts.username is not None or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query)):
            raise ValueError("must hold no secret, it is written to results; send it in a header from the environment")
        return url

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if _SECRET.search(name) and not _VARIABLE.search(value):
                raise ValueError(
                    f"header {name} carries a secret, which settings must not hold; write ${{NAME}} and put it "
                    "into the environment variable NAME"
                )
        return headers


class HttpTeacher(MeteredTeacher):
    """A recommender API; how calls are made, and what becomes of each fault, stands in `recdistill.teachers.client`.

    A list longer than asked for is cut.

    Args:
        ids: the items in the ids that the API speaks.
        config: the settings, or give them by name.
    """

    def __init__(self, ids: IdMap, config: HttpConfig | None = None, **settings: Any) -> None:
        self.config = config if config is not None else HttpConfig.parse(settings, where="http teacher")
        self.ids = ids
        self.gives_scores = self.config.gives_scores
        self.exclude_history = self.config.exclude_history
        self.charge = self.config.charge
        self.client = Client(self.config)

    @property
    def identity(self) -> str:
        """The name that was given, or the url."""
        return self.config.identity or self.config.url

    def answers(self, take: Take, k: int, meter: Meter | None = None) -> Iterator[list[Outcome]]:
        """Ask the API; on Ctrl-C what is in flight is still waited for and yielded, a second one stops at once.

        Raises:
            TeacherError: when the API refuses the key, or seems dead.
            SettingsError: when an environment variable that a header names is not set.
        """
        headers, secrets = _fill_in(self.config.headers)
        shape = _Plain(self.config.url, headers, self.gives_scores)

        def hide(text: str) -> str:
            for secret in secrets:
                text = text.replace(secret, "***")
            return text

        return self.client.answers(shape, take, k, meter=meter, hide=hide)


@dataclass(frozen=True, slots=True)
class _Plain:
    """The shape ``{"history", "k"}`` → ``{"items", "scores"}``."""

    url: str
    headers: Mapping[str, str]
    gives_scores: bool
    batch_size: int = 1

    def converse(self, requests: Sequence[Request], k: int) -> Conversation:
        """Ask about one history in one call."""
        (request,) = requests
        question = json.dumps({"history": request.history, "k": k}).encode()
        reply = yield Call("POST", self.url, {"Content-Type": "application/json"}, question)
        try:
            answer = json.loads(reply.body)
        except (ValueError, RecursionError) as error:
            raise TeacherError(str(error)) from error
        return [self._read(answer, k)]

    def sign(self, call: Call) -> Call:
        """Add the headers, which may hold secrets."""
        return replace(call, headers={**call.headers, **self.headers})

    def _read(self, answer: Any, k: int) -> Answer:
        """Check an answer; a list longer than asked for is cut."""
        if not isinstance(answer, dict) or not isinstance(answer.get("items"), list):
            raise TeacherError('something else than an object with a list "items"')
        items = check_items(answer["items"])
        if not self.gives_scores:
            return Answer(items[:k])
        if not isinstance(answer.get("scores"), list):
            raise TeacherError('no list "scores", though gives_scores is set')
        return Answer(items[:k], check_scores(answer["scores"], len(items))[:k])


def _fill_in(headers: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Put environment variables into headers; returns also what they held.

    Raises:
        SettingsError: for a variable that is not set.
    """
    secrets: list[str] = []

    def held(match: re.Match[str]) -> str:
        value = os.environ.get(match[1], "")
        if not value:
            raise SettingsError(f"environment variable {match[1]} is not set; it belongs into a header of the API.")
        secrets.append(value)
        return value

    return {name: _VARIABLE.sub(held, value) for name, value in headers.items()}, secrets
