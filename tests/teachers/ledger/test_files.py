"""Files that are no ledgers, damaged, older, or somebody else's."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from recdistill.errors import TeacherError
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher

from .asking import Choosy, histories


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"user,item\n" * 1000)
    with pytest.raises(TeacherError, match="is not a ledger, or is damaged"):
        Ledger(path)


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE orders (id)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(TeacherError, match="is a database of another program"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_ledger_of_a_later_format_is_refused(path: Path) -> None:
    Ledger(path).close()
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 9")
    later.close()
    with pytest.raises(TeacherError, match="is in format 9, this version of recdistill reads 1 to 3"):
        Ledger(path)


UNDO = {
    2: [
        "ALTER TABLE teachers RENAME COLUMN last_turn TO next_turn",
        "UPDATE teachers SET next_turn = 9e9",
        "ALTER TABLE attempts DROP COLUMN place",
        "DROP INDEX answers_of_any_length",
    ],
    1: [
        "DROP INDEX attempts_failed",
        "ALTER TABLE failures DROP COLUMN final",
        "ALTER TABLE attempts DROP COLUMN renewed_at",
    ],
}


@pytest.mark.parametrize("version", UNDO)
def test_a_ledger_of_an_earlier_format_is_brought_up_to_date(path: Path, version: int) -> None:
    with Ledger(path) as ledger:
        LedgerTeacher(Choosy({2}, paid=True), ledger).rank_within_budget(histories(3), 1)
    earlier = sqlite3.connect(path, isolation_level=None)
    for later in range(2, version - 1, -1):
        for statement in UNDO[later]:
            earlier.execute(statement)
    earlier.execute(f"PRAGMA user_version = {version}")
    earlier.close()
    with Ledger(path) as ledger:
        teacher = Choosy(set(), paid=True)
        LedgerTeacher(teacher, ledger).rank(histories(3), 1)
    assert teacher.asked == [[2]]


def test_a_damaged_ledger_is_named(path: Path) -> None:
    with Ledger(path) as ledger:
        LedgerTeacher(FakeTeacher(3000), ledger).rank(histories(2000), 10)
    content = bytearray(path.read_bytes())
    content[8192:-4096] = b"\xff" * (len(content) - 8192 - 4096)
    path.write_bytes(content)
    with pytest.raises(TeacherError, match=r"is damaged.*Keep a copy"), Ledger(path) as ledger:
        LedgerTeacher(FakeTeacher(3000), ledger).rank(histories(2000), 10)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("items = '[2'", "delimiter"),
        ("items = '7'", "its items are 7"),
        ("items = 'null'", "its items are null"),
        ('items = \'{"2":1,"3":1}\'', "its items are {"),
        ("items = '[null,3]'", "item ids must be integers or strings, but one is None"),
        ("items = '[2.9,3]'", r"but one is 2\.9"),
        ("items = '[true,3]'", "but one is True"),
        ("items = '[[2],3]'", r"but one is \[2\]"),
        ("items = '[\"\\ud800\",3]'", "half of a character"),
        ("items = CAST(x'ff5b325d' AS BLOB)", "decode"),
        ("scores = '[1]'", "a list of 2 items has 1 scores"),
        ("scores = 'null'", "its scores are null"),
        ("scores = '[NaN,NaN]'", "finite numbers, but one is nan"),
        ("scores = '[1.0,-Infinity]'", "but one is -inf"),
        ("scores = '[1e39,0]'", r"but one is 1e\+39"),
        ("scores = '[true,0]'", "but one is True"),
        ("scores = '[\"1\",0]'", "but one is '1'"),
        ("scores = '[0,1]'", "scores rise"),
    ],
)
def test_an_answer_that_cannot_be_read_is_named(path: Path, ledger: Ledger, changed: str, said: str) -> None:
    """SQLite does not notice when a text has changed."""
    keeper = LedgerTeacher(FakeTeacher(9, gives_scores=True), ledger)
    keeper.rank(histories(1), 2)
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE answers SET {changed}")
    db.close()
    with pytest.raises(TeacherError, match=rf"holds an answer that cannot be read: .*{said}.*ledger verify"):
        keeper.rank(histories(1), 2)


def test_a_folder_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="cannot be opened"):
        Ledger(tmp_path)


def test_an_empty_file_becomes_a_ledger(path: Path) -> None:
    path.touch()
    with Ledger(path) as ledger:
        assert LedgerTeacher(FakeTeacher(9), ledger).rank(histories(1), 1).items.tolist() == [[2]]


@pytest.fixture
def copy(path: Path, ledger: Ledger, tmp_path: Path) -> Path:
    """The file of a ledger in use, copied without the one beside it that holds three answers."""
    LedgerTeacher(FakeTeacher(9), ledger).rank(histories(3), 1)
    (tmp_path / "copy").mkdir()
    return Path(shutil.copy(path, tmp_path / "copy"))


@pytest.mark.parametrize("create", [True, False])
def test_a_copy_without_its_log_is_not_taken_for_a_new_ledger(
    path: Path, copy: Path, create: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all that was bought would be bought again."""
    monkeypatch.setattr("recdistill.teachers.ledger_file._MAKING", 0.05)
    before = copy.read_bytes()
    with pytest.raises(TeacherError, match=r"holds nothing, as a copy does .* without ledger\.sqlite-wal"):
        Ledger(copy, create=create)
    assert copy.read_bytes() == before
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    with Ledger(copy, create=create) as whole:
        assert whole.stats("fake").answers == 3


def test_what_was_written_over_a_second_ago_is_in_the_file_itself(
    path: Path, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a copy without the log lacks a second's answers, not a day's."""
    monkeypatch.setattr("recdistill.teachers.ledger_file._DURABLE", -1.0)
    LedgerTeacher(FakeTeacher(9), ledger).rank(histories(3), 1)
    with Ledger(shutil.copy(path, tmp_path / "copy.sqlite"), create=False) as copied:
        assert copied.stats("fake").answers == 3


def test_a_closed_ledger_says_so(path: Path) -> None:
    ledger = Ledger(path)
    ledger.close()
    with pytest.raises(TeacherError, match=r"cannot be used: .*closed"):
        ledger.stats("fake")


def test_a_forked_process_opens_its_own(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(TeacherError, match="opened by another process"):
        ledger.stats("fake")
