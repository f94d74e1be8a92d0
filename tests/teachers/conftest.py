"""An API on a real socket: what it answers is a function, what it was asked is a list."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response


class Api:
    """Answers ``answer(body)``, by default with the two letters after the newest; counts what is in flight."""

    def __init__(self, server: HTTPServer) -> None:
        self.url = server.url_for("/recommend")
        self.answer: Callable[[dict[str, Any]], Response | dict[str, Any]] = self.next_letters
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()
        server.expect_request("/recommend", method="POST").respond_with_handler(self._handle)

    @staticmethod
    def next_letters(body: dict[str, Any]) -> dict[str, Any]:
        newest = ord(body["history"][-1])
        return {"items": [chr((newest - 97 + step) % 26 + 97) for step in (1, 2)][: body["k"]]}

    def in_turn(self, *answers: Response | dict[str, Any]) -> None:
        """Give each call its own answer, and the usual one to all that come after."""
        left = list(answers)
        self.answer = lambda body: left.pop(0) if left else self.next_letters(body)

    def _handle(self, request: Request) -> Response:
        body = request.get_json()
        with self._lock:
            self.times.append(time.monotonic())
            self.asked.append(body)
            self.headers.append(dict(request.headers))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self.answer(body)
        finally:
            with self._lock:
                self.in_flight -= 1
        return answer if isinstance(answer, Response) else Response(json.dumps(answer), mimetype="application/json")


@pytest.fixture(scope="session")
def api_server() -> Iterator[HTTPServer]:
    with HTTPServer(host="127.0.0.1", threaded=True) as server:
        yield server


@pytest.fixture
def api(api_server: HTTPServer) -> Iterator[Api]:
    yield Api(api_server)
    api_server.clear()
