"""What is measured of distillation, in which order, and how it is written."""

from pathlib import Path

import pytest
import torch
from benchmarks.distillation_speed import MOST_MB, Job, measure, missed, plan
from benchmarks.experiments import Values
from benchmarks.results import SPEED, ResultTable
from benchmarks.timing import find, made_up, measure_all


def result(seconds: float, *, foreign: float = 0.0, peak_mb: float = 100.4) -> Values:
    return {"seconds": seconds, "peak_mb": peak_mb, "foreign_cores": foreign, "stolen_cores": 0.0}


@pytest.fixture
def table(tmp_path: Path) -> ResultTable:
    return ResultTable(tmp_path / "speed.csv", SPEED)


def drive(table: ResultTable, *results: Values) -> int:
    """Run one repeat of RCE-KD, measurements giving these results in order; return how many were left over."""
    waiting = list(results)
    measure_all(plan(["gowalla"], ["rcekd"], 1), table, lambda job: waiting.pop(0))
    return len(waiting)


def test_the_bare_student_comes_first_and_methods_take_turns() -> None:
    jobs = list(plan(["gowalla"], ["ce", "rcekd"], 2))
    assert [(job.method, job.setting) for job in jobs[: len(jobs) // 2]] == [
        ("labels", "epoch"),
        ("ce", "epoch"),
        ("rcekd", "epoch"),
        ("rcekd", "epoch/refresh-10"),
        ("rcekd", "refresh"),
    ]
    assert [job.repeat for job in jobs] == [1] * 5 + [2] * 5


def test_only_methods_that_a_cell_compares_are_measured_there() -> None:
    jobs = plan(["amazon-beauty"], ["htd", "ckd"], 1)
    assert [job.method for job in jobs] == ["labels", "ckd"]


def test_a_job_trains_what_the_quality_table_does() -> None:
    assert Job("gowalla", "labels", "epoch", 1).run().method.name == "supervised"
    each, rare = (
        Job("gowalla", "rcekd", setting, 1).run().dump()["method"] for setting in ("epoch", "epoch/refresh-10")
    )
    assert (each["refresh_every"], rare["refresh_every"]) == (1, 10)
    assert each["label_loss"] == rare["label_loss"]
    assert each["label_loss"]["loss"] == "bpr"


def test_times_are_divided_by_those_of_the_bare_student(table: ResultTable) -> None:
    assert drive(table, result(2.0), result(5.0), result(3.0, foreign=0.5), result(1.0)) == 0
    assert [(row["system"], row["setting"], row["ratio"], row["peak_mb"]) for row in table.rows()] == [
        ("labels", "epoch", "1", "100"),
        ("rcekd", "epoch", "2.5", "100"),
        ("rcekd", "epoch/refresh-10/noisy", "1.5", "100"),
        ("rcekd", "refresh", "0.5", "100"),
    ]


def test_what_is_in_the_table_is_not_measured_again(table: ResultTable) -> None:
    first = [result(2.0, foreign=0.9), result(5.0), result(3.0, foreign=0.5), result(1.0)]
    drive(table, *first)
    assert drive(table) == 0
    assert len(table.rows()) == 4
    assert find(table, Job("gowalla", "labels", "epoch", 2).where, "epoch") is None


def test_a_missed_bar_is_named(table: ResultTable) -> None:
    drive(table, result(2.0), result(2.7), result(2.5), result(9.0, peak_mb=MOST_MB + 1))
    slow, large = missed(table)
    assert slow.startswith("gowalla rcekd epoch repeat 1: 1.35 times")
    assert large.startswith("gowalla rcekd refresh repeat 1")


@pytest.mark.parametrize("method", ["labels", "rcekd", "hetcomp"])
def test_an_epoch_is_measured_with_an_untrained_teacher(method: str) -> None:
    train, n_items = made_up()
    found = measure(Job("gowalla", method, "epoch", 1), train, n_items, seconds=0.0, threads=torch.get_num_threads())
    assert found["seconds"] > 0
    assert found["peak_mb"] > 0


def test_a_refresh_is_measured() -> None:
    train, n_items = made_up()
    found = measure(Job("gowalla", "rcekd", "refresh", 1), train, n_items, seconds=0, threads=torch.get_num_threads())
    assert found["seconds"] > 0
