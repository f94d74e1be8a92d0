"""Open interaction files and read the few columns that are needed, as they are."""

from __future__ import annotations

import csv
import glob
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeAlias, cast

import polars as pl

from recdistill.errors import DataError
from recdistill.settings import nearest

Source: TypeAlias = str | Path | pl.DataFrame | pl.LazyFrame

_PARQUET = {".parquet", ".pq"}
_SEPARATORS = {".csv": ",", ".txt": ",", ".dat": ",", ".tsv": "\t", ".tab": "\t", ".inter": "\t"}
_FILLED = "\0filled"
_LONGEST_FIELD = 2**31 - 1
"""Characters; the limit of Python's csv is 131,072, polars has none."""


@dataclass(frozen=True, slots=True)
class Table:
    """The needed columns of one file or frame, not checked yet."""

    name: str
    frame: pl.DataFrame
    """The columns asked for, under their own names; those of CSV files are strings."""
    too_long: list[int] = field(default_factory=list)
    """Rows (from 1) with more fields than the header, so that columns may be shifted: all are null in ``frame``."""
    csv: Path | None = None
    separator: str = ","

    def lines(self, rows: list[int]) -> list[int | None]:
        """Return the line of the file on which each of ``rows`` (from 1, ascending) begins; None outside CSV."""
        if self.csv is None:
            return [None] * len(rows)
        if not rows:
            return []
        found: list[int | None] = []
        for row, (line, _) in enumerate(_records(self.csv, self.separator)):
            if len(found) == len(rows):
                break
            if row == rows[len(found)]:
                found.append(line)
        return found + [None] * (len(rows) - len(found))


def open_tables(source: Source, columns: dict[str, str], separator: str | None = None) -> Iterator[Table]:
    """Read ``columns`` (role → name) of a file, of each file of a glob in order of name, or of a frame.

    Raises:
        DataError: for a file that is missing, empty, not UTF-8 or not to be parsed, and for a missing column.
    """
    if isinstance(source, pl.DataFrame | pl.LazyFrame):
        yield _collect("the frame", source.lazy(), columns)
        return
    separator = "\t" if separator == "\\t" else separator  # as it is typed on a command line
    for path in _paths(source):
        suffix = Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
        if suffix in _PARQUET:
            yield _collect(str(path), pl.scan_parquet(path, glob=False), columns)
        elif (mark := separator or _SEPARATORS.get(suffix)) is not None:
            yield _read_csv(path, columns, mark)
        else:
            raise DataError(
                f"cannot tell how to read {path}: files end in .csv, .tsv, .csv.gz or .parquet; "
                "rename it, or say what separates its fields (separator=…, in a run file: separator = …; "
                "data describe: --separator)."
            )


def file_bytes(source: Source) -> int | None:
    """Return the size of the files that a source names, ``None`` of a frame."""
    if isinstance(source, pl.DataFrame | pl.LazyFrame):
        return None
    return sum(path.stat().st_size for path in _paths(source))


def _paths(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        raise DataError(f"{path} is a folder; name its files, for example {path}/*.parquet")
    names = glob.glob(str(source), recursive=True)  # noqa: PTH207 - the pattern may be absolute
    paths = sorted(Path(name) for name in names)
    if "**" in str(source):  # which names folders, too
        paths = [path for path in paths if path.is_file()]
    if not paths:
        raise DataError(f"there is no file {source} (looked in {Path.cwd()})")
    return paths


def _collect(name: str, lazy: pl.LazyFrame, columns: dict[str, str]) -> Table:
    try:
        known = lazy.collect_schema().names()
        for role, column in columns.items():
            if column not in known:
                raise DataError(_missing_column(name, role, columns, known))
        frame = lazy.select(list(columns.values())).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{name} cannot be read: {str(error).splitlines()[0]}") from error
    return Table(name, frame)


def _missing_column(name: str, role: str, columns: dict[str, str], known: list[str]) -> str:
    column, titles = columns[role], "title" in columns
    if len(known) == 1 and (found := next((mark for mark in "\t;|," if mark in known[0]), None)):
        advice = (
            "write them with commas, or with tabs in a file whose name ends in .tsv"
            if titles
            else f"pass separator={found!r} "
            f"(in a run file: separator = {json.dumps(found)}; data describe: --separator)"
        )
        return (
            f"{name} has a single column {known[0]!r}, so there is no {column!r}; its fields seem to be separated by "
            f"{found!r}: {advice}."
        )
    suggestion = nearest(column, known)
    problem = f"{name} has no column {column!r} for the {role}{suggestion}{'' if suggestion.endswith('?') else '.'}"
    if not titles:
        problem += f' Say which it is: {role} = "…".'
    if role == "time":
        problem += (
            " If rows have no times but are in order, read them with time=None "
            '(in a run file: time = ""; data describe: --no-time).'
        )
    if role == "score":
        problem += (
            " Of lists without scores write minus the rank as the score, and learn it by a method of lists: 'kd' with "
            "values = 'ranks', or 'rrd'."
        )
    return problem


def _read_csv(path: Path, columns: dict[str, str], separator: str) -> Table:
    if len(separator) != 1 or not separator.isascii() or separator in '"\r\n':
        raise DataError(
            f"separator {separator!r} must be one ASCII character, and no quote or line break; convert {path} to CSV "
            "first."
        )
    known: list[str] = []
    too_long: list[int] = []
    try:
        scan = pl.scan_csv(path, separator=separator, infer_schema=False, glob=False)
        known = scan.collect_schema().names()
        for role, column in columns.items():
            if column not in known:
                _refuse_other_encoding(path, known, separator)
                raise DataError(_missing_column(str(path), role, columns, known))
            if f"{column}_duplicated_0" in known:
                raise DataError(f"{path} has two columns named {column!r}; rename one of them")
        # Looking at all columns makes polars refuse rows with too many fields; it would cut them in silence otherwise.
        filled = pl.any_horizontal(pl.all().is_not_null()).alias(_FILLED)
        try:
            frame = scan.select(*columns.values(), filled).collect()
        except pl.exceptions.ComputeError:
            _refuse_other_encoding(path, known, separator)
            scan = pl.scan_csv(path, separator=separator, infer_schema=False, glob=False, truncate_ragged_lines=True)
            frame = scan.select(*columns.values(), filled).collect()
            too_long = [row for row, (_, fields) in enumerate(_records(path, separator)) if any(fields[len(known) :])]
    except pl.exceptions.NoDataError as error:
        header = separator.join(columns.values())
        raise DataError(f"{path} is empty; it needs the header {header} and then a line for each row") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{path} cannot be read: {str(error).splitlines()[0]}. Look for a quote that is never closed, and whether "
            f"fields are really separated by {separator!r}."
        ) from error
    end = frame[_FILLED].arg_true()  # empty lines at the end are no rows
    frame = frame.drop(_FILLED).head(end[-1] + 1 if len(end) else 0)
    if too_long:  # what stands in shifted columns must not decide their type
        straight = ~pl.int_range(1, pl.len() + 1).is_in(too_long)
        frame = frame.select(pl.when(straight).then(pl.all()))
    return Table(str(path), frame, too_long, path, separator)


def _refuse_other_encoding(path: Path, names: list[str], separator: str) -> None:
    """Raise with the place of the first byte that is not UTF-8, if there is one."""
    with _open_bytes(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                place = line[: error.start].count(separator.encode())
                column = f", column {names[place]!r}" if place < len(names) else ""
                raise DataError(
                    f"{path} is not UTF-8: line {number} (row {number - 1}){column}, byte 0x{line[error.start]:02x}; "
                    "convert it first, for example: iconv -f latin1 -t utf-8 (or -f utf-16)."
                ) from error


def _open_bytes(path: Path) -> IO[bytes]:
    """Open a file that may be compressed, which its first bytes say, as polars reads them."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if compressed else path.open("rb")


def _records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record, the header first, with the line on which it begins; a quoted field may hold line breaks."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    with _open_bytes(path) as lines:
        reader = csv.reader((line.decode(errors="replace") for line in lines), delimiter=separator)
        begin, is_header = 1, True
        for fields in reader:
            if fields or not is_header:  # empty lines before the header are no records
                yield begin, fields
                is_header = False
            begin = reader.line_num + 1
