from pathlib import Path
from typing import Any

import polars as pl
import pytest

import recdistill as rd
from recdistill.errors import SettingsError
from recdistill.runs.file import Run

SMALL = rd.SASRec(dim=8, n_blocks=1, max_len=8)
FEW = rd.TrainerSettings(epochs=3, batch_size=16, learning_rate=0.01)


@pytest.fixture(scope="module")
def split(shop: Path) -> rd.Split:
    dataset = rd.read_interactions(shop / "clicks.csv").dataset(shop / "products.csv")
    return rd.leave_one_out(dataset)


@pytest.fixture(scope="module")
def teacher(split: rd.Split) -> rd.Student:
    return rd.train(split, SMALL, training=FEW)


def items(student: rd.Student) -> list[Any]:
    return [entry.item for entry in student.recommend([["p3", "p4", "p5"]], k=4)[0]]


def test_training_gives_a_student_that_speaks_raw_ids(teacher: rd.Student, split: rd.Split) -> None:
    assert items(teacher)[0] == "p6"
    assert teacher.protocol == split.protocol


@pytest.mark.parametrize("form", ["file", "frame", "interactions", "dataset"])
def test_data_may_come_in_any_form(shop: Path, teacher: rd.Student, form: str) -> None:
    """All of them mean leave-one-out, so all of them give the very same model."""
    file = shop / "clicks.csv"
    interactions = rd.read_interactions(file)
    data: dict[str, Any] = {
        "file": file,
        "frame": pl.read_csv(file),
        "interactions": interactions,
        "dataset": interactions.dataset(),
    }
    assert items(rd.train(data[form], SMALL, training=FEW)) == items(teacher)


@pytest.mark.parametrize("student", [SMALL, rd.GRU4Rec(dim=8), rd.BERT4Rec(dim=8, n_blocks=1, max_len=8)])
def test_any_model_can_be_the_student(teacher: rd.Student, split: rd.Split, student: Any) -> None:
    distilled = rd.distill(teacher, split, method=rd.BAHSD(top_k=4), student=student, training=FEW)
    assert distilled.model.config == student


def test_a_student_can_start_from_a_trained_one(teacher: rd.Student, split: rd.Split) -> None:
    still = rd.TrainerSettings(epochs=1, learning_rate=1e-9)
    student = rd.distill(teacher, split, method=rd.KD(top_k=4), student=SMALL, training=still, start=teacher)
    assert items(student) == items(teacher)
    assert student.model is not teacher.model
    assert items(rd.train(split, SMALL, training=still, start=teacher)) == items(teacher)


def test_a_function_can_teach_within_a_budget(split: rd.Split, tmp_path: Path) -> None:
    """Asked again in the same folder, it is not called again."""
    asked: list[list[Any]] = []

    def follow(histories: list[list[Any]], k: int) -> list[list[str]]:
        asked.extend(histories)
        return [[f"p{(int(history[-1][1:]) + step) % 12}" for step in range(1, k + 1)] for history in histories]

    function = rd.CallableTeacher(follow, identity="follow", ids=split.dataset.items, batch_size=8)
    for _ in range(2):
        rd.distill(function, split, method=rd.KD(top_k=4), student=SMALL, training=FEW, budget=10, folder=tmp_path)
        assert len(asked) == 10


def test_stored_scores_can_teach(split: rd.Split, tmp_path: Path) -> None:
    """What a file says costs nothing: no ledger comes between a method and the scores of any item."""
    users, items = split.dataset.users, split.dataset.items
    frame = pl.DataFrame({"user": users.raw}).join(pl.DataFrame({"item": items.raw}), how="cross")
    stored = rd.StoredTeacher(frame.with_row_index("score"), ids=items, users=users)
    method = rd.RCEKD(top_k=4, n_sampled=4, depth=8)
    rd.distill(stored, split, method=method, student=SMALL, training=FEW, folder=tmp_path)
    assert not (tmp_path / "ledger.sqlite").exists()


def test_scores_that_are_nearly_all_there_are_told_of_unless_a_method_is_named(
    split: rd.Split, caplog: pytest.LogCaptureFixture
) -> None:
    users, items = split.dataset.users, split.dataset.items
    frame = pl.DataFrame({"user": users.raw}).join(pl.DataFrame({"item": items.raw[:-1]}), how="cross")
    stored = rd.StoredTeacher(frame.with_row_index("score"), ids=items, users=users)
    rd.distill(stored, split, method=rd.KD(top_k=4), student=SMALL, training=FEW)
    assert caplog.messages == []
    rd.distill(stored, split, student=SMALL, training=FEW)
    (said,) = caplog.messages
    assert "So the default method is 'kd', which learns from lists, instead of 'ckd'" in said


def test_a_saved_model_teaches_by_its_scores_unless_told_otherwise(teacher: rd.Student, split: rd.Split) -> None:
    by_default, by_scores, by_lists = (
        rd.distill(teacher, split, method=method, student=SMALL, training=FEW).recommend([["p3"]], k=5)
        for method in (None, rd.CKD(), rd.BAHSD())
    )
    assert by_default == by_scores != by_lists


def test_within_a_budget_a_model_teaches_by_its_lists(teacher: rd.Student, split: rd.Split, tmp_path: Path) -> None:
    rd.distill(teacher, split, student=SMALL, training=FEW, budget=100, folder=tmp_path / "lists")
    with pytest.raises(SettingsError, match="which counts and keeps lists alone: ask it without a budget"):
        rd.distill(
            teacher, split, method=rd.RCEKD(), student=SMALL, training=FEW, budget=100, folder=tmp_path / "scores"
        )


def test_a_method_can_be_given_again(teacher: rd.Student, split: rd.Split) -> None:
    """It stands for its settings; nothing that one run learned leaks into the next."""
    method = rd.BAHSD(top_k=4)
    first, second = (rd.distill(teacher, split, method=method, student=SMALL, training=FEW) for _ in range(2))
    assert first.recommend([["p3"]]) == second.recommend([["p3"]])


def test_python_and_a_run_file_give_the_same(teacher: rd.Student, little_run: dict[str, Any], tmp_path: Path) -> None:
    from recdistill.runs.execute import run_training

    run_training(Run.parse(little_run), tmp_path / "run")
    again = rd.Student.load(tmp_path / "run")
    assert items(again) == items(teacher)


def test_a_budget_needs_a_place_for_its_ledger(teacher: rd.Student, split: rd.Split) -> None:
    with pytest.raises(SettingsError, match="give a folder as well"):
        rd.distill(teacher, split, budget=10)


def test_something_else_than_a_model_is_refused(split: rd.Split) -> None:
    with pytest.raises(SettingsError, match=r"describes no model; give one like recdistill\.SASRec\(dim=32\)"):
        rd.train(split, FEW)
