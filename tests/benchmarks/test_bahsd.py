"""The rows of BAHSD's tables: what each is trained with, and the paired tests."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.bahsd_rows import ABLATIONS, FIRST, OPINION, QUARTER, RULES, TABLES, Row
from benchmarks.comparisons import COLUMNS, Kept
from benchmarks.experiments import find_recipe
from benchmarks.results import ResultTable

from benchmarks import bahsd
from recdistill.data.dataset import Dataset
from recdistill.data.embedded import load_shop
from recdistill.data.splits import leave_one_out
from recdistill.models.base import build_model
from recdistill.runs.teachers import local_teacher
from recdistill.serving.student import Student
from recdistill.teachers.ensemble import EnsembleTeacher
from recdistill.teachers.rules import RulesTeacher
from recdistill.training.progress import EpochRow, Fit

from .conftest import Found

ALL = [row for table in TABLES.values() for row in table()]


def test_no_two_rows_of_a_table_are_one() -> None:
    for name, table in TABLES.items():
        keys = [tuple(row.key.values()) for row in table()]
        assert len(set(keys)) == len(keys), name


def test_every_row_is_a_run_with_a_seed_of_its_own() -> None:
    for row in ALL:
        run = row.run()
        assert run.student.name == row.student
        assert run.training.seed == row.seed + (0 if row.method == "teacher" else 100)
        assert run.method.name == (row.method if row.regime else "supervised")


def test_a_teacher_is_the_one_that_the_students_learn_from() -> None:
    teachers = {row.teacher: row for row in ALL if row.method == "teacher"}
    assert teachers.keys() == {"sasrec", "bert4rec", "sasrec-bce", "sasrec-smoothed"}
    for name, row in teachers.items():
        model, _, loss = name.partition("-")
        expected = find_recipe(row.dataset, model, loss or "softmax").run(row.seed)
        assert row.run().dump() == expected.dump() == row.taught_by.run(row.seed).dump()
    assert teachers["sasrec-bce"].run().dump()["method"]["loss"] == "bce"


def test_regime_and_access_reach_the_method() -> None:
    for row in ALL:
        settings = row.run().dump()["method"]
        if row.method in ("kd", "bahsd", "rrd"):
            assert settings["labels"] is (row.regime == "assisted")
        if row.method in ("kd", "bahsd"):
            assert settings["values"] == ("ranks" if row.access == "lists" else "scores")
        if row.method == "extraction":
            assert settings["walk_len"] == row.run().student.config.max_len  # type: ignore[attr-defined]


def test_a_second_opinion_is_the_one_difference_of_its_rows() -> None:
    chosen = {("amazon-beauty", "bert4rec", regime): 0.7 for regime in ("assisted", "pure")}
    chosen["ml-1m", "sasrec", "pure"] = 0.1
    for row in TABLES["opinion"]():
        if row.regime:
            plain, advised = replace(row, variant="").run().dump(), row.run().dump()
            share = chosen.get((row.dataset, row.student, row.regime), 0.5)
            assert advised["method"].pop("second_opinion") == share
            assert plain["method"].pop("second_opinion") == 0
            assert advised == plain


def test_smoothed_labels_are_the_one_difference_of_their_rows_in_both_stages() -> None:
    for row in TABLES["smoothed"]():
        if row.method == "teacher":
            continue
        plain = replace(row, variant=FIRST if FIRST in row.variant else "")
        for smooth, other in ((row, plain), (row.first, plain.first)):
            assert (smooth is None) == (other is None)
            if smooth is not None and other is not None:
                ours, theirs = smooth.run().dump(), other.run().dump()
                where = ours["method"]["label_loss"] if smooth.regime else ours["method"]
                assert where["smoothing"] > 0
                where["smoothing"] = 0.0
                assert ours == theirs


def test_rules_are_ranked_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_shop()
    split = leave_one_out(dataset)
    student = Student.of(build_model("sasrec", dataset.n_items, {"dim": 8}), dataset, protocol="test")
    monkeypatch.setattr(bahsd, "_teacher", lambda row, split: student)
    found, _, minutes = bahsd._compared(Row("amazon-beauty", "sasrec", "sasrec", RULES), {}, split)
    expected = RulesTeacher(split.train, dataset.n_items).rank(split.test.histories, 20).items
    assert found.lists is not None
    assert found.lists.tolist() == expected.tolist()
    assert minutes == 0


@pytest.mark.parametrize(("model", "share"), [("sasrec", 0.5), ("bert4rec", 0.7)])
def test_a_teacher_with_a_second_opinion_is_what_its_students_are_told(
    monkeypatch: pytest.MonkeyPatch, model: str, share: float
) -> None:
    dataset = load_shop()
    split = leave_one_out(dataset)
    student = Student.of(build_model("sasrec", dataset.n_items, {"dim": 8}), dataset, protocol="test")
    monkeypatch.setattr(bahsd, "_teacher", lambda row, split: student)
    row = Row("amazon-beauty", model, model, "teacher", variant=OPINION)
    told = replace(row, method="kd", regime="assisted", access="lists").run().dump()["method"]
    assert told["second_opinion"] == share
    found, alone, minutes = bahsd._compared(row, {}, split)
    rules = RulesTeacher(split.train, dataset.n_items)
    both = EnsembleTeacher([local_teacher(student, split, gives_scores=False), rules], weights=[1 - share, share])
    assert found.lists is not None
    assert found.lists.tolist() == both.rank(split.test.histories, 20).items.tolist()
    assert alone.lists is not None
    assert found.lists.tolist() != alone.lists.tolist()
    assert minutes == 0


@pytest.mark.parametrize(("regime", "variant"), [(regime, name) for regime in ABLATIONS for name in ABLATIONS[regime]])
def test_an_ablation_switches_one_part_off(regime: str, variant: str) -> None:
    row = Row("amazon-beauty", "sasrec", "sasrec", "bahsd", regime, "lists")
    whole, without = row.run().dump()["method"], replace(row, variant=variant).run().dump()["method"]
    assert {key for key in whole if whole[key] != without[key]} == set(ABLATIONS[regime][variant])


def test_paired_tests_are_user_by_user_over_the_seeds_that_both_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_at: Found
) -> None:
    dataset: Dataset = load_shop()
    split = leave_one_out(dataset)
    kept = Kept(tmp_path)
    monkeypatch.setattr(bahsd, "KEPT", kept)
    monkeypatch.setattr(bahsd, "PAIRED", tmp_path / "paired.csv")
    monkeypatch.setattr(bahsd, "load_benchmark", lambda name: dataset)
    cell = ("amazon-beauty", "sasrec", "sasrec")
    for seed in (0, 1):
        kept.keep(all_at(split, 1), Row(*cell, "bahsd", "assisted", "lists", seed=seed))
    kept.keep(all_at(split, 3), Row(*cell, "labels"))  # log2(1 + 3) = 2: an NDCG of .5
    bahsd.compare()

    rows = ResultTable(tmp_path / "paired.csv", COLUMNS).rows()
    assert [row["stratum"] for row in rows] == ["all", "head", "tail"]
    for row in rows:
        assert (row["method"], row["other"], row["seeds"]) == ("bahsd", "labels", "1")
        assert (float(row["value"]), float(row["other_value"]), float(row["gain"])) == (1.0, 0.5, 100.0)
        assert float(row["p"]) < 0.01
    assert int(rows[0]["users"]) == len(split.test) == int(rows[1]["users"]) + int(rows[2]["users"])


def test_who_sees_labels_goes_on_from_what_they_taught() -> None:
    cell = ("amazon-beauty", "sasrec", "sasrec")
    for row in (Row(*cell, "labels"), Row(*cell, "bahsd", "assisted", "lists"), Row(*cell, "kd", "assisted", "lists")):
        assert row.first == Row(*cell, "labels", variant=FIRST)
        assert row.run().training.schedule == "cosine"
        assert row.run().training.seed == row.first.run().training.seed
    small = Row(*cell, "kd", "assisted", "lists", "quarter width")
    assert small.first is not None
    assert small.first.run().student == small.run().student
    for row in (Row(*cell, "teacher"), Row(*cell, "kd", "pure", "lists"), Row(*cell, "labels", variant=FIRST)):
        assert row.first is None


def test_both_stages_count_in_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_shop()
    split = leave_one_out(dataset)
    student = Student.of(build_model("sasrec", dataset.n_items, {"dim": 8}), dataset, protocol="test")
    starts: list[Student | None] = []

    def train(*_: object, start: Student | None = None, **__: object) -> tuple[Student, Fit]:
        starts.append(start)
        return student, Fit([EpochRow(1, {}, None, 0.1, 60.0, 1.0)])

    monkeypatch.setattr(bahsd, "train", train)
    row = Row("amazon-beauty", "sasrec", "sasrec", "labels")
    assert bahsd._train(row, row.run(), split, student) == (student, 2.0)
    assert starts == [None, student]


def test_a_small_student_and_a_small_budget_are_what_they_say() -> None:
    small = Row("amazon-beauty", "sasrec", "sasrec", "kd", "pure", "lists", "quarter width").run()
    assert small.student.config.dim == 16  # type: ignore[attr-defined]
    walks = Row("amazon-beauty", "sasrec", "sasrec", "extraction", "pure", "lists", "1,000 queries").run()
    assert walks.dump()["method"]["n_queries"] == 1_000


def test_a_faithful_student_is_one_at_every_budget() -> None:
    for variant, budget in {"faithful": None, "faithful, 5,000 queries": 5_000, QUARTER: 28_908}.items():
        row = Row("amazon-beauty", "sasrec", "sasrec", "bahsd", "pure", "lists", variant)
        assert row.budget == budget
        assert row.run().dump()["method"]["order_weight"] == (10.0 if "faithful" in variant else 0.0)


def test_few_answers_are_learned_for_long() -> None:
    def training(method: str, regime: str, variant: str) -> tuple[int, int, int]:
        run = Row("amazon-beauty", "sasrec", "sasrec", method, regime, "lists", variant).run().training
        return run.batch_size, run.epochs, run.validate_every

    assert training("bahsd", "pure", "") == training("extraction", "pure", "equal budget") == (256, 60, 1)
    assert training("bahsd", "pure", "1,000 queries") == (12, 60, 1)  # of 256 in 22,363 users
    assert training("bahsd", "pure", "20,000 queries") == (229, 60, 1)
    assert training("extraction", "pure", "1,000 queries") == (12, 240, 4)
    assert training("bahsd", "assisted", "1,000 queries")[:2] == (256, 20)  # all users have labels
    assert training("bahsd", "pure", "with a second opinion, 1,000 queries")[0] == 256  # or an answer of the rules


def test_rules_answer_what_a_budget_does_not_buy() -> None:
    row = Row("amazon-beauty", "sasrec", "sasrec", "bahsd", "pure", "lists", "with a second opinion, 0 queries")
    assert (row.budget, row.run().dump()["method"]["second_opinion"]) == (0, 0.5)


def test_what_the_student_of_a_row_may_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_shop()
    split = leave_one_out(dataset)
    student = Student.of(build_model("sasrec", dataset.n_items, {"dim": 8}), dataset, protocol="test")
    monkeypatch.setattr(bahsd, "train", lambda *_, **__: (student, Fit()))
    cell = ("amazon-beauty", "sasrec", "sasrec", "kd", "pure", "lists")
    histories = split.train.take(np.arange(1_200))

    def answered(variant: str) -> int:
        with bahsd._asked(Row(*cell, variant), split, student) as asked:
            return int(asked.rank_within_budget(histories, 3)[1].sum())

    assert (answered(""), answered("1,000 queries")) == (1_200, 1_000)
    with bahsd._asked(Row(*cell, "with a second opinion, 0 queries"), split, student) as asked:
        assert isinstance(asked, RulesTeacher)
