"""Writing files so that a crash never leaves half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the block another file to write, beside ``path``, and put it in the place of that in one instant.

    If that fails, neither a new nor a partial file is left. Where the process is killed the partial one is, always
    under the same hidden name, and the next to write ``path`` writes over it.

    Raises:
        OSError: when it cannot be written; what was there before still is.
    """
    partial = partial_of(path)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_of(path: Path) -> Path:
    """Return the hidden file, beside it, in which a file is written before it takes its place."""
    return path.with_name(f".{path.name}.partial")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a crash.

    Raises:
        OSError: when it cannot be written; what was there before still is.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)
