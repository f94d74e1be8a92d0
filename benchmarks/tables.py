"""Make the Markdown tables in the documentation from the result files: ``python -m benchmarks.tables``.

A table stands between two comments, ``<!-- table: training_speed -->`` and ``<!-- /table -->``; what is between them is
replaced. The name is that of a function in `TABLES`, or of any file of times in ``results/``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from benchmarks.quality_tables import (
    HR_AND_NDCG,
    OF_SEQUENCES,
    OF_USERS,
    RECALL_AND_NDCG,
    Figure,
    by_budget,
    clusters,
    overlap,
    paired,
    premise,
    premise_parts,
    published,
    quality,
    side_by_side,
    trials,
)
from benchmarks.results import FOLDER
from benchmarks.speed_tables import labelling_speed, speed, training_profile, training_speed, training_speed_core

from recdistill.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "benchmarks").glob("*.md")))
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def fill(text: str, results: Path) -> str:
    """Return ``text`` with every table made anew from the files in ``results``."""
    return BLOCK.sub(lambda block: f"{block[1]}{make(block['name'], results)}\n{block[3]}", text)


def make(name: str, results: Path) -> str:
    """Return one table in Markdown.

    Raises:
        DataError: when no table has this name.
    """
    source, build = TABLES.get(name, (name, speed))
    path = results / f"{source}.csv"
    if not path.is_file():
        if name not in TABLES:
            raise DataError(f"no table is called {name!r}, and there is no {path}; tables: {', '.join(TABLES)}")
        return "*Not measured yet.*"
    return build(pl.read_csv(path, infer_schema=False))


VARIANT = pl.col("variant").fill_null("")
AS_CHOSEN = VARIANT.is_in(["", "equal budget", "faithful", "with a second opinion", "with smoothed labels"])
"""Of BAHSD's table: methods as validation data chose them, not their earlier forms and ablations."""
IS_SHORT = AS_CHOSEN & (VARIANT != "with smoothed labels") & (pl.col("teacher") == pl.col("student"))
"""Of these, what a short table has."""
AS_TUNED = VARIANT.is_in(["", "on all items", "with a second opinion", "with a second opinion, plain rules"])
"""Of RCE-KD's tables: methods as they were tuned, not their earlier forms and ablations."""
IS_BEST_RECIPE = ~pl.col("variant").str.contains(",")
"""Of the quality of models: the recipe that validation data chose, not others beside it."""
OF_STUDENTS: list[Figure] = [*HR_AND_NDCG, ("agreement", 10, "all")]
OTHER_DEPTHS: list[Figure] = [(metric, k, "all") for k in (5, 20) for metric in ("hr", "ndcg")]
AT_BUDGETS: list[Figure] = [("ndcg", 10, "all"), ("ndcg", 10, "tail"), ("agreement", 10, "all")]
HAS_BUDGET = VARIANT.str.ends_with(" queries")
HAS_PLAIN_RULES = VARIANT.str.contains("plain rules")
AMONG_USERS: dict[str, Any] = {"figure": (pl.col("metric") == "ndcg") & (pl.col("k") == "10"), "strata": ("tail",)}
"""NDCG@10 of all users and of tail users."""
WITH_INTENTS = '{"method.intents": {}}'
"""Of searches: S4Rec's parts, with their defaults, beside another method."""
BAHSD_AND_INTENTS = (
    (pl.concat_str("dataset", "teacher", "student", "method", separator="|") == "amazon-beauty|sasrec|sasrec|bahsd")
    & (pl.concat_str("split", "regime", "access", separator="|") == "leave-one-out/one earlier|assisted|lists")
    & pl.col("variant").is_in(["{}", WITH_INTENTS])
)
"""Of BAHSD's search: the student with them and without."""
RCEKD_AND_INTENTS = (pl.concat_str("student", "method", separator="|") == "sasrec-16|rcekd") & pl.col("settings").is_in(
    ['{"student.dropout": 0.2}', WITH_INTENTS]
)
"""Of RCE-KD's trials: the student with them and without."""
IS_CORE = pl.col("variant").is_in(["softmax", "smoothed", "bce"])
"""Of S4Rec's tables: methods as they are, on each base loss."""

TABLES: dict[str, tuple[str, Callable[[pl.DataFrame], str]]] = {
    "training_speed": ("training_speed", training_speed),
    "training_speed_core": ("training_speed", training_speed_core),
    "training_profile": ("training_speed", training_profile),
    "quality": ("quality", quality),
    "quality_core": (
        "quality",
        partial(side_by_side, lines=("student", "method", "variant"), **AMONG_USERS, where=IS_BEST_RECIPE),
    ),
    "quality_search": ("quality_search", quality),
    "bahsd": ("bahsd", partial(quality, shown=OF_STUDENTS, where=AS_CHOSEN)),
    "bahsd_depths": ("bahsd", partial(quality, shown=OTHER_DEPTHS, where=AS_CHOSEN)),
    "bahsd_variants": ("bahsd", partial(quality, shown=OF_STUDENTS, where=~AS_CHOSEN & ~HAS_BUDGET)),
    "bahsd_core": (
        "bahsd",
        partial(
            side_by_side,
            lines=("regime", "access", "method", "variant"),
            **AMONG_USERS,
            where=IS_SHORT,
        ),
    ),
    "bahsd_budgets": ("bahsd", partial(quality, shown=AT_BUDGETS, where=HAS_BUDGET)),
    "bahsd_budgets_core": (
        "bahsd",
        partial(by_budget, budgets=(1_000, 5_000, 20_000), shown=AT_BUDGETS, where=HAS_BUDGET & ~HAS_PLAIN_RULES),
    ),
    "bahsd_search": ("bahsd_search", partial(quality, shown=OF_STUDENTS)),
    "bahsd_intents": ("bahsd_search", partial(quality, where=BAHSD_AND_INTENTS)),
    "rules": ("rules", quality),
    "premise": ("premise", premise),
    "premise_targets": ("premise_targets", partial(premise_parts, of="target", title="answer")),
    "premise_shares": ("premise_shares", partial(premise_parts, of="share", title="share of rules")),
    "bahsd_paired": ("bahsd_paired", paired),
    "rcekd": ("rcekd", partial(quality, shown=RECALL_AND_NDCG, where=pl.col("split") != "leave-one-out")),
    "rcekd_core": (
        "rcekd",
        partial(
            side_by_side,
            lines=("method", "variant"),
            figure=(pl.col("metric") == "ndcg")
            & (pl.col("k") == pl.when(pl.col("split") == "leave-one-out").then(pl.lit("10")).otherwise(pl.lit("20"))),
            strata=("tail", "item-tail"),
            where=AS_TUNED,
        ),
    ),
    "rcekd_sequences": ("rcekd", partial(quality, shown=OF_SEQUENCES, where=pl.col("split") == "leave-one-out")),
    "rcekd_trials": ("rcekd_trials", trials),
    "rcekd_intents": ("rcekd_trials", partial(trials, where=RCEKD_AND_INTENTS)),
    "rcekd_paired": ("rcekd_paired", paired),
    "rcekd_overlap": ("rcekd_overlap", overlap),
    "distillation_speed": ("distillation_speed", partial(speed, over="labels")),
    "s4rec": ("s4rec", partial(quality, shown=OF_USERS, where=IS_CORE)),
    "s4rec_core": ("s4rec", partial(side_by_side, lines=("method", "variant"), **AMONG_USERS, where=IS_CORE)),
    "s4rec_variants": ("s4rec", partial(quality, shown=OF_USERS, where=~IS_CORE)),
    "s4rec_search": ("s4rec_search", quality),
    "s4rec_paired": ("s4rec_paired", paired),
    "s4rec_published": ("s4rec_published", published),
    "s4rec_clusters": ("s4rec_clusters", clusters),
    "s4rec_speed": ("s4rec_speed", partial(speed, over="labels")),
    "augmentation_speed": ("augmentation_speed", partial(speed, over="one encoding")),
    "evaluation_speed": ("evaluation_speed", speed),
    "labelling_speed": ("labelling_speed", labelling_speed),
    "data_size": ("data_size", speed),
}
"""The result file that each table is made from, and how; any other name is a file of times, shown by `speed`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a table is out of date")
    check = parser.parse_args().check
    stale = False
    for path in DOCUMENTS:
        text = path.read_text()
        try:
            filled = fill(text, FOLDER)
        except DataError as error:
            raise SystemExit(f"error: {path}: {error}") from error
        if filled != text:
            stale = True
            if not check:
                path.write_text(filled)
            print(f"{path.relative_to(ROOT)}: {'out of date' if check else 'tables made anew'}", file=sys.stderr)
    if check and stale:
        raise SystemExit("run `python -m benchmarks.tables`")


if __name__ == "__main__":
    main()
