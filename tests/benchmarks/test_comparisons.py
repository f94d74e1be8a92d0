"""Ranks that are kept for paired tests, and tables of such tests."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.comparisons import COLUMNS, Kept, renew
from benchmarks.experiments import Values
from benchmarks.results import ResultTable

from recdistill.data.interactions import read_interactions
from recdistill.data.splits import Split, leave_one_out, random_split
from recdistill.errors import DataError
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.metrics import METRICS
from recdistill.models.base import build_model

from .conftest import Found


@dataclass
class Row:
    """A row with nothing but a name."""

    name: str = "8:1:1/bahsd/λ = 0"
    seed: int = 0

    @property
    def key(self) -> Values:
        return {"dataset": "shop", "split": "random", "method": self.name, "variant": ""}


@pytest.fixture
def split(shop: Path) -> Split:
    return random_split(read_interactions(shop / "clicks.csv").dataset())


def test_what_is_kept_has_the_same_metrics(tmp_path: Path, split: Split) -> None:
    found = evaluate(
        build_model("mf", split.dataset.n_items, {"dim": 4}, train=split.train),
        split.test,
        n_items=split.dataset.n_items,
        ks=(2, 3),
        protocol=split.protocol,
    )
    kept = Kept(tmp_path / "new")
    kept.keep(found, Row())
    again = kept.load(Row(), 0, split)
    assert 0 < (found.ranks <= 3).mean() < 1  # some are deeper than is kept, and some are not
    for metric in METRICS:
        for k in again.ks:
            assert again.values(metric, k).tolist() == found.values(metric, k).tolist()
    assert again.protocol == split.protocol


def test_ranks_of_other_cases_are_refused(tmp_path: Path, split: Split, all_at: Found) -> None:
    kept = Kept(tmp_path)
    kept.keep(all_at(split, 1), Row())
    with pytest.raises(DataError, match=r"other test cases.*measure the row again"):
        kept.load(Row(), 0, leave_one_out(split.dataset))


def test_rows_are_kept_apart_by_seed_under_names_that_every_system_takes(
    tmp_path: Path, split: Split, all_at: Found
) -> None:
    kept = Kept(tmp_path)
    for row in (Row(), Row(seed=2), Row("8:1:1/bahsd/λ = 1")):
        kept.keep(all_at(split, 1), row)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["8_1_1_bahsd_λ___0_0.npz", "8_1_1_bahsd_λ___0_2.npz", "8_1_1_bahsd_λ___1_0.npz"]
    assert kept.seeds_of_both(Row(), Row("8:1:1/bahsd/λ = 1"), (0, 1, 2)) == [0]


def test_a_test_replaces_the_one_of_the_same_rows_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "paired.csv"

    def test(method: str, seeds: int, gain: float) -> Values:
        return {"method": method, "other": "labels", "stratum": "all", "seeds": seeds, "gain": gain}

    def found() -> list[tuple[str, ...]]:
        return [(row["method"], row["seeds"], row["gain"]) for row in ResultTable(path, COLUMNS).rows()]

    whole = dict.fromkeys(COLUMNS, "")
    for tests in ([("a", 1, 1.0), ("b", 3, 2.0), ("c", 1, 3.0)], [("b", 2, 4.0), ("d", 1, 5.0), ("a", 1, 6.0)]):
        renew(path, [{**whole, **test(*each)} for each in tests])
    assert found() == [("a", "1", "6"), ("b", "2", "4"), ("c", "1", "3"), ("d", "1", "5")]
