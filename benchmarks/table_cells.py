"""What a cell of a table says: a median of repeats and its range, a mean over seeds and its deviation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import polars as pl


def markdown(header: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """Return a table in Markdown; an empty cell for ``None``."""
    lines = [header, ["---"] * len(header), *([cell or "" for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def split_setting(rows: pl.DataFrame) -> pl.DataFrame:
    """Add the parts of ``loss/allocator[/phase-x][/noisy]`` as columns."""
    setting = pl.col("setting")
    return rows.with_columns(
        setting.str.extract(r"^([^/]+)").alias("loss"),
        setting.str.extract(r"^[^/]+/([^/]+)").alias("allocator"),
        setting.str.extract(r"/phase-([^/]+)").alias("phase"),
        setting.str.ends_with("/noisy").alias("noisy"),
    )


def _chosen(column: str, where: pl.Expr | None) -> pl.Expr:
    values = pl.col(column) if where is None else pl.col(column).filter(where)
    return values.cast(pl.Float64)


def median(column: str, where: pl.Expr | None = None) -> pl.Expr:
    return _chosen(column, where).median()


def middle(rows: pl.DataFrame, column: str) -> float | None:
    middle = rows.select(median(column)).item()
    return None if middle is None else float(middle)


def spread(column: str, where: pl.Expr | None = None) -> pl.Expr:
    """The median and, of several repeats, the range, as ``95.0 (94.0–98.0)``."""

    def describe(values: pl.Series) -> str:
        middle = number(values.median())
        return middle if len(values) < 2 else f"{middle} ({number(values.min())}–{number(values.max())})"

    return _chosen(column, where).map_batches(describe, return_dtype=pl.String, returns_scalar=True)


def mean(column: str, where: pl.Expr) -> pl.Expr:
    """The mean and, of several seeds, the standard deviation, as ``0.0519 ± 0.0007``."""

    def describe(values: pl.Series) -> str:
        known = values.to_list()
        if len(known) < 2:
            return "".join(f"{value:.4f}" for value in known)
        return f"{statistics.mean(known):.4f} ± {statistics.stdev(known):.4f}"

    return _chosen(column, where).map_batches(describe, return_dtype=pl.String, returns_scalar=True)


def number(value: object) -> str:
    """Three significant digits, or all digits of a whole part that has more."""
    if not isinstance(value, (int, float)):
        return ""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}"
