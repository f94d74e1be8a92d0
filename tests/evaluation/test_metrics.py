import math

import numpy as np
import pytest

from recdistill.evaluation.metrics import METRICS, MISS, coverage, gini, hit_rate, ndcg, recall, reciprocal_rank

# Four cases: one target at place 1; one at place 3; a miss; three targets at places 2, 5 and nowhere.
RANKS = np.array([1, 3, MISS, 2, 5, MISS], np.int32)
OFFSETS = np.array([0, 1, 2, 3, 6])


def test_hit_rate_asks_for_any_target_among_the_top_k() -> None:
    assert hit_rate(RANKS, OFFSETS, 2).tolist() == [1, 0, 0, 1]
    assert hit_rate(RANKS, OFFSETS, 3).tolist() == [1, 1, 0, 1]


def test_recall_is_the_share_of_all_targets() -> None:
    assert recall(RANKS, OFFSETS, 2) == pytest.approx([1, 0, 0, 1 / 3])
    assert recall(RANKS, OFFSETS, 5) == pytest.approx([1, 1, 0, 2 / 3])


def test_reciprocal_rank_is_that_of_the_best_target() -> None:
    assert reciprocal_rank(RANKS, OFFSETS, 2) == pytest.approx([1, 0, 0, 1 / 2])
    assert reciprocal_rank(RANKS, OFFSETS, 5) == pytest.approx([1, 1 / 3, 0, 1 / 2])


def test_ndcg_divides_by_the_best_list_of_min_k_and_targets() -> None:
    """With k = 2 only two of three targets fit in the list, so the ideal counts two."""
    second, third, fifth = 1 / math.log2(3), 1 / math.log2(4), 1 / math.log2(6)
    assert ndcg(RANKS, OFFSETS, 2) == pytest.approx([1, 0, 0, second / (1 + second)])
    assert ndcg(RANKS, OFFSETS, 5) == pytest.approx([1, third, 0, (second + fifth) / (1 + second + third)])


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_list_gives_1(metric: str) -> None:
    assert METRICS[metric](np.array([1, 2, 3], np.int32), np.array([0, 3]), 3).tolist() == [1]


@pytest.mark.parametrize("metric", METRICS)
def test_no_cases_give_no_values(metric: str) -> None:
    assert METRICS[metric](np.empty(0, np.int32), np.array([0]), 3).tolist() == []


def test_coverage_counts_items_shown_at_least_once() -> None:
    assert coverage(np.array([[1, 2], [2, 0]], np.int32), n_items=8) == 2 / 8


def test_gini_is_0_for_equal_exposure() -> None:
    assert gini(np.array([[1, 2], [3, 4]], np.int32), n_items=4) == 0


def test_gini_by_hand() -> None:
    """Shown 0, 0, 1 and 3 times: (1·1 + 3·3) / (4·4)."""
    lists = np.array([[3, 4], [4, 0], [4, 0]], np.int32)
    assert gini(lists, n_items=4) == pytest.approx((1 * 1 + 3 * 3) / (4 * 4))


def test_gini_of_nothing_shown_is_not_a_number() -> None:
    assert math.isnan(gini(np.zeros((2, 3), np.int32), n_items=4))
