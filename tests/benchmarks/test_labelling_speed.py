import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.results import SPEED, ResultTable
from benchmarks.tables import make

from benchmarks import labelling_speed
from recdistill.teachers.ledger import Ledger


@pytest.fixture
def table(tmp_path: Path) -> ResultTable:
    return ResultTable(tmp_path / "labelling_speed.csv", SPEED)


def measured(monkeypatch: pytest.MonkeyPatch, *, noisy: bool = False) -> list[tuple[Any, ...]]:
    """Replace measurements: 12.5 s instead of the 10 that are allowed, 4 on the processor; returns what was asked."""
    asked: list[tuple[Any, ...]] = []

    def measure(what: str, *numbers: int) -> tuple[dict[str, Any], bool]:
        asked.append((what, *numbers))
        figures = {"seconds": 12.5, "peak_mb": 90.0}
        if what == "label":
            return figures | {"cpu": 4.0}, noisy
        return {str(numbers[0] // 10): figures, str(numbers[0]): figures}, noisy

    monkeypatch.setattr(labelling_speed, "measure", measure)
    return asked


def test_what_is_allowed_is_concurrency_over_latency(monkeypatch: pytest.MonkeyPatch, table: ResultTable) -> None:
    """In 10 s an API that takes 0.05 s allows 8 calls at once 8 x 200 answers."""
    asked = measured(monkeypatch)
    labelling_speed.run(table, seconds=10.0, n_recorded=1000, repeats=1)
    assert asked == [("label", 8, 1600), ("label", 32, 6400), ("label", 64, 12800), ("record", 1000)]
    (allowed,) = table.find(system="allowed", setting="label/concurrency-8")
    assert (allowed["seconds"], allowed["ratio"]) == ("10", "0.8")


@pytest.mark.parametrize("noisy", [False, True])
def test_what_is_in_the_table_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, table: ResultTable, noisy: bool
) -> None:
    asked = measured(monkeypatch, noisy=noisy)
    for _ in range(2):
        labelling_speed.run(table, seconds=10.0, n_recorded=1000, repeats=2)
    assert len(asked) == 2 * 3 + 1


def test_the_table_shows_rate_and_share(monkeypatch: pytest.MonkeyPatch, table: ResultTable) -> None:
    measured(monkeypatch)
    labelling_speed.run(table, seconds=10.0, n_recorded=1000, repeats=1)
    made = make("labelling_speed", table.path.parent).splitlines()
    assert made[2] == "| label/concurrency-8 | 1,600 | 12.5 | 128 | 80% | 90.0 |"
    assert made[3] == "| label/concurrency-8/cpu | 1,600 | 4.00 | 400 |  |  |"
    assert made[-1] == "| record | 1,000 | 12.5 | 80.0 |  | 90.0 |"


def test_labelling_is_timed_on_the_wall_and_on_the_processor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with labelling_speed.slow_api() as url:
        labelling_speed.label(url, tmp_path / "ledger.sqlite", 8, 8)
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] >= labelling_speed.LATENCY
    assert found["cpu"] > 0
    assert found["peak_mb"] > 1


def test_memory_and_time_are_noted_after_a_tenth_and_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling_speed, "BLOCK", 7)
    labelling_speed.record(tmp_path / "ledger.sqlite", 100)
    out = capsys.readouterr().out
    assert '"10": {"seconds"' in out
    assert '"100": {"seconds"' in out
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.stats("simulated").answers == 100
