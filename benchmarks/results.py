"""Result tables: long-format CSV, one row a figure, on disk as soon as the figure is known."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

from recdistill.errors import DataError

FOLDER = Path(__file__).parent / "results"

QUALITY = (
    *("dataset", "split", "teacher", "student", "regime", "access", "method", "variant", "seed"),
    *("stratum", "metric", "k", "value", "users", "minutes", "commit"),
)
"""Columns of a table of metrics."""

SPEED = ("system", "version", "dataset", "setting", "repeat", "seconds", "peak_mb", "ratio")
"""Columns of a table of times; ``ratio`` is that system's seconds over ours in the same repeat."""


class ResultTable:
    """One CSV file that only grows, so that a run that was killed goes on where it stopped."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        """Open the table, or begin it; half a row that a killed run left at its end is dropped.

        Raises:
            DataError: when the file has other columns.
        """
        self.path = path
        self.columns = columns
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(path, len(whole))
        if not whole:
            self._write([list(columns)])
        elif (found := tuple(next(csv.reader([whole.decode().splitlines()[0]])))) != columns:
            raise DataError(f"{path} has the columns {found}, not {columns}; move it away to begin a new table")

    def rows(self) -> list[dict[str, str]]:
        """Read every row, as text."""
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def find(self, **key: object) -> list[dict[str, str]]:
        """Return the rows that have these values in these columns."""
        self._check(key)
        wanted = {column: _text(value) for column, value in key.items()}
        return [row for row in self.rows() if all(row[column] == value for column, value in wanted.items())]

    def already_done(self, **key: object) -> bool:
        """Whether a row with these values in these columns is on disk."""
        return bool(self.find(**key))

    def append(self, *rows: Mapping[str, object]) -> None:
        """Write rows to disk, all of them in one write; a column that is left out stays empty.

        Figures that belong together (the metrics of one run) are appended together, so that `already_done` for one of
        them holds for all.
        """
        for row in rows:
            self._check(row)
        self._write([[_text(row.get(column)) for column in self.columns] for row in rows])

    def _write(self, rows: list[list[str]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        with self.path.open("ab", buffering=0) as file:
            if file.write(text.getvalue().encode()) < len(text.getvalue().encode()):
                raise DataError(f"{self.path} could not be written to its end; make room on the disk and run again")
            os.fsync(file.fileno())

    def _check(self, row: Mapping[str, object]) -> None:
        if unknown := row.keys() - set(self.columns):
            raise DataError(f"{self.path.name} has no column {sorted(unknown)}; it has {list(self.columns)}")


def _text(value: object) -> str:
    """Write a cell: nothing for ``None``, six digits of a float (a thousandth of the noise of any figure here)."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
