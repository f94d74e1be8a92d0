"""What tests of the benchmarks share."""

from collections.abc import Callable

import numpy as np
import pytest

from recdistill.data.splits import Split
from recdistill.evaluation.full_ranking import targets_of
from recdistill.evaluation.results import Evaluation

Found = Callable[[Split, int], Evaluation]


@pytest.fixture
def all_at() -> Found:
    """Return what an evaluation on the test cases looks like that finds every target at one rank."""

    def found(split: Split, rank: int) -> Evaluation:
        targets, offsets = targets_of(split.test, split.dataset.n_items)
        ranks = np.full(len(targets), rank, np.int32)
        protocol, ks = split.protocol, (5, 10, 20)
        return Evaluation(split.test.users, targets, offsets, ranks, split.dataset.n_items, ks, protocol)

    return found
