"""The SQLite file of a ledger: made, recognised, and given to one thread at a time."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recdistill.errors import TeacherError

_APPLICATION = 0x52444C47  # "RDLG", at a fixed place in the file: whose file it is
_VERSION = 3
_SCHEMA = """
CREATE TABLE teachers (
    id INTEGER PRIMARY KEY,
    identity TEXT NOT NULL UNIQUE,
    budget INTEGER,
    spent INTEGER NOT NULL DEFAULT 0,
    charge TEXT NOT NULL DEFAULT 'queries',
    last_turn REAL NOT NULL DEFAULT 0,
    held_until REAL NOT NULL DEFAULT 0
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
CREATE INDEX answers_of_any_length ON answers (teacher, round, request);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY,
    teacher INTEGER NOT NULL REFERENCES teachers,
    k INTEGER NOT NULL,
    round INTEGER NOT NULL,
    request BLOB NOT NULL,
    place TEXT NOT NULL DEFAULT '',
    pid INTEGER NOT NULL,
    process_started INTEGER NOT NULL,
    booked_at REAL NOT NULL,
    renewed_at REAL,
    ended_at REAL,
    outcome TEXT CHECK (outcome IN ('answered', 'failed', 'lost')),
    calls INTEGER,
    charged INTEGER NOT NULL
);
CREATE UNIQUE INDEX attempts_in_flight ON attempts (teacher, k, round, request) WHERE ended_at IS NULL;
CREATE TABLE failures (
    attempt INTEGER PRIMARY KEY REFERENCES attempts,
    reason TEXT NOT NULL,
    final INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX attempts_failed ON attempts (teacher, k, round, request) WHERE outcome = 'failed';
"""
_CHANGES = {
    1: """
ALTER TABLE attempts ADD COLUMN renewed_at REAL;
ALTER TABLE failures ADD COLUMN final INTEGER NOT NULL DEFAULT 0;
CREATE INDEX attempts_failed ON attempts (teacher, k, round, request) WHERE outcome = 'failed';
""",
    2: """
ALTER TABLE teachers RENAME COLUMN next_turn TO last_turn;
UPDATE teachers SET last_turn = 0;
ALTER TABLE attempts ADD COLUMN place TEXT NOT NULL DEFAULT '';
CREATE INDEX answers_of_any_length ON answers (teacher, round, request);
""",
}
"""What turns each earlier format into the next."""
_PATIENCE = 60.0
"""Seconds to wait for another process that is writing."""
_POLL = 0.01
"""Seconds between two tries to open a file that another process is making."""
_MAKING = 5.0
"""Seconds within which whoever is making a file has made it a ledger."""
_DURABLE = 1.0
"""Seconds after which a commit waits until the disk has everything, and the file itself has it, too."""


class UnreadableAnswer(Exception):
    """An answer that is damaged where SQLite does not look; says how."""


class LedgerFile:
    """An open ledger, for several threads of one process.

    Args:
        path: the file.
        create: whether to make it if it is not there.

    Raises:
        TeacherError: for a file that is no ledger, is damaged, or cannot be opened or written.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        if not create and not (self.path.is_file() and self.path.stat().st_size):
            found = "is empty" if self.path.is_file() else "is not there"
            raise TeacherError(f"ledger {self.path} {found}; give the ledger.sqlite of a run's folder, or a backup.")
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._durable_at = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise TeacherError(f"ledger {self.path} cannot be opened: {error}.") from error
        try:
            self._prepare(create=create)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close it."""
        with self._lock:
            self._db.close()

    def _prepare(self, *, create: bool) -> None:
        """Make a new file a ledger, and refuse one that is something else."""
        with self.reading() as db:
            # Looked at before anything is written, so that somebody else's file stays as it is.
            if not self._made(db) and (not create or _journal(db) == "wal"):
                self._wait_until_made(db)
            if _switch_to_wal(db) != "wal":
                raise TeacherError(
                    f"ledger {self.path} cannot be kept here: its file system does not support a write-ahead log; "
                    "put it on a local disk."
                )
        with self.writing() as db:
            found = self._format(db)
            if found == _VERSION:
                return
            for script in [_CHANGES[version] for version in range(found, _VERSION)] if found else [_SCHEMA]:
                for statement in script.split(";\n"):
                    db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION}")
            db.execute(f"PRAGMA user_version = {_VERSION}")

    def _made(self, db: sqlite3.Connection) -> bool:
        """Return whether the file is a ledger already, in one transaction, as another process may be making it."""
        db.execute("BEGIN")
        try:
            return self._format(db) > 0
        finally:
            db.execute("ROLLBACK")

    def _wait_until_made(self, db: sqlite3.Connection) -> None:
        """Wait until a file without tables, which somebody else has begun to make, is a ledger."""
        give_up = time.monotonic() + _MAKING
        while not self._made(db):
            if time.monotonic() > give_up:
                wal = self.path.with_name(f"{self.path.name}-wal")
                raise TeacherError(
                    f"ledger {self.path} holds nothing, as a copy does that was made without {wal.name}, where the "
                    f"answers are as long as the ledger is in use, or after a kill; copy that to {wal} as well, or, "
                    "if nothing was bought yet, delete the ledger."
                )
            time.sleep(_POLL)

    def _format(self, db: sqlite3.Connection) -> int:
        """Return which format the file has, 0 where it is still empty; refuse what is something else."""
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == _APPLICATION and version in range(1, _VERSION + 1):
            return int(version)
        if application == _APPLICATION:
            raise TeacherError(
                f"ledger {self.path} is in format {version}, this version of recdistill reads 1 to {_VERSION}; "
                "use the version that wrote it."
            )
        if application or tables:
            raise TeacherError(f"{self.path} is a database of another program, not a ledger; give another file.")
        return 0

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the database to one thread, to read from.

        Raises:
            TeacherError: for whatever SQLite raises meanwhile.
        """
        if os.getpid() != self._pid:
            raise TeacherError(f"ledger {self.path} was opened by another process; open it again in this one.")
        with self._lock:
            try:
                yield self._db
            except UnreadableAnswer as error:
                raise unreadable(self.path, error) from error
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
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give the database to one thread for one transaction, all or nothing.

        Raises:
            TeacherError: for whatever SQLite raises meanwhile.
        """
        with self.reading() as db:
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
                db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                self._durable_at = time.monotonic()


def _journal(db: sqlite3.Connection) -> str:
    """Return how the file keeps what is not committed yet."""
    (mode,) = db.execute("PRAGMA journal_mode").fetchone()
    return str(mode)


def _switch_to_wal(db: sqlite3.Connection) -> str:
    """Return the journal's mode; waits for others that make the file at the same time, as SQLite does not."""
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(_POLL)
        else:
            return str(mode)


def unreadable(path: Path, error: UnreadableAnswer) -> TeacherError:
    """Say what to do about an answer that is damaged where SQLite does not look."""
    return TeacherError(
        f"ledger {path} holds an answer that cannot be read: {error}. 'recdistill ledger verify {path}' says which, "
        "and what to do."
    )
