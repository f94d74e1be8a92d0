"""Running coroutines from code that is not asynchronous, also in a notebook."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Run(Protocol):
    """Runs a coroutine to its end."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T:
        """Run it and return what it returns."""
        ...


@contextmanager
def private_loop() -> Iterator[Run]:
    """Give a function that runs coroutines on a loop of our own; in a notebook, whose loop is running, in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner() as runner:
            yield runner.run
        return
    runner = asyncio.Runner()
    with ThreadPoolExecutor(1) as pool:

        def run(coroutine: Coroutine[Any, Any, T], /) -> T:
            return pool.submit(runner.run, coroutine).result()

        try:
            yield run
        finally:
            pool.submit(runner.close).result()
