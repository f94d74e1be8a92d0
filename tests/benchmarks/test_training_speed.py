from pathlib import Path
from typing import Any

import pytest
from benchmarks.peers.driver import Arguments
from benchmarks.results import SPEED, ResultTable
from benchmarks.training_speed import Job, plan, run, to_rows

from benchmarks import training_speed

JOB = Job("recdistill", "ml-1m", "full-softmax", "stock", 1)


def result(seconds: float, *, foreign: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"version": "1", "seconds": seconds, "peak_mb": 100.4, "foreign_cores": foreign, "stolen_cores": 0.0, **more}


class Drivers:
    """Stands in for the drivers: hands out results in order."""

    def __init__(self, *results: dict[str, Any] | Exception) -> None:
        self.results = list(results)
        self.asked: list[tuple[str, bool]] = []

    def __call__(self, driver: str, arguments: Arguments, *, peer: str | None, tuned: bool) -> dict[str, Any]:
        self.asked.append((driver, tuned))
        answer = self.results.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def table(tmp_path: Path) -> ResultTable:
    return ResultTable(tmp_path / "speed.csv", SPEED)


def drive(monkeypatch: pytest.MonkeyPatch, table: ResultTable, *results: dict[str, Any] | Exception) -> int:
    """Run ours and RecTools, full softmax, stock, one repeat, with these results of their drivers."""
    monkeypatch.setattr(training_speed, "run_driver", Drivers(*results))
    jobs = [JOB, Job("rectools", "ml-1m", "full-softmax", "stock", 1)]
    return run(jobs, table, {"ml-1m": Path("ml-1m.npz")}, seconds=1.0, threads=2, tries=3)


def test_ours_comes_first_in_every_cell_even_if_not_asked_for() -> None:
    jobs = list(plan(["ml-1m"], ["rectools"], repeats=2))
    assert [(job.system, job.setting) for job in jobs if job.repeat == 1] == [
        ("recdistill", "full-softmax/stock"),
        ("rectools", "full-softmax/stock"),
        ("recdistill", "sampled-softmax/stock"),
        ("rectools", "sampled-softmax/stock"),
        ("recdistill", "full-softmax/tuned"),
        ("rectools", "full-softmax/tuned"),
        ("recdistill", "sampled-softmax/tuned"),
        ("rectools", "sampled-softmax/tuned"),
    ]
    assert [job.repeat for job in jobs] == [1] * 8 + [2] * 8


def test_systems_take_turns_within_a_repeat() -> None:
    jobs = [job for job in plan(["ml-1m"], list(training_speed.SYSTEMS), repeats=1) if job.loss == "full-softmax"]
    stock = [job.system for job in jobs if job.allocator == "stock"]
    assert stock == list(training_speed.SYSTEMS)


def test_the_ratio_is_seconds_over_ours() -> None:
    (row,) = to_rows(JOB, result(93.0), ours=9.0)
    assert row["ratio"] == pytest.approx(93 / 9)
    assert row["setting"] == "full-softmax/stock"
    assert row["peak_mb"] == 100


def test_each_phase_is_a_row_of_its_own() -> None:
    rows = to_rows(JOB, result(9.0, phases={"forward": 2.0, "loss": 4.0}), ours=9.0)
    assert [(row["setting"], row["seconds"], row["peak_mb"]) for row in rows] == [
        ("full-softmax/stock", 9.0, 100),
        ("full-softmax/stock/phase-forward", 2.0, None),
        ("full-softmax/stock/phase-loss", 4.0, None),
    ]


def test_a_noisy_measurement_is_repeated(monkeypatch: pytest.MonkeyPatch, table: ResultTable) -> None:
    assert drive(monkeypatch, table, result(12.0, foreign=0.5), result(9.0), result(90.0)) == 0
    assert [(row["setting"], row["ratio"]) for row in table.rows()] == [
        ("full-softmax/stock", "1"),
        ("full-softmax/stock", "10"),
    ]


def test_after_three_tries_the_quietest_is_marked_as_noisy(monkeypatch: pytest.MonkeyPatch, table: ResultTable) -> None:
    noisy = (result(12.0, foreign=0.5), result(10.0, foreign=0.2), result(20.0, foreign=0.9))
    drive(monkeypatch, table, *noisy, result(90.0))
    assert [(row["setting"], row["seconds"]) for row in table.rows()] == [
        ("full-softmax/stock/noisy", "10"),
        ("full-softmax/stock", "90"),
    ]


def test_what_is_in_the_table_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, table: ResultTable) -> None:
    """A run that was killed between ours and the peer takes ours from the table."""
    table.append(*to_rows(JOB, result(9.0, foreign=0.5), ours=9.0))
    assert drive(monkeypatch, table, result(90.0)) == 0
    assert table.find(system="rectools")[0]["ratio"] == "10"
    assert drive(monkeypatch, table) == 0
    assert len(table.rows()) == 2


def test_a_failed_peer_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, table: ResultTable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drive(monkeypatch, table, result(9.0), RuntimeError("cannot import")) == 1
    assert [row["system"] for row in table.rows()] == ["recdistill"]
    assert "cannot import" in capsys.readouterr().err


def test_no_ratio_is_made_up_when_ours_failed(monkeypatch: pytest.MonkeyPatch, table: ResultTable) -> None:
    assert drive(monkeypatch, table, RuntimeError("out of memory"), result(90.0)) == 2
    assert table.rows() == []
