from pathlib import Path
from typing import Any

import pytest
from benchmarks.peers.driver import Arguments
from benchmarks.results import SPEED, ResultTable

from benchmarks import evaluation_speed


def result(seconds: float, *, foreign: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"version": "1", "seconds": seconds, "peak_mb": 100.4, "foreign_cores": foreign, "stolen_cores": 0.0, **more}


@pytest.fixture
def table(tmp_path: Path) -> ResultTable:
    return ResultTable(tmp_path / "speed.csv", SPEED)


def drive(monkeypatch: pytest.MonkeyPatch, table: ResultTable, *results: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Run one repeat on one data set, drivers answering with these results in order; return who was asked."""
    waiting, asked = list(results), []

    def answer(driver: str, arguments: Arguments, *, peer: str | None, tuned: bool) -> dict[str, Any]:
        asked.append((driver, peer or "", tuned))
        return waiting.pop(0)

    monkeypatch.setattr(evaluation_speed, "run_driver", answer)
    evaluation_speed.run(table, {"ml-1m": Path("ml-1m.npz")}, seconds=1.0, threads=2, repeats=1, tries=2)
    assert not waiting
    return asked


def test_systems_take_turns_and_are_divided_by_ours(monkeypatch: pytest.MonkeyPatch, table: ResultTable) -> None:
    asked = drive(monkeypatch, table, result(2.0, evaluate=1.0), result(12.0), result(2.0), result(8.0))
    assert asked == [
        ("ours_recommend", "", False),
        ("rectools_recommend", "rectools", False),
        ("ours_recommend", "", True),
        ("rectools_recommend", "rectools", True),
    ]
    assert [(row["system"], row["setting"], row["seconds"], row["ratio"]) for row in table.rows()] == [
        ("recdistill", "top-20/stock", "2", "1"),
        ("recdistill", "evaluate/stock", "1", ""),
        ("rectools", "top-20/stock", "12", "6"),
        ("recdistill", "top-20/tuned", "2", "1"),
        ("rectools", "top-20/tuned", "8", "4"),
    ]


def test_a_disturbed_measurement_is_repeated_and_then_marked(
    monkeypatch: pytest.MonkeyPatch, table: ResultTable
) -> None:
    noisy = (result(4.0, foreign=0.9), result(3.0, foreign=0.5))
    drive(monkeypatch, table, *noisy, result(12.0), result(2.0), result(8.0))
    assert [(row["setting"], row["ratio"]) for row in table.rows()][:2] == [
        ("top-20/stock/noisy", "1"),
        ("top-20/stock", "4"),
    ]


def test_what_is_in_the_table_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, table: ResultTable) -> None:
    drive(monkeypatch, table, result(2.0), result(12.0), result(2.0), result(8.0))
    assert drive(monkeypatch, table) == []
