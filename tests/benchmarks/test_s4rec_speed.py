"""What is measured of S4Rec's epochs, in which order, and which bars are missed."""

from pathlib import Path

import pytest
import torch
from benchmarks.experiments import Values
from benchmarks.results import QUALITY, SPEED, ResultTable
from benchmarks.s4rec_rows import DATASETS, KMEANS, Row
from benchmarks.s4rec_speed import Job, measure, missed, plan, trained_for_long
from benchmarks.timing import made_up, measure_all

SECONDS = {"labels": 2.0, "cl4srec": 3.0, "duorec": 3.5, "iclrec": 5.0, "s4rec": 6.0, "s4rec-kmeans": 9.0}


@pytest.fixture
def table(tmp_path: Path) -> ResultTable:
    return ResultTable(tmp_path / "s4rec_speed.csv", SPEED)


def drive(table: ResultTable, *, foreign: float = 0.0, **seconds: float) -> None:
    """Fill one repeat with made-up times, some of them other than `SECONDS`."""
    times = SECONDS | {name.replace("_", "-"): value for name, value in seconds.items()}

    def measured(job: Job) -> Values:
        return {"seconds": times[job.system], "peak_mb": 9, "foreign_cores": foreign, "stolen_cores": 0.0}

    measure_all(plan(["amazon-beauty"], 1), table, measured)


def test_labels_alone_come_first_on_each_base_loss() -> None:
    jobs = list(plan(DATASETS, 2))
    assert [(job.loss, job.system) for job in jobs[:10]] == [
        *(("softmax", system) for system in SECONDS),
        *(("bce", system) for system in ("labels", "iclrec", "s4rec", "s4rec-kmeans")),
    ]
    assert [job.dataset for job in jobs[:40:10]] == list(DATASETS)
    assert [job.repeat for job in jobs] == [1] * 40 + [2] * 40


def test_kmeans_is_a_variant_of_s4rec() -> None:
    assert Job("ml-1m", "bce", "s4rec-kmeans", 1).row == Row("ml-1m", "s4rec", "bce", KMEANS)
    assert Job("ml-1m", "bce", "iclrec", 1).row == Row("ml-1m", "iclrec", "bce")


@pytest.mark.parametrize("foreign", [0.0, 0.9])
def test_seconds_are_over_those_of_labels_on_the_same_base_loss(table: ResultTable, foreign: float) -> None:
    drive(table, foreign=foreign)
    for row in table.rows():
        assert float(row["ratio"]) == pytest.approx(SECONDS[row["system"]] / 2.0)
        assert row["setting"].endswith("/noisy") == bool(foreign)
    assert len(table.rows()) == 10
    drive(table, foreign=foreign)
    assert len(table.rows()) == 10


@pytest.mark.parametrize("foreign", [0.0, 0.9])
def test_a_missed_bar_is_named(table: ResultTable, foreign: float) -> None:
    """S4Rec takes 3.5 times as long as labels, and K-means no longer than 1.43 times S4Rec."""
    drive(table, foreign=foreign, s4rec=7.0, s4rec_kmeans=10.0)
    noisy = "/noisy" if foreign else ""
    assert list(missed(table)) == [
        line
        for loss in ("softmax", "bce")
        for line in (
            f"amazon-beauty s4rec {loss}/epoch{noisy} repeat 1: 3.5 times the epoch of labels alone, 3.2 allowed",
            f"amazon-beauty s4rec-kmeans {loss}/epoch{noisy} repeat 1: 1.43 times the epoch of online clustering, "
            "1.5 expected",
        )
    ]


def test_nothing_is_missed_within_the_bars(table: ResultTable) -> None:
    drive(table, s4rec=6.4, s4rec_kmeans=9.7)
    assert list(missed(table)) == []


def test_a_training_that_takes_too_long_is_named(tmp_path: Path) -> None:
    results = ResultTable(tmp_path / "s4rec.csv", QUALITY)
    for variant, minutes in (("softmax", 20.0), ("bce", 20.5), ("softmax K = 512", 30.0)):
        figure = {"stratum": "all", "metric": "ndcg", "k": 10, "value": 0.1, "minutes": minutes}
        results.append({**Row("amazon-beauty", "s4rec").key, "variant": variant, **figure})
    assert list(trained_for_long(results)) == ["amazon-beauty s4rec bce seed 0: trained for 20.5 minutes, 20 allowed"]


@pytest.mark.parametrize(("dataset", "system"), [("amazon-beauty", "s4rec"), ("ml-1m", "s4rec-kmeans")])
def test_an_epoch_is_measured(dataset: str, system: str) -> None:
    """ML-1M is learned from in windows."""
    train, n_items = made_up()
    n_threads = torch.get_num_threads()
    found = measure(Job(dataset, "bce", system, 1), train, n_items, seconds=0.0, threads=n_threads)
    assert found["seconds"] > 0
    assert found["peak_mb"] > 0
