"""The rows of RCE-KD's tables, how they are tuned, and what a stopped search or training goes on with."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.comparisons import COLUMNS, Kept
from benchmarks.experiments import Recipe, StoppedError, find_recipe, folder_of
from benchmarks.rcekd_rows import (
    ABLATIONS,
    CELLS,
    EVERY,
    FILE_ORDER,
    LEAVE_ONE_OUT,
    ON_ALL,
    OPINION,
    RECIPES,
    RULES,
    SENSITIVITY,
    SHUFFLED,
    STUDENT_SEED,
    TABLES,
    Row,
)
from benchmarks.rcekd_tuning import TRIAL_COLUMNS, best_settings, published, search, teacher_of, tune
from benchmarks.results import QUALITY, ResultTable

from benchmarks import experiments, rcekd, rcekd_tuning
from recdistill.data.embedded import load_shop
from recdistill.data.interactions import read_interactions
from recdistill.data.splits import Split, leave_one_out, random_split
from recdistill.errors import TrainingError
from recdistill.methods.base import Method
from recdistill.registry import import_all
from recdistill.teachers.local import LocalTeacher

from .conftest import Found

import_all("recdistill.methods")
ALL = list(dict.fromkeys(row for table in TABLES.values() for row in table()))
MF = ("citeulike-t", SHUFFLED, "mf-400", "mf-20")
STUDENT = Row(*MF, "rcekd")


def test_no_two_rows_of_a_table_are_one() -> None:
    for name, table in TABLES.items():
        keys = [tuple(row.key.values()) for row in table()]
        assert len(set(keys)) == len(keys), name


def test_every_method_of_the_tables_is_registered() -> None:
    assert {row.method for row in ALL if row.distilled} == set(EVERY)
    assert set(EVERY) <= Method.registry.keys()


def test_every_row_is_a_run_with_its_own_seed_and_split() -> None:
    for row in ALL:
        run = row.run({})
        assert run.student.name == row.recipe.student
        assert run.training.seed == row.seed + (STUDENT_SEED if row.student else 0)
        assert (run.split.protocol, run.split.file_order) == {
            FILE_ORDER: ("random", True),
            SHUFFLED: ("random", False),
            LEAVE_ONE_OUT: ("leave-one-out", False),
        }[row.split]
        if not row.distilled:
            assert run.method.name == "supervised"
        elif row.variant not in ABLATIONS:
            assert run.method.name == row.method


def test_a_second_opinion_is_tuned_as_a_method_of_its_own_and_its_one_difference() -> None:
    advised = [row for row in ALL if row.variant == OPINION]
    assert {row.method for row in advised} == {"rrd", "rcekd", "ckd"}
    for row in advised:
        assert row.tuned_as == replace(row, seed=0)
        settings, plain = (each.run({}).dump() for each in (row, replace(row, variant="")))
        assert settings["method"].pop("second_opinion") > plain["method"].pop("second_opinion") == 0
        assert settings == plain


@pytest.mark.parametrize(("split", "order"), [(FILE_ORDER, False), (SHUFFLED, False), (LEAVE_ONE_OUT, True)])
def test_rules_are_not_tuned_and_read_an_order_where_there_is_one(split: str, order: bool) -> None:
    row = Row("citeulike-t", split, "", "mf-20", RULES)
    assert row.tuned_before
    assert best_settings(row) == {}
    assert rcekd.rules_of(row, leave_one_out(load_shop())).ordered is order


def test_students_learn_true_items_alike_with_and_without_a_teacher() -> None:
    for row in ALL:
        if row.distilled:
            alone = Row(row.dataset, row.split, "", row.student, "labels").run({}).dump()["method"]
            taught = row.run({}).dump()["method"]["label_loss"]
            assert taught == {key: value for key, value in alone.items() if key != "name"}


def test_small_students_of_sequences_are_a_quarter_and_an_eighth_as_wide() -> None:
    for dataset in ("amazon-beauty", "ml-1m"):
        widths = [
            RECIPES[dataset, f"sasrec-{dim}"].run(0).student.config.dim  # type: ignore[attr-defined]
            for dim in (64, 16, 8)
        ]
        assert widths == [64, 16, 8]


def test_teachers_of_sequences_are_those_of_the_quality_table() -> None:
    """What was trained for one table must be found by the other."""
    for dataset in ("amazon-beauty", "ml-1m"):
        row, recipe = Row(dataset, LEAVE_ONE_OUT, "sasrec-64", "", "teacher"), find_recipe(dataset, "sasrec")
        assert folder_of(row.run({}), row.folder_name) == folder_of(recipe.run(0), recipe.name)
        assert row.tuned_before
        assert best_settings(row) == {}


def test_the_same_model_on_another_split_is_kept_apart() -> None:
    one, other = Row(*MF, "labels"), Row(*MF, "labels")
    one, other = replace(one, teacher=""), replace(other, teacher="", split=FILE_ORDER)
    assert folder_of(one.run({}), one.folder_name) != folder_of(other.run({}), other.folder_name)


@pytest.mark.parametrize("variant", [*ABLATIONS, *SENSITIVITY])
def test_a_variant_keeps_all_that_was_tuned_but_one_part(variant: str) -> None:
    tuned = {"method.weight": 7.0, "method.temperature": 3.0, "training.weight_decay": 0.5}
    whole, varied = STUDENT.run(tuned), replace(STUDENT, variant=variant).run(tuned)
    assert varied.training == whole.training
    before, after = whole.dump()["method"], varied.dump()["method"]
    assert (after["weight"], after["temperature"]) == (7.0, 3.0)
    changed = {key for key in before.keys() & after.keys() if before[key] != after[key]}
    assert changed <= {**ABLATIONS, **SENSITIVITY}[variant].keys()
    assert before != after


def test_all_methods_begin_within_bounds_of_the_same_width() -> None:
    for row in ALL:
        space, start = row.space(), row.start()
        assert space.keys() == start.keys()
        for name, (low, high) in space.items():
            assert low <= start[name] <= high, (row, name)
    weights = [row.space()["method.weight"] for row in ALL if row.distilled]
    assert [round(high / low, -1) for low, high in weights] == [900] * len(weights)


def test_of_students_that_read_histories_two_trials_more_have_a_third_and_three_times_the_weight() -> None:
    row = Row("ml-1m", LEAVE_ONE_OUT, "sasrec-64", "sasrec-16", "rcekd")
    first, *later = row.first
    assert first == row.start()
    for trial, factor in zip(later, (1 / 3, 3), strict=True):
        assert {name for name in first if first[name] != trial[name]} == {"method.weight"}
        assert trial["method.weight"] == pytest.approx(factor * first["method.weight"], rel=1e-3)
    for other in (STUDENT, replace(row, teacher="", method="labels")):
        assert other.first == [other.start()]


def test_as_published_validation_items_are_neither_known_nor_masked(split: Split) -> None:
    whole = random_split(split.dataset)
    changed = published(whole)
    assert changed.test.masked.lengths.tolist() == whole.train.lengths[whole.test.users].tolist()
    assert changed.test.histories is changed.test.masked
    assert changed.valid is whole.valid
    assert changed.protocol != whole.protocol


@pytest.fixture
def split(shop: Path) -> Split:
    return published(random_split(read_interactions(shop / "clicks.csv").dataset()))


@pytest.fixture
def little(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every row is trained for three epochs on the little shop, and writes to a folder of its own."""
    training = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "weight_decay": 1e-6}
    for name in ("mf-400", "mf-20"):
        little = Recipe("citeulike-t", "mf", "bpr", model={"dim": 4}, training=training)
        monkeypatch.setitem(RECIPES, ("citeulike-t", name), little)
    for name in ("RESULTS", "PAIRED", "OVERLAP"):
        monkeypatch.setattr(rcekd, name, tmp_path / f"{name.lower()}.csv")
    monkeypatch.setattr(rcekd_tuning, "TRIALS", tmp_path / "trials.csv")
    monkeypatch.setattr(rcekd, "KEPT", Kept(tmp_path / "kept"))
    monkeypatch.setattr(experiments, "WORK", tmp_path / "models")
    for module in (rcekd, rcekd_tuning):
        monkeypatch.setattr(module, "cut", lambda dataset, name: split)
        monkeypatch.setattr(module, "commit", lambda: "abc")
    rcekd_tuning._teacher.cache_clear()
    yield tmp_path
    rcekd_tuning._teacher.cache_clear()


def note(row: Row, settings: dict[str, Any], value: float | None, *, sampler: str = "tpe", number: int = 0) -> None:
    """Write a trial as if it had been made."""
    ResultTable(rcekd_tuning.TRIALS, TRIAL_COLUMNS).append(
        {
            **row.key,
            "sampler": sampler,
            "trial": number,
            "state": "pruned" if value is None else "complete",
            "settings": json.dumps(settings),
            "value": value,
            "curve": "[0.1, 0.2]",
        }
    )


def test_a_row_is_trained_with_the_best_of_its_trials(little: Path) -> None:
    note(STUDENT, {"method.weight": 1.0}, 0.2)
    note(STUDENT, {"method.weight": 2.0}, 0.3, number=1)
    note(STUDENT, {"method.weight": 3.0}, None, number=2)
    note(STUDENT, {"method.weight": 4.0}, 0.9, sampler="grid")  # more trials than the others had
    note(Row(*MF, "ce"), {"method.weight": 5.0}, 0.9)
    for row in (STUDENT, replace(STUDENT, seed=2), replace(STUDENT, variant="K = 10")):
        assert best_settings(row) == {"method.weight": 2.0}


def test_nothing_is_trained_untuned(little: Path) -> None:
    with pytest.raises(SystemExit, match="has no trials"):
        best_settings(STUDENT)


def test_cross_entropy_on_all_items_is_tuned_by_itself(little: Path) -> None:
    note(Row(*MF, "ce"), {"method.weight": 1.0}, 0.9)
    with pytest.raises(SystemExit, match="on-all-items has no trials"):
        best_settings(Row(*MF, "ce", ON_ALL))


def test_the_first_trial_has_the_authors_settings_and_all_are_written(little: Path) -> None:
    tune(STUDENT.taught_by, 1)
    tune(STUDENT, 3)
    rows = ResultTable(rcekd_tuning.TRIALS, TRIAL_COLUMNS).find(**STUDENT.key)
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert json.loads(rows[0]["settings"]) == STUDENT.start()
    assert len({row["settings"] for row in rows}) == 3
    for row in rows:
        assert row["state"] == "complete"
        assert len(json.loads(row["curve"])) == 3
        assert 0 < float(row["value"]) <= 1
        for name, value in json.loads(row["settings"]).items():
            low, high = STUDENT.space()[name]
            assert low <= value <= high


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def settings() -> list[str]:
        return [row["settings"] for row in ResultTable(rcekd_tuning.TRIALS, TRIAL_COLUMNS).find(**alone.key)]

    alone = Row("citeulike-t", SHUFFLED, "", "mf-20", "labels")
    tune(alone, 3)
    whole = settings()
    rcekd_tuning.TRIALS.unlink()
    tune(alone, 1)
    make = rcekd_tuning.make_trial

    def killed(*arguments: Any) -> None:
        monkeypatch.setattr(rcekd_tuning, "make_trial", make)
        raise KeyboardInterrupt

    monkeypatch.setattr(rcekd_tuning, "make_trial", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(alone, 3)
    tune(alone, 3)
    assert settings() == whole


def test_a_trial_that_falls_behind_is_pruned(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Row("citeulike-t", SHUFFLED, "", "mf-20", "labels")
    monkeypatch.setattr(rcekd_tuning, "PATIENT", 0)
    for number in range(2):
        note(alone, alone.start(), 0.9, number=number)
        table = ResultTable(rcekd_tuning.TRIALS, TRIAL_COLUMNS)
        table.path.write_text(table.path.read_text().replace("[0.1, 0.2]", "[2.0, 2.0]"))  # out of reach
    tune(alone, 3)
    (row,) = ResultTable(rcekd_tuning.TRIALS, TRIAL_COLUMNS).find(**alone.key, trial=2)
    assert (row["state"], row["value"], len(json.loads(row["curve"]))) == ("pruned", "", 1)


def test_a_trial_that_diverges_is_written_and_the_next_one_made(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings follow from its number: without a row it would be made again for ever."""
    train = experiments.train

    def diverge(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(rcekd_tuning, "train", train)
        raise TrainingError("the loss part 'label' is nan")

    monkeypatch.setattr(rcekd_tuning, "train", diverge)
    alone = Row("citeulike-t", SHUFFLED, "", "mf-20", "labels")
    tune(alone, 2)
    states = [row["state"] for row in ResultTable(rcekd_tuning.TRIALS, TRIAL_COLUMNS).rows()]
    assert states == ["fail", "complete"]


def test_a_full_disk_is_no_fault_of_the_settings(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise TrainingError("cannot write") from OSError("no space")

    monkeypatch.setattr(rcekd_tuning, "train", full)
    with pytest.raises(TrainingError):
        search(Row("citeulike-t", SHUFFLED, "", "mf-20", "labels"), {})
    assert not rcekd_tuning.TRIALS.is_file() or ResultTable(rcekd_tuning.TRIALS, TRIAL_COLUMNS).rows() == []


def test_the_same_search_is_not_made_twice(little: Path) -> None:
    alone = Row("citeulike-t", SHUFFLED, "", "mf-20", "labels")
    for rate in (0.01, 0.01, 0.02):
        search(alone, {"training.learning_rate": rate})
    assert [json.loads(row["settings"]) for row in ResultTable(rcekd_tuning.TRIALS, TRIAL_COLUMNS).rows()] == [
        {"training.learning_rate": 0.01},
        {"training.learning_rate": 0.02},
    ]


def test_a_row_is_measured_once_and_kept_for_the_tests(little: Path) -> None:
    for row in (STUDENT.taught_by, STUDENT):
        note(row, {}, 0.1)
        rcekd.measure(row)
    before = ResultTable(rcekd.RESULTS, QUALITY).find(**STUDENT.key)
    rcekd.measure(STUDENT)
    assert ResultTable(rcekd.RESULTS, QUALITY).find(**STUDENT.key) == before
    assert {(row["metric"], row["k"]) for row in before} >= {("recall", "10"), ("recall", "20"), ("ndcg", "20")}
    assert {row["stratum"] for row in before} >= {"all", "head", "tail", "item-tail"}
    assert rcekd.KEPT.seeds_of_both(STUDENT, STUDENT, [0, 1]) == [0]


def test_a_teacher_shows_earlier_stages_of_its_training_where_they_are_asked_for(little: Path) -> None:
    note(STUDENT.taught_by, {}, 0.1)
    teacher = teacher_of(Row(*MF, "hetcomp"))
    assert isinstance(teacher, LocalTeacher)
    *earlier, last = [stage for stage in teacher.checkpoints if isinstance(stage, LocalTeacher)]
    plain = teacher_of(STUDENT)
    assert plain is not None
    assert last.identity == plain.identity
    assert not plain.checkpoints
    weights = [stage.model.state_dict()["embedding.weight"] for stage in (*earlier, last)]
    assert all(not a.equal(b) for a, b in itertools.pairwise(weights))


def test_a_stage_is_the_model_after_that_epoch(little: Path, split: Split) -> None:
    """It is trained anew up to there, and must be what the first training went through."""
    row = STUDENT.taught_by
    whole = row.run({"training.epochs": 2})
    experiments.train(split, whole, "whole")
    (stage,) = experiments.stages(split, row.run({}), "part", [2])
    after = experiments.after_last_epoch(split, whole, folder_of(whole, "whole"))
    assert stage.state_dict()["embedding.weight"].equal(after.state_dict()["embedding.weight"])
    trained = len(list((little / "models").iterdir()))
    experiments.stages(split, row.run({}), "part", [2])
    assert len(list((little / "models").iterdir())) == trained


def test_a_training_can_be_ended_from_outside(little: Path, split: Split) -> None:
    def stop(row: Any) -> None:
        raise StoppedError

    run = STUDENT.taught_by.run({})
    with pytest.raises(StoppedError):
        experiments.train(split, run, "stopped", watch=stop)
    assert len(rcekd_tuning._curve(folder_of(run, "stopped"))) == 1


def test_overlap_is_written_at_the_marks(little: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rcekd, "MARKS", (1, 3))
    monkeypatch.setattr(rcekd, "OVERLAP_KS", (2, 12))
    for row in (STUDENT.taught_by, STUDENT):
        note(row, {}, 0.1)
    for _ in range(2):
        rcekd.follow(STUDENT)
    rows = ResultTable(rcekd.OVERLAP, rcekd.OVERLAP_COLUMNS).rows()
    assert [(row["epoch"], row["k"]) for row in rows] == [("1", "2"), ("1", "12"), ("3", "2"), ("3", "12")]
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    assert {row["value"] for row in rows if row["k"] == "12"} == {"1"}  # the whole catalogue


def test_rcekd_is_tested_against_what_is_there(little: Path, split: Split, all_at: Found) -> None:
    rcekd.KEPT.keep(all_at(split, 1), STUDENT)
    rcekd.KEPT.keep(all_at(split, 3), Row(*MF, "ce"))
    rcekd.compare()
    rows = ResultTable(rcekd.PAIRED, COLUMNS).rows()
    assert {(row["split"], row["method"], row["other"], row["metric"], row["k"]) for row in rows} == {
        (SHUFFLED, "rcekd", "ce", "ndcg", "20")
    }
    assert all(float(row["gain"]) > 0 for row in rows)
    assert {row["stratum"] for row in rows} >= {"all", "head", "tail"}


def test_compare_covers_every_cell() -> None:
    cells = [(cell.dataset, cell.split, cell.teacher, cell.student) for part in CELLS.values() for cell in part]
    assert len(set(cells)) == len(cells)
    assert all("rcekd" in cell.methods for part in CELLS.values() for cell in part)


def test_each_row_is_tuned_once_and_teachers_come_before_their_students(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned: list[Row] = []
    monkeypatch.setattr(rcekd, "tune", lambda row, n_trials: tuned.append(row))

    def ask_for(*arguments: str) -> list[Row]:
        tuned.clear()
        monkeypatch.setattr("sys.argv", ["rcekd", "--tune", *arguments])
        rcekd.main()
        return list(tuned)

    every = ask_for()
    assert len(set(every)) == len(every)
    for row in every:
        assert row.seed == 0
        if row.distilled and not row.taught_by.tuned_before:
            assert every.index(row.taught_by) < every.index(row)
    assert ask_for("--only", "mf-400/mf-20", "--table", "ablation") == [STUDENT]
    assert [row.method for row in ask_for("--only", "citeulike-t/8:1:1-shuffled/mf")][:2] == ["teacher", "labels"]
