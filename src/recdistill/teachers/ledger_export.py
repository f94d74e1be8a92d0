"""The answers of a ledger as a table for other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from recdistill.errors import SettingsError
from recdistill.files import replacing
from recdistill.teachers.exchange import WHOLE
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_file import UnreadableAnswer, unreadable
from recdistill.teachers.ledger_records import read_answer, read_question

FORMATS = (".parquet", ".csv", ".jsonl")
_BLOCK = 10_000
"""Answers held in memory at once."""
_ANSWERS = """
SELECT answers.rowid, identity, k, round, question, items, scores, at
FROM answers JOIN teachers ON teachers.id = teacher
WHERE answers.rowid > ? ORDER BY answers.rowid LIMIT ?
"""
_ANY_TEXT = """
SELECT EXISTS (SELECT 1 FROM answers WHERE items LIKE '%"%' OR question LIKE '%["%' OR question LIKE '%:"%')
"""
_ANY_HUGE = f"""
SELECT EXISTS (
    SELECT 1 FROM answers, json_each(items)
    WHERE items GLOB '*{"[0-9]" * 19}*' AND json_each.type = 'integer' AND typeof(value) = 'real'
)
"""
"""SQLite reads an integer beyond 64 bits as a real number."""


def export(ledger: Ledger, path: Path) -> None:
    """Write every answer to a Parquet, CSV or JSONL file, in the ids that its teacher speaks; whole or not at all.

    Ids are text if any of them is, or is a number beyond 64 bits. In CSV, which knows no lists, these are JSON.

    Raises:
        SettingsError: for another kind of file, or one that cannot be written.
        TeacherError: for an answer that cannot be read.
    """
    if path.suffix not in FORMATS:
        raise SettingsError(f"cannot export to {path}: its name must end with one of {', '.join(FORMATS)}")
    try:
        with replacing(path) as partial:
            _write(ledger, path.suffix, partial)
    except UnreadableAnswer as error:
        raise unreadable(ledger.path, error) from error
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror or error}; give another file") from error


def _write(ledger: Ledger, suffix: str, path: Path) -> None:
    schema = _schema(ledger)
    answers = register_io_source(lambda columns, predicate, n_rows, size: _blocks(ledger, schema), schema=schema)
    if suffix == ".parquet":
        answers.sink_parquet(path)
    elif suffix == ".jsonl":
        answers.sink_ndjson(path)
    else:
        lists = [pl.col(name) for name, kind in schema.items() if isinstance(kind, pl.List)]
        answers.with_columns(column.map_batches(_as_json, return_dtype=pl.String) for column in lists).sink_csv(path)


def _schema(ledger: Ledger) -> pl.Schema:
    with ledger.reading() as db:
        as_text = any(db.execute(query).fetchone()[0] for query in (_ANY_TEXT, _ANY_HUGE))
    ids = pl.String() if as_text else pl.Int64()
    return pl.Schema(
        {
            "teacher": pl.String(),
            "k": pl.Int64(),
            "round": pl.Int64(),
            "user": ids,
            "history": pl.List(ids),
            "items": pl.List(ids),
            "scores": pl.List(pl.Float64()),
            "time": pl.Datetime("us", "UTC"),
        }
    )


def _blocks(ledger: Ledger, schema: pl.Schema) -> Iterator[pl.DataFrame]:
    """Read a block at a time, each on its own, as polars asks for them from threads of its own."""
    last = 0
    while True:
        with ledger.reading() as db:
            rows = db.execute(_ANSWERS, (last, _BLOCK)).fetchall()
        if not rows:
            return
        last = rows[-1][0]
        as_text = schema["user"] == pl.String()
        yield pl.DataFrame([_record(row, as_text=as_text) for row in rows], schema=schema, orient="row")


def _record(row: tuple[Any, ...], *, as_text: bool) -> tuple[Any, ...]:
    _, identity, k, round, question, items, scores, at = row
    asked, answer = read_question(question), read_answer(items, scores)
    user, history, listed = asked.get("user"), asked.get("history"), list(answer.items)
    if as_text:
        user = None if user is None else str(user)
        history = None if history is None else [str(item) for item in history]
        listed = [str(item) for item in listed]
    told = None if k == WHOLE else k
    return identity, told, round, user, history, listed, answer.scores, int(at * 1_000_000)


def _as_json(lists: pl.Series) -> pl.Series:
    texts = [None if row is None else json.dumps(row, ensure_ascii=False) for row in lists.to_list()]
    return pl.Series(texts, dtype=pl.String)
