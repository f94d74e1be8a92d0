"""Cases whose targets are told."""

from collections.abc import Callable

import numpy as np
import pytest

from recdistill.data.dataset import Sequences
from recdistill.data.splits import Cases


@pytest.fixture
def make_cases() -> Callable[..., Cases]:
    """Cases of users 0, 1, …, one a row of targets; histories do not matter to the model above."""

    def make(targets: list[list[int]], masked: list[list[int]] | None = None) -> Cases:
        n = len(targets)
        return Cases(
            users=np.arange(n),
            histories=Sequences.from_lists([[1]] * n),
            targets=Sequences.from_lists(targets),
            masked=Sequences.from_lists(masked or [[]] * n),
        )

    return make
