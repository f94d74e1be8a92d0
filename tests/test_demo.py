import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from recdistill import demo
from recdistill.demo import Plan, run_demo, serve
from recdistill.errors import TeacherError
from recdistill.runs.execute import Result, run_training
from recdistill.runs.file import Run
from recdistill.runs.reports import Quiet


class Listener(Quiet):
    def __init__(self) -> None:
        self.epochs = 0
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def epoch(self, *_: object) -> None:
        self.epochs += 1


@pytest.fixture(scope="module")
def plan(shop: Path) -> Plan:
    return Plan(
        protocols=("last-basket",),
        data={"path": str(shop / "clicks.csv"), "titles": str(shop / "products.csv")},
        teacher={"dim": 16, "n_blocks": 1, "max_len": 8},
        student={"dim": 8, "n_blocks": 1, "max_len": 8},
        teacher_training={"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
        first_stage={"epochs": 2, "batch_size": 16, "learning_rate": 0.01},
        second_stage={"epochs": 2, "batch_size": 16, "learning_rate": 0.003},
        budget=30,
    )


def test_the_demo_in_small(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it, API in a second process included; then once more, and nothing is done twice."""
    text = io.StringIO()
    monkeypatch.setattr(demo, "result_console", lambda: Console(file=text, width=200))
    listener = Listener()
    run_demo(tmp_path, listener, plan)
    printed = text.getvalue()

    assert "queries spent: 30 of 30 allowed" in printed
    for name in ("teacher", "labels", "kd", "bahsd"):
        assert re.search(rf"^{name} +\d\.\d{{4}} \[\d\.\d{{4}}, \d\.\d{{4}}\]", printed, re.MULTILINE), name
        assert Result.load(tmp_path / "last-basket" / name)
    assert re.search(r"^bahsd +tail +[+-]\d\.\d{4}", printed, re.MULTILINE)
    assert len(re.findall(r"^customer c\d+$", printed, re.MULTILINE)) == 3
    assert re.search(r"^1 +Product \d+", printed, re.MULTILINE)
    assert listener.epochs == 5 * 2

    again = Listener()
    run_demo(tmp_path, again, plan)
    assert again.epochs == 0


def test_an_api_that_does_not_start_is_one_clear_error(little_run: dict[str, object], tmp_path: Path) -> None:
    result = run_training(Run.parse(little_run), tmp_path / "run")
    (result.folder / "student" / "items.parquet").unlink()
    with pytest.raises(TeacherError, match="the API did not start"), serve(result.folder, Quiet()):
        pass
