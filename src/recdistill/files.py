"""Writing files so that a crash never leaves half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, partial: Path) -> Iterator[None]:
    """Put ``partial``, which the block writes, in the place of ``path`` in one instant; if that fails, leave neither.

    Raises:
        OSError: when it cannot be written; what was there before still is.
    """
    try:
        yield
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a crash.

    Raises:
        OSError: when it cannot be written; what was there before still is.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with replacing(path, partial), partial.open("xb") as file:
        file.write(content)
