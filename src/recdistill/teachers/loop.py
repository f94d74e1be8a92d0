"""Running coroutines from code that is not asynchronous, also in a notebook."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class PrivateLoop:
    """An event loop of our own: runs coroutines, one at a time, for any thread.

    What a coroutine leaves behind, tasks and open connections, is there for the next one. Where the caller's own loop
    is running, as in a notebook, they are run in a thread.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._lock = threading.Lock()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine returns."""
        return self._call(lambda: self._runner.run(coroutine))

    def close(self) -> None:
        """Cancel what was left behind, and end."""
        self._call(self._runner.close)

    def _call(self, function: Callable[[], T]) -> T:
        """Call a function where no loop is running."""

        def alone() -> T:
            with self._lock:
                return function()

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return alone()
        pool = ThreadPoolExecutor(1)
        try:
            return pool.submit(alone).result()
        finally:
            pool.shutdown(wait=False)  # Ctrl-C must not wait for what it interrupts
