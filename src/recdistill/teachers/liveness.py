"""Whether the process that booked a request still runs."""

from __future__ import annotations

import os
from pathlib import Path


def process_started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine did; ``None`` if it is gone or unknown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def alive(pid: int, started: int) -> bool:
    """Return whether the very process that noted ``started`` still runs."""
    if started:
        return process_started(pid) == started
    if os.name != "posix":
        return pid == os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
