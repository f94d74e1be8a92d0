"""A run is done once, goes on where it was stopped, and is read back as it was."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recdistill.errors import ArtefactError, SettingsError
from recdistill.runs.data import load_split
from recdistill.runs.execute import Result, evaluate_run, run_distillation, run_training
from recdistill.runs.file import Run
from recdistill.runs.folder import EVALUATION, GROUPS, RESULTS, RUN
from recdistill.runs.teachers import local_teacher
from recdistill.serving.student import Student
from recdistill.tables import print_result
from recdistill.training.checkpoints import METRICS

from .listener import Listener, Sections


def test_a_run_folder_holds_all_there_is_to_know(finished: Result) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {RUN, METRICS, "student", EVALUATION, GROUPS, RESULTS}
    about = json.loads((finished.folder / RUN).read_text())
    assert about["settings"]["training"]["seed"] == 0
    assert about["data"].startswith("60 users, 12 items, 480 interactions, ")
    assert set(about["versions"]) == {"recdistill", "python", "torch", "numpy", "polars"}
    assert len((finished.folder / METRICS).read_text().splitlines()) == finished.facts["epochs"] == 3
    assert finished.facts["side_by_side"] == []
    (computed_with,) = finished.facts["computed_with"]
    assert computed_with["torch"] == about["versions"]["torch"]
    assert {computed_with[f"{part}_precision"] for part in ("student", "method")} <= {"fp32", "bf16"}


def test_a_finished_run_is_read_back_as_it_was(finished: Result) -> None:
    loaded = Result.load(finished.folder)
    assert loaded.run == finished.run
    assert loaded.facts == json.loads(json.dumps(finished.facts))
    assert loaded.groups.labels() == finished.groups.labels()
    assert np.array_equal(loaded.evaluation.ranks, finished.evaluation.ranks)
    assert set(loaded.strata()) >= {"all", "head", "tail", "item-tail"}


def test_the_student_learned_the_circle(finished: Result) -> None:
    """After p3, p4, p5 comes p6, in the ids and with the title of the data."""
    top = Student.load(finished.folder).recommend([["p3", "p4", "p5"]], k=1)[0][0]
    assert (top.item, top.title) == ("p6", "Product 6")


def test_a_finished_run_is_not_run_again(finished: Result) -> None:
    listener = Listener()
    again = run_training(finished.run, finished.folder, listener)
    assert listener.epochs == []
    assert "finished before" in listener.said[0]
    assert again.facts == json.loads(json.dumps(finished.facts))


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(finished: Result, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_training(finished.run, tmp_path / "run", Listener(stop_after=1))
    with pytest.raises(ArtefactError, match="is not finished; start it again"):
        Result.load(tmp_path / "run")
    listener = Listener()
    resumed = run_training(finished.run, tmp_path / "run", listener)
    assert listener.epochs == [2, 3]
    assert np.array_equal(resumed.evaluation.ranks, finished.evaluation.ranks)


def test_the_run_json_of_a_run_can_be_run_again(finished: Result, tmp_path: Path) -> None:
    again = run_training(Run.read(finished.folder / RUN), tmp_path / "again")
    assert np.array_equal(again.evaluation.ranks, finished.evaluation.ranks)


def test_evaluating_anew_finds_the_same(finished: Result) -> None:
    """From the saved weights and the data alone."""
    (finished.folder / EVALUATION).rename(finished.folder / "old.npz")
    try:
        with pytest.raises(ArtefactError, match="evaluate the run again"):
            Result.load(finished.folder)
        again = evaluate_run(finished.folder)
    finally:
        (finished.folder / "old.npz").rename(finished.folder / EVALUATION)
    assert np.array_equal(again.evaluation.ranks, finished.evaluation.ranks)
    assert again.facts == json.loads(json.dumps(finished.facts))


@pytest.mark.parametrize("mask_seen", [True, False])
def test_masked_test_targets_are_told_and_counted(
    little_run: Sections, tmp_path: Path, capsys: pytest.CaptureFixture[str], mask_seen: bool
) -> None:
    """Zeros would look like those of a bad model."""
    rows = [(user, (user + step) % 12, step) for user in range(30) for step in range(5)]
    rows += [(user, user % 12 if user < 20 else (user + 5) % 12, 5) for user in range(30)]  # 20 take their first again
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "clicks.csv")
    sections = little_run | {"data": {"path": str(tmp_path / "clicks.csv")}, "split": {"mask_seen": mask_seen}}
    listener = Listener()
    result = run_training(Run.parse(sections), tmp_path / "run", listener)
    print_result(result)
    told = "20 of 30 test targets are in their own history, which is masked"
    assert any(told in said for said in listener.said) == mask_seen
    assert (told in " ".join(capsys.readouterr().out.split())) == mask_seen
    facts = evaluate_run(tmp_path / "run").facts
    assert (facts["targets"], facts["masked_targets"]) == (30, 20 if mask_seen else 0)


@pytest.mark.parametrize(
    ("schedule", "limit", "best", "told"),
    [("constant", 3, 3, True), ("constant", 3, 2, False), ("constant", 4, 3, False), ("cosine", 3, 3, False)],
)
def test_a_training_that_was_cut_off_at_its_best_is_told(
    finished: Result, capsys: pytest.CaptureFixture[str], schedule: str, limit: int, best: int, told: bool
) -> None:
    """With a falling rate the last epochs are the best wherever it ends."""
    training = finished.run.training.model_copy(update={"schedule": schedule, "epochs": limit})
    run = replace(finished.run, training=training)
    print_result(replace(finished, run=run, facts=finished.facts | {"best_epoch": best, "epochs": 3}))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"3 epochs, the best was {best}" in shown
    assert ("the best was 3, its last: with more (training.epochs) it may get better" in shown) == told


def test_one_epoch_is_one(finished: Result, capsys: pytest.CaptureFixture[str]) -> None:
    print_result(replace(finished, facts=finished.facts | {"best_epoch": 1, "epochs": 1}))
    assert " 1 epoch, the best was 1" in " ".join(capsys.readouterr().out.split())


def test_train_and_distill_are_not_mixed_up(little_run: Sections, finished: Result, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no \[teacher\]: add the section, or use `recdistill train`"):
        run_distillation(Run.parse(little_run), tmp_path)
    taught = Run.parse(little_run | {"teacher": {"kind": "run", "folder": str(finished.folder)}})
    with pytest.raises(SettingsError, match=r"has a \[teacher\]: use `recdistill distill`"):
        run_training(taught, tmp_path)


def test_users_without_a_training_interaction_are_missed_and_counted(
    little_run: Sections, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They come in after the cut for validation, so that a model that reads the user has nothing to say of them."""
    rows = [(f"c{user}", f"p{(user + step) % 12}", step) for user in range(30) for step in range(8)]
    rows += [(f"new{user}", f"p{(user + step) % 12}", step) for user in range(5) for step in range(6, 8)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "clicks.csv")
    sections = little_run | {"data": {"path": str(tmp_path / "clicks.csv")}, "model": {"name": "mf", "dim": 4}}
    run = Run.parse(sections | {"split": {"protocol": "time-cut", "at": 7, "valid_at": 6}})
    result = run_training(run, tmp_path / "run")
    assert result.facts["unknown_users"] == 5
    split, found = load_split(run), result.evaluation
    new = split.train.lengths[found.users] == 0
    assert new.sum() == 5
    assert (found.values("hr", 10)[new] == 0).all()
    assert np.array_equal(evaluate_run(tmp_path / "run").evaluation.ranks, found.ranks)
    print_result(result)
    assert "5 of the users have no training interaction: mf lists nothing for them" in capsys.readouterr().out
    teacher = local_teacher(Student.load(tmp_path / "run"), split)
    assert not teacher.knows(split.test.users[new]).any()
