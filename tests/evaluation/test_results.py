import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recdistill.data.splits import Cases
from recdistill.errors import ArtefactError, DataError, SettingsError
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.metrics import MISS
from recdistill.evaluation.results import Evaluation, compare, strata, table
from recdistill.models.base import Model


def make(
    ranks: list[list[int]], *, targets: list[list[int]] | None = None, users: list[int] | None = None
) -> Evaluation:
    """Cases with these ranks, of users 0, 1, …; targets are items 1, 2, … unless given."""
    flat = [rank for row in ranks for rank in row]
    names = [item for row in targets for item in row] if targets else list(range(1, len(flat) + 1))
    return Evaluation(
        users=np.array(users if users is not None else range(len(ranks)), np.int64),
        targets=np.array(names, np.int32),
        offsets=np.cumsum([0, *map(len, ranks)]),
        ranks=np.array(flat, np.int32),
        n_items=9,
        ks=(1, 3),
        protocol="leave-one-out",
    )


def test_mean_is_over_cases() -> None:
    assert make([[1], [2], [MISS], [4]]).mean("hr", 3) == 2 / 4


def test_mean_of_no_cases_is_not_a_number() -> None:
    assert math.isnan(make([]).mean("hr", 3))


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'ndcg'"):
        make([[1]]).values("ndgc", 3)


def test_strata_of_users() -> None:
    parts = strata(make([[1], [2], [9]]), head_users=np.array([True, False, False]), length_bands=np.array([5, 1, 1]))
    assert {name: part.mean("hr", 3) for name, part in parts.items()} == {
        "all": 2 / 3,
        "head": 1,
        "tail": 1 / 2,
        "length-1": 1 / 2,
        "length-5": 1,
    }


def test_users_of_a_group_are_found_by_number_not_by_place() -> None:
    assert make([[1], [9]], users=[3, 1]).of_users(np.array([False, True, False, False])).users.tolist() == [1]


def test_strata_of_items_count_only_their_own_targets() -> None:
    """Case 0 has a head target at place 1 and a tail target at place 5; case 1 a tail target at place 2."""
    evaluation = make([[1, 5], [2]], targets=[[1, 2], [3]])
    parts = strata(evaluation, head_items=np.arange(10) <= 1)
    assert parts["item-head"].values("recall", 3).tolist() == [1]
    assert parts["item-tail"].values("recall", 3).tolist() == [0, 1]
    assert evaluation.values("recall", 3).tolist() == [1 / 2, 1]


def test_groups_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match="cannot hold user 2"):
        make([[1], [1], [1]]).of_users(np.array([True, False]))
    with pytest.raises(DataError, match="needs 10 entries"):
        make([[1]]).of_items(np.ones(9, bool))


def test_a_stratum_keeps_the_lists_of_its_cases() -> None:
    whole = replace(make([[1], [2]]), lists=np.array([[1, 2], [3, 4]], np.int32))
    part = whole.of_users(np.array([False, True])).lists
    assert part is not None
    assert part.tolist() == [[3, 4]]


def test_coverage_and_gini_of_the_top_k() -> None:
    """At k = 1 only item 1 of 9 is shown: coverage 1/9, and 8 of 9 items stand below all exposure."""
    evaluation = replace(make([[1], [2]]), lists=np.array([[1, 2], [1, 3]], np.int32))
    assert evaluation.coverage(1) == 1 / 9
    assert evaluation.coverage(2) == 3 / 9
    assert evaluation.gini(1) == pytest.approx(8 / 9)


def test_coverage_without_lists_or_beyond_them_is_refused() -> None:
    with pytest.raises(DataError, match="keep_lists=True"):
        make([[1]]).coverage(1)
    with pytest.raises(DataError, match="top 3 was asked"):
        replace(make([[1]]), lists=np.array([[1, 2]], np.int32)).coverage(3)


def test_table_has_a_row_for_each_figure() -> None:
    rows = table({"all": make([[1], [2]])})
    assert len(rows) == 4 * 2
    assert rows[0] == {"stratum": "all", "metric": "hr", "k": 1, "value": 0.5, "users": 2}
    assert {row["metric"] for row in rows} == {"hr", "ndcg", "mrr", "recall"}


def test_table_counts_users_not_cases() -> None:
    assert table({"all": make([[1], [2], [3]], users=[0, 0, 1])})[0]["users"] == 2


def test_table_with_intervals_holds_each_value_between_its_ends() -> None:
    ranks = np.random.default_rng(0).integers(1, 6, size=(200, 1)).tolist()
    for row in table({"all": make(ranks)}, intervals=True):
        assert float(row["low"]) < float(row["value"]) < float(row["high"])


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved = replace(make([[1, MISS], [2]]), lists=np.array([[1, 2], [3, 4]], np.int32))
    saved.save(tmp_path / "test.npz")
    loaded = Evaluation.load(tmp_path / "test.npz")
    for name in ("users", "targets", "offsets", "ranks", "lists"):
        assert np.array_equal(getattr(loaded, name), getattr(saved, name))
    assert (loaded.n_items, loaded.ks, loaded.protocol) == (saved.n_items, saved.ks, saved.protocol)


def test_lists_that_were_not_kept_stay_away(tmp_path: Path) -> None:
    make([[1]]).save(tmp_path / "test.npz")
    assert Evaluation.load(tmp_path / "test.npz").lists is None


@pytest.mark.parametrize("content", [None, b"", b"PK no archive", b"text"])
def test_a_file_that_is_no_evaluation_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "test.npz").write_bytes(content)
    with pytest.raises(ArtefactError, match="cannot be read as an evaluation"):
        Evaluation.load(tmp_path / "test.npz")


def test_compare_by_hand() -> None:
    """HR@3 differs for three of four users, always to the first's advantage: 2 of 8 sign patterns."""
    result = compare(make([[1], [1], [3], [9]]), make([[9], [4], [MISS], [9]]), "hr", 3)
    assert (result.first, result.second, result.difference) == (3 / 4, 0, 3 / 4)
    assert result.p_value == 2 / 8
    assert result.users == 4
    assert result.low <= 3 / 4 <= result.high


def test_cases_of_one_user_count_as_one_in_the_test() -> None:
    """Two cases that belong together are one piece of evidence: 2 of 2 patterns, not 2 of 4."""
    result = compare(make([[1], [1]], users=[5, 5]), make([[9], [9]], users=[5, 5]), "hr", 3)
    assert (result.difference, result.p_value) == (1, 1)


def test_compare_with_itself_finds_nothing() -> None:
    evaluation = make([[1], [2], [3]])
    result = compare(evaluation, evaluation, "ndcg", 3)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (make([[1]]), "numbers of cases"),
        (make([[1], [2]], users=[0, 7]), "users"),
        (make([[1], [2]], targets=[[1], [8]]), "targets"),
        (replace(make([[1], [2]]), n_items=10), "numbers of items"),
        (replace(make([[1], [2]]), protocol="time cut"), "protocols"),
    ],
)
def test_other_cases_are_not_compared(other: Evaluation, what: str) -> None:
    with pytest.raises(DataError, match=f"different {what}"):
        compare(make([[1], [2]]), other, "hr", 3)


def test_two_empty_evaluations_are_not_compared() -> None:
    with pytest.raises(DataError, match="without cases"):
        compare(make([]), make([]), "hr", 3)


def test_protocol_and_depths_go_with_the_result(
    table_model: Callable[..., Model], make_cases: Callable[..., Cases]
) -> None:
    found = evaluate(table_model([[1, 2]]), make_cases([[1]]), n_items=2, ks=[5, 10], protocol="last basket")
    assert (found.protocol, found.ks) == ("last basket", (5, 10))
