"""What a teacher has answered, on disk: nothing is asked, or paid for, twice.

A ledger is one SQLite file. An answer is filed under the teacher's identity, the request, k and the round, in the ids
that the teacher speaks, as the teacher gave it. So it outlives a change of the id map: it is translated, and checked
against the history, each time it is read. A teacher that speaks dense ids has to carry their meaning in its identity.

One query is one request handed to the teacher, however many calls it takes. It is booked before it is sent and counts
as spent from then on; it is given back only if the teacher surely did not serve it. A process that is killed leaves the
queries in flight booked, because they may have been paid for; the next one asks them again. Several processes may share
the file: they keep one budget, and one waits for what another is just asking.

What was committed survives a kill at any instant. A power cut may take the answers of the last second.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from recdistill.data.dataset import Sequences
from recdistill.errors import BudgetExhausted, SettingsError, TeacherError
from recdistill.teachers.base import Answer, Bools, Failure, Outcome, Ranking, Request, Teacher

_log = logging.getLogger("recdistill.teachers")

_APPLICATION = 0x52444C47  # "RDLG", at a fixed place in the file: whose file it is
_VERSION = 1
_SCHEMA = """
CREATE TABLE teachers (
    id INTEGER PRIMARY KEY,
    identity TEXT NOT NULL UNIQUE,
    budget INTEGER,
    spent INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE answers (
    teacher INTEGER NOT NULL REFERENCES teachers,
    k INTEGER NOT NULL,
    round INTEGER NOT NULL,
    request BLOB NOT NULL,
    question TEXT NOT NULL,
    items TEXT NOT NULL,
    scores TEXT,
    at REAL NOT NULL,
    UNIQUE (teacher, k, round, request)
);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY,
    teacher INTEGER NOT NULL REFERENCES teachers,
    k INTEGER NOT NULL,
    round INTEGER NOT NULL,
    request BLOB NOT NULL,
    pid INTEGER NOT NULL,
    process_started INTEGER NOT NULL,
    booked_at REAL NOT NULL,
    ended_at REAL,
    outcome TEXT CHECK (outcome IN ('answered', 'failed', 'lost')),
    calls INTEGER,
    paid INTEGER NOT NULL DEFAULT 1
);
CREATE UNIQUE INDEX attempts_in_flight ON attempts (teacher, k, round, request) WHERE ended_at IS NULL;
CREATE TABLE failures (
    attempt INTEGER PRIMARY KEY REFERENCES attempts,
    reason TEXT NOT NULL
);
"""
_OPEN = "WHERE teacher = ? AND k = ? AND round = ? AND request = ? AND ended_at IS NULL"
"""The attempt that is in flight for one request."""
_BLOCK = 500
"""Requests looked up by one statement."""
_STALE = 15 * 60
"""Seconds after which a query in flight is taken for lost even though its process lives."""
_POLL = 0.05
"""Seconds between two looks at what another process is asking."""
_DURABLE = 1.0
"""Seconds after which a commit waits until the disk has everything."""

Digest: TypeAlias = bytes


class Page(NamedTuple):
    """Where answers are filed, next to the request itself."""

    teacher: int
    k: int
    round: int


class Question(NamedTuple):
    """A request, and the digest under which its answer is filed."""

    digest: Digest
    text: str


class Booking(NamedTuple):
    """What became of requests that were to be asked; the rest is over the budget."""

    granted: set[Digest]
    """Booked: to be asked now."""
    busy: set[Digest]
    """Just being asked by somebody else."""
    answers: dict[Digest, Answer]
    """Answered in the meantime."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What one teacher's answers have cost."""

    teacher: str
    answers: int
    """Answers on disk."""
    spent: int
    """Queries that count against the budget: answered, failed though perhaps served, in flight or lost."""
    budget: int | None
    """The ceiling last given; ``None`` for none."""
    failures: int
    """Queries that ended without an answer; one request may fail several times."""
    lost: int
    """Queries whose process ended before the answer came."""
    calls: int
    """Calls to the teacher, retries included, as far as they ended."""

    @property
    def left(self) -> int | None:
        """Queries that the budget still allows; ``None`` where there is none."""
        return None if self.budget is None else max(0, self.budget - self.spent)


class Ledger:
    """The file of answers; made if it is not there.

    May be used by several threads. A process that was forked opens its own.

    Raises:
        TeacherError: for a file that is no ledger, is damaged, or cannot be opened or written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._process_started = _started(self._pid) or 0
        self._durable_at = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise TeacherError(f"ledger {self.path} cannot be opened: {error}.") from error
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was booked and not settled stays booked."""
        with self._lock:
            self._db.close()

    def page(self, identity: str, k: int, round: int) -> Page:
        """Return where the answers of a teacher to top-``k`` requests are filed."""
        with self._write() as db:
            db.execute("INSERT OR IGNORE INTO teachers (identity) VALUES (?)", (identity,))
            (teacher,) = db.execute("SELECT id FROM teachers WHERE identity = ?", (identity,)).fetchone()
        return Page(teacher, k, round)

    def set_budget(self, identity: str, budget: int | None) -> None:
        """Note the ceiling on a teacher's queries, over the whole life of the file."""
        with self._write() as db:
            db.execute(
                "INSERT INTO teachers (identity, budget) VALUES (?, ?) "
                "ON CONFLICT (identity) DO UPDATE SET budget = excluded.budget",
                (identity, budget),
            )

    def find(self, page: Page, requests: Sequence[Digest]) -> dict[Digest, Answer]:
        """Return the answers that are on disk."""
        with self._guard() as db:
            return _find(db, page, requests)

    def book(self, page: Page, requests: Sequence[Digest], budget: int | None) -> Booking:
        """Book as many requests as the budget allows, in their order, in one transaction."""
        now = time.time()
        with self._write() as db:
            answers = _find(db, page, requests)
            busy: set[Digest] = set()
            for attempt, request, pid, started, booked_at in _in_flight(db, page, requests):
                if now - booked_at < _STALE and _alive(pid, started):
                    busy.add(request)
                else:
                    db.execute("UPDATE attempts SET ended_at = ?, outcome = 'lost' WHERE id = ?", (now, attempt))
            (spent,) = db.execute("SELECT spent FROM teachers WHERE id = ?", (page.teacher,)).fetchone()
            free = [request for request in requests if request not in answers and request not in busy]
            granted = free if budget is None else free[: max(0, budget - spent)]
            db.executemany(
                "INSERT INTO attempts (teacher, k, round, request, pid, process_started, booked_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(*page, request, self._pid, self._process_started, now) for request in granted],
            )
            db.execute("UPDATE teachers SET spent = spent + ? WHERE id = ?", (len(granted), page.teacher))
        return Booking(set(granted), busy, answers)

    def in_flight(self, page: Page, requests: Sequence[Digest]) -> set[Digest]:
        """Return which requests somebody is just asking."""
        now = time.time()
        with self._guard() as db:
            return {
                request
                for _, request, pid, started, booked_at in _in_flight(db, page, requests)
                if now - booked_at < _STALE and _alive(pid, started)
            }

    def settle(self, page: Page, outcomes: Iterable[tuple[Question, Answer | Failure]]) -> None:
        """File what came back for booked requests, in one transaction."""
        now = time.time()
        with self._write() as db:
            for question, outcome in outcomes:
                key = (*page, question.digest)
                if isinstance(outcome, Answer):
                    name, paid = "answered", True
                    db.execute(
                        "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        (*key, question.text, _json(outcome.items), _json(outcome.scores), now),
                    )
                else:
                    name, paid = "failed", outcome.paid
                    db.execute(f"INSERT INTO failures SELECT id, ? FROM attempts {_OPEN}", (outcome.reason, *key))
                settled = db.execute(
                    f"UPDATE attempts SET ended_at = ?, outcome = ?, calls = ?, paid = ? {_OPEN}",
                    (now, name, outcome.calls, paid, *key),
                ).rowcount
                if settled and not paid:
                    db.execute("UPDATE teachers SET spent = spent - 1 WHERE id = ?", (page.teacher,))

    def lose(self, page: Page, requests: Iterable[Digest]) -> None:
        """Note that booked requests will not be settled; they stay spent."""
        now = time.time()
        with self._write() as db:
            db.executemany(
                f"UPDATE attempts SET ended_at = ?, outcome = 'lost' {_OPEN}",
                [(now, *page, request) for request in requests],
            )

    def stats(self, identity: str) -> Stats:
        """Return what the answers of a teacher have cost."""
        with self._guard() as db:
            row = db.execute("SELECT id, spent, budget FROM teachers WHERE identity = ?", (identity,)).fetchone()
            if row is None:
                return Stats(identity, 0, 0, None, 0, 0, 0)
            teacher, spent, budget = row
            (answers,) = db.execute("SELECT count(*) FROM answers WHERE teacher = ?", (teacher,)).fetchone()
            failures, lost, calls = db.execute(
                "SELECT ifnull(sum(outcome = 'failed'), 0), ifnull(sum(outcome = 'lost'), 0), ifnull(sum(calls), 0) "
                "FROM attempts WHERE teacher = ?",
                (teacher,),
            ).fetchone()
        return Stats(identity, answers, spent, budget, failures, lost, calls)

    def _prepare(self) -> None:
        """Make a new file a ledger, and refuse one that is something else."""
        with self._guard() as db:
            # Looked at before anything is written, so that somebody else's file stays as it is.
            self._refuse_foreign(db)
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise TeacherError(
                    f"ledger {self.path} cannot be kept here: its file system does not support a write-ahead log; "
                    "put it on a local disk."
                )
        with self._write() as db:
            if not self._refuse_foreign(db):
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {_APPLICATION}")
                db.execute(f"PRAGMA user_version = {_VERSION}")

    def _refuse_foreign(self, db: sqlite3.Connection) -> bool:
        """Return whether the file is a ledger already; if not, it is empty."""
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == _APPLICATION and version == _VERSION:
            return True
        if application == _APPLICATION:
            raise TeacherError(
                f"ledger {self.path} is in format {version}, this version of recdistill reads {_VERSION}; "
                "use the version that wrote it."
            )
        if application or tables:
            raise TeacherError(f"{self.path} is a database of another program, not a ledger; give another file.")
        return False

    @contextmanager
    def _guard(self) -> Iterator[sqlite3.Connection]:
        """Give the connection to one thread, and turn its errors into ours."""
        if os.getpid() != self._pid:
            raise TeacherError(f"ledger {self.path} was opened by another process; open it again in this one.")
        with self._lock:
            try:
                yield self._db
            except sqlite3.ProgrammingError as error:
                raise TeacherError(f"ledger {self.path} cannot be used: {error} Open it again.") from error
            except sqlite3.OperationalError as error:
                raise TeacherError(
                    f"ledger {self.path} cannot be used: {error}. Check that its folder can be written, that the disk "
                    "has room, and that no other program holds the file; what was paid for is still in it."
                ) from error
            except sqlite3.DatabaseError as error:
                raise TeacherError(
                    f"{self.path} is not a ledger, or is damaged: {error}. Keep a copy; 'sqlite3 {self.path} .recover' "
                    "saves what can be read. Then give another file, or one from a backup."
                ) from error

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction, all or nothing."""
        with self._guard() as db:
            durable = time.monotonic() - self._durable_at > _DURABLE
            db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            if durable:
                self._durable_at = time.monotonic()


class LedgerTeacher(Teacher):
    """A teacher whose answers are kept: known requests are answered from disk, the rest is asked within a budget.

    Args:
        teacher: whom to ask.
        ledger: where answers are.
        budget: most queries that may ever be spent on this teacher, over all runs that share the ledger, those before
            included; no limit where not given.
        round: another round asks everything anew, for teachers whose answers vary.
    """

    def __init__(self, teacher: Teacher, ledger: Ledger, *, budget: int | None = None, round: int = 0) -> None:
        if budget is not None and budget < 0:
            raise SettingsError(f"a budget of {budget} queries makes no sense; give 0 or more, or none at all.")
        self.teacher = teacher
        self.ledger = ledger
        self.budget = budget
        self.round = round
        self.gives_scores = teacher.gives_scores
        self.takes = teacher.takes
        self.ids = teacher.ids
        self.exclude_history = teacher.exclude_history
        self.batch_size = teacher.batch_size
        ledger.set_budget(teacher.identity, budget)

    @property
    def identity(self) -> str:
        """That of the teacher itself."""
        return self.teacher.identity

    def stats(self) -> Stats:
        """Return what this teacher's answers have cost."""
        return self.ledger.stats(self.identity)

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Return the top ``k`` for each history; every answer is on disk before it is returned.

        Raises:
            BudgetExhausted: when the budget is too small; it has been spent, and the error carries what is answered.
            TeacherError: when requests failed; all others have been asked and their answers kept.
        """
        ranking, answered, failures = self._collect(histories, k, users)
        if answered.all():
            return ranking
        missing = f"{len(answered) - answered.sum():,} of {len(answered):,} requests"
        kept = f"all answers are in {self.ledger.path}"
        if failures:
            raise TeacherError(
                f"teacher {self.identity!r} left {missing} unanswered; {len(failures):,} failed, the first: "
                f"{failures[0].reason}. {kept}; run again to ask only for the rest."
            )
        raise BudgetExhausted(
            f"the budget of {self.budget:,} queries for teacher {self.identity!r} is spent, and {missing} are not "
            f"answered; {kept}. Raise the budget or ask for fewer.",
            ranking=ranking,
            answered=answered,
        )

    def rank_within_budget(
        self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None
    ) -> tuple[Ranking, Bools]:
        """Return what is answered within the budget, and ``(B,)`` which rows that is; the others list nothing.

        Rows are asked in their order, so the first ones are answered where the budget is short. A request that failed
        is not answered either, and is reported; it is asked again the next time.

        Raises:
            TeacherError: when the teacher gave up.
        """
        ranking, answered, failures = self._collect(histories, k, users)
        if failures:
            _log.warning(
                "teacher %r failed on %d of %d requests, which stay unanswered; the first: %s",
                self.identity,
                len(failures),
                len(histories),
                failures[0].reason,
            )
        return ranking, answered

    def _collect(
        self, histories: Sequences, k: int, users: npt.NDArray[np.integer] | None
    ) -> tuple[Ranking, Bools, list[Failure]]:
        """Answer from disk what is there, ask for the rest, and translate."""
        requests = self.teacher.requests(histories, users)
        questions = [self._question(request) for request in requests]
        errand = _Errand(self.ledger, self.ledger.page(self.identity, k, self.round), self.budget)
        errand.start(requests, questions)
        while errand.waiting or errand.busy:
            try:
                for block in self.teacher.answers(errand.take, k):
                    errand.settle(block)
                if errand.asked:
                    raise TeacherError(
                        f"teacher {self.identity!r} left {len(errand.asked)} requests without an outcome."
                    )
            except TeacherError as error:
                errand.fail(str(error))
                raise
            finally:
                errand.lose()
            if errand.exhausted:
                errand.drop()
            errand.wait_for_others()
        answers = {
            request.row: errand.answers[question.digest]
            for request, question in zip(requests, questions, strict=True)
            if question.digest in errand.answers
        }
        answered = np.zeros(len(histories), np.bool_)
        answered[list(answers)] = True
        return self.teacher.ranking(answers, histories, k), answered, errand.failures

    def _question(self, request: Request) -> Question:
        if self.takes == "user" and request.user is None:
            raise TeacherError(f"teacher {self.identity!r} answers for users; pass the user of each history.")
        asked = {"history": request.history} if self.takes == "history" else {"user": request.user}
        text = json.dumps(asked, separators=(",", ":"), ensure_ascii=False)
        return Question(hashlib.blake2b(text.encode(), digest_size=16).digest(), text)


class _Errand:
    """The requests of one call: which are answered, waiting, asked by us, or asked by others."""

    def __init__(self, ledger: Ledger, page: Page, budget: int | None) -> None:
        self.ledger = ledger
        self.page = page
        self.budget = budget
        self.answers: dict[Digest, Answer] = {}
        self.failures: list[Failure] = []
        self.exhausted = False
        self.waiting: deque[tuple[Request, Question]] = deque()
        self.busy: list[tuple[Request, Question]] = []
        self.asked: dict[int, Question] = {}

    def start(self, requests: list[Request], questions: list[Question]) -> None:
        """Answer from disk; what is not there waits to be asked, the same question only once."""
        self.answers = self.ledger.find(self.page, [question.digest for question in questions])
        seen = set(self.answers)
        for request, question in zip(requests, questions, strict=True):
            if question.digest not in seen:
                seen.add(question.digest)
                self.waiting.append((request, question))

    def take(self, n: int) -> list[Request]:
        """Book up to ``n`` requests and hand them out."""
        taken: list[Request] = []
        while self.waiting and not taken and not self.exhausted:
            candidates = [self.waiting.popleft() for _ in range(min(n, len(self.waiting)))]
            booking = self.ledger.book(self.page, [question.digest for _, question in candidates], self.budget)
            self.answers |= booking.answers
            left: list[tuple[Request, Question]] = []
            for request, question in candidates:
                if question.digest in booking.granted:
                    self.asked[request.row] = question
                    taken.append(request)
                elif question.digest in booking.busy:
                    self.busy.append((request, question))
                elif question.digest not in booking.answers:
                    left.append((request, question))
            self.waiting.extendleft(reversed(left))
            self.exhausted = bool(left)
        return taken

    def settle(self, block: list[Outcome]) -> None:
        """Write down what came back; only then is it an answer."""
        outcomes = [(self.asked[request.row], outcome) for request, outcome in block]
        self.ledger.settle(self.page, outcomes)
        for (request, outcome), (question, _) in zip(block, outcomes, strict=True):
            del self.asked[request.row]
            if isinstance(outcome, Answer):
                self.answers[question.digest] = outcome
            else:
                self.failures.append(outcome)
                self.exhausted &= outcome.paid

    def fail(self, reason: str) -> None:
        """Write down why the teacher gave up on what it was asked; it may have been paid for."""
        self.ledger.settle(self.page, [(question, Failure(reason)) for question in self.asked.values()])
        self.asked.clear()

    def lose(self) -> None:
        """Write down that what was asked never came back."""
        if self.asked:
            self.ledger.lose(self.page, [question.digest for question in self.asked.values()])
            self.asked.clear()

    def drop(self) -> None:
        """Ask no more; of what is left, keep what others have asked or are asking."""
        digests = [question.digest for _, question in self.waiting]
        busy = self.ledger.in_flight(self.page, digests)
        self.answers |= self.ledger.find(self.page, digests)
        self.busy += [pair for pair in self.waiting if pair[1].digest in busy - self.answers.keys()]
        self.waiting.clear()

    def wait_for_others(self) -> None:
        """Wait until others are done with what we want as well; what they did not get, we ask."""
        while self.busy and not self.waiting:
            digests = [question.digest for _, question in self.busy]
            busy = self.ledger.in_flight(self.page, digests)
            if len(busy) == len(digests):
                time.sleep(_POLL)
                continue
            found = self.ledger.find(self.page, [digest for digest in digests if digest not in busy])
            self.answers |= found
            self.waiting.extend(pair for pair in self.busy if pair[1].digest not in busy | found.keys())
            self.busy = [pair for pair in self.busy if pair[1].digest in busy]
            self.exhausted = False


def _find(db: sqlite3.Connection, page: Page, requests: Sequence[Digest]) -> dict[Digest, Answer]:
    rows = _select(db, "SELECT request, items, scores FROM answers", page, requests, "")
    return {
        request: Answer(json.loads(items), None if scores is None else json.loads(scores))
        for request, items, scores in rows
    }


def _in_flight(
    db: sqlite3.Connection, page: Page, requests: Sequence[Digest]
) -> list[tuple[int, Digest, int, int, float]]:
    what = "SELECT id, request, pid, process_started, booked_at FROM attempts"
    return list(_select(db, what, page, requests, "AND ended_at IS NULL"))


def _select(db: sqlite3.Connection, what: str, page: Page, requests: Sequence[Digest], more: str) -> Iterator[Any]:
    """Look up requests a block at a time."""
    waiting = iter(requests)
    while block := list(islice(waiting, _BLOCK)):
        marks = ",".join("?" * len(block))
        yield from db.execute(
            f"{what} WHERE teacher = ? AND k = ? AND round = ? AND request IN ({marks}) {more}", (*page, *block)
        )


def _json(value: object) -> str | None:
    return None if value is None else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine did; ``None`` if it is gone or unknown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def _alive(pid: int, started: int) -> bool:
    """Return whether the very process that noted ``started`` still runs."""
    if started:
        return _started(pid) == started
    if os.name != "posix":
        return pid == os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
