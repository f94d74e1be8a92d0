"""Paired tests between rows of a result table: the rank of every test target is kept, and compared user by user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from benchmarks.experiments import Row, Values, by_stratum
from benchmarks.results import ResultTable

from recdistill.data.splits import Split
from recdistill.evaluation.metrics import Floats
from recdistill.evaluation.results import Evaluation
from recdistill.evaluation.significance import by_user, sign_flip_test

COLUMNS = (
    *("dataset", "split", "teacher", "student", "regime", "access", "method", "other", "stratum", "metric", "k"),
    *("value", "other_value", "gain", "p", "seeds", "users"),
)
"""Of the paired tests: means of two methods over seeds, gain of the first in per cent, and p of no difference."""


def keep(found: Evaluation, folder: Path, row: Row, seed: int) -> None:
    """Keep an evaluation for the tests."""
    folder.mkdir(parents=True, exist_ok=True)
    found.save(_path(folder, row, seed))


def kept(folder: Path, row: Row, seed: int) -> Evaluation | None:
    """Return what was kept of a row, if anything."""
    path = _path(folder, row, seed)
    return Evaluation.load(path) if path.is_file() else None


def kept_of_both(folder: Path, row: Row, other: Row, seeds: Iterable[int]) -> list[tuple[Evaluation, Evaluation]]:
    """Return what was kept of two rows, for the seeds that both have."""
    return [(a, b) for seed in seeds if (a := kept(folder, row, seed)) and (b := kept(folder, other, seed))]


def begin(path: Path, columns: tuple[str, ...] = COLUMNS) -> ResultTable:
    """Return an empty table; comparisons are always made anew from what is kept."""
    path.unlink(missing_ok=True)
    return ResultTable(path, columns)


def paired(
    row: Row,
    other: Row,
    both: Sequence[tuple[Evaluation, Evaluation]],
    split: Split,
    *,
    strata: Sequence[str],
    metric: str = "ndcg",
    k: int = 10,
) -> Iterator[Values]:
    """Yield the test of one row against another by stratum, each user's values averaged over seeds."""
    sides = [[by_stratum(found, split) for found in side] for side in zip(*both, strict=True)]
    for stratum in strata:
        if all(stratum in parts for side in sides for parts in side):
            means = [_mean([parts[stratum] for parts in side], metric, k) for side in sides]
            yield {
                **{name: value for name, value in row.key.items() if name in COLUMNS},
                "method": _name(row),
                "other": _name(other),
                "stratum": stratum,
                "metric": metric,
                "k": k,
                **_test(*means),
                "seeds": len(both),
            }


def _name(row: Row) -> str:
    return " ".join(filter(None, (row.key["method"], row.key["variant"])))


def _mean(found: Sequence[Evaluation], metric: str, k: int) -> Floats:
    mean: Floats = np.mean([by_user(part.values(metric, k), part.users) for part in found], axis=0)
    return mean


def _test(ours: Floats, theirs: Floats) -> Values:
    value, other_value = float(ours.mean()), float(theirs.mean())
    return {
        "value": value,
        "other_value": other_value,
        "gain": 100 * (value / other_value - 1) if other_value else None,
        "p": sign_flip_test(ours - theirs),
        "users": len(ours),
    }


def _path(folder: Path, row: Row, seed: int) -> Path:
    return folder / f"{row.name.replace('/', '_')}_{seed}.npz"
