"""The shop data that ships: first purchases of products at a UK online shop, 2009 to 2011; see ATTRIBUTION.md."""

from __future__ import annotations

import io
from importlib import resources

import polars as pl

from recdistill.data.dataset import Dataset
from recdistill.data.interactions import read_interactions


def load_shop() -> Dataset:
    """Return the embedded data: 5,537 customers, 4,199 products with titles, 479,275 first purchases with times.

    All lines of an invoice carry the same time, so the ``last_basket`` split asks for the next visit, while
    ``leave_one_out`` mostly asks for the rest of a basket.
    """
    return read_interactions(_table("interactions.parquet")).dataset(_table("items.parquet"))


def attribution() -> str:
    """Return the text that has to go along with the data (CC BY 4.0)."""
    return resources.files(__package__).joinpath("ATTRIBUTION.md").read_text(encoding="utf-8")


def _table(name: str) -> pl.DataFrame:
    return pl.read_parquet(io.BytesIO(resources.files(__package__).joinpath(name).read_bytes()))
