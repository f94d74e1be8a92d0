"""A model and a method are built, and what does not fit is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recdistill.data.dataset import Sequences
from recdistill.data.embedded import load_shop
from recdistill.data.splits import leave_one_out
from recdistill.errors import RecDistillError, SettingsError
from recdistill.methods.base import build_method
from recdistill.methods.probing import probe
from recdistill.models.base import build_model
from recdistill.runs.data import load_split
from recdistill.runs.execute import Result, run_training
from recdistill.runs.file import Run
from recdistill.runs.learning import learn, set_up
from recdistill.serving.student import Student
from recdistill.tables import print_result
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.local import LocalTeacher
from recdistill.training.batches import Batches
from recdistill.training.settings import TrainerSettings

from .listener import Sections


def test_a_student_can_start_from_a_trained_one(finished: Result, little_run: Sections, tmp_path: Path) -> None:
    """With a rate of nearly 0 it stays what it was."""
    student = little_run["model"] | {"start": str(finished.folder), "dropout": 0.1}
    training = little_run["training"] | {"epochs": 1, "learning_rate": 1e-9}
    run = Run.parse(little_run | {"model": student, "training": training})
    again = run_training(run, tmp_path / "again")
    before, after = (Student.load(folder).model for folder in (finished.folder, again.folder))
    assert np.allclose(before.item_embeddings().detach(), after.item_embeddings().detach(), atol=1e-6)
    assert again.evaluation.mean("ndcg", 10) == pytest.approx(finished.evaluation.mean("ndcg", 10))


def test_a_student_that_no_epoch_makes_better_stays_what_it_began_with(
    finished: Result,
    little_run: Sections,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    began = finished.facts["best_validation_ndcg_10"]
    training = little_run["training"] | {"epochs": 1, "learning_rate": 10.0}
    run = Run.parse(little_run | {"model": little_run["model"] | {"start": str(finished.folder)}, "training": training})
    again = run_training(run, tmp_path / "again")
    assert [again.facts[f"{when}_validation_ndcg_10"] for when in ("start", "best")] == pytest.approx([began, began])
    assert again.facts["best_epoch"] == 0
    assert f"stays what it began with, NDCG@10 {began:.4f} on validation cases: the best epoch, 1, had" in caplog.text
    assert np.array_equal(again.evaluation.ranks, finished.evaluation.ranks)
    print_result(again)
    assert "1 epoch, none as good as its start, which it is" in " ".join(capsys.readouterr().out.split())


def test_a_student_that_begins_anew_has_no_start(finished: Result) -> None:
    assert finished.facts["start_validation_ndcg_10"] is None


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"dim": 16}, r"another shape \(dim 8, not 16\)"),
        ({"n_heads": 1}, r"another shape \(n_heads 2, not 1\)"),
        ({"name": "gru4rec", "dim": 8}, "'gru4rec' cannot start from a 'sasrec'"),
    ],
)
def test_a_student_starts_from_its_like_alone(
    finished: Result, little_run: Sections, student: Sections, said: str, tmp_path: Path
) -> None:
    base = {} if "name" in student else little_run["model"]
    run = Run.parse(little_run | {"model": {**base, **student, "start": str(finished.folder)}})
    with pytest.raises(SettingsError, match=said):
        run_training(run, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"dropout": 0.4}}, "another model"),
        ({"method": {"name": "supervised", "smoothing": 0.1}}, "another method, or other settings of it"),
        ({"split": {"protocol": "last-basket"}}, "other training histories"),
        ({"start": True}, "other first weights"),
        ({"teacher": True}, "another method, or other settings of it"),
    ],
)
def test_a_folder_goes_on_with_what_was_begun_there_alone(
    finished: Result, little_run: Sections, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """From Python, where no run file says what the folder is for."""
    run = Run.parse(little_run)
    split = load_split(run)
    learn(split, run.student, run.method, run.training, folder=tmp_path)
    sections = {name: little_run.get(name, {}) | new for name, new in changes.items() if isinstance(new, dict)}
    other = Run.parse(little_run | sections)
    teacher = FakeTeacher(12) if "teacher" in changes else None
    method = (
        Run.parse(little_run | {"method": {"name": "kd"}, "teacher": {"kind": "rules"}}).method if teacher else None
    )
    start = Student.load(finished.folder) if "start" in changes else None
    with pytest.raises(RecDistillError, match=f"holds a checkpoint of {said}; choose another folder"):
        learn(
            load_split(other),
            other.student,
            method or other.method,
            other.training,
            teacher=teacher,
            start=start,
            folder=tmp_path,
        )
    again, fitted = learn(split, run.student, run.method, run.training, folder=tmp_path)
    assert fitted.epochs == 3
    assert again.n_parameters == finished.facts["parameters"]


def test_a_student_starts_from_one_that_knows_the_same_items_alone(finished: Result, tmp_path: Path) -> None:
    split, run = leave_one_out(load_shop()), finished.run
    with pytest.raises(SettingsError, match="items"):
        learn(split, run.student, run.method, run.training, start=Student.load(finished.folder))


def test_epochs_are_kept_in_a_folder(little_run: Sections) -> None:
    run = Run.parse(little_run | {"training": {"epochs": 1, "keep_epochs": [1]}})
    with pytest.raises(SettingsError, match="keep_epochs keeps models in the folder of the run, and there is none"):
        learn(load_split(run), run.student, run.method, run.training)


def test_method_student_and_teacher_must_fit() -> None:
    lists_only, sasrec = FakeTeacher(3), build_model("sasrec", 3)
    mf = build_model("mf", 3, train=Sequences.from_lists([[1, 2]]))
    build_method("supervised").check(sasrec, None)
    build_method("kd").check(mf, lists_only)
    with pytest.raises(SettingsError, match="'kd' learns from a teacher"):
        build_method("kd").check(sasrec, None)
    with pytest.raises(SettingsError, match="'supervised' asks no teacher"):
        build_method("supervised").check(sasrec, lists_only)
    for name in ("bahsd", "extraction"):
        build_method(name).check(sasrec, lists_only)
        with pytest.raises(SettingsError, match="'mf' reads the user instead: use method 'kd'"):
            build_method(name).check(mf, lists_only)
    for name in ("s4rec", "iclrec", "duorec", "cl4srec"):
        build_method(name).check(sasrec, None)
        with pytest.raises(SettingsError, match="'mf' reads the user instead: use method 'supervised'"):
            build_method(name).check(mf, None)


def test_a_method_that_needs_scores_refuses_a_teacher_without_them(finished: Result) -> None:
    method, sasrec = build_method("rcekd"), build_model("sasrec", 3)
    with pytest.raises(SettingsError, match="which teacher 'fake' does not give"):
        method.check(sasrec, FakeTeacher(3, gives_scores=True))
    method.check(sasrec, LocalTeacher(Student.load(finished.folder).model))


@pytest.mark.parametrize("name", ["sasrec", "mf"])
def test_the_seed_of_the_training_draws_the_first_weights(little_run: Sections, name: str) -> None:
    run = Run.parse(little_run | {"model": {"name": name, "dim": 4}})
    split = load_split(run)

    def first_weights(seed: int) -> torch.Tensor:
        training = TrainerSettings(seed=seed)
        student = set_up(split, run.student, run.method, training, teacher=None)[0]
        return torch.cat([weights.flatten() for weights in student.parameters()])

    assert torch.equal(first_weights(1), first_weights(1))
    assert not torch.isclose(first_weights(0), first_weights(1)).all()


def test_long_histories_are_learned_from_in_windows_and_asked_about(little_run: Sections) -> None:
    run = Run.parse(little_run | {"model": {**little_run["model"], "max_len": 2}, "method": {"name": "kd"}})
    split = load_split(run)
    teacher = FakeTeacher(split.dataset.n_items)
    learned, asked = {}, {}
    for long_histories in ("newest", "windows"):
        training = TrainerSettings(epochs=1, long_histories=long_histories)
        setting = set_up(split, run.student, run.method, training, teacher=teacher)[2]
        learned[long_histories] = sum(setting.train.newest(2).lengths)
        before = len(teacher.asked)
        probe(setting, k=2)
        asked[long_histories] = len(teacher.asked) - before
        assert len(setting.users) == len(setting.train) == asked[long_histories]
    assert asked["newest"] == len(split.train) < asked["windows"]
    assert learned["windows"] - asked["windows"] == sum(np.maximum(0, split.train.lengths - 1))


@pytest.mark.parametrize(("model", "method"), [("sasrec", "supervised"), ("sasrec", "kd"), ("bert4rec", "supervised")])
def test_windows_of_long_histories_have_each_label_once(little_run: Sections, model: str, method: str) -> None:
    """Also where the last training item is a label only, and not read."""
    chosen = {"name": model, "max_len": 3, "dim": 8}
    run = Run.parse(little_run | {"model": chosen, "method": {"name": method}})
    split, training = load_split(run), TrainerSettings(long_histories="windows")
    teacher = FakeTeacher(split.dataset.n_items) if method == "kd" else None
    student, learner, setting = set_up(split, run.student, run.method, training, teacher=teacher)
    whole = learner.reads_last or not student.causal
    batches = Batches(setting.train, batch_size=8, max_len=3, reads_last=whole)
    n_labels = sum(int((labels > 0).sum()) for _, labels, _ in batches.epoch(0, 0))
    assert n_labels == sum(np.maximum(0, split.train.lengths - 1))


def test_a_teacher_that_is_told_the_user_cannot_be_asked_about_windows(little_run: Sections) -> None:
    run = Run.parse(little_run | {"method": {"name": "kd"}})
    split, teacher = load_split(run), FakeTeacher(3)
    teacher.takes = "user"
    training = TrainerSettings(long_histories="windows")
    with pytest.raises(SettingsError, match=r"for a user as of today.*set long_histories to 'newest'"):
        set_up(split, run.student, run.method, training, teacher=teacher)


def test_windows_of_a_single_item_are_refused(little_run: Sections) -> None:
    run = Run.parse(little_run | {"model": {**little_run["model"], "max_len": 1}})
    training = TrainerSettings(long_histories="windows")
    with pytest.raises(SettingsError, match="raise its max_len"):
        set_up(load_split(run), run.student, run.method, training, teacher=None)
