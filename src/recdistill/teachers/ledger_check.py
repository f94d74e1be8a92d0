"""Is a ledger whole, and do its figures add up?"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from itertools import islice

from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_file import UnreadableAnswer
from recdistill.teachers.ledger_records import digest, read_answer, read_question
from recdistill.teachers.liveness import Holder

_SHOWN = 5
"""Findings of one kind that are listed one by one."""


def verify(ledger: Ledger) -> list[str]:
    """Return what is wrong with a ledger, each finding with what to do; nothing for a sound one.

    Raises:
        TeacherError: when it is so damaged that it cannot be read.
    """
    kinds: list[Callable[[sqlite3.Connection], Iterator[str]]] = [
        _damages,
        _broken_answers,
        _unbooked_answers,
        _sums,
        lambda db: _abandoned(db, ledger),
    ]
    findings: list[str] = []
    with ledger.reading() as db:
        for kind in kinds:
            found = kind(db)
            findings += islice(found, _SHOWN)
            more = sum(1 for _ in found)
            if more:
                findings.append(f"… and {more:,} more of this kind")
    return findings


def _damages(db: sqlite3.Connection) -> Iterator[str]:
    """What SQLite itself finds: pages, indices, references."""
    for (finding,) in db.execute("PRAGMA integrity_check"):
        if finding != "ok":
            yield f"the file is damaged: {finding}; keep a copy, and go on from a backup"
    for table, row, parent, _ in db.execute("PRAGMA foreign_key_check"):
        yield f"row {row} of {table} belongs to nothing in {parent}; keep a copy, and go on from a backup"


def _broken_answers(db: sqlite3.Connection) -> Iterator[str]:
    """Answers that cannot be read, or stand under another question."""
    for row, request, question, items, scores in db.execute(
        "SELECT rowid, request, question, items, scores FROM answers"
    ):
        try:
            _check_answer(request, question, items, scores)
        except UnreadableAnswer as error:
            yield (
                f"answer {row} cannot be used: {error}; delete it, and it is asked again: "
                f"sqlite3 FILE 'DELETE FROM answers WHERE rowid = {row}'"
            )


def _check_answer(request: bytes, question: str, items: str, scores: str | None) -> None:
    read_question(question)
    if digest(question) != request:
        raise UnreadableAnswer("it is filed under another question")
    read_answer(items, scores)


def _unbooked_answers(db: sqlite3.Connection) -> Iterator[str]:
    """Answers that no attempt has brought."""
    for (row,) in db.execute(
        "SELECT rowid FROM answers EXCEPT SELECT answers.rowid FROM answers JOIN attempts "
        "USING (teacher, k, round, request) WHERE outcome = 'answered' OR outcome = 'lost'"
    ):
        yield f"answer {row} was never asked for; somebody else has written to the file: go on from a backup"


def _sums(db: sqlite3.Connection) -> Iterator[str]:
    """Teachers that have spent something else than their attempts were charged."""
    for identity, spent, charged in db.execute(
        "SELECT identity, spent, ifnull(sum(charged), 0) AS total FROM teachers "
        "LEFT JOIN attempts ON attempts.teacher = teachers.id GROUP BY teachers.id HAVING spent != total"
    ):
        yield (
            f"teacher {identity!r} is said to have spent {spent:,}, but its attempts were charged {charged:,}; "
            "somebody else has written to the file: go on from a backup, or set the budget with that in mind"
        )


def _abandoned(db: sqlite3.Connection, ledger: Ledger) -> Iterator[str]:
    """Attempts that were open when their process ended."""
    for identity, n, place, pid, started, heard_at in db.execute(
        "SELECT identity, count(*), place, pid, process_started, max(ifnull(renewed_at, booked_at)) FROM attempts "
        "JOIN teachers ON teachers.id = teacher WHERE ended_at IS NULL GROUP BY identity, place, pid, process_started"
    ):
        if not ledger.held_by(Holder(place, pid, started), heard_at, now=time.time()):
            yield (
                f"{n:,} requests to teacher {identity!r} were in flight when process {pid} ended; run again: they are "
                "asked anew, and stay charged because they may have been paid for"
            )
