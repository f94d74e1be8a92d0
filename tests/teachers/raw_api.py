"""An API made of bytes on a real socket: what it sends, how slowly, and where it cuts the line is the test's choice."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

Body: TypeAlias = dict[str, Any]
Part: TypeAlias = bytes | float | None
"""Sent as it is; waited so many seconds; the connection cut."""
Script: TypeAlias = bytes | Iterable[Part]


def response(body: bytes | object, status: str = "200 OK", **headers: str) -> bytes:
    """Return a whole response; a body that is not bytes is sent as JSON, NaN and all."""
    content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    lines = {"Content-Type": "application/json", "Content-Length": str(len(content))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + content


class RawApi:
    """Answers ``answer(body)``, and notes every body it was asked with, when, and how many bytes it could send."""

    def __init__(self, answer: Callable[[Body], Script]) -> None:
        self.answer = answer
        self.asked: list[Body] = []
        self.times: list[float] = []
        self.served = 0
        """Answers that were sent to their end."""
        self.sent_bytes = 0
        self.url = ""

    @contextmanager
    def serve(self) -> Iterator[RawApi]:
        """Answer on a port of its own, in a thread."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(loop.create_server(lambda: _Connection(self), "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/recommend"
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
                loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


class _Connection(asyncio.Protocol):
    """One connection: requests one after another, as clients without pipelining send them."""

    def __init__(self, api: RawApi) -> None:
        self.api = api
        self.received = bytearray()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.running: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.may_write.set()

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, separator, rest = bytes(self.received).partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if not separator or len(rest) < length:
            return
        self.received.clear()
        body = json.loads(rest or b"{}")
        self.api.asked.append(body)
        self.api.times.append(time.monotonic())
        script = self.api.answer(body)
        if isinstance(script, bytes):
            self.transport.write(script)
            self.api.served += 1
        else:
            self.running = asyncio.get_running_loop().create_task(self._play(script))

    async def _play(self, script: Iterable[Part]) -> None:
        for part in script:
            if self.transport.is_closing():
                return
            if part is None:
                self.transport.close()
                return
            if isinstance(part, bytes):
                self.transport.write(part)
                self.api.sent_bytes += len(part)
                await self.may_write.wait()
            else:
                await asyncio.sleep(part)
        self.api.served += 1
