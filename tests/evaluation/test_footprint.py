"""Size and speed."""

import time

import numpy as np
import pytest

from recdistill.data.dataset import Sequences
from recdistill.data.splits import Cases
from recdistill.evaluation import footprint as measured
from recdistill.evaluation.footprint import footprint
from recdistill.models.base import build_model
from recdistill.rankings import Ranking

HISTORIES = Sequences.from_lists([[1], [2], [3]])
CASES = Cases(np.array([2, 0, 1]), HISTORIES, HISTORIES, Sequences.empty(3))
MF = build_model("mf", 5, {"dim": 4}, train=HISTORIES)


def test_every_value_counts() -> None:
    """3 users and 5 items with 4 values each, and the row that padding has."""
    found = footprint(MF, CASES)
    assert found.parameters == (3 + 5 + 1) * 4
    assert found.weight_bytes == 4 * found.parameters
    assert found.users_per_second > 0


def test_the_best_pass_counts_but_not_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes that take 1, 8, 2 and 4 seconds: the first is the warm-up, so that 3 users in 2 seconds are the best."""
    clock = [0.0]
    seconds = iter([1.0, 8.0, 2.0, 4.0])

    def pretend(*asked: object, users: object) -> Ranking:
        clock[0] += next(seconds)
        return Ranking(np.zeros((3, 10), np.int32))

    monkeypatch.setattr(measured, "top_k", pretend)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert footprint(MF, CASES).users_per_second == 3 / 2
