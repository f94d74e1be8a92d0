"""What tests of runs share: a finished run, also as an API, and a copy of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from recdistill.runs.execute import Result, run_training
from recdistill.runs.file import Run
from recdistill.serving.blackbox import BlackBox, student_answers
from recdistill.serving.student import Student

from .listener import Sections


@pytest.fixture(scope="session")
def finished(little_run: Sections, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_training(Run.parse(little_run), tmp_path_factory.mktemp("runs") / "teacher")


@pytest.fixture
def api(finished: Result) -> Iterator[BlackBox]:
    with BlackBox(student_answers(Student.load(finished.folder))) as box:
        yield box


@pytest.fixture
def copied(finished: Result, tmp_path: Path) -> Path:
    """The finished run's folder, to be damaged."""
    return Path(shutil.copytree(finished.folder, tmp_path / "copied"))
