"""A teacher and the logs weighed against each other."""

import math

import numpy as np
import pytest

from recdistill.data.dataset import Sequences
from recdistill.data.splits import Cases
from recdistill.methods.believing import SHARES, weigh_lists
from recdistill.rankings import Ranking

HISTORIES = Sequences.from_lists([[1], [2], [3], [4]])
CASES = Cases(np.arange(4), HISTORIES, Sequences.from_lists([[6], [7], [8], [9]]), HISTORIES)
TEACHER = Ranking(np.array([[6, 5], [7, 5], [5, 6], [5, 6]], np.int32))
"""Right about the first two."""
LOGS = Ranking(np.array([[5, 9], [5, 9], [8, 5], [9, 5]], np.int32), np.zeros((4, 2), np.float32))
"""Right about the others."""
SECOND = 1 / math.log2(3)


def test_whoever_has_more_to_say_is_right_first_and_the_other_second() -> None:
    found = weigh_lists(TEACHER, LOGS, CASES, n_items=9)
    assert found.cases == 4
    assert tuple(found.ndcg_10) == SHARES
    assert found.ndcg_10[0.0] == found.ndcg_10[1.0] == 0.5
    for share in (0.4, 0.6):  # 5 has votes of both, and comes between
        assert 0.5 < found.ndcg_10[share] < (2 + 2 * SECOND) / 4
    assert 0 < found.best < 1
    assert 0 < found.p_value <= 1


def test_where_the_teacher_alone_is_best_nothing_is_better() -> None:
    perfect = Ranking(np.array([[6], [7], [8], [9]], np.int32))
    found = weigh_lists(perfect, LOGS, CASES, n_items=9)
    assert (found.best, found.ndcg_10[0.0], found.p_value) == (0.0, 1.0, 1.0)


def test_logs_alone_are_best_beside_a_teacher_that_lists_what_nobody_takes() -> None:
    perfect = Ranking(np.array([[6], [7], [8], [9]], np.int32), np.zeros((4, 1), np.float32))
    wrong = Ranking(np.full((4, 1), 5, np.int32))
    found = weigh_lists(wrong, perfect, CASES, n_items=9)
    assert [found.ndcg_10[share] for share in (0.0, 0.1, 1.0)] == pytest.approx([0, SECOND, 1])
    assert found.ndcg_10[found.best] == 1


def test_advice_leaves_the_teacher_a_say_and_is_written_down_by_share() -> None:
    perfect = Ranking(np.array([[6], [7], [8], [9]], np.int32), np.zeros((4, 1), np.float32))
    found = weigh_lists(Ranking(np.full((4, 1), 5, np.int32)), perfect, CASES, n_items=9)
    assert (found.best, found.advice) == (0.6, 0.6)
    figures = found.figures()
    assert figures["cases"] == 4
    ndcg = figures["ndcg_10"]
    assert isinstance(ndcg, dict)
    assert list(ndcg) == ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]
