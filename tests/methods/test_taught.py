"""Where answers alone are learned, histories without one are not read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from recdistill.data.dataset import Sequences
from recdistill.methods.base import Method, Setting, TrainingBatch, build_method
from recdistill.models.base import Model, build_model
from recdistill.teachers.base import Teacher
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.training.loop import fit
from recdistill.training.settings import TrainerSettings

N, BUDGET = 9, 3
TRAIN = Sequences.from_lists([(user + step) % N + 1 for step in range(3)] for user in range(8))


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    """Eight histories, and a teacher that answers three questions."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        teacher: Teacher = LedgerTeacher(FakeTeacher(N), ledger, budget=BUDGET)
        yield Setting(TRAIN, np.arange(len(TRAIN)), N, teacher)


def rows_read(method: Method, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the rows of which an epoch is made up."""
    read, loss = [], method.loss

    def watched(student: Model, batch: TrainingBatch) -> dict[str, torch.Tensor]:
        read.extend(batch.rows.tolist())
        return loss(student, batch)

    monkeypatch.setattr(method, "loss", watched)
    student = build_model("sasrec", N, {"dim": 8, "max_len": 5}, train=TRAIN)
    fit(student, method, setting, TrainerSettings(epochs=1, batch_size=2), validate=lambda _: 0.0)
    return sorted(read)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("kd", {"labels": False}),
        ("rrd", {"labels": False}),
        ("bahsd", {"labels": False}),
        ("extraction", {"queries": "histories"}),
    ],
)
def test_histories_without_an_answer_are_not_read(
    name: str, settings: dict[str, object], setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build_method(name, settings)
    read = rows_read(method, setting, monkeypatch)
    assert len(read) == BUDGET
    assert method.taught is not None
    assert read == sorted(method.taught)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("kd", {}), ("rrd", {}), ("bahsd", {}), ("kd", {"labels": False, "intents": {}})],
)
def test_labels_and_intents_are_learned_from_every_history(
    name: str, settings: dict[str, object], setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows_read(build_method(name, settings), setting, monkeypatch) == list(range(len(TRAIN)))
