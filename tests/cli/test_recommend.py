"""`recdistill recommend` with a student that reads the user."""

import re
from pathlib import Path
from typing import Any

import pytest

from recdistill.runs.execute import run_training
from recdistill.runs.file import Run

from .shell import call


@pytest.fixture(scope="module")
def run(little_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    sections = little_run | {"model": {"name": "mf", "dim": 4}, "method": {"loss": "bpr"}}
    return run_training(Run.parse(sections), tmp_path_factory.mktemp("runs") / "mf").folder


@pytest.mark.parametrize("folder", [".", "student"])
def test_a_user_is_enough(capsys: pytest.CaptureFixture[str], run: Path, folder: str) -> None:
    """c0 bought p0…p5."""
    code, out, _ = call(capsys, "recommend", run / folder, "--user", "c0", "-k", 20)
    assert code == 0
    assert set(re.findall(r"\bp\d+\b", out)) == {f"p{n}" for n in range(6, 12)}
    assert "Product 6" in out


def test_an_unknown_user_gets_the_most_popular_items_on_request(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    code, _, err = call(capsys, "recommend", run, "--user", "nobody")
    assert code == 2
    assert re.search(r"1 of 1 users are unknown to the student, for example \['nobody'\].*--popular-if-unknown", err)
    code, out, _ = call(capsys, "recommend", run, "--user", "nobody", "--popular-if-unknown", "-k", 12)
    assert code == 0
    assert len(set(re.findall(r"\bp\d+\b", out))) == 12


def test_a_history_is_not_what_it_reads(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    code, _, err = call(capsys, "recommend", run, "--history", "p1")
    assert (code, err) == (
        2,
        "error: model 'mf' answers for users, not for histories: use recommend_for_users (--user)\n",
    )


def test_popularity_is_for_users(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    code, _, err = call(capsys, "recommend", run, "--history", "p1", "--popular-if-unknown")
    assert code == 2
    assert "--popular-if-unknown goes with --user" in err
