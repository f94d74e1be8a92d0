"""What a teacher has answered, on disk: nothing is asked, or paid for, twice.

A ledger is one SQLite file. An answer is filed under the teacher's identity, the request, the round and the length of
list that was asked for, in the ids that the teacher speaks, as the teacher gave it. It answers a request for fewer
items too, and one for more if it names as many, or fewer than it was asked for, as then the teacher has no more. In
these ids it outlives a change of the id map: it is translated, and checked against the history, each time it is read. A
teacher that speaks dense ids has to carry their meaning in its identity.

A request is booked before it is asked: that is an attempt, and while it is open nobody else asks the same. Whoever has
it open renews it now and then; without that it is taken for lost, at once where its process is seen to have ended, and
soon where it cannot be seen, as in another container. What an
attempt is charged is written down before anything is sent, in one transaction with the check of the budget, so that the
budget is a ceiling whatever happens, for all threads and processes that share the file. A teacher says what it charges:

``queries``
    One for each request, however many calls it takes; given back only if the teacher surely did not serve it.
``calls``
    One for each call: every retry and every page counts, whatever comes back, and a call that carries several requests
    counts once.
``rows``
    As ``calls``, times the requests that the call carries.

All who ask a teacher have to count the same: whoever counts otherwise than the file is refused, when it is opened and
in the transaction that would charge.

What a teacher has spent is the sum of what its attempts were charged. A process that is killed leaves its attempts
open; they stay charged, because they may have been paid for, and the next process asks them again.

A question that failed is asked again by the next run, unless the teacher refused it for what it is: that stays so until
the ledger is told to forget it.

The file also keeps the newest turn of a rate and the wait that an API asks for, so that all processes keep to them;
where the clock has been set back since, they are forgotten. A turn is given away when it is near, so that a process
that ends leaves none to wait for.

What was committed survives a kill at any instant. A power cut may take the answers of the last second. So may a copy of
a ledger in use, or of one whose process was killed, unless the ``-wal`` file beside it is copied, too.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, Self

from recdistill.errors import BudgetExhausted, SettingsError
from recdistill.teachers.answers import Answer, Failure
from recdistill.teachers.ledger_file import LedgerFile
from recdistill.teachers.ledger_records import Booking, Digest, Page, Question, Stats, Terms, read_answer
from recdistill.teachers.liveness import Holder, here, process_started, still_asking
from recdistill.teachers.meter import SOON, Unsent

_OPEN = "WHERE teacher = ? AND k = ? AND round = ? AND request = ? AND ended_at IS NULL"
"""The attempt that is in flight for one request."""
_BLOCK = 500
"""Requests looked up by one statement."""
_NEWEST = 1000
"""Answers that are looked at to tell how long one takes."""
_HOLDER = "place, pid, process_started, ifnull(renewed_at, booked_at)"
"""Who has an attempt open, and when that was heard last."""
_NOBODY = 0
"""The number of a teacher that has none; SQLite begins with 1."""
_UNNOTICED = 1.0
"""Seconds by which a clock may be set back unnoticed."""


class Ledger:
    """The file of answers.

    May be used by several threads. A process that was forked opens its own.

    Args:
        path: the file.
        create: whether to make it if it is not there.
        noting: whether teachers and their terms are written down when they are told; without, they hold for this
            opening alone, and nothing can be asked.

    Raises:
        TeacherError: for a file that is no ledger, is damaged, or cannot be opened or written.
    """

    def __init__(self, path: Path | str, *, create: bool = True, noting: bool = True) -> None:
        self._file = LedgerFile(Path(path), create=create)
        self._noting = noting
        self._told: dict[str, Terms] = {}
        self._us = Holder(here(), os.getpid(), process_started(os.getpid()) or 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._file.path

    def close(self) -> None:
        """Close the file; what was booked and not settled stays booked."""
        self._file.close()

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """Give the database to one thread, to read from.

        Raises:
            TeacherError: for whatever SQLite raises meanwhile.
        """
        return self._file.reading()

    def page(self, identity: str, k: int, round: int) -> Page:
        """Return where the answers of a teacher that is asked for ``k`` items are filed."""
        if self._noting:
            with self._file.writing() as db:
                return Page(_teacher(db, identity), k, round)
        with self._file.reading() as db:
            return Page(_known(db, identity) or _NOBODY, k, round)

    def set_terms(self, identity: str, terms: Terms) -> None:
        """Note a teacher's budget, over the whole life of the file, and what it counts.

        Raises:
            SettingsError: when something else has been counted before, or is about to be.
        """
        if not self._noting:
            self._told[identity] = terms
            with self._file.reading() as db:
                if (teacher := _known(db, identity)) is not None:
                    self._check_terms(db, teacher, terms)
            return
        with self._file.writing() as db:
            teacher = _teacher(db, identity)
            self._check_terms(db, teacher, terms)
            db.execute("UPDATE teachers SET budget = ?, charge = ? WHERE id = ?", (*terms, teacher))

    def _check_terms(self, db: sqlite3.Connection, teacher: int, terms: Terms) -> None:
        """Refuse terms that count something else than a teacher has been charged, or is about to be."""
        now = time.time()
        (spent,) = db.execute("SELECT spent FROM teachers WHERE id = ?", (teacher,)).fetchone()
        booked = db.execute(
            f"SELECT {_HOLDER} FROM attempts WHERE teacher = ? AND ended_at IS NULL", (teacher,)
        ).fetchall()
        if spent or any(self.held_by(Holder(*who), heard_at, now=now) for *who, heard_at in booked):
            self._spent(db, teacher, terms)

    def _spent(self, db: sqlite3.Connection, teacher: int, terms: Terms) -> int:
        """Return what a teacher has spent.

        Raises:
            SettingsError: when that counts something else than these terms.
        """
        identity, spent, counted = db.execute(
            "SELECT identity, spent, charge FROM teachers WHERE id = ?", (teacher,)
        ).fetchone()
        if counted != terms.charge:
            raise SettingsError(
                f"ledger {self.path} has counted {spent:,} {counted} of teacher {identity!r}, which cannot be told "
                f'in {terms.charge}; set charge = "{counted}", or give another ledger.'
            )
        return int(spent)

    def teachers(self) -> list[str]:
        """Return whose answers are on file."""
        with self._file.reading() as db:
            return [identity for (identity,) in db.execute("SELECT identity FROM teachers ORDER BY id")]

    def find(self, page: Page, requests: Sequence[Digest], wanted: int | None = None) -> dict[Digest, Answer]:
        """Return the answers that are on disk, and do for so many items; by default as many as the page is asked for.

        Of several the one on this page is taken, else the one that was asked for the fewest.
        """
        with self._file.reading() as db:
            return _find(db, page, requests, wanted)

    def has_answers(self, page: Page) -> bool:
        """Return whether a teacher has answered anything on a page."""
        with self._file.reading() as db:
            here = "SELECT 1 FROM answers WHERE teacher = ? AND k = ? AND round = ? LIMIT 1"
            return db.execute(here, page).fetchone() is not None

    def failed(self, page: Page, requests: Sequence[Digest]) -> dict[Digest, Failure]:
        """Return how requests failed the last time that they were asked."""
        what = "SELECT request, reason, final FROM attempts JOIN failures ON attempt = id"
        with self._file.reading() as db:
            rows = _select(db, what, page, requests, "AND outcome = 'failed' ORDER BY id")
            return {request: Failure(reason, calls=0, final=bool(final)) for request, reason, final in rows}

    def forget_refusals(self, page: Page | None = None, requests: Sequence[Digest] | None = None) -> int:
        """Let requests be asked again that were refused for good, all of them or some; return how many."""
        forget = "UPDATE failures SET final = 0 WHERE final"
        with self._file.writing() as db:
            if page is None or requests is None:
                return db.execute(forget).rowcount
            return sum(
                db.execute(
                    f"{forget} AND attempt IN (SELECT id FROM attempts WHERE teacher = ? AND k = ? AND round = ? "
                    "AND request = ? AND outcome = 'failed')",
                    (*page, request),
                ).rowcount
                for request in requests
            )

    def book(self, page: Page, requests: Sequence[Digest], terms: Terms, *, wanted: int | None = None) -> Booking:
        """Open attempts for as many requests as the budget allows, in their order, in one transaction.

        None for those that are answered for so many items as are ``wanted``; see `find`.

        Raises:
            SettingsError: when the file counts something else than these terms.
        """
        now = time.time()
        with self._file.writing() as db:
            spent = self._spent(db, page.teacher, terms)
            _forget_waits_of_a_later_time(db, now)
            answers = _find(db, page, requests, wanted)
            busy: set[Digest] = set()
            for attempt, request, holder, heard_at in _in_flight(db, page, requests):
                if self.held_by(holder, heard_at, now=now):
                    busy.add(request)
                else:
                    db.execute("UPDATE attempts SET ended_at = ?, outcome = 'lost' WHERE id = ?", (now, attempt))
            free = [request for request in requests if request not in answers and request not in busy]
            left = len(free) if terms.budget is None else max(0, terms.budget - spent)
            granted = free if terms.charge == "calls" and left else free[:left]
            charged = int(terms.charge == "queries")
            db.executemany(
                "INSERT INTO attempts (teacher, k, round, request, place, pid, process_started, booked_at, charged) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(*page, request, *self._us, now, charged) for request in granted],
            )
            _spend(db, page, charged * len(granted))
        return Booking(set(granted), busy, answers)

    def in_flight(self, page: Page, requests: Sequence[Digest]) -> set[Digest]:
        """Return which requests somebody is just asking."""
        now = time.time()
        with self._file.reading() as db:
            return {
                request
                for _, request, holder, heard_at in _in_flight(db, page, requests)
                if self.held_by(holder, heard_at, now=now)
            }

    def held_by(self, holder: Holder, heard_at: float, *, now: float) -> bool:
        """Return whether whoever has an attempt open is still asking."""
        return still_asking(holder, now - heard_at, self._us.place)

    def renew(self, page: Page, requests: Iterable[Digest]) -> None:
        """Note that booked requests are still in flight."""
        now = time.time()
        with self._file.writing() as db:
            db.executemany(
                f"UPDATE attempts SET renewed_at = ? {_OPEN}", [(now, *page, request) for request in requests]
            )

    def charge(self, page: Page, requests: Sequence[Digest], terms: Terms) -> None:
        """Charge a call about booked requests, in one transaction with the check of the budget.

        Raises:
            BudgetExhausted: when it costs more than is left; nothing is charged then.
            SettingsError: when the file counts something else than these terms.
        """
        budget, charge = terms
        with self._file.writing() as db:
            spent = self._spent(db, page.teacher, terms)
            charged = {"queries": [], "calls": requests[:1], "rows": requests}[charge]
            if budget is not None and spent + len(charged) > budget:
                raise BudgetExhausted(
                    f"the budget of {budget:,} {charge} has {budget - spent:,} left, and a call costs {len(charged):,}"
                )
            db.executemany(
                f"UPDATE attempts SET charged = charged + 1 {_OPEN}", [(*page, request) for request in charged]
            )
            _spend(db, page, len(charged))

    def turn(self, page: Page, gap: float) -> float:
        """Return the seconds until a call may be sent, ``gap`` seconds after the one before of any process.

        Up to `SOON` seconds away the turn is now the caller's; further away it is nobody's, and is asked for again.
        """
        if not gap:
            return self.held(page)
        with self._file.writing() as db:
            now = time.time()
            last_turn, held_until = db.execute(
                "SELECT last_turn, held_until FROM teachers WHERE id = ?", (page.teacher,)
            ).fetchone()
            set_back = last_turn > now + SOON + _UNNOTICED
            turn = max(now, 0.0 if set_back else last_turn + gap, float(held_until))
            if turn - now <= SOON:
                db.execute("UPDATE teachers SET last_turn = ? WHERE id = ?", (turn, page.teacher))
        return turn - now

    def hold(self, page: Page, seconds: float) -> None:
        """Let nobody ask the teacher for so long."""
        with self._file.writing() as db:
            db.execute(
                "UPDATE teachers SET held_until = max(held_until, ?) WHERE id = ?",
                (time.time() + seconds, page.teacher),
            )

    def held(self, page: Page) -> float:
        """Return for how many seconds nobody may ask the teacher."""
        with self._file.reading() as db:
            (until,) = db.execute("SELECT held_until FROM teachers WHERE id = ?", (page.teacher,)).fetchone()
        return max(0.0, float(until) - time.time())

    def settle(self, page: Page, outcomes: Iterable[tuple[Question, Answer | Failure]]) -> None:
        """File what came back for booked requests, in one transaction."""
        now = time.time()
        with self._file.writing() as db:
            (charge,) = db.execute("SELECT charge FROM teachers WHERE id = ?", (page.teacher,)).fetchone()
            for question, outcome in outcomes:
                key = (*page, question.digest)
                if isinstance(outcome, Answer):
                    db.execute(
                        "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        (*key, question.text, _json(outcome.items), _json(outcome.scores), now),
                    )
                elif charge == "queries" and not outcome.paid:
                    _spend(db, page, -db.execute(f"UPDATE attempts SET charged = 0 {_OPEN} AND charged", key).rowcount)
                unsent = isinstance(outcome, Unsent)
                if unsent and not outcome.calls:
                    db.execute(f"DELETE FROM attempts {_OPEN} AND charged = 0", key)
                if isinstance(outcome, Failure):  # but it is no failure of the question that others ended the asking
                    db.execute(
                        f"INSERT INTO failures SELECT id, ?, ? FROM attempts {_OPEN}{' AND charged' if unsent else ''}",
                        (outcome.reason, outcome.final, *key),
                    )
                name = "answered" if isinstance(outcome, Answer) else "failed"
                db.execute(
                    f"UPDATE attempts SET ended_at = ?, outcome = ?, calls = ? {_OPEN}",
                    (now, name, outcome.calls, *key),
                )

    def lose(self, page: Page, requests: Iterable[Digest]) -> None:
        """Note that booked requests will not be settled; they stay spent."""
        now = time.time()
        with self._file.writing() as db:
            db.executemany(
                f"UPDATE attempts SET ended_at = ?, outcome = 'lost' {_OPEN}",
                [(now, *page, request) for request in requests],
            )

    def stats(self, identity: str) -> Stats:
        """Return what the answers of a teacher have cost."""
        with self._file.reading() as db:
            row = db.execute(
                "SELECT id, spent, budget, charge FROM teachers WHERE identity = ?", (identity,)
            ).fetchone()
            if row is None:
                told = self._told.get(identity, Terms(None, "queries"))
                return Stats(identity, budget=told.budget, charge=told.charge)
            teacher, spent, *noted = row
            budget, charge = self._told.get(identity, noted)
            (answers,) = db.execute("SELECT count(*) FROM answers WHERE teacher = ?", (teacher,)).fetchone()
            lost, calls, in_flight = db.execute(
                "SELECT ifnull(sum(outcome = 'lost'), 0), ifnull(sum(calls), 0), ifnull(sum(ended_at IS NULL), 0) "
                "FROM attempts WHERE teacher = ?",
                (teacher,),
            ).fetchone()
            failures, refused = db.execute(
                "SELECT count(*), ifnull(sum(final), 0) FROM failures JOIN attempts ON attempt = id WHERE teacher = ?",
                (teacher,),
            ).fetchone()
        return Stats(identity, answers, spent, budget, failures, refused, lost, calls, charge, in_flight)

    def spent(self, identity: str) -> int:
        """Return what a teacher has spent; unlike `stats`, this takes no time."""
        with self._file.reading() as db:
            row = db.execute("SELECT spent FROM teachers WHERE identity = ?", (identity,)).fetchone()
        return 0 if row is None else int(row[0])

    def seconds_each(self, identity: str) -> float | None:
        """Return how long a teacher's newest answers took from their booking, in the middle; ``None`` without any."""
        with self._file.reading() as db:
            rows = db.execute(
                "SELECT ended_at - booked_at FROM attempts JOIN teachers ON teachers.id = teacher "
                "WHERE identity = ? AND outcome = 'answered' ORDER BY attempts.id DESC LIMIT ?",
                (identity, _NEWEST),
            ).fetchall()
        return float(statistics.median(seconds for (seconds,) in rows)) if rows else None


def _teacher(db: sqlite3.Connection, identity: str) -> int:
    """Return the number of a teacher, which gets one if it has none."""
    db.execute("INSERT OR IGNORE INTO teachers (identity) VALUES (?)", (identity,))
    teacher = _known(db, identity)
    assert teacher is not None, "it was just put there"
    return teacher


def _known(db: sqlite3.Connection, identity: str) -> int | None:
    """Return the number of a teacher, if it has one."""
    row = db.execute("SELECT id FROM teachers WHERE identity = ?", (identity,)).fetchone()
    return None if row is None else int(row[0])


def _spend(db: sqlite3.Connection, page: Page, amount: int) -> None:
    db.execute("UPDATE teachers SET spent = spent + ? WHERE id = ?", (amount, page.teacher))


def _forget_waits_of_a_later_time(db: sqlite3.Connection, now: float) -> None:
    """Drop waits if the newest attempt was booked after now: they would last until it is as late again."""
    db.execute(
        "UPDATE teachers SET held_until = 0 WHERE ? < (SELECT booked_at FROM attempts ORDER BY id DESC LIMIT 1)",
        (now + _UNNOTICED,),
    )


def _find(db: sqlite3.Connection, page: Page, requests: Sequence[Digest], wanted: int | None) -> dict[Digest, Answer]:
    wanted = page.k if wanted is None else min(wanted, page.k)  # more than that the page does not bring
    found: dict[Digest, Answer] = {}
    for block, marks in _blocks(requests):
        rows = db.execute(
            "SELECT request, k, items, scores FROM answers WHERE teacher = ? AND round = ? "
            f"AND request IN ({marks}) ORDER BY k != ?, k",
            (page.teacher, page.round, *block, page.k),
        ).fetchall()
        for request, asked_for, items, scores in rows:
            if request not in found:
                answer = read_answer(items, scores)
                if asked_for >= wanted or not asked_for <= len(answer.items) < wanted:
                    found[request] = answer
    return found


def _in_flight(
    db: sqlite3.Connection, page: Page, requests: Sequence[Digest]
) -> list[tuple[int, Digest, Holder, float]]:
    """Return the open attempts for some requests, who has them, and when that was heard last."""
    rows = _select(db, f"SELECT id, request, {_HOLDER} FROM attempts", page, requests, "AND ended_at IS NULL")
    return [(attempt, request, Holder(*who), heard_at) for attempt, request, *who, heard_at in rows]


def _select(db: sqlite3.Connection, what: str, page: Page, requests: Sequence[Digest], more: str) -> Iterator[Any]:
    """Look up requests a block at a time."""
    for block, marks in _blocks(requests):
        yield from db.execute(
            f"{what} WHERE teacher = ? AND k = ? AND round = ? AND request IN ({marks}) {more}", (*page, *block)
        ).fetchall()


def _blocks(requests: Sequence[Digest]) -> Iterator[tuple[list[Digest], str]]:
    """Cut requests into as many as one statement looks up, each with the placeholders for them."""
    waiting = iter(requests)
    while block := list(islice(waiting, _BLOCK)):
        yield block, ",".join("?" * len(block))


def _json(value: object) -> str | None:
    return None if value is None else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
