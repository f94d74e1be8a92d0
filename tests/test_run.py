import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recdistill.data.dataset import IdMap, Sequences
from recdistill.data.embedded import load_shop
from recdistill.data.splits import leave_one_out
from recdistill.errors import ArtefactError, RecDistillError, SettingsError
from recdistill.evaluation.results import Evaluation
from recdistill.labelling import label
from recdistill.methods.base import build_method
from recdistill.methods.probing import probe
from recdistill.models.base import build_model
from recdistill.run import (
    Quiet,
    Result,
    evaluate_run,
    learn,
    load_dataset,
    load_split,
    run_distillation,
    run_training,
    set_up,
)
from recdistill.runfile import Run
from recdistill.runfolder import EPOCHS, EVALUATION, GROUPS, LEDGER, RESULTS, RUN, fingerprint
from recdistill.runteachers import local_teacher, open_teacher
from recdistill.serving.artefact import Student
from recdistill.serving.blackbox import BlackBox, student_answers
from recdistill.tables import print_result
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.local import LocalTeacher
from recdistill.teachers.rules import RulesTeacher
from recdistill.training.batches import Batches
from recdistill.training.checkpoints import METRICS
from recdistill.training.progress import EpochRow
from recdistill.training.settings import TrainerSettings

Sections = dict[str, Any]


class Listener(Quiet):
    """Remembers what it is told; stops the run after an epoch if asked to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.said: list[str] = []
        self.epochs: list[int] = []
        self.stop_after = stop_after

    def say(self, text: str) -> None:
        self.said.append(text)

    def epoch(self, row: EpochRow, settings: TrainerSettings) -> None:
        self.epochs.append(row.epoch)
        if row.epoch == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(little_run: Sections, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run_training(Run.parse(little_run), tmp_path_factory.mktemp("runs") / "teacher")


@pytest.fixture
def api(finished: Result) -> Iterator[BlackBox]:
    with BlackBox(student_answers(Student.load(finished.folder))) as box:
        yield box


def ask(box: BlackBox, **settings: Any) -> Sections:
    return {"teacher": {"kind": "http", "url": box.url, "identity": "little shop"} | settings, "method": {"top_k": 4}}


def test_a_run_folder_holds_all_there_is_to_know(finished: Result) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {RUN, METRICS, "student", EVALUATION, GROUPS, RESULTS}
    about = json.loads((finished.folder / RUN).read_text())
    assert about["settings"]["training"]["seed"] == 0
    assert about["data"].startswith("60 users, 12 items, 480 interactions, ")
    assert set(about["versions"]) == {"recdistill", "python", "torch", "numpy", "polars"}
    assert len((finished.folder / METRICS).read_text().splitlines()) == finished.facts["epochs"] == 3
    assert finished.facts["side_by_side"] == []


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


def test_a_finished_run_without_its_results_is_not_trained_over(finished: Result, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    (folder / RESULTS).unlink()
    for again in (partial(run_training, finished.run, folder), partial(Result.load, folder)):
        with pytest.raises(ArtefactError, match=r"has lost its results.json.* student .* can be used without it"):
            again()
    student = "student/model.safetensors"
    assert (folder / student).read_bytes() == (finished.folder / student).read_bytes()


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(finished: Result, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_training(finished.run, tmp_path / "run", Listener(stop_after=1))
    with pytest.raises(ArtefactError, match="is not finished; start it again"):
        Result.load(tmp_path / "run")
    listener = Listener()
    resumed = run_training(finished.run, tmp_path / "run", listener)
    assert listener.epochs == [2, 3]
    assert np.array_equal(resumed.evaluation.ranks, finished.evaluation.ranks)


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
    assert "1 epochs, none as good as its start, which it is" in " ".join(capsys.readouterr().out.split())


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


def test_the_run_json_of_a_run_can_be_run_again(finished: Result, tmp_path: Path) -> None:
    again = run_training(Run.read(finished.folder / RUN), tmp_path / "again")
    assert np.array_equal(again.evaluation.ranks, finished.evaluation.ranks)


def test_other_settings_in_the_same_folder_are_refused(finished: Result, little_run: Sections) -> None:
    other = Run.parse(little_run | {"training": little_run["training"] | {"epochs": 4}})
    with pytest.raises(SettingsError, match=r"other settings \(there and here: training.epochs: 3 and 4\)"):
        run_training(other, finished.folder)


def test_a_folder_with_something_else_in_it_is_refused(little_run: Sections, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(SettingsError, match="is there already and holds no run"):
        run_training(Run.parse(little_run), tmp_path)


def test_a_folder_that_cannot_be_made_is_one_clear_error(little_run: Sections, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecDistillError, match="file"):
        run_training(Run.parse(little_run), tmp_path / "file" / "run")


def test_changed_data_are_noticed(little_run: Sections, tmp_path: Path) -> None:
    clicks = tmp_path / "clicks.csv"
    original = Path(little_run["data"]["path"]).read_text()
    clicks.write_text(original)
    run = Run.parse(little_run | {"data": {"path": str(clicks)}})
    with pytest.raises(KeyboardInterrupt):
        run_training(run, tmp_path / "run", Listener(stop_after=1))
    clicks.write_text(original + "c0,p11,9999\n")
    with pytest.raises(ArtefactError, match=r"480 interactions, .* then, .* 481 interactions, .* now"):
        run_training(run, tmp_path / "run")


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


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"holds no run: it has no run\.json"):
        Result.load(tmp_path)


@pytest.fixture
def copied(finished: Result, tmp_path: Path) -> Path:
    """The finished run's folder, to be damaged."""
    return Path(shutil.copytree(finished.folder, tmp_path / "copied"))


@pytest.mark.parametrize("damage", [None, b"junk", b"PK\x03\x04"])
def test_damaged_groups_are_made_anew_by_an_evaluation(finished: Result, copied: Path, damage: bytes | None) -> None:
    (copied / GROUPS).unlink() if damage is None else (copied / GROUPS).write_bytes(damage)
    with pytest.raises(ArtefactError, match=r"groups\.npz cannot be read .*; evaluate the run again to write it anew"):
        Result.load(copied)
    evaluate_run(copied)
    assert Result.load(copied).groups.labels() == finished.groups.labels()


@pytest.mark.parametrize("content", ["", '{"epochs": 3', "[]", "\xff"])
def test_damaged_results_are_one_clear_error(copied: Path, content: str) -> None:
    (copied / RESULTS).write_text(content, encoding="latin-1")
    with pytest.raises(ArtefactError, match=r"results\.json cannot be read .*; bring the file back"):
        Result.load(copied)


def test_a_run_that_does_not_say_its_data_is_one_clear_error(finished: Result, copied: Path) -> None:
    about = json.loads((copied / RUN).read_text())
    del about["data"]
    (copied / RUN).write_text(json.dumps(about))
    with pytest.raises(ArtefactError, match=r"run\.json does not say which data .*it lacks 'data'"):
        evaluate_run(copied)


def test_a_figure_that_is_no_number_is_null(
    little_run: Sections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the exposure of items where nothing is listed; no other reader of JSON knows NaN."""
    monkeypatch.setattr(Evaluation, "gini", lambda evaluation, k: float("nan"))
    result = run_training(Run.parse(little_run), tmp_path / "run")
    found = json.loads((tmp_path / "run" / RESULTS).read_text(), parse_constant=pytest.fail)
    assert found["gini@20"] is None
    assert Result.load(tmp_path / "run").facts == json.loads(json.dumps(result.facts))
    print_result(Result.load(tmp_path / "run"))


WAIT = """
import sys
from pathlib import Path
from recdistill.runfolder import alone
with alone(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked on Windows")
@pytest.mark.parametrize("end", ["finished", "killed"])
def test_two_processes_do_not_run_in_one_folder(little_run: Sections, tmp_path: Path, end: str) -> None:
    """Both would write the same checkpoint; once the other has ended, also by a signal, the run goes on."""
    run = Run.parse(little_run)
    with pytest.raises(KeyboardInterrupt):
        run_training(run, tmp_path / "run", Listener(stop_after=1))
    command = [sys.executable, "-c", WAIT, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        listener = Listener()
        with pytest.raises(ArtefactError, match=r"another process is using .*; wait until it has ended"):
            run_training(run, tmp_path / "run", listener)
        other.communicate() if end == "finished" else other.kill()
    assert listener.epochs == []
    run_training(run, tmp_path / "run", listener)
    assert listener.epochs == [2, 3]


def test_the_data_that_ship_are_filtered_like_a_file() -> None:
    whole = load_dataset(Run.parse({"data": {"path": "shop"}}))
    assert fingerprint(whole) == fingerprint(load_shop())
    kept = load_dataset(Run.parse({"data": {"path": "shop", "min_user": 5, "min_item": 40}}))
    assert kept.n_users < whole.n_users
    assert kept.sequences.lengths.min() >= 5
    assert np.bincount(kept.sequences.flat()[0])[1:].min() >= 40
    assert kept.title(1) == whole.title(int(whole.items.find([kept.items.raw[0]])[0]))
    assert kept.times is not None


def test_the_data_that_ship_are_not_read_like_a_file() -> None:
    """What would be passed over in silence."""
    with pytest.raises(SettingsError, match="and skip_bad_rows, user only say how a file is read; leave them out"):
        load_dataset(Run.parse({"data": {"path": "shop", "user": "customer", "skip_bad_rows": True}}))


def test_rows_that_are_left_out_are_told_and_counted(little_run: Sections, tmp_path: Path) -> None:
    clicks = tmp_path / "clicks.csv"
    clicks.write_text(Path(little_run["data"]["path"]).read_text() + "c0,,9999\n" * 7)
    listener = Listener()
    run = Run.parse(little_run | {"data": {"path": str(clicks), "skip_bad_rows": True}})
    result = run_training(run, tmp_path / "run", listener)
    said = listener.said[0]
    assert said.startswith("7 rows that cannot be used are left out: ")
    assert said.count("clicks.csv row 48") == 5
    assert "row 481 (line 482): column 'item_id'" in said
    assert said.endswith("; and 2 more")
    assert result.facts["skipped_rows"] == 7
    assert evaluate_run(tmp_path / "run").facts["skipped_rows"] == 7


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


@pytest.mark.parametrize("protocol", ["leave-one-out", "last-basket", "time-cut", "random"])
def test_every_protocol_can_be_asked_for(little_run: Sections, protocol: str) -> None:
    split = load_split(Run.parse(little_run | {"split": {"protocol": protocol, "mask_seen": False}}))
    assert split.protocol.startswith(protocol.replace("-basket", " basket").replace("-cut", " cut"))
    assert split.protocol.endswith("seen items not masked")


def test_a_model_of_ones_own_can_teach(finished: Result, little_run: Sections, tmp_path: Path) -> None:
    sections = little_run | {"teacher": {"kind": "run", "folder": str(finished.folder)}, "method": {"top_k": 4}}
    result = run_distillation(Run.parse(sections), tmp_path / "student")
    assert result.facts["queries"] == []
    teacher, student = result.facts["side_by_side"]
    assert (teacher["model"].split("-")[0], student["model"]) == ("teacher sasrec", "student")
    assert teacher["parameters"] == student["parameters"] == result.facts["parameters"]
    assert Result.load(tmp_path / "student").facts["side_by_side"] == [teacher, student]
    assert Student.load(tmp_path / "student").recommend([["p1", "p2", "p3", "p4", "p5"]], k=1)[0][0].item == "p6"


def test_a_model_of_ones_own_can_teach_from_its_earlier_epochs_on(
    finished: Result, little_run: Sections, tmp_path: Path
) -> None:
    """Epochs before the best are stages of the teacher; the best is the teacher itself."""
    training = little_run["training"] | {"keep_epochs": [1, 2, 3], "learning_rate": 0.001}
    teacher = run_training(Run.parse(little_run | {"training": training}), tmp_path / "teacher")
    assert teacher.facts["best_epoch"] == 3
    first, second, last = (Student.load(teacher.folder / EPOCHS / str(epoch)).model.state_dict() for epoch in (1, 2, 3))
    assert all(value.equal(last[name]) for name, value in Student.load(teacher.folder).model.state_dict().items())
    assert not any(first["embedding.weight"].equal(other["embedding.weight"]) for other in (second, last))

    sections = little_run | {"method": {"name": "hetcomp", "top_k": 4}}
    source = {"kind": "run", "folder": str(teacher.folder)}
    with pytest.raises(SettingsError, match=r"'hetcomp' needs .* two or more stages .*keep_epochs .* teacher\.earlier"):
        run_distillation(Run.parse(sections | {"teacher": source}), tmp_path / "without")
    with pytest.raises(
        SettingsError, match=r"no earlier model of epochs \[3, 9\]; .* best epoch, 3, it has kept \[1, 2\]"
    ):
        run_distillation(Run.parse(sections | {"teacher": source | {"earlier": [9, 1, 3]}}), tmp_path / "other")
    run = Run.parse(sections | {"teacher": source | {"earlier": [2, 1]}})
    assert run.teacher is not None
    asked = open_teacher(run.teacher, load_split(run))
    stages = [stage.model.state_dict() for stage in asked.checkpoints if isinstance(stage, LocalTeacher)]
    for stage, known in zip(stages, (first, second, last), strict=True):
        assert stage["embedding.weight"].equal(known["embedding.weight"])
    run_distillation(run, tmp_path / "student")
    assert Student.load(tmp_path / "student").recommend([["p3", "p4", "p5"]], k=1)[0][0].item == "p6"


def test_epochs_are_kept_in_a_folder(little_run: Sections) -> None:
    run = Run.parse(little_run | {"training": {"epochs": 1, "keep_epochs": [1]}})
    with pytest.raises(SettingsError, match="keep_epochs keeps models in the folder of the run, and there is none"):
        learn(load_split(run), run.student, run.method, run.training)


@pytest.mark.parametrize(
    ("method", "listed"),
    [
        ({"name": "rcekd", "top_k": 4, "n_sampled": 4, "depth": 8}, 12),
        ({"name": "kd", "labels": False}, 5),
        ({"name": "bahsd", "labels": False, "scales": [1.0]}, 5),
    ],
)
def test_a_file_of_scores_can_teach(
    little_run: Sections, tmp_path: Path, method: Sections, listed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """All scores for a method that asks for any item's, the best ones for others, which learn from nothing else here.

    Customer c has taken 6 + c mod 5 products from p(c mod 12) on, all but the last two of which are trained on: the
    next one is p(c + c mod 5 + 4).
    """
    rows = [
        (f"c{customer}", f"p{(customer + customer % 5 + 4 + place) % 12}", -2.0 * place)
        for customer in range(60)
        for place in range(listed)
    ]
    columns = {"user": "user_id", "item": "item_id", "score": "value"}
    pl.DataFrame(rows, schema=list(columns.values()), orient="row").write_csv(tmp_path / "scores.csv")
    teacher = {"kind": "file", "path": str(tmp_path / "scores.csv"), **columns}
    training = little_run["training"] | {"epochs": 6}
    run = Run.parse(little_run | {"teacher": teacher, "method": method, "training": training})
    result = run_distillation(run, tmp_path / "run")
    assert Student.load(tmp_path / "run").recommend([["p1", "p2", "p3", "p4", "p5"]], k=1)[0][0].item == "p6"
    file, student = result.facts["side_by_side"]
    assert file["file_bytes"] == (tmp_path / "scores.csv").stat().st_size
    assert student["parameters"] == result.facts["parameters"]
    print_result(result)
    assert re.search(rf"^{file['model']} +- +0\.\d\d in files +-$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(("n_products", "method"), [(12, "ckd"), (5, "kd")])
def test_what_stands_in_a_file_decides_how_it_teaches(
    little_run: Sections, tmp_path: Path, n_products: int, method: str
) -> None:
    """The folder says how in the end, and is taken up again by the same file."""
    rows = [(f"c{user}", f"p{(user + n) % 12}", -float(n)) for user in range(60) for n in range(n_products)]
    pl.DataFrame(rows, schema=["user", "item", "score"], orient="row").write_csv(tmp_path / "scores.csv")
    file = {"kind": "file", "path": str(tmp_path / "scores.csv")}
    run = Run.parse(little_run | {"teacher": file, "method": {"second_opinion": 0.2}})
    with pytest.raises(KeyboardInterrupt):
        run_distillation(run, tmp_path / "run", Listener(stop_after=1))
    result = run_distillation(run, tmp_path / "run")
    assert result.run == run_distillation(run, tmp_path / "run").run == run.by_default(method)
    named = Run.parse(little_run | {"teacher": file, "method": {"name": "rrd"}})
    with pytest.raises(SettingsError, match=rf'method\.name: "{method}" and "rrd"'):
        run_distillation(named, tmp_path / "run")


def test_an_api_is_asked_within_the_budget_and_paid_once(api: BlackBox, little_run: Sections, tmp_path: Path) -> None:
    """40 queries may be spent; a second run that shares the ledger gets its answers from there."""
    ledger = str(tmp_path / LEDGER)
    run = Run.parse(little_run | ask(api, budget=40, ledger=ledger))
    first = run_distillation(run, tmp_path / "first")
    assert (first.facts["queries"][0]["spent"], api.served) == (40, 40)
    run_distillation(run, tmp_path / "second")
    assert api.served == 40


def test_another_round_asks_everything_anew_and_rounds_teach_together(
    api: BlackBox, little_run: Sections, tmp_path: Path
) -> None:
    ledger = str(tmp_path / LEDGER)
    first, second = (Run.parse(little_run | ask(api, ledger=ledger, round=round)) for round in (0, 1))
    run_distillation(first, tmp_path / "first")
    asked = api.served
    found = label(second, tmp_path / "second", Quiet(), told=lambda plans: None)
    assert (api.served, found.stats[0].spent) == (2 * asked, 2 * asked)
    rounds = [ask(api, ledger=ledger, round=round)["teacher"] for round in (0, 1)]
    both = {"teacher": {"kind": "ensemble", "members": rounds}, "method": {"top_k": 4}}
    result = run_distillation(Run.parse(little_run | both), tmp_path / "both")
    assert (api.served, result.run.method.name) == (2 * asked, "bahsd")
    longer = little_run | both | {"training": little_run["training"] | {"epochs": 9}}
    with pytest.raises(SettingsError, match=rf"with --out, and name {ledger} as ledger of its members to use the answ"):
        run_distillation(Run.parse(longer), tmp_path / "both")


def test_what_a_second_opinion_was_chosen_by_is_kept_and_told(
    api: BlackBox,
    little_run: Sections,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recdistill.methods.opinion.FEWEST_CASES", 60)
    run = Run.parse(little_run | ask(api))
    result = run_distillation(run, tmp_path / "run")
    asked = api.served
    found = Result.load(tmp_path / "run").facts["second_opinion"]
    assert (found["cases"], len(found["ndcg_10"])) == (60, 11)
    print_result(result)
    expected = r"on 60 validation cases the teacher's lists have an NDCG@10 of [01]\.\d{4}, "
    assert re.search(expected, capsys.readouterr().out)
    told = little_run | ask(api, ledger=str(tmp_path / "other.sqlite"))
    told["method"] |= {"second_opinion": found["share"]}
    again = run_distillation(Run.parse(told), tmp_path / "told")
    assert np.array_equal(again.evaluation.ranks, result.evaluation.ranks)
    assert api.served == 2 * asked, "choosing asks nothing"


def test_a_teacher_is_asked_about_test_cases_first_and_stands_beside_its_student(
    api: BlackBox, little_run: Sections, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty of forty queries go to test cases, the rest to training; a second run pays for none of them again."""
    asking = {"evaluation": {"ask_teacher": 20}}
    run = Run.parse(little_run | asking | ask(api, budget=40, ledger=str(tmp_path / LEDGER)))
    result = run_distillation(run, tmp_path / "run")
    found = result.facts["beside_teacher"]
    assert (found["asked"], found["answered"], api.served) == (20, 20, 40)
    whole = {(row["metric"], row["k"]): row for row in found["rows"] if row["stratum"] == "all"}
    assert whole["ndcg", 10]["users"] == 20
    assert whole["ndcg", 10]["teacher"] > 0.9, "the shop's own model knows the circle"
    assert 0 < whole["ndcg", 10]["agreement"] <= 1
    assert Result.load(tmp_path / "run").facts["beside_teacher"] == found
    print_result(result)
    out = capsys.readouterr().out
    assert "the teacher was asked about 20 test cases and answered 20, on which:" in out
    assert re.search(rf"NDCG@10 +all, 20 +{whole['ndcg', 10]['teacher']:.4f} +{whole['ndcg', 10]['student']:.4f} ", out)
    run_distillation(run, tmp_path / "again")
    assert api.served == 40


def test_a_copy_of_a_teacher_is_told_to_be_one(
    finished: Result, little_run: Sections, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student that starts as its teacher and hardly learns lists as it does."""
    sections = little_run | {"teacher": {"kind": "run", "folder": str(finished.folder)}, "method": {"top_k": 4}}
    sections |= {"model": little_run["model"] | {"start": str(finished.folder)}, "evaluation": {"ask_teacher": 60}}
    sections |= {"training": little_run["training"] | {"epochs": 1, "learning_rate": 1e-12}}
    rows = run_distillation(Run.parse(sections), tmp_path / "run").facts["beside_teacher"]["rows"]
    assert {(row["teacher"] == row["student"], row["p"], row["agreement"]) for row in rows} == {(True, 1.0, 1.0)}


def test_a_teacher_that_answers_no_test_case_is_said_to(
    finished: Result, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    facts = finished.facts | {"beside_teacher": {"asked": 5, "answered": 0, "rows": []}}
    print_result(replace(finished, facts=facts))
    assert "the teacher was asked about 5 test cases and answered 0\n" in capsys.readouterr().out


def test_an_api_and_a_model_of_ones_own_teach_together(
    api: BlackBox, finished: Result, little_run: Sections, tmp_path: Path
) -> None:
    outside = ask(api, budget=40)
    members = [outside["teacher"], {"kind": "run", "folder": str(finished.folder)}]
    run = Run.parse(little_run | outside | {"teacher": {"kind": "ensemble", "members": members}})
    result = run_distillation(run, tmp_path / "run")
    assert [spent["spent"] for spent in result.facts["queries"]] == [40]
    outer, own, student = result.facts["side_by_side"]
    assert outer.keys() == {"model", "seconds_an_answer"}
    assert own["parameters"] == student["parameters"]
    assert api.served == 40


def test_several_models_of_ones_own_teach_by_their_scores(
    finished: Result, little_run: Sections, tmp_path: Path
) -> None:
    member = {"kind": "run", "folder": str(finished.folder)}
    teacher = {"kind": "ensemble", "members": [member, member], "weights": [1, 2]}
    method = {"name": "rcekd", "top_k": 4, "n_sampled": 4, "depth": 8}
    run_distillation(Run.parse(little_run | {"teacher": teacher, "method": method}), tmp_path / "run")
    assert Student.load(tmp_path / "run").recommend([["p1", "p2"]], k=1)[0][0].item == "p3"


def test_the_histories_themselves_teach(little_run: Sections, tmp_path: Path) -> None:
    """Each customer's next product is the next number, and rules say so: labels do not need to."""
    run = Run.parse(
        little_run
        | {"teacher": {"kind": "rules", "window": 1}, "method": {"labels": False}}
        | {"training": little_run["training"] | {"epochs": 6}}
    )
    result = run_distillation(run, tmp_path / "run")
    assert result.facts["queries"] == []
    assert [row["model"] for row in result.facts["side_by_side"]] == ["student"]
    assert Student.load(tmp_path / "run").recommend([["p1", "p2", "p3", "p4", "p5"]], k=1)[0][0].item == "p6"


def test_rules_are_made_of_training_histories_as_the_run_says(little_run: Sections) -> None:
    run = Run.parse(little_run | {"teacher": {"kind": "rules", "ordered": False}, "split": {"mask_seen": False}})
    assert run.teacher is not None
    split = load_split(run)
    asked = open_teacher(run.teacher, split)
    expected = RulesTeacher(split.train, split.dataset.n_items, ordered=False, exclude_history=False)
    assert asked.identity == expected.identity
    assert not asked.exclude_history


def test_the_ledger_lies_in_the_run_folder_by_default(api: BlackBox, little_run: Sections, tmp_path: Path) -> None:
    run_distillation(Run.parse(little_run | ask(api, budget=5)), tmp_path / "run")
    assert (tmp_path / "run" / LEDGER).is_file()


def test_a_stopped_distillation_pays_nothing_twice(api: BlackBox, little_run: Sections, tmp_path: Path) -> None:
    run = Run.parse(little_run | ask(api))
    with pytest.raises(KeyboardInterrupt):
        run_distillation(run, tmp_path / "run", Listener(stop_after=1))
    paid = api.served
    run_distillation(run, tmp_path / "run")
    assert api.served == paid


def test_train_and_distill_are_not_mixed_up(little_run: Sections, finished: Result, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no \[teacher\]: add the section, or use `recdistill train`"):
        run_distillation(Run.parse(little_run), tmp_path)
    taught = Run.parse(little_run | {"teacher": {"kind": "run", "folder": str(finished.folder)}})
    with pytest.raises(SettingsError, match=r"has a \[teacher\]: use `recdistill distill`"):
        run_training(taught, tmp_path)


def _label(run: Run, folder: Path) -> None:
    label(run, folder, Quiet(), told=lambda plan: None)


MISFITS: list[tuple[Sections, Sections, str]] = [
    ({"name": "supervised"}, {}, "'supervised' asks no teacher"),
    ({"name": "rcekd"}, {}, "'rcekd' needs scores of any item"),
    ({"name": "kd", "intents": {}}, {"model": {"name": "mf"}}, "leave method.intents out"),
    ({"name": "bahsd"}, {"model": {"name": "mf"}}, "'mf' reads the user instead"),
    ({"name": "bahsd", "reliability": "peakedness"}, {}, "set it to 'consistency'"),
    ({"name": "kd", "values": "scores"}, {}, "set values to 'ranks'"),
    ({"name": "extraction", "walk_len": 9}, {}, "set walk_len to 8"),
]


@pytest.mark.parametrize("do", [run_distillation, _label], ids=["distill", "probe"])
@pytest.mark.parametrize(("method", "others", "said"), MISFITS)
def test_what_does_not_fit_is_refused_before_there_is_a_folder(
    do: Any, method: Sections, others: Sections, said: str, api: BlackBox, little_run: Sections, tmp_path: Path
) -> None:
    """A folder would count as taken by these settings, and answers would be paid for in vain."""
    run = Run.parse(little_run | ask(api) | {"method": method} | others)
    with pytest.raises(SettingsError, match=said):
        do(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert api.served == 0


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"method": {"name": "kd"}}, "'kd' learns from a teacher"),
        ({"teacher": {"kind": "run", "folder": "nowhere"}}, "nowhere"),
        ({"start": "nowhere"}, r"\[student\] start .*: no saved student in /.*/nowhere: it does not exist; give"),
        ({"start": "."}, r"start .*: neither it nor its student/ holds a model\.json; give .* finished run"),
        ({"training": {"long_histories": "windows"}, "model": {"name": "sasrec", "max_len": 1}}, "raise its max_len"),
    ],
)
def test_nor_is_there_one_where_nobody_can_teach_or_learn(
    sections: Sections, said: str, little_run: Sections, tmp_path: Path
) -> None:
    start = {key: sections[key] for key in sections.keys() & {"start"}}
    rest = {key: sections[key] for key in sections.keys() - {"start"}}
    run = Run.parse(little_run | {"model": little_run["model"] | start} | rest)
    with pytest.raises(RecDistillError, match=said):
        (run_training if run.teacher is None else run_distillation)(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("reads", ["user", "last_item"])
def test_an_api_that_cannot_be_asked_about_parts_is_refused_in_time(
    reads: str, api: BlackBox, little_run: Sections, tmp_path: Path
) -> None:
    """Its folder is then free for method kd."""
    asked = ask(api, reads=reads, body={reads: f"{{{reads}}}"})
    run = Run.parse(little_run | asked | {"method": {"name": "bahsd"}})
    with pytest.raises(SettingsError, match=r"use method 'kd', or set scales to \[1\.0\]"):
        run_distillation(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert api.served == 0


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


def test_a_teacher_of_other_items_is_refused(finished: Result) -> None:
    with pytest.raises(SettingsError, match="12 there, 4,199 here, 0 in both"):
        local_teacher(Student.load(finished.folder), leave_one_out(load_shop()))


def test_a_teacher_of_other_users_is_refused_if_it_reads_users(little_run: Sections) -> None:
    split, shop = load_split(Run.parse(little_run)), leave_one_out(load_shop())
    model = build_model("mf", split.dataset.n_items, {"dim": 4}, train=split.train)
    student = Student.of(model, split.dataset, protocol="test")
    assert local_teacher(student, split).takes == "user"
    others = replace(split, dataset=replace(split.dataset, users=shop.dataset.users))
    with pytest.raises(SettingsError, match="other users than these data hold: 60 there, 5,537 here, 0 in both"):
        local_teacher(student, others)


@pytest.mark.parametrize("who", ["teacher", "start"])
def test_a_model_of_another_split_of_the_same_data_is_refused(
    finished: Result, little_run: Sections, who: str, tmp_path: Path
) -> None:
    """It has seen what the student is tested on, and would hand that on."""
    sections = little_run | {"split": {"protocol": "random"}}
    if who == "teacher":
        sections |= {"teacher": {"kind": "run", "folder": str(finished.folder)}}
    else:
        sections |= {"model": little_run["model"] | {"start": str(finished.folder)}}
    run_it = run_distillation if who == "teacher" else run_training
    said = (
        r"another part of the same interactions \('leave-one-out .* there, 'random 8:1:1 .* here\).*with the \[split\]"
    )
    with pytest.raises(SettingsError, match=said):
        run_it(Run.parse(sections), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_of_the_same_training_interactions_may_be_cut_otherwise(finished: Result, little_run: Sections) -> None:
    """What is masked, or called, in another way has not been seen for that."""
    split = load_split(Run.parse(little_run | {"split": {"mask_seen": False}}))
    local_teacher(Student.load(finished.folder), split)


def test_a_model_of_other_interactions_teaches_with_a_warning(
    finished: Result, little_run: Sections, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it has seen test items cannot be told, neither of more logs nor of a folder that does not say."""
    split, student = load_split(Run.parse(little_run)), Student.load(finished.folder)
    local_teacher(student, split)
    local_teacher(replace(student, origin=None), split)
    assert caplog.messages == []
    dataset = replace(split.dataset, sequences=split.dataset.sequences.without_newest(1))
    local_teacher(student, leave_one_out(dataset))
    local_teacher(replace(student, origin=None, protocol="time cut at 3"), split)
    other, unnamed = caplog.messages
    assert "the teacher was trained on other interactions than these" in other
    assert "on interactions that its folder does not name ('time cut at 3' there, 'leave-one-out" in unnamed


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


def test_the_fingerprint_sees_order(little_run: Sections) -> None:
    """Two data sets of the same size are told apart."""
    dataset = load_split(Run.parse(little_run)).dataset
    before = fingerprint(dataset)
    items = dataset.sequences.items
    items[[0, 1]] = items[[1, 0]]
    assert fingerprint(dataset) != before


def test_the_fingerprint_sees_ids_and_times(little_run: Sections) -> None:
    """A run's students and ranks are of these users and items, and a cut in time is of these times."""
    dataset = load_split(Run.parse(little_run)).dataset
    assert dataset.times is not None
    renamed = IdMap([f"other-{item}" for item in dataset.items.raw], first=1)
    others = [
        replace(dataset, users=IdMap(dataset.users.raw.reverse(), first=0)),
        replace(dataset, items=renamed),
        replace(dataset, times=dataset.times + 1),
        replace(dataset, times=None),
    ]
    assert len({fingerprint(each) for each in (dataset, *others)}) == 5
    assert fingerprint(replace(dataset, titles=None)) == fingerprint(dataset)


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_data_of_other_ids_or_times_are_not_evaluated_as_the_same(
    little_run: Sections, tmp_path: Path, column: str
) -> None:
    rows = [(user, (user + step) % 12, step) for user in range(30) for step in range(5)]
    clicks = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    clicks.write_csv(tmp_path / "clicks.csv")
    run_training(Run.parse(little_run | {"data": {"path": str(tmp_path / "clicks.csv")}}), tmp_path / "run")
    clicks.with_columns(pl.col(column) + 100).write_csv(tmp_path / "clicks.csv")
    with pytest.raises(ArtefactError, match=r"the data are not those of the run .* then, .* now"):
        evaluate_run(tmp_path / "run")
