import io
import time
from pathlib import Path

import pytest
import typer
from rich.console import Console

from recdistill.cli.common import reporting
from recdistill.cli.progress import Reporter
from recdistill.training.progress import EpochRow
from recdistill.training.settings import TrainerSettings


def row(epoch: int, validation: float | None = 0.25) -> EpochRow:
    return EpochRow(epoch, {"label": 2.0, "answer": 0.5}, validation, 1e-3, 1.0, 1234.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that shows its one entry."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def reporter(*, terminal: bool = False) -> tuple[Reporter, io.StringIO]:
    text = io.StringIO()
    return Reporter(Console(file=text, force_terminal=terminal, width=120, highlight=False)), text


def test_an_epoch_is_one_plain_line_when_piped(clock: list[float]) -> None:
    told, text = reporter()
    with told:
        told.step(1, 1, 10, {}, 0.0)
        clock[0] = 30.0
        told.epoch(row(1), TrainerSettings(epochs=4))
    assert text.getvalue() == (
        "  epoch 1/4  label 2.0000  answer 0.5000  validation NDCG@10 0.2500  1,234 sequences/s  at most 1:30 left\n"
    )


def test_the_last_epoch_has_no_time_left(clock: list[float]) -> None:
    told, text = reporter()
    told.step(1, 1, 10, {}, 0.0)
    told.epoch(row(1, validation=None), TrainerSettings(epochs=1))
    assert text.getvalue() == "  epoch 1/1  label 2.0000  answer 0.5000  1,234 sequences/s\n"


def test_time_left_has_no_sixtieth_second(clock: list[float]) -> None:
    told, text = reporter()
    told.step(1, 1, 10, {}, 0.0)
    clock[0] = 119.7
    told.epoch(row(1), TrainerSettings(epochs=2))
    assert text.getvalue().endswith("at most 2:00 left\n")


def test_time_left_counts_only_what_this_process_has_seen(clock: list[float]) -> None:
    """A run that goes on with epoch 8 took 10 s for it, so the two after it take 20."""
    told, text = reporter()
    told.step(8, 1, 10, {}, 0.0)
    clock[0] = 10.0
    told.epoch(row(8), TrainerSettings(epochs=10))
    assert text.getvalue().endswith("at most 0:20 left\n")


def test_time_left_forgets_a_run_that_stopped_early(clock: list[float]) -> None:
    """The first run ended with epoch 1 of 9; the second one's epoch took 10 s, so its other one takes 10."""
    told, text = reporter()
    told.step(1, 1, 10, {}, 0.0)
    told.epoch(row(1), TrainerSettings(epochs=9))
    clock[0] = 500.0
    told.step(1, 1, 10, {}, 0.0)
    clock[0] = 510.0
    told.epoch(row(1), TrainerSettings(epochs=2))
    assert text.getvalue().endswith("at most 0:10 left\n")


def test_a_long_epoch_is_not_silent_when_piped(clock: list[float]) -> None:
    told, text = reporter()
    for step, now in ((1, 1.0), (2, 11.0), (3, 12.0), (4, 22.0)):
        clock[0] = now
        told.step(1, step, 10, {"label": 3.0}, 50.0)
    lines = text.getvalue().splitlines()
    assert lines == [
        "  epoch 1: 2/10  label 3.0000  50 sequences/s",
        "  epoch 1: 4/10  label 3.0000  50 sequences/s",
    ]


def test_preparation_ends_with_a_line(clock: list[float]) -> None:
    told, text = reporter()
    told.preparing("asking the teacher", 500, 1000)
    told.preparing("asking the teacher", 1000, 1000)
    assert text.getvalue() == "  asking the teacher: 1,000\n"


def test_a_terminal_shows_a_live_bar(clock: list[float]) -> None:
    told, text = reporter(terminal=True)
    with told:
        told.step(3, 7, 10, {"label": 3.0}, 50.0)
        told._bar.refresh()
        told.epoch(row(3), TrainerSettings(epochs=3))
    assert "epoch 3" in text.getvalue()
    assert "7/10" in text.getvalue()
    assert "validation NDCG@10 0.2500" in text.getvalue()


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(typer.Exit) as stop, reporting(tmp_path):
        raise KeyboardInterrupt
    assert stop.value.exit_code == 130
    assert "the same command goes on from there" in capsys.readouterr().err
