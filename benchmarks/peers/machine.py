"""What a measurement needs to know of the machine: time, memory, and who else was using the processor.

Needs only the standard library, because it also runs inside the peers' environments.
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

QUIET = 0.12
"""Cores that other programs, or other guests of the same host, may use before a measurement counts as noisy.

One busy neighbour slows a program of two threads by far more than its share: every parallel region waits for
the slower thread.
"""

TUNED_ALLOCATOR = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Environment variables with which glibc keeps large blocks instead of returning them to the system at once."""


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Processor seconds since the start, at one instant."""

    busy: float
    """Used by anybody on this machine."""
    stolen: float
    """Wanted by this machine but given to another guest of the same host."""
    own: float
    """Used by this process and its finished children."""
    wall: float

    @classmethod
    def now(cls) -> CpuTimes:
        """Read the counters of the kernel."""
        own = os.times()
        busy, stolen = parse_stat(Path("/proc/stat").read_text(), os.sysconf("SC_CLK_TCK"))
        return cls(busy, stolen, own.user + own.system + own.children_user + own.children_system, time.perf_counter())


def parse_stat(text: str, ticks_per_second: int) -> tuple[float, float]:
    """Return the busy and the stolen seconds of all cores from the text of ``/proc/stat``."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, text.split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq) / ticks_per_second, steal / ticks_per_second


@dataclass(frozen=True, slots=True)
class Load:
    """Cores in use over a stretch of time, on average."""

    own: float
    foreign: float
    stolen: float

    @classmethod
    def between(cls, start: CpuTimes, end: CpuTimes) -> Load:
        """Share out the processor time between two readings."""
        wall = end.wall - start.wall
        own = end.own - start.own
        return cls(own / wall, max(0.0, end.busy - start.busy - own) / wall, (end.stolen - start.stolen) / wall)


def is_noisy(foreign_cores: float, stolen_cores: float) -> bool:
    """Whether a measurement was disturbed enough to be repeated."""
    return max(foreign_cores, stolen_cores) >= QUIET


class StepClock:
    """Times training steps: a few to warm up, then for ``seconds`` and at least ``min_steps``.

    Call :meth:`tick` at the start of the first step and at the end of every step, until it returns true.
    """

    def __init__(self, seconds: float, *, min_steps: int = 5, warm_up: int = 2) -> None:
        self.seconds = seconds
        self.min_steps = min_steps
        self.warm_up = warm_up
        self._ticks: list[float] = []
        self._start: CpuTimes | None = None
        self._end: CpuTimes | None = None

    def tick(self) -> bool:
        """Note a step boundary; true once enough was measured."""
        if self._end is not None:
            return True
        self._ticks.append(time.perf_counter())
        if len(self._ticks) == self.warm_up + 1:
            self._start = CpuTimes.now()
        if len(self.steps) >= self.min_steps and self._ticks[-1] - self._ticks[self.warm_up] >= self.seconds:
            self._end = CpuTimes.now()
        return self._end is not None

    @property
    def steps(self) -> list[float]:
        """Seconds of each measured step."""
        measured = self._ticks[self.warm_up :]
        return [end - start for start, end in itertools.pairwise(measured)]

    @property
    def step_seconds(self) -> float:
        """The median step, which forgives a peer a single slow one."""
        return statistics.median(self.steps)

    @property
    def load(self) -> Load:
        """Who used the processor during the measured steps."""
        if self._start is None or self._end is None:
            raise RuntimeError("the training loop ended before enough steps were measured")
        return Load.between(self._start, self._end)


def peak_mb() -> float:
    """Peak resident memory of this process, in MB (10⁶ bytes).

    Not ``ru_maxrss`` where the kernel gives better: that starts from the size of the program that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
