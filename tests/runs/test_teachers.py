"""Whom a run names teaches, is paid once, and is refused where it does not fit."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recdistill.data.embedded import load_shop
from recdistill.data.splits import leave_one_out
from recdistill.errors import RecDistillError, SettingsError
from recdistill.labelling import label
from recdistill.models.base import build_model
from recdistill.runs.data import load_split
from recdistill.runs.execute import Result, run_distillation, run_training
from recdistill.runs.file import Run
from recdistill.runs.folder import EPOCHS, LEDGER
from recdistill.runs.reports import Quiet
from recdistill.runs.teachers import local_teacher, open_teacher
from recdistill.serving.blackbox import BlackBox
from recdistill.serving.student import Student
from recdistill.tables import print_result
from recdistill.teachers.local import LocalTeacher
from recdistill.teachers.rules import RulesTeacher

from .listener import Listener, Sections, ask


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


def test_a_matrix_of_scores_can_teach(little_run: Sections, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself and in an ensemble.

    Rows and columns are in another order than the data's. What comes next after customer c's history is as in
    `test_a_file_of_scores_can_teach`.
    """
    customers, products = [7 * n % 60 for n in range(60)], [5 * n % 12 for n in range(12)]
    scores = [[-2.0 * ((p - c - c % 5 - 4) % 12) for p in products] for c in customers]
    np.save(tmp_path / "scores.npy", np.array(scores, np.float16))
    (tmp_path / "users.txt").write_text("".join(f"c{customer}\n" for customer in customers))
    (tmp_path / "items.txt").write_text("".join(f"p{product}\n" for product in products))
    teacher = {"kind": "matrix", "path": "scores.npy", "row_users": "users.txt", "column_items": "items.txt"}
    teacher |= {name: str(tmp_path / file) for name, file in teacher.items() if name != "kind"}
    run = Run.parse(little_run | {"teacher": teacher, "training": little_run["training"] | {"epochs": 6}})
    result = run_distillation(run, tmp_path / "run")
    assert result.run == run.by_default("ckd")
    assert Student.load(tmp_path / "run").recommend([["p1", "p2", "p3", "p4", "p5"]], k=1)[0][0].item == "p6"
    file, _ = result.facts["side_by_side"]
    assert file["file_bytes"] == (tmp_path / "scores.npy").stat().st_size
    print_result(result)
    assert re.search(rf"^{file['model']} +- +0\.\d\d in files +-$", capsys.readouterr().out, re.MULTILINE)
    both = Run.parse(little_run | {"teacher": {"kind": "ensemble", "members": [teacher, teacher]}})
    assert both.teacher is not None
    assert open_teacher(both.teacher, load_split(both)).scores_items


@pytest.mark.parametrize(("n_products", "method"), [(12, "ckd"), (11, "kd"), (5, "kd")])
def test_what_stands_in_a_file_decides_how_it_teaches(
    little_run: Sections, tmp_path: Path, n_products: int, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder says how in the end, and is taken up again by the same file.

    A file that misses few scores is told of, unless the method is named.
    """
    rows = [(f"c{user}", f"p{(user + n) % 12}", -float(n)) for user in range(60) for n in range(n_products)]
    pl.DataFrame(rows, schema=["user", "item", "score"], orient="row").write_csv(tmp_path / "scores.csv")
    file = {"kind": "file", "path": str(tmp_path / "scores.csv")}
    run = Run.parse(little_run | {"teacher": file, "method": {"second_opinion": 0.2}})
    with pytest.raises(KeyboardInterrupt):
        run_distillation(run, tmp_path / "run", Listener(stop_after=1))
    assert ("but not item 'p11'. So the default method is 'kd'" in caplog.text) == (n_products == 11)
    result = run_distillation(run, tmp_path / "run")
    assert result.run == run_distillation(run, tmp_path / "run").run == run.by_default(method)
    caplog.clear()
    named = Run.parse(little_run | {"teacher": file, "method": {"name": "rrd"}})
    with pytest.raises(SettingsError, match=rf'method\.name: "{method}" and "rrd"'):
        run_distillation(named, tmp_path / "run")
    run_distillation(named, tmp_path / "named")
    assert caplog.messages == []


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
