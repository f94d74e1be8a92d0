"""Settings of all tests, a model whose scores are a table, and a little shop for tests of whole runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from hypothesis import settings
from torch import Tensor

from recdistill.models.base import Batch, Model
from recdistill.settings import Settings

Table = Sequence[Sequence[float]] | npt.NDArray[np.floating]

# The same examples in every run, and no time limit for one of them: the machine may be busy.
settings.register_profile("recdistill", deadline=None, derandomize=True)
settings.load_profile("recdistill")

N_CUSTOMERS, N_PRODUCTS = 60, 12


class TableModel(Model):
    """Row u of the table holds the scores of user u for items 1…N, so that every rank can be read off."""

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


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``clicks.csv`` and ``products.csv``.

    Customers c0…c59 walk through the products p0…p11 in a circle: c buys p(c mod 12), p(c+1 mod 12), …, three to a
    visit, 6 to 10 in all.
    """
    folder = tmp_path_factory.mktemp("shop")
    rows = [
        (f"c{customer}", f"p{(customer + step) % N_PRODUCTS}", 1000 * (step // 3))
        for customer in range(N_CUSTOMERS)
        for step in range(6 + customer % 5)
    ]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "clicks.csv")
    titles = [(f"p{product}", f"Product {product}") for product in range(N_PRODUCTS)]
    pl.DataFrame(titles, schema=["item_id", "title"], orient="row").write_csv(folder / "products.csv")
    return folder


@pytest.fixture(scope="session")
def little_run(shop: Path) -> dict[str, Any]:
    """The sections of a run on the little shop that takes a second."""
    return {
        "data": {"path": str(shop / "clicks.csv"), "titles": str(shop / "products.csv")},
        "model": {"name": "sasrec", "dim": 8, "n_blocks": 1, "max_len": 8},
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.01},
    }
