"""What is measured of augmentations, and how it is written."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from benchmarks.augmentation_speed import ENCODING, Stopwatch, Times, endless, measure, missed, run
from benchmarks.experiments import Values
from benchmarks.results import SPEED, ResultTable
from benchmarks.timing import made_up

from benchmarks import augmentation_speed
from recdistill.models.base import build_model
from recdistill.training.batches import Batches

TRAIN, N_ITEMS = made_up()
TIMES: Times = {
    (ENCODING, "forward"): 0.2,
    (ENCODING, "training"): 0.5,
    ("s4rec", "views"): 0.05,
    ("s4rec", "forward"): 0.4,
    ("s4rec", "training"): 1.2,
}


def result(*, foreign: float = 0.0) -> Values:
    return {"times": TIMES, "peak_mb": 100.4, "foreign_cores": foreign, "stolen_cores": 0.0}


@pytest.fixture
def table(tmp_path: Path) -> ResultTable:
    return ResultTable(tmp_path / "augmentation_speed.csv", SPEED)


def drive(monkeypatch: pytest.MonkeyPatch, table: ResultTable, *, repeats: int = 1, foreign: float = 0.0) -> list[int]:
    """Run with made-up times; returns the batch sizes that were measured."""
    asked: list[int] = []

    def measured(way: object, train: object, n_items: int, batch_size: int, **_: object) -> Values:
        asked.append(batch_size)
        return result(foreign=foreign)

    monkeypatch.setattr(augmentation_speed, "quietest", measured)
    run(table, "made-up", TRAIN, N_ITEMS, seconds=0.1, threads=1, repeats=repeats, tries=1)
    return asked


def test_times_are_divided_by_those_of_one_encoding(monkeypatch: pytest.MonkeyPatch, table: ResultTable) -> None:
    """Making views alone is compared with encoding forward."""
    assert drive(monkeypatch, table) == [256, 512]
    assert [(row["system"], row["setting"], row["ratio"]) for row in table.rows()[:5]] == [
        ("encoding", "batch-256/forward", "1"),
        ("encoding", "batch-256/training", "1"),
        ("s4rec", "batch-256/views", "0.25"),
        ("s4rec", "batch-256/forward", "2"),
        ("s4rec", "batch-256/training", "2.4"),
    ]


@pytest.mark.parametrize("foreign", [0.0, 0.9])
def test_what_is_in_the_table_is_not_measured_again(
    monkeypatch: pytest.MonkeyPatch, table: ResultTable, foreign: float
) -> None:
    drive(monkeypatch, table, foreign=foreign)
    assert drive(monkeypatch, table, repeats=2) == [256, 512]
    assert len(table.find(setting="batch-256/forward/noisy")) == (2 if foreign else 0)


def test_a_missed_bar_is_named(monkeypatch: pytest.MonkeyPatch, table: ResultTable) -> None:
    drive(monkeypatch, table)
    first, second = missed(table)
    assert first.startswith("made-up s4rec batch-256/training repeat 1: 2.4 times")
    assert second.startswith("made-up s4rec batch-512/training")


def test_every_batch_is_whole_and_another_one() -> None:
    batches = Batches(TRAIN, batch_size=128, max_len=50, reads_last=False)
    found = list(islice(endless(batches), 5))
    assert [len(batch) for batch in found] == [128] * 5
    assert len({tuple(batch.items[:9].tolist()) for batch in found}) == 5


def test_data_of_less_than_a_batch_is_one_batch() -> None:
    batches = Batches(TRAIN, batch_size=10_000, max_len=50, reads_last=False)
    assert len(next(endless(batches))) == len(TRAIN)


def test_every_way_is_timed_and_what_is_encoded_is_twice_as_much() -> None:
    stopwatch = Stopwatch(build_model("sasrec", N_ITEMS, {"max_len": 50}), torch.Generator().manual_seed(0))
    batch = next(endless(Batches(TRAIN, batch_size=16, max_len=50, reads_last=False)))
    assert len(stopwatch.encode(batch, ENCODING)) == 16
    assert len(stopwatch.encode(batch, "cl4srec")) == 32
    times = stopwatch(batch)
    assert set(times) == {
        *((system, setting) for system in (ENCODING, "s4rec", "cl4srec") for setting in ("forward", "training")),
        ("s4rec", "views"),
        ("cl4srec", "views"),
    }
    assert min(times.values()) > 0


def test_a_measurement_gives_every_time_and_who_disturbed() -> None:
    n_threads = torch.get_num_threads()
    found = measure(TRAIN, N_ITEMS, 64, seconds=0.0, threads=n_threads)
    assert min(found["times"].values()) > 0
    assert found["peak_mb"] > 0
    assert found["foreign_cores"] >= 0
