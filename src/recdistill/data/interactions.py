"""Read interaction logs, check every row, filter: the one door through which raw data comes in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from recdistill.arrays import Items, Times
from recdistill.data.columns import parse_ids, parse_times
from recdistill.data.dataset import Dataset, IdMap, Sequences
from recdistill.data.files import Source, Table, open_tables
from recdistill.errors import DataError

Duplicates: TypeAlias = Literal["all", "first", "last", "collapse"]

_SKIPPED = {"file": pl.String, "row": pl.Int64, "line": pl.Int64, "column": pl.String, "problem": pl.String}
_N_SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """Who took what, and when: checked rows, in the order in which they were read."""

    frame: pl.DataFrame
    """Columns ``user`` and ``item`` (int64 or string) and, if times are known, ``time`` (int64 or float64); no nulls.

    Times that were dates or ISO text are seconds since 1970-01-01 UTC; numbers are kept as they are.
    """
    skipped: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_SKIPPED))
    """The rows left out as bad: ``file, row, line, column, problem``; rows count from 1, lines are None outside CSV."""

    def __len__(self) -> int:
        return self.frame.height

    def k_core(self, *, users: int = 1, items: int = 1) -> Interactions:
        """Keep users with at least ``users`` and items with at least ``items`` interactions, to a fixed point.

        Repeats count. Dropping an item can push a user below the bound and the other way round, hence the fixed point.

        Raises:
            DataError: when nothing remains.
        """
        _, user = _number(self.frame["user"])
        _, item = _number(self.frame["item"])
        rows = np.arange(len(user))
        while len(rows):
            enough = (np.bincount(user)[user] >= users) & (np.bincount(item)[item] >= items)
            if enough.all():
                break
            user, item, rows = user[enough], item[enough], rows[enough]
        if len(rows) == 0:
            raise DataError(
                f"nothing is left of {len(self):,} interactions if every user needs {users} and every item {items}; "
                "ask for less."
            )
        return self if len(rows) == len(self) else Interactions(self.frame[rows], self.skipped)

    def deduplicate(self, keep: Duplicates) -> Interactions:
        """Say what happens when a user takes an item again.

        Args:
            keep: ``all`` changes nothing; ``first`` and ``last`` keep that one interaction of a user and an item;
                ``collapse`` keeps the first of every run of the same item in a user's sequence.

        Returns:
            Interactions ordered by user, then time; in the order given for ``all``.
        """
        if keep == "all":
            return self
        _, user = _number(self.frame["user"])
        frame = self.frame[_chronological(user, _times(self.frame))]
        if keep == "collapse":
            again = (pl.col("user") == pl.col("user").shift()) & (pl.col("item") == pl.col("item").shift())
            return Interactions(frame.filter(~again.fill_null(False)), self.skipped)
        return Interactions(frame.unique(["user", "item"], keep=keep, maintain_order=True), self.skipped)

    def dataset(self, items: Source | None = None, *, item: str = "item_id", title: str = "title") -> Dataset:
        """Number users and items in the order of their sorted raw ids, and order each user's items by time.

        Equal times, and all rows if there are no times, stay in the order in which they were read.

        Args:
            items: a table with a title for each item: a file or a frame. Titles of other items are ignored.
            item: the table's column of item ids.
            title: the table's column of titles.

        Raises:
            DataError: when there are no interactions, or when the table of items does not fit to them.
        """
        if len(self) == 0:
            raise DataError("there are no interactions to make a data set of")
        users, user = _number(self.frame["user"])
        ids, dense = _number(self.frame["item"])
        times = _times(self.frame)
        order = _chronological(user, times)
        offsets = np.zeros(len(users) + 1, np.int64)
        np.cumsum(np.bincount(user), out=offsets[1:])
        item_map = IdMap(ids, first=1)
        return Dataset(
            users=IdMap(users, first=0),
            items=item_map,
            sequences=Sequences.from_offsets(dense[order] + np.int32(1), offsets),
            times=None if times is None else times[order],
            titles=None if items is None else _titles(items, item_map, item, title),
            skipped_rows=self.skipped.height,
        )


def read_interactions(
    source: Source,
    *,
    user: str = "user_id",
    item: str = "item_id",
    time: str | None = "timestamp",
    separator: str | None = None,
    text_ids: bool = False,
    skip_bad_rows: bool = False,
) -> Interactions:
    """Read interactions and check every row.

    Ids that are text, in CSV files or as a string column of Parquet files and frames, become integers where every id of
    the column, written back, gives the very same text; otherwise all ids of the column are strings. So ``007`` stays
    ``007``, and numbers beyond 64 bits keep all digits.

    Args:
        source: a CSV, TSV (also ``.gz``) or Parquet file, a glob such as ``logs/*.csv`` (``**`` for folders of any
            depth), or a polars frame. Files of a glob are read in the order of their names.
        user: column of user ids.
        item: column of item ids.
        time: column of times: integers, decimal numbers, dates or ISO text (UTC unless it names a zone); ``None`` when
            rows have no times but are in order.
        separator: what separates fields; by default a tab in ``.tsv``, ``.tab`` and ``.inter`` files, else a comma.
        text_ids: keep ids as strings even if all are integers, and make strings of integers; only an empty one then
            counts as missing.
        skip_bad_rows: leave bad rows out, and list them in ``skipped``, instead of refusing them.

    Raises:
        DataError: for a file that cannot be read, a missing column, bad rows (missing ids, ids stored as decimal
            numbers, times that cannot be read or are written in several ways, more fields than the header has), no
            rows at all, or no user with at least 3 interactions.
    """
    columns = {"user": user, "item": item} | ({} if time is None else {"time": time})
    if len(set(columns.values())) < len(columns):
        raise DataError(f"user, item and time must be different columns, not {', '.join(columns.values())}")
    parts, skipped, n_rows = [], [], 0
    clocks: dict[str, str] = {}
    for table in open_tables(source, columns, separator):
        part, bad, clock = _check(table, columns, text_ids)
        if bad.height and not skip_bad_rows:
            raise DataError(
                f"{describe_bad_rows(table, bad)}\n"
                "Correct them, or leave them out with skip_bad_rows=True (in a run file: skip_bad_rows = true; data "
                "describe: --skip-bad-rows)."
            )
        n_rows += table.frame.height
        parts.append(part)
        skipped.append(_locate(table, bad))
        if part.height:
            clocks.setdefault(clock, table.name)
    if len(clocks) > 1:
        ways = "; ".join(f"{name} holds {clock}" for clock, name in clocks.items())
        raise DataError(f"column {time!r} is written in several ways: {ways}. Write all times in one way.")
    frame = _stack(parts)
    if frame.height == 0:
        raise DataError(f"there is no {'usable ' if n_rows else ''}row in {label(source)}, out of {n_rows:,}")
    _check_lengths(frame, user)
    return Interactions(frame, pl.concat(skipped))


def _check(table: Table, columns: dict[str, str], text_ids: bool) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    """Return the good rows, the first problem of each bad row, and how times are written."""
    users, bad_users = parse_ids(table.frame[columns["user"]], text_ids=text_ids)
    items, bad_items = parse_ids(table.frame[columns["item"]], text_ids=text_ids)
    parsed = {"user": users, "item": items}
    bad, clock = [bad_users, bad_items], ""
    if "time" in columns:
        parsed["time"], bad_times, clock = parse_times(table.frame[columns["time"]])
        bad.append(bad_times)
    all_bad = first_problems(table, bad)
    frame = pl.DataFrame(parsed)
    if all_bad.height:
        good = np.ones(frame.height, bool)
        good[all_bad["row"].to_numpy() - 1] = False
        frame = frame.filter(good)
    return frame, all_bad, clock


def first_problems(table: Table, found: list[pl.DataFrame]) -> pl.DataFrame:
    """Return the first problem of each bad row of a table.

    Args:
        table: where rows with too many fields are known, which is their first problem.
        found: what `columns.problems` lists, in the order of the columns.
    """
    too_long = pl.DataFrame({"row": table.too_long}, schema={"row": pl.Int64}).with_columns(
        pl.lit(None, pl.String).alias("column"),
        pl.lit("has more fields than the header; put quotes around fields that hold the separator").alias("problem"),
    )
    return pl.concat([too_long, *found]).unique("row", keep="first", maintain_order=True).sort("row")


def _locate(table: Table, bad: pl.DataFrame) -> pl.DataFrame:
    return bad.select(
        pl.lit(table.name).alias("file"),
        "row",
        pl.Series("line", table.lines(bad["row"].to_list()), pl.Int64),
        "column",
        "problem",
    )


def describe_bad_rows(table: Table, bad: pl.DataFrame) -> str:
    """Say in words how many rows are bad, and what is wrong with the first of them."""
    shown = _locate(table, bad.head(_N_SHOWN))
    rows = "\n".join(f"  {name_bad_row(row)}" for row in shown.iter_rows(named=True))
    more = f"\n  and {bad.height - _N_SHOWN:,} more" if bad.height > _N_SHOWN else ""
    return f"{table.name}: {bad.height:,} of {table.frame.height:,} rows cannot be used:\n{rows}{more}"


def name_bad_row(row: dict[str, Any]) -> str:
    """Say in words what is wrong with one row of ``Interactions.skipped``."""
    line = "" if row["line"] is None else f" (line {row['line']:,})"
    column = "" if row["column"] is None else f"column {row['column']!r} "
    return f"row {row['row']:,}{line}: {column}{row['problem']}"


def _stack(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Join the rows of several files; ids that are strings in one file are strings in all."""
    if len(parts) == 1:
        return parts[0]
    for name in parts[0].columns:
        found = {part[name].dtype for part in parts if part.height}
        wide = next((dtype for dtype in (pl.String(), pl.Float64()) if dtype in found), pl.Int64())
        parts = [part.with_columns(pl.col(name).cast(wide)) for part in parts]
    return pl.concat(parts)


def label(source: Source) -> str:
    """Say in words what is read."""
    return "the frame" if isinstance(source, pl.DataFrame | pl.LazyFrame) else str(source)


def _check_lengths(frame: pl.DataFrame, column: str) -> None:
    counts = frame["user"].value_counts()["count"]
    longest = int(counts.max())  # type: ignore[arg-type]
    if longest < 3:
        raise DataError(
            f"none of the {len(counts):,} users has 3 interactions (at most {longest}); one is needed to train, one to "
            f"validate and one to test. Is {column!r} really the column of the users?"
        )


def _number(ids: pl.Series) -> tuple[pl.Series, Items]:
    """Return the sorted distinct ids, and the position of each id among them."""
    distinct = ids.unique().sort()
    table = pl.DataFrame({"id": distinct}).with_row_index("position")
    found = pl.DataFrame({"id": ids}).join(table, on="id", how="left", maintain_order="left")
    return distinct, found["position"].cast(pl.Int32).to_numpy()


def _times(frame: pl.DataFrame) -> Times | None:
    return frame["time"].to_numpy() if "time" in frame.columns else None


def _chronological(user: Items, times: Times | None) -> npt.NDArray[np.int64]:
    """Return the stable order of rows by user, then time."""
    if times is None:
        return np.argsort(user, kind="stable")
    span = int(times.max()) - int(times.min()) + 1
    if times.dtype == np.int64 and (int(user.max()) + 1) * span < 2**63:  # one key sorts three times as fast as two
        return np.argsort(user * np.int64(span) + (times - times.min()), kind="stable")
    return np.lexsort((times, user))


def _titles(source: Source, items: IdMap, item: str, title: str) -> pl.Series:
    tables = list(open_tables(source, {"item": item, "title": title}))
    for part in tables:
        if (bad := first_problems(part, [])).height:
            raise DataError(f"{describe_bad_rows(part, bad)}\nCorrect these rows.")
    table = pl.concat([part.frame.cast(pl.String) for part in tables])
    known = pl.DataFrame({item: items.raw.cast(pl.String)})
    first = table.drop_nulls().unique(item, keep="first", maintain_order=True)
    titles = known.join(first, on=item, how="left", maintain_order="left")[title]
    if titles.null_count() == len(titles):
        raise DataError(
            f"{label(source)} has no title for any of the {len(items):,} items; its column {item!r} holds ids like "
            f"{table[item].head(3).to_list()}, the interactions hold {items.raw.head(3).to_list()}."
        )
    return titles.alias("title")
