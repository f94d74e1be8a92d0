"""A recommender that answers over HTTP and gives nothing else away: the API of the demo, and of tests.

``POST /recommend`` with ``{"history": [ids], "k": 10}`` is answered by ``{"items": [ids]}``, with ``scores`` only if
asked for at the start. ``GET /health`` says how many queries were answered. It listens on this machine only.

    python -m recdistill.serving.blackbox --student FOLDER --port 0
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self, TypeAlias

import torch

from recdistill.data.dataset import RawId
from recdistill.errors import RecDistillError, SettingsError
from recdistill.serving.student import Student
from recdistill.teachers.answers import Answer

Answerer: TypeAlias = Callable[[list[list[RawId]], int], list[Answer]]
"""Takes histories in raw ids and k, and answers each."""

_BATCH = 64
"""Requests answered at once; whatever has come in while the last ones were answered."""
_LARGEST = 1 << 20
"""Bytes of a request that are read."""


def student_answers(student: Student) -> Answerer:
    """Let a saved student answer; items that it does not know are passed over."""

    def answer(histories: list[list[RawId]], k: int) -> list[Answer]:
        lists = student.recommend(histories, k, unknown="skip")
        return [Answer([entry.item for entry in one], [entry.score for entry in one]) for one in lists]

    return answer


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    history: list[RawId]
    k: int
    result: Future[Answer] = field(default_factory=Future)


class BlackBox:
    """A server on a thread of its own, up while the ``with`` block lasts.

    Args:
        answer: what it knows.
        port: where to listen on 127.0.0.1; 0 takes a free one.
        scores: whether answers hold scores.

    Raises:
        SettingsError: for a port that there is not.
        OSError: when it cannot listen there.
    """

    def __init__(self, answer: Answerer, *, port: int = 0, scores: bool = False) -> None:
        if not 0 <= port < 1 << 16:
            raise SettingsError(f"there is no port {port:,}; give one from 1 to 65,535, or 0 for a free one")
        self.answer = answer
        self.scores = scores
        self.served = 0
        """Queries answered so far."""
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.box = self
        self._threads = [
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True),
            threading.Thread(target=self._work, daemon=True),
        ]

    @property
    def url(self) -> str:
        """Where to post requests to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/recommend"

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._server.server_close()

    def ask(self, history: list[RawId], k: int) -> Answer:
        """Answer one request, together with others that are waiting.

        Raises:
            RecDistillError: when it cannot be answered.
        """
        job = _Job(history, k)
        self._jobs.put(job)
        return job.result.result()

    def _work(self) -> None:
        """Answer what has come in, batch after batch, until told to stop."""
        while (job := self._jobs.get()) is not None:
            batch = [job]
            try:
                while len(batch) < _BATCH and (job := self._jobs.get_nowait()) is not None:
                    batch.append(job)
            except Empty:
                pass
            for k in {job.k for job in batch}:
                self._answer([job for job in batch if job.k == k], k)
            if job is None:
                break

    def _answer(self, jobs: Sequence[_Job], k: int) -> None:
        try:
            answers = self.answer([job.history for job in jobs], k)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].result.set_exception(error)
            else:  # only the one at fault shall hear of it
                for job in jobs:
                    self._answer([job], k)
            return
        self.served += len(jobs)
        for job, answer in zip(jobs, answers, strict=True):
            job.result.set_result(answer)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    box: BlackBox

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, {"status": "ok", "served": self.server.box.served})
        else:
            self._send(404, {"error": f"nothing at GET {self.path}; there are POST /recommend and GET /health"})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LARGEST:
            self.close_connection = True
            self._send(413, {"error": f"a request needs a Content-Length of at most {_LARGEST} bytes"})
            return
        body = self.rfile.read(int(length))
        if self.path != "/recommend":
            self._send(404, {"error": f"nothing at POST {self.path}; there are POST /recommend and GET /health"})
            return
        try:
            history, k = _read(body)
            answer = self.server.box.ask(history, k)
        except (ValueError, RecDistillError) as error:
            self._send(400, {"error": str(error)})
        except Exception as error:
            self._send(500, {"error": f"{type(error).__name__}: {error}"})
        else:
            scores = {"scores": answer.scores} if self.server.box.scores else {}
            self._send(200, {"items": answer.items, **scores})

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def _send(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _read(body: bytes) -> tuple[list[RawId], int]:
    """Return history and k of a request.

    Raises:
        ValueError: when it has another shape.
    """
    request = json.loads(body)
    history, k = (request.get("history"), request.get("k", 10)) if isinstance(request, dict) else (None, None)
    if not isinstance(history, list) or any(type(item) not in (int, str) for item in history):
        raise ValueError('"history" must be a list of item ids, oldest first')
    if type(k) is not int or k < 1:
        raise ValueError('"k" must be a whole number of at least 1')
    return history, k


def main(arguments: list[str] | None = None) -> None:
    """Serve a saved student until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m recdistill.serving.blackbox", description=main.__doc__)
    parser.add_argument("--student", type=Path, required=True, help="folder of a saved student")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--scores", action="store_true", help="give scores as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        box = BlackBox(student_answers(Student.load(options.student)), port=options.port, scores=options.scores)
    except (RecDistillError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    with box:
        print(box.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
