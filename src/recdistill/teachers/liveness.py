"""Whether whoever booked a request is still asking it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import NamedTuple

STALE = 15 * 60
"""Seconds without a renewal after which a query in flight is taken for lost even though its process lives."""
LEASE = 60.0
"""Seconds without a renewal after which it is, where its process cannot be seen from here."""


class Holder(NamedTuple):
    """Who booked a request."""

    place: str
    """Where its number means that process; see `here`."""
    pid: int
    started: int
    """When it started, in clock ticks since the machine did; 0 where that is unknown."""


def here() -> str:
    """Return where we run: in which container, since which start of the machine; or the machine's name."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{machine} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def process_started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine did; ``None`` if it is gone or unknown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def still_asking(holder: Holder, silent: float, place: str) -> bool:
    """Return whether whoever booked a request, and was silent for so many seconds, is still asking it.

    Where it can be seen from ``place``, because it runs there, it is looked for; elsewhere only its renewals tell.
    """
    if holder.place != place:
        return silent < LEASE
    return silent < STALE and alive(holder.pid, holder.started)


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
