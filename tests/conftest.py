"""Settings of all tests, and a little shop for tests of whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import settings

# The same examples in every run, and no time limit for one of them: the machine may be busy.
settings.register_profile("recdistill", deadline=None, derandomize=True)
settings.load_profile("recdistill")

N_CUSTOMERS, N_PRODUCTS = 60, 12


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
