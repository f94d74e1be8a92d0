"""Which rows of BAHSD's tables are set against each other, user by user."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.bahsd_rows import (
    ABLATIONS,
    ALSO_SMOOTHED,
    BUDGETS,
    DATASETS,
    EQUAL,
    FAITHFUL,
    HALF,
    METHODS,
    MODELS,
    NOTHING,
    OF_SCORES,
    ONE_NEGATIVE,
    OPINION,
    PLAIN,
    RULES,
    SMALL,
    SMOOTHED,
    TENTH,
    Row,
)


def rivals() -> Iterator[tuple[Row, Row]]:
    """Yield BAHSD's rows, each with all that it is compared with."""
    yield from _core_rivals()
    yield from _parts()
    yield from _budget_rivals()
    yield from _advised_rivals()
    yield from _smoothed_rivals()
    yield from _side_rivals()


def _core_rivals() -> Iterator[tuple[Row, Row]]:
    for dataset, teacher, regime, access in itertools.product(DATASETS, MODELS, METHODS, ("lists", "scores")):
        ours = Row(dataset, teacher, teacher, "bahsd", regime, access)
        for method in ("teacher", "labels"):
            yield ours, Row(dataset, teacher, teacher, method)
        for method in (METHODS if access == "lists" else OF_SCORES)[regime]:
            if method != "bahsd":
                yield ours, replace(ours, method=method, variant=EQUAL if method == "extraction" else "")


def _parts() -> Iterator[tuple[Row, Row]]:
    """Yield the whole method with each of its ablations."""
    for regime in METHODS:
        ours = Row("amazon-beauty", "sasrec", "sasrec", "bahsd", regime, "lists")
        yield from ((ours, replace(ours, variant=variant)) for variant in ABLATIONS[regime])


def _budget_rivals() -> Iterator[tuple[Row, Row]]:
    for budget in BUDGETS:
        ours = Row("amazon-beauty", "sasrec", "sasrec", "bahsd", "pure", "lists", budget)
        for method in ("kd", "extraction"):
            yield ours, replace(ours, method=method)
        for variant in (FAITHFUL, OPINION):
            yield replace(ours, variant=f"{variant}, {budget}"), replace(ours, method="extraction")
        advised = replace(ours, variant=f"{OPINION}, {budget}")
        yield advised, replace(ours, variant=f"{OPINION}, {NOTHING}")
    ours = Row("amazon-beauty", "sasrec", "sasrec", "bahsd", "pure", "lists", FAITHFUL)
    yield ours, replace(ours, method="extraction", variant=EQUAL)


def _advised_rivals() -> Iterator[tuple[Row, Row]]:
    for dataset, model, regime in itertools.product(DATASETS, MODELS, METHODS):
        ours = Row(dataset, model, model, "bahsd", regime, "lists", OPINION)
        yield from ((ours, Row(dataset, model, model, method)) for method in ("teacher", "labels", RULES))
        yield ours, Row(dataset, model, model, "teacher", variant=OPINION)
        yield from ((ours, replace(ours, variant=variant)) for variant in (PLAIN, HALF, TENTH))
        yield replace(ours, variant=HALF), replace(ours, variant="")
        for method, variant in (("kd", ""), ("kd", OPINION), ("bahsd", ""), ("rrd", ""), ("extraction", EQUAL)):
            if method in METHODS[regime]:
                yield ours, replace(ours, method=method, variant=variant)
    for dataset, model in itertools.product(DATASETS, MODELS):
        both = Row(dataset, model, model, "teacher", variant=OPINION)
        yield both, replace(both, variant="")


def _smoothed_rivals() -> Iterator[tuple[Row, Row]]:
    labels = Row("amazon-beauty", "sasrec", "sasrec", "labels", variant=SMOOTHED)
    yield labels, replace(labels, method="teacher", variant="")
    yield labels, replace(labels, variant="")
    smooth = Row("amazon-beauty", "sasrec", "sasrec", "bahsd", "assisted", "lists", SMOOTHED)
    for other in (labels, replace(smooth, method="kd"), *(replace(smooth, variant=v) for v in ("", OPINION))):
        yield smooth, other
    for method in ("teacher", "labels"):
        yield smooth, replace(labels, method=method, variant="")
    ours = replace(smooth, teacher=ALSO_SMOOTHED)
    yield ours, Row("amazon-beauty", ALSO_SMOOTHED, "sasrec", "teacher")
    yield ours, labels
    yield ours, replace(ours, method="kd")


def _side_rivals() -> Iterator[tuple[Row, Row]]:
    """Yield students of a weaker teacher, of one of another architecture, and smaller students."""
    cell = Row("amazon-beauty", "sasrec", "sasrec", "labels")
    teachers = {
        ONE_NEGATIVE: replace(cell, teacher=ONE_NEGATIVE, method="teacher"),
        "bert4rec": Row("amazon-beauty", "bert4rec", "bert4rec", "teacher"),
    }
    for regime, (teacher, itself) in itertools.product(METHODS, teachers.items()):
        ours = Row("amazon-beauty", teacher, "sasrec", "bahsd", regime, "lists")
        advised = replace(ours, variant=OPINION)
        yield from ((ours, other) for other in (itself, cell, replace(ours, method="kd")))
        yield from ((advised, other) for other in (itself, cell, ours, replace(advised, method="kd")))
        if regime == "pure":
            walks = replace(ours, method="extraction", variant=EQUAL)
            yield from ((each, walks) for each in (ours, advised))
    for regime in METHODS:
        ours = Row("amazon-beauty", "sasrec", "sasrec", "bahsd", regime, "lists", SMALL)
        small = replace(cell, variant=SMALL)
        yield from ((ours, other) for other in (replace(cell, method="teacher"), small, replace(ours, method="kd")))
