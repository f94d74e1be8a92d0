"""Paired tests between rows of a result table: the rank of every test target is kept, and compared user by user.

Ranks stand in the repository, so that everyone who has the data can make the tests anew. Users and items do not: they
are those of the split, which a fingerprint tells.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.experiments import Row, Values, by_stratum
from benchmarks.results import FOLDER, ResultTable

from recdistill.arrays import Floats
from recdistill.data.splits import Split
from recdistill.errors import DataError
from recdistill.evaluation.full_ranking import targets_of
from recdistill.evaluation.metrics import MISS
from recdistill.evaluation.results import Evaluation
from recdistill.evaluation.significance import by_user, sign_flip_test

COLUMNS = (
    *("dataset", "split", "teacher", "student", "regime", "access", "method", "other", "stratum", "metric", "k"),
    *("value", "other_value", "gain", "p", "seeds", "users"),
)
"""Of the paired tests: means of two methods over seeds, gain of the first in per cent, and p of no difference."""
PAIR = ("dataset", "split", "teacher", "student", "regime", "access", "method", "other")
"""The columns that name the two rows of a test."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The ranks of the rows of one benchmark, to the deepest k that is reported."""

    folder: Path

    @classmethod
    def of(cls, benchmark: str) -> Kept:
        """Return those that stand beside the tables of results."""
        return cls(FOLDER / "ranks" / benchmark)

    def keep(self, found: Evaluation, row: Row) -> None:
        """Write the ranks of a row; a rank beyond the deepest k is 0."""
        ranks = np.where(found.ranks <= max(found.ks), found.ranks, 0).astype(np.uint8)
        path = self.path(row, row.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez_compressed(file, ranks=ranks, ks=np.array(found.ks), cases=np.array(_fingerprint(found)))

    def load(self, row: Row, seed: int, split: Split) -> Evaluation:
        """Return a row's evaluation on the test cases of a split.

        Raises:
            DataError: when those are not the cases that it was evaluated on.
        """
        targets, offsets = targets_of(split.test, split.dataset.n_items)
        with np.load(self.path(row, seed)) as file:
            stored, ks, cases = file["ranks"], tuple(file["ks"].tolist()), str(file["cases"])
        ranks = np.where(stored == 0, MISS, stored).astype(np.int32)
        found = Evaluation(split.test.users, targets, offsets, ranks, split.dataset.n_items, ks, split.protocol)
        if _fingerprint(found) != cases:
            raise DataError(
                f"{self.path(row, seed)} was made of other test cases than these of {split.protocol}; "
                "check the data, or delete the file and measure the row again"
            )
        return found

    def seeds_of_both(self, row: Row, other: Row, seeds: Iterable[int]) -> list[int]:
        """Return the seeds for which both rows are kept."""
        return [seed for seed in seeds if all(self.path(each, seed).is_file() for each in (row, other))]

    def path(self, row: Row, seed: int) -> Path:
        """Return where a row's ranks are, under a name that every file system takes."""
        name = re.sub(r"[^\w.,-]", "_", row.name)
        return self.folder / f"{name}_{seed}.npz"

    def paired(
        self,
        row: Row,
        other: Row,
        seeds: Sequence[int],
        split: Split,
        *,
        strata: Sequence[str],
        metric: str = "ndcg",
        k: int = 10,
    ) -> Iterator[Values]:
        """Yield the test of one row against another by stratum, each user's values averaged over seeds."""
        sides = [[by_stratum(self.load(each, seed, split), split) for seed in seeds] for each in (row, other)]
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
                    "seeds": len(seeds),
                }


def renew(path: Path, tests: Iterable[Values]) -> None:
    """Write tests into a table of them, over those of the same two rows.

    What is not tested now stays: it was tested before ranks were kept, or elsewhere.
    """
    pairs = _by_pair(ResultTable(path, COLUMNS).rows()) | _by_pair(tests)
    partial = path.with_suffix(".part")
    partial.unlink(missing_ok=True)
    ResultTable(partial, COLUMNS).append(*(test for pair in pairs.values() for test in pair))
    partial.replace(path)


def _by_pair(tests: Iterable[Mapping[str, object]]) -> dict[tuple[str, ...], list[Mapping[str, object]]]:
    pairs: dict[tuple[str, ...], list[Mapping[str, object]]] = {}
    for test in tests:
        pairs.setdefault(tuple(str(test.get(name, "")) for name in PAIR), []).append(test)
    return pairs


def _fingerprint(found: Evaluation) -> str:
    digest = hashlib.sha256()
    for array in (found.users, found.offsets, found.targets):
        digest.update(array.astype(np.int64).tobytes())
    return digest.hexdigest()[:16]


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
