import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.peers import machine
from benchmarks.peers.machine import CpuTimes, Load, StepClock, is_noisy, parse_stat

ROOT = Path(__file__).resolve().parents[2]


class FakeTime:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(machine, "time", fake)
    return fake


def test_idle_and_waiting_for_disks_are_not_busy() -> None:
    #                          user nice system idle iowait irq softirq steal guest guest_nice
    busy, stolen = parse_stat("cpu  100 20 30 9999 8888 4 6 50 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n", 100)
    assert busy == pytest.approx((100 + 20 + 30 + 4 + 6) / 100)
    assert stolen == pytest.approx(0.5)


def test_foreign_cores_are_busy_time_that_is_not_ours() -> None:
    start = CpuTimes(busy=100.0, stolen=5.0, own=10.0, wall=1000.0)
    end = CpuTimes(busy=120.0, stolen=6.0, own=26.0, wall=1010.0)
    # in 10 s: 20 s busy, of which 16 ours and so 4 foreign; 1 stolen
    assert Load.between(start, end) == Load(own=1.6, foreign=0.4, stolen=0.1)


def test_foreign_cores_are_never_negative() -> None:
    """The two counters tick apart, so that ours may run ahead of the machine's by a hundredth."""
    start = CpuTimes(busy=0.0, stolen=0.0, own=0.0, wall=0.0)
    assert Load.between(start, CpuTimes(busy=1.99, stolen=0.0, own=2.0, wall=1.0)).foreign == 0.0


@pytest.mark.parametrize(("foreign", "stolen", "noisy"), [(0.11, 0.11, False), (0.12, 0.0, True), (0.0, 0.2, True)])
def test_noise_counts_from_either_source(foreign: float, stolen: float, noisy: bool) -> None:
    assert is_noisy(foreign, stolen) is noisy


def test_warm_up_steps_are_not_measured(time: FakeTime) -> None:
    clock = StepClock(seconds=3.0, min_steps=2, warm_up=2)
    done = [clock.tick()]
    for step in (50.0, 40.0, 1.0, 1.5, 2.0):  # two to warm up, then 4.5 s
        time.now += step
        done.append(clock.tick())
    assert done == [False] * 5 + [True]
    assert clock.steps == [1.0, 1.5, 2.0]
    assert clock.step_seconds == 1.5


def test_a_slow_system_is_measured_for_the_least_number_of_steps(time: FakeTime) -> None:
    clock = StepClock(seconds=1.0, min_steps=3, warm_up=0)
    ticks = 1
    while not clock.tick():
        time.now += 100.0
        ticks += 1
    assert ticks == 4
    assert clock.steps == [100.0, 100.0, 100.0]


def test_load_before_the_end_is_refused() -> None:
    with pytest.raises(RuntimeError, match="before enough steps"):
        _ = StepClock(1.0).load


def test_peak_memory_grows_with_what_is_allocated() -> None:
    """In a process of its own: this one may have held more before."""
    code = """
from benchmarks.peers.machine import peak_mb
before = peak_mb()
block = bytearray(100_000_000)
block[::4096] = b"x" * len(block[::4096])
print(peak_mb() - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 50 < float(grown) < 150
