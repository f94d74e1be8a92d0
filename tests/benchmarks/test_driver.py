import json
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.peers.driver import Arguments, Histories, check_finite, report
from benchmarks.peers.machine import Load

HISTORIES = Histories(np.array([5, 6, 7, 8, 1, 2, 3]), np.array([0, 4, 4, 7]))  # the second user has none


def test_the_newest_items_are_held_out() -> None:
    train = HISTORIES.without_newest(2)
    assert train.items.tolist() == [5, 6, 1]
    assert train.offsets.tolist() == [0, 2, 2, 3]


def test_a_short_history_is_emptied_and_its_neighbours_stay() -> None:
    train = HISTORIES.without_newest(3)
    assert train.items.tolist() == [5]
    assert train.offsets.tolist() == [0, 1, 1, 1]


def test_flat_rows_count_positions_from_each_users_first_item() -> None:
    users, items, positions = HISTORIES.flat()
    assert users.tolist() == [0, 0, 0, 0, 2, 2, 2]
    assert items.tolist() == [5, 6, 7, 8, 1, 2, 3]
    assert positions.tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_histories_survive_the_file(tmp_path: Path) -> None:
    HISTORIES.write(tmp_path / "histories.npz")
    read = Histories.read(tmp_path / "histories.npz")
    assert read.items.tolist() == HISTORIES.items.tolist()
    assert read.offsets.tolist() == HISTORIES.offsets.tolist()
    assert read.n_users == 3


@pytest.mark.parametrize("compiled", [False, True])
def test_arguments_reach_the_driver(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    sent = Arguments(Path("x.npz"), 50, "sampled-softmax", 2.5, threads=3, inner_dim=256, compiled=compiled)
    monkeypatch.setattr(sys, "argv", ["driver", *sent.command_line()])
    assert Arguments.parse("") == sent


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_training_run_that_failed_is_not_timed(loss: float) -> None:
    with pytest.raises(RuntimeError, match="step time means nothing"):
        check_finite(loss, "a peer")


def test_the_last_line_is_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    report("numpy", seconds=4.5, load=Load(own=1.9, foreign=0.01, stolen=0.0), steps_per_epoch=7)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line.pop("peak_mb") > 0
    assert line == {
        "version": np.__version__,
        "seconds": 4.5,
        "own_cores": 1.9,
        "foreign_cores": 0.01,
        "stolen_cores": 0.0,
        "steps_per_epoch": 7,
    }
