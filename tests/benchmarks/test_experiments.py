"""Recipes, and where what they train is kept."""

from pathlib import Path
from typing import Any

import pytest
from benchmarks.bahsd_rows import TABLES, core
from benchmarks.experiments import (
    RECIPES,
    changed,
    chosen,
    find_recipe,
    grid,
    one_earlier,
    record,
    search_key,
    table_parser,
    train,
)
from benchmarks.results import QUALITY, ResultTable

from benchmarks import experiments
from recdistill.data.embedded import load_shop
from recdistill.data.splits import leave_one_out
from recdistill.errors import SettingsError
from recdistill.teachers.fake import FakeTeacher


def test_every_recipe_is_a_run_and_has_a_name_of_its_own() -> None:
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)
    for recipe in RECIPES:
        run = recipe.run(3)
        assert (run.student.name, run.training.seed) == (recipe.student, 3)
        method, smoothed = run.dump()["method"], recipe.loss == "smoothed"
        assert method["loss"] == ("softmax" if smoothed else recipe.loss)
        assert (method["smoothing"] > 0) is smoothed
        assert find_recipe(recipe.dataset, recipe.student, recipe.loss) is recipe


def test_a_recipe_is_varied_in_the_settings_named_alone() -> None:
    recipe = find_recipe("ml-1m", "sasrec")
    varied = recipe.varied({"model.dropout": 0.7, "training.epochs": 3, "method.precision": "fp32"})
    before, after = recipe.run(0).dump(), varied.run(0).dump()
    differing = {(a, b) for a in before for b in before[a] if before[a][b] != after[a][b]}
    assert differing == {("student", "dropout"), ("training", "epochs"), ("method", "precision")}
    with pytest.raises(SettingsError, match="did you mean 'dropout'"):
        recipe.varied({"model.dropuot": 0.7}).run(0)


def test_a_grid_is_every_combination() -> None:
    assert list(grid(["a=[1, 2]", 'b=["x"]'])) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    assert list(grid([])) == [{}]


def test_sections_are_changed_in_the_settings_named_alone() -> None:
    """Also settings within settings, and those that were not given before; what was given stays as it is."""
    sections = {"method": {"name": "s4rec", "label_loss": {"loss": "bce", "n_negatives": 3}}, "training": {"seed": 1}}
    changes = {"method.label_loss.loss": "softmax", "method.augmentation.crop_share": 0.5, "training.epochs": 2}
    assert changed(sections, changes) == {
        "method": {
            "name": "s4rec",
            "label_loss": {"loss": "softmax", "n_negatives": 3},
            "augmentation": {"crop_share": 0.5},
        },
        "training": {"seed": 1, "epochs": 2},
    }
    assert sections["training"] == {"seed": 1}
    assert changed(sections, {}) == sections


def test_the_rows_of_a_table_are_chosen_by_name_and_seed() -> None:
    parser = table_parser("A benchmark.", TABLES, seeds=(0, 1), example="ml-1m")
    every = chosen(TABLES, parser.parse_args([]))
    assert every == [row for row in core() if row.seed in (0, 1)]
    few = chosen(TABLES, parser.parse_args(["--table", "ablation", "--only", "with-sharper", "--seeds", "2"]))
    assert {(row.variant, row.seed) for row in few} == {("with sharper reliable answers", 2)}
    last = chosen(TABLES, parser.parse_args(["--only", "labels$", "--seeds", "1"]))
    assert {(row.method, row.variant) for row in last} == {("labels", "")}


def test_a_try_stands_under_its_changes_and_figures_of_a_student_together(tmp_path: Path) -> None:
    key = {"dataset": "ml-1m", "split": "leave-one-out", "variant": "bce", "seed": 0}
    tried = search_key(key, {"student.dropout": 0.5, "method.weight": 1})
    assert tried["split"] == "leave-one-out/valid"
    assert tried["variant"] == 'bce {"method.weight": 1, "student.dropout": 0.5}'
    table = ResultTable(tmp_path / "search.csv", QUALITY)
    record(table, tried, [{"metric": "hr", "k": k} for k in (5, 10)], minutes=1.5)
    assert [(row["k"], row["minutes"]) for row in table.find(**tried)] == [("5", "1.5"), ("10", "1.5")]


def test_what_was_trained_is_found_by_its_settings_and_its_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def learn(*_: Any, folder: Path, **__: Any) -> tuple[None, None]:
        folders.append(folder)
        return None, None

    monkeypatch.setattr(experiments, "learn", learn)
    split, recipe = leave_one_out(load_shop()), find_recipe("ml-1m", "sasrec")
    for run, teacher in (
        (recipe.run(0), None),
        (recipe.run(0), None),
        (recipe.run(1), None),
        (recipe.varied({"model.dropout": 0.7}).run(0), None),
        (recipe.run(0), FakeTeacher(3)),
        (recipe.run(0), FakeTeacher(3, identity="another")),
    ):
        train(split, run, recipe.name, teacher=teacher)
    assert folders[0] == folders[1]
    assert len(set(folders)) == 5


def test_one_item_ago_the_validation_items_were_the_test_targets() -> None:
    dataset = load_shop()
    today, ago = leave_one_out(dataset), one_earlier(dataset)
    assert ago.protocol != today.protocol
    place = {user: case for case, user in enumerate(ago.test.users.tolist())}
    for case, user in enumerate(today.valid.users.tolist()[:50]):
        assert ago.test.histories[place[user]].tolist() == today.valid.histories[case].tolist()
        assert ago.test.targets[place[user]].tolist() == today.valid.targets[case].tolist()
        assert ago.train[user].tolist() == today.train[user][:-1].tolist()
