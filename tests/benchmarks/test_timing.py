"""Whole epochs, quiet measurements, and how they are written."""

from pathlib import Path
from typing import Any

import pytest
from benchmarks.experiments import Values
from benchmarks.peers.machine import QUIET
from benchmarks.timing import TRIES, EnoughError, Epochs, made_up, quietest, speed_options, speed_parser, speed_table

from benchmarks import timing
from recdistill.errors import DataError
from recdistill.training.progress import EpochRow
from recdistill.training.settings import TrainerSettings


def test_the_first_epoch_is_left_out_and_rounds_are_whole() -> None:
    epochs = Epochs(seconds=2.0, round_of=4)

    def end(seconds: float) -> None:
        epochs.epoch(EpochRow(1, {}, None, 0.1, seconds, 1.0), TrainerSettings())

    for seconds in (100.0, 9.0, 1.0, 1.0):
        end(seconds)
    with pytest.raises(EnoughError):
        end(1.0)
    assert epochs.measured == [9.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("disturbed", "tries", "chosen"), [([0.9, 0.0], 3, 1), ([0.9, 0.5], 2, 1), ([0.5, 0.9], 2, 0)])
def test_a_disturbed_measurement_is_repeated_and_the_quietest_kept(
    monkeypatch: pytest.MonkeyPatch, disturbed: list[float], tries: int, chosen: int
) -> None:
    results = [{"seconds": float(n), "foreign_cores": cores, "stolen_cores": 0.0} for n, cores in enumerate(disturbed)]
    waiting = list(results)

    class Apart:
        """Stands in for a process."""

        def __init__(self, *_: Any, **__: Any) -> None: ...
        def __enter__(self) -> "Apart":
            return self

        def __exit__(self, *_: Any) -> None: ...
        def submit(self, measure: Any, *arguments: Any, **options: Any) -> "Apart":
            assert (measure, arguments, options) == (nothing, ("a",), {"b": 1})
            return self

        def result(self) -> Values:
            return waiting.pop(0)

    def nothing() -> Values:
        return {}

    monkeypatch.setattr(timing, "ProcessPoolExecutor", Apart)
    assert quietest(nothing, "a", b=1, tries=tries) == results[chosen]
    assert waiting == []


def test_noise_is_written_down() -> None:
    assert timing.noise({"foreign_cores": QUIET, "stolen_cores": 0}) == "/noisy"
    assert timing.noise({"foreign_cores": 0, "stolen_cores": QUIET / 2}) == ""


def test_a_smoke_test_is_short_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["speed", "--smoke"])
    options = speed_options(speed_parser("How fast?", seconds=9.0))
    assert (options.repeats, options.seconds, options.tries) == (1, 0.1, 1)
    with speed_table("no_such_table", smoke=True) as table:
        assert table.path.is_file()
    assert not table.path.exists()
    monkeypatch.setattr("sys.argv", ["speed", "--repeats", "2"])
    options = speed_options(speed_parser("How fast?", seconds=9.0))
    assert (options.repeats, options.seconds, options.tries) == (2, 9.0, TRIES)


def test_an_error_of_ours_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "FOLDER", tmp_path)
    with speed_table("some_speed", smoke=False) as table:
        assert table.path == tmp_path / "some_speed.csv"
    with pytest.raises(SystemExit, match="error: no data"), speed_table("some_speed", smoke=False):
        raise DataError("no data")


def test_made_up_data_are_histories_of_known_items() -> None:
    train, n_items = made_up()
    assert train.lengths.min() >= 5
    assert train.flat()[0].min() >= 1
    assert train.flat()[0].max() <= n_items
