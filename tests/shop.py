"""A little shop for tests of whole runs: its customers walk through the products in a circle."""

from __future__ import annotations

from pathlib import Path

import polars as pl

N_CUSTOMERS, N_PRODUCTS = 60, 12


def write_shop(folder: Path) -> Path:
    """Write ``clicks.csv`` and ``products.csv``; customer c buys p1, p2, p3, … from p(c), three to a visit."""
    rows = [
        (f"c{customer}", f"p{(customer + step) % N_PRODUCTS}", 1000 * (step // 3))
        for customer in range(N_CUSTOMERS)
        for step in range(6 + customer % 5)
    ]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "clicks.csv")
    titles = [(f"p{product}", f"Product {product}") for product in range(N_PRODUCTS)]
    pl.DataFrame(titles, schema=["item_id", "title"], orient="row").write_csv(folder / "products.csv")
    return folder / "clicks.csv"
