"""How good are the models, trained to convergence at the speed that ``training_speed`` measures?

Each recipe is one row of the table: a data set, a model, a loss and its settings. The settings were chosen on
validation data (``--search``, rows in ``quality_search.csv``); the test cases are looked at once, when a recipe is run.
Rows are on disk as soon as they are known, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools

from benchmarks.experiments import RECIPES, Recipe, Values, figures, grid, record, search_figures, search_key, train
from benchmarks.results import FOLDER, QUALITY, ResultTable

from recdistill.data.benchmark_data import load_benchmark
from recdistill.data.splits import Cases, Split, leave_one_out
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.results import Evaluation
from recdistill.training.progress import Fit


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
        for recipe, changes in itertools.product(recipes, grid(arguments.search)):
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
    fitted, found = _fit(recipe, seed, split, split.test, "test")
    record(results, key, figures(found, split), minutes=fitted.seconds / 60)


def search(recipe: Recipe, changes: Values, seed: int) -> None:
    """Train with other settings and write the figures on the validation cases, if they are not written yet."""
    results = ResultTable(FOLDER / "quality_search.csv", QUALITY)
    key = search_key(_key(recipe, seed), changes)
    if results.already_done(**key):
        return
    split = leave_one_out(load_benchmark(recipe.dataset))
    fitted, found = _fit(recipe.varied(changes), seed, split, split.valid, f"validation {changes}")
    record(results, key, search_figures(found, split), minutes=fitted.seconds / 60)


def _fit(recipe: Recipe, seed: int, split: Split, cases: Cases, what: str) -> tuple[Fit, Evaluation]:
    name = f"{recipe.name} {what} seed {seed}"
    print(f"== {name}", flush=True)
    student, fitted = train(split, recipe.run(seed), recipe.name)
    found = evaluate(student.model, cases, n_items=split.dataset.n_items, protocol=split.protocol)
    print(f"== {name}: NDCG@10 {found.mean('ndcg', 10):.4f}, {fitted.seconds / 60:.1f} minutes", flush=True)
    return fitted, found


def _key(recipe: Recipe, seed: int) -> Values:
    return {
        "dataset": recipe.dataset,
        "split": "leave-one-out",
        "student": recipe.student,
        "method": "labels",
        "variant": recipe.loss,
        "seed": seed,
    }


if __name__ == "__main__":
    main()
