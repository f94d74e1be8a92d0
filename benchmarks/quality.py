"""How good are the models, trained to convergence at the speed that ``training_speed`` measures?

Each recipe is one row of the table: a data set, a model, a loss and its settings. The settings were chosen on
validation data (``--search``, rows in ``quality_search.csv``); the test cases are looked at once, when a recipe is run.
Rows are on disk as soon as they are known, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.results import FOLDER, QUALITY, ResultTable

from recdistill.cli.progress import Reporter
from recdistill.data.benchmark_data import load_benchmark
from recdistill.data.groups import Groups
from recdistill.data.splits import Cases, Split, leave_one_out
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.results import strata, table
from recdistill.run import learn
from recdistill.runfile import Run
from recdistill.trainer import Fit

WORK = Path("runs/quality")
"""Checkpoints of what is not finished."""
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model trained on a data set, with everything that is not a default."""

    dataset: str
    student: str
    loss: str = "softmax"
    seeds: tuple[int, ...] = (0,)
    model: Values = field(default_factory=dict)
    method: Values = field(default_factory=dict)
    training: Values = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique among the recipes."""
        return f"{self.dataset}/{self.student}/{self.loss}"

    def run(self, seed: int) -> Run:
        """Fill in every default."""
        return Run.parse(
            {
                "data": {"path": self.dataset},
                "student": {"name": self.student, **self.model},
                "method": {"name": "supervised", "loss": self.loss, **self.method},
                "training": {"seed": seed, **self.training},
            }
        )

    def varied(self, changes: Values) -> Recipe:
        """Return the recipe with some ``section.key`` changed."""
        recipe = self
        for name, value in changes.items():
            section, key = name.split(".")
            values: Values = {**getattr(recipe, section), key: value}
            recipe = {
                "model": replace(recipe, model=values),
                "method": replace(recipe, method=values),
                "training": replace(recipe, training=values),
            }[section]
        return recipe


_BEAUTY: Values = {"model": {"max_len": 50, "dropout": 0.5}, "training": {"batch_size": 256, "epochs": 200}}
_ML: Values = {"model": {"max_len": 200, "dropout": 0.2}, "training": {"batch_size": 128, "epochs": 200}}

RECIPES = [
    Recipe("amazon-beauty", "sasrec", seeds=(0, 1, 2), **_BEAUTY),
    Recipe("ml-1m", "sasrec", seeds=(0, 1, 2), **_ML),
    Recipe("amazon-beauty", "gru4rec", **_BEAUTY),
    Recipe("amazon-beauty", "bert4rec", **_BEAUTY),
    Recipe("amazon-beauty", "sasrec", "sampled_softmax", **_BEAUTY),
    Recipe("amazon-beauty", "sasrec", "gbce", **_BEAUTY),
    Recipe("amazon-beauty", "sasrec", "bce", **_BEAUTY),
    Recipe("ml-1m", "gru4rec", **_ML),
    Recipe("ml-1m", "sasrec", "sampled_softmax", **_ML),
    Recipe("ml-1m", "sasrec", "gbce", **_ML),
    Recipe("ml-1m", "sasrec", "bce", **_ML),
    Recipe("ml-1m", "bert4rec", **_ML),
]


def main() -> None:
    """Run the recipes whose name contains ``--only``, or search among settings on validation data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a recipe's name, such as amazon-beauty/sasrec/softmax")
    parser.add_argument("--seeds", type=int, nargs="*", help="instead of the recipe's own")
    parser.add_argument(
        "--search",
        nargs="*",
        metavar="SECTION.KEY=[V, V]",
        help="try every combination of these values on validation data, e.g. model.dropout=[0.4,0.5]",
    )
    arguments = parser.parse_args()
    recipes = [recipe for recipe in RECIPES if arguments.only in recipe.name]
    if arguments.search is not None:
        for recipe, changes in itertools.product(recipes, _grid(arguments.search)):
            search(recipe, changes, seed=arguments.seeds[0] if arguments.seeds else 0)
        return
    # The first seed of every recipe comes before the second of any.
    jobs = [(turn, recipe, seed) for recipe in recipes for turn, seed in enumerate(arguments.seeds or recipe.seeds)]
    for _, recipe, seed in sorted(jobs, key=lambda job: job[0]):
        run(recipe, seed)


def run(recipe: Recipe, seed: int) -> None:
    """Train by a recipe and write its figures on the test cases, if they are not written yet."""
    results = ResultTable(FOLDER / "quality.csv", QUALITY)
    key = _key(recipe, seed)
    if results.already_done(**key):
        return
    split = leave_one_out(load_benchmark(recipe.dataset))
    fitted, rows = _fit(recipe, seed, split, split.test, "test")
    results.append(*({**key, **row, "minutes": fitted.seconds / 60, "commit": _commit()} for row in rows))


def search(recipe: Recipe, changes: Values, seed: int) -> None:
    """Train with other settings and write the figures on the validation cases, if they are not written yet."""
    results = ResultTable(FOLDER / "quality_search.csv", QUALITY)
    variant = json.dumps(changes, sort_keys=True)
    key = {**_key(recipe, seed), "split": "leave-one-out/valid", "variant": variant}
    if results.already_done(**key):
        return
    split = leave_one_out(load_benchmark(recipe.dataset))
    fitted, rows = _fit(recipe.varied(changes), seed, split, split.valid, f"validation {variant}")
    kept = [row for row in rows if row["stratum"] in ("all", "head", "tail") and row["metric"] in ("hr", "ndcg")]
    results.append(*({**key, **row, "minutes": fitted.seconds / 60, "commit": _commit()} for row in kept))


def _fit(recipe: Recipe, seed: int, split: Split, cases: Cases, what: str) -> tuple[Fit, list[dict[str, Any]]]:
    """Train, or take what an earlier try with the same settings has trained, and rank the cases."""
    name = f"{recipe.name} {what} seed {seed}"
    print(f"== {name}", flush=True)
    settings = recipe.run(seed)
    sections = {key: value for key, value in settings.dump().items() if key != "data"}
    digest = hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:12]
    folder = WORK / f"{recipe.name.replace('/', '_')}_{seed}_{digest}"
    with Reporter() as report:
        student, fitted = learn(
            split, settings.student, settings.method, settings.training, folder=folder, report=report
        )
    n_items = split.dataset.n_items
    found = evaluate(student.model, cases, n_items=n_items, protocol=split.protocol)
    groups = Groups.from_train(split.train, n_items)
    parts = strata(found, head_users=groups.head_users, length_bands=groups.bands, head_items=groups.head_items)
    print(f"== {name}: NDCG@10 {found.mean('ndcg', 10):.4f}, {fitted.seconds / 60:.1f} minutes", flush=True)
    return fitted, table(parts)


def _key(recipe: Recipe, seed: int) -> Values:
    return {
        "dataset": recipe.dataset,
        "split": "leave-one-out",
        "student": recipe.student,
        "method": "labels",
        "variant": recipe.loss,
        "seed": seed,
    }


def _grid(assignments: list[str]) -> Iterator[Values]:
    names, values = [], []
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        names.append(name)
        values.append(json.loads(text))
    for combination in itertools.product(*values):
        yield dict(zip(names, combination, strict=True))


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
