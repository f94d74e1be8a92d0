"""A model whose scores are a table, so that every rank can be read off."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from recdistill.data.dataset import Sequences
from recdistill.data.splits import Cases
from recdistill.models.base import Batch, Model
from recdistill.settings import Settings

Table = Sequence[Sequence[float]] | npt.NDArray[np.floating]


class TableModel(Model):
    """Row u of the table holds the scores of user u for items 1…N."""

    reads = "user"

    def __init__(self, table: Table) -> None:
        super().__init__(Settings(), len(table[0]))
        self.table = torch.tensor(np.asarray(table), dtype=torch.float32)

    def encode(self, batch: Batch) -> Tensor:
        assert batch.users is not None
        return self.table[batch.users]

    def item_embeddings(self) -> Tensor:
        return torch.cat([torch.zeros(1, self.n_items), torch.eye(self.n_items)])


@pytest.fixture
def table_model() -> Callable[[Table], Model]:
    return TableModel


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
