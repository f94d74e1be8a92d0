"""Tables of times: a function takes the rows of a result file and returns Markdown."""

from __future__ import annotations

from typing import Any

import polars as pl
from benchmarks.table_cells import markdown, median, middle, number, split_setting, spread


def training_speed(rows: pl.DataFrame) -> str:
    """Seconds per epoch of every system, with the allocator as it comes and tuned."""
    rows = split_setting(rows).filter(pl.col("phase").is_null(), pl.col("system") != "arithmetic-floor")
    cells = rows.group_by("dataset", "loss", "system", maintain_order=True).agg(
        *(
            column
            for allocator in ("stock", "tuned")
            for column in (
                spread("seconds", pl.col("allocator") == allocator).alias(f"{allocator}_seconds"),
                median("ratio", pl.col("allocator") == allocator).alias(f"{allocator}_ratio"),
            )
        ),
        median("peak_mb", pl.col("allocator") == "stock").alias("peak_mb"),
        pl.col("version").last(),
        pl.col("noisy").sum(),
    )
    return markdown(
        ["data", "loss", "system", "s / epoch", "× ours", "peak MB", "tuned: s / epoch", "× ours", "noisy"],
        [
            [
                row["dataset"],
                row["loss"],
                f"{row['system']} {row['version']}",
                row["stock_seconds"],
                number(row["stock_ratio"]),
                number(row["peak_mb"]),
                row["tuned_seconds"],
                number(row["tuned_ratio"]),
                str(row["noisy"] or ""),
            ]
            for row in cells.iter_rows(named=True)
        ],
    )


PEERS = ("recdistill", "rectools", "rectools-fast", "recbole")
"""As they come; RecTools also with its faster attention."""


def training_speed_core(rows: pl.DataFrame) -> str:
    """Seconds per epoch of ours and of each peer, with how many times as long it takes; the allocator as it comes."""
    cells = (
        split_setting(rows)
        .filter(pl.col("phase").is_null(), pl.col("allocator") == "stock", pl.col("system").is_in(PEERS))
        .group_by("dataset", "loss", "system", maintain_order=True)
        .agg(median("seconds").alias("seconds"), median("ratio").alias("ratio"), pl.col("version").last())
    )
    versions = {str(row["system"]): row["version"] for row in cells.iter_rows(named=True)}
    shown = [system for system in PEERS if system in versions]
    lines = []
    for (dataset, loss), group in cells.group_by("dataset", "loss", maintain_order=True):
        found = {row["system"]: row for row in group.iter_rows(named=True)}
        lines.append([str(dataset), str(loss), *(_beside_ours(found.get(system)) for system in shown)])
    return markdown(["data", "loss", *(f"{system} {versions[system]}" for system in shown)], lines)


def _beside_ours(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return number(row["seconds"]) + ("" if row["system"] == PEERS[0] else f" (× {number(row['ratio'])})")


def training_profile(rows: pl.DataFrame) -> str:
    """Where the seconds of our epoch go, and the share of the arithmetic floor."""
    rows = split_setting(rows).filter(pl.col("allocator") == "stock")
    ours = rows.filter(pl.col("system") == "recdistill")
    floor = rows.filter(pl.col("system") == "arithmetic-floor")
    phases = ours["phase"].drop_nulls().unique(maintain_order=True).to_list()
    lines = []
    for (dataset, loss), group in ours.group_by("dataset", "loss", maintain_order=True):
        spent = [middle(group.filter(pl.col("phase") == phase), "seconds") for phase in phases]
        bound = floor.filter(pl.col("dataset") == dataset, pl.col("loss") == loss)
        share = middle(bound, "ratio")
        lines.append(
            [
                str(dataset),
                str(loss),
                number(middle(group.filter(pl.col("phase").is_null()), "seconds")),
                *map(number, spent),
                number(middle(bound, "seconds")),
                "" if share is None else f"{share:.0%}",
            ]
        )
    return markdown(["data", "loss", "s / epoch", *phases, "floor, s", "share of the floor"], lines)


def speed(rows: pl.DataFrame, *, over: str = "ours") -> str:
    """Any file of times: the median over repeats of every setting; ``over``: what the ratios are over."""
    cells = rows.group_by("dataset", "setting", "system", maintain_order=True).agg(
        spread("seconds").alias("seconds"),
        median("ratio").alias("ratio"),
        median("peak_mb").alias("peak_mb"),
        pl.col("version").last(),
    )
    return markdown(
        ["data", "setting", "system", "seconds", f"× {over}", "peak MB"],
        [
            [
                row["dataset"],
                row["setting"],
                f"{row['system']} {row['version']}",
                row["seconds"],
                number(row["ratio"]),
                number(row["peak_mb"]),
            ]
            for row in cells.iter_rows(named=True)
        ],
    )


def labelling_speed(rows: pl.DataFrame) -> str:
    """Answers a second of every setting, and the share of what the API allows; peak memory."""
    queries = pl.col("dataset").str.extract(r"^(\d+)").cast(pl.Int64)
    ours = rows.filter(pl.col("system") != "allowed").with_columns(queries.alias("n"))
    allowed = rows.filter(pl.col("system") == "allowed")
    cells = ours.group_by("setting", "n", maintain_order=True).agg(
        spread("seconds").alias("spread"), median("seconds").alias("seconds"), median("peak_mb").alias("peak_mb")
    )
    lines = []
    for row in cells.iter_rows(named=True):
        bound = allowed.filter(pl.col("setting") == row["setting"])
        share = middle(bound, "ratio")
        lines.append(
            [
                row["setting"],
                f"{row['n']:,}",
                row["spread"],
                number(row["n"] / row["seconds"]),
                "" if share is None else f"{share:.0%}",
                number(row["peak_mb"]),
            ]
        )
    return markdown(["setting", "answers", "seconds", "answers / s", "share of what is allowed", "peak MB"], lines)
