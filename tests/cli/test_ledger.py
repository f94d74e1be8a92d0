import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recdistill.data.dataset import IdMap, Sequences
from recdistill.teachers.answers import Answer, Failure
from recdistill.teachers.callable import CallableTeacher
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_records import Question, Terms, digest
from recdistill.teachers.ledger_teacher import LedgerTeacher

from .shell import call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three answers of one teacher, with scores, and one of another, who lost none and failed once."""
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        teacher = FakeTeacher(9, gives_scores=True, identity="circle")
        LedgerTeacher(teacher, ledger, budget=10).rank(Sequences.from_lists([[1], [2, 3], [4]]), 2)
        other = FakeTeacher(9, identity="other")
        LedgerTeacher(other, ledger).rank(Sequences.from_lists([[5]]), 1)
    return path


def write(path: Path, statement: str) -> None:
    """Change a ledger behind its back."""
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()


def test_stats_of_every_teacher(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    code, out, _ = call(capsys, "ledger", "stats", file)
    assert code == 0
    circle, other = out.split("other\n")
    assert circle.startswith("circle\n")
    assert re.search(r"answers +3\n +spent +3 queries, 7 left of 10\n", circle)
    assert re.search(r"answers +1\n +spent +1 queries, no budget\n", other)


def test_stats_of_a_ledger_that_nobody_has_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Ledger(tmp_path / "new.sqlite").close()
    assert "no teacher has been asked yet" in call(capsys, "ledger", "stats", tmp_path / "new.sqlite")[1]


@pytest.mark.parametrize("command", ["stats", "verify"])
def test_a_ledger_that_is_not_there_is_not_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    code, _, err = call(capsys, "ledger", command, tmp_path / "none.sqlite")
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "none.sqlite is not there" in err


@pytest.mark.parametrize("command", ["stats", "verify"])
def test_an_empty_file_is_not_called_sound(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    """As a full disk, or a copy that broke off, leaves it behind."""
    file = tmp_path / "ledger.sqlite"
    file.touch()
    code, _, err = call(capsys, "ledger", command, file)
    assert (code, file.stat().st_size) == (2, 0)
    assert "ledger.sqlite is empty; give" in err


@pytest.mark.parametrize("command", ["stats", "verify"])
def test_a_file_of_another_kind_is_refused_with_the_remedy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    file = tmp_path / "orders.csv"
    file.write_text("user,item\n" * 1000)
    code, _, err = call(capsys, "ledger", command, file)
    assert code == 2
    assert re.search("is not a ledger, or is damaged.*give another file", err)


@pytest.mark.parametrize("command", ["stats", "verify", "export"])
def test_a_copy_without_its_log_is_not_called_sound(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recdistill.teachers.ledger_file._MAKING", 0.05)
    with Ledger(tmp_path / "used.sqlite") as ledger:
        LedgerTeacher(FakeTeacher(9), ledger).rank(Sequences.from_lists([[1]]), 2)
        copy = shutil.copy(tmp_path / "used.sqlite", tmp_path / "copy.sqlite")
    code, out, err = call(capsys, "ledger", command, copy, *([tmp_path / "answers.csv"] if command == "export" else []))
    assert (code, out) == (2, "")
    assert "copy.sqlite holds nothing" in err


# export


def test_export_to_parquet_keeps_types(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert call(capsys, "ledger", "export", file, file.with_suffix(".parquet"))[0] == 0
    table = pl.read_parquet(file.with_suffix(".parquet"))
    assert table.columns == ["teacher", "k", "round", "user", "history", "items", "scores", "time"]
    assert table["history"].to_list() == [[1], [2, 3], [4], [5]]
    assert table["items"].to_list() == [[2, 3], [4, 5], [5, 6], [6]]
    assert table["scores"].to_list() == [[1.0, 0.5]] * 3 + [None]
    assert table["teacher"].to_list() == ["circle"] * 3 + ["other"]
    assert table["time"].dtype == pl.Datetime("us", "UTC")
    assert abs(table["time"][0].timestamp() - file.stat().st_mtime) < 60


def test_export_to_json_lines(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert call(capsys, "ledger", "export", file, file.with_suffix(".jsonl"))[0] == 0
    rows = [json.loads(line) for line in file.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["history"] for row in rows] == [[1], [2, 3], [4], [5]]
    assert rows[1]["items"] == [4, 5]


def test_export_to_csv_writes_lists_as_json(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert call(capsys, "ledger", "export", file, file.with_suffix(".csv"))[0] == 0
    table = pl.read_csv(file.with_suffix(".csv"))
    assert [json.loads(cell) for cell in table["items"]] == [[2, 3], [4, 5], [5, 6], [6]]
    assert table["scores"][3] is None


def test_export_of_text_ids_and_users(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Once any id is text, all are."""
    file = tmp_path / "ledger.sqlite"
    with Ledger(file) as ledger:
        ids = IdMap(["ä", "b"], first=1)
        texts = CallableTeacher(lambda histories, k: [["b", 7]] * len(histories), identity="text", ids=ids)
        LedgerTeacher(texts, ledger).rank(Sequences.from_lists([[1]]), 2)
        users = FakeTeacher(9, identity="users")
        users.takes = "user"
        LedgerTeacher(users, ledger).rank(Sequences.from_lists([[1]]), 1, users=np.array([3]))
    assert call(capsys, "ledger", "export", file, tmp_path / "answers.parquet")[0] == 0
    table = pl.read_parquet(tmp_path / "answers.parquet")
    assert table["history"].to_list() == [["ä"], None]
    assert table["items"].to_list() == [["b", "7"], ["2"]]
    assert table["user"].to_list() == [None, "3"]


def test_export_keeps_numbers_beyond_64_bits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Such as hashes, which the teacher lists and the data do not know."""
    file = tmp_path / "ledger.sqlite"
    with Ledger(file) as ledger:
        ids = IdMap([1, 2**62], first=1)
        hashes = CallableTeacher(lambda histories, k: [[2**64 - 1, 1]], identity="hashes", ids=ids)
        LedgerTeacher(hashes, ledger).rank(Sequences.from_lists([[2]]), 2)
    assert call(capsys, "ledger", "export", file, tmp_path / "answers.jsonl")[0] == 0
    (row,) = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    assert (row["history"], row["items"]) == ([str(2**62)], [str(2**64 - 1), "1"])


def test_export_keeps_numbers_of_64_bits_as_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    with Ledger(file) as ledger:
        largest = CallableTeacher(lambda histories, k: [[2**63 - 1]], identity="x", ids=IdMap([1], first=1))
        LedgerTeacher(largest, ledger).rank(Sequences.from_lists([[1]]), 1)
    assert call(capsys, "ledger", "export", file, tmp_path / "answers.jsonl")[0] == 0
    assert json.loads((tmp_path / "answers.jsonl").read_text())["items"] == [2**63 - 1]


@pytest.mark.parametrize(
    "changed",
    ["items = '[2'", "items = '7'", "items = '[2.9,3]'", "scores = '[NaN,NaN]'", "scores = '[1]'", "question = '7'"],
)
def test_export_of_an_answer_that_cannot_be_read_says_what_to_do(
    capsys: pytest.CaptureFixture[str], file: Path, changed: str
) -> None:
    write(file, f"UPDATE answers SET {changed} WHERE rowid = 1")
    code, _, err = call(capsys, "ledger", "export", file, file.with_suffix(".csv"))
    assert code == 2
    assert "holds an answer that cannot be read" in err
    assert f"'recdistill ledger verify {file}' says which" in err


def test_export_reads_more_than_one_block(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recdistill.teachers.ledger_export._BLOCK", 3)
    assert call(capsys, "ledger", "export", file, file.with_suffix(".parquet"))[0] == 0
    assert len(pl.read_parquet(file.with_suffix(".parquet"))) == 4


@pytest.mark.parametrize(
    ("name", "said"), [("answers.xlsx", "must end with one of"), ("no/answers.csv", "cannot write")]
)
def test_export_refuses_what_it_cannot_write(
    capsys: pytest.CaptureFixture[str], file: Path, name: str, said: str
) -> None:
    code, _, err = call(capsys, "ledger", "export", file, file.parent / name)
    assert code == 2
    assert said in err
    assert [path.name for path in file.parent.iterdir() if "answers" in path.name] == []


# verify


def test_a_sound_ledger(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert call(capsys, "ledger", "verify", file) == (0, f"{file}: sound\n", "")


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE teachers SET spent = 2 WHERE identity = 'circle'", "said to have spent 2, but .* were charged 3"),
        ("UPDATE answers SET items = '[1' WHERE rowid = 2", "answer 2 cannot be used: .*rowid = 2"),
        ("UPDATE answers SET items = '[1.5, 2]' WHERE rowid = 2", "answer 2 cannot be used: item ids must be"),
        ("UPDATE answers SET items = '7' WHERE rowid = 2", "answer 2 cannot be used: its items are 7"),
        ("UPDATE answers SET items = '[null, 3]' WHERE rowid = 2", "answer 2 cannot be used: item ids must be"),
        ("UPDATE answers SET items = 'null' WHERE rowid = 2", "answer 2 cannot be used: its items are null"),
        ("UPDATE answers SET scores = '[NaN,NaN]' WHERE rowid = 2", "answer 2 cannot be used: .* but one is nan"),
        ("UPDATE answers SET scores = '7' WHERE rowid = 2", "answer 2 cannot be used: its scores are 7"),
        ("UPDATE answers SET scores = '[1.0]' WHERE rowid = 2", "answer 2 cannot be used: a list of 2 items has 1"),
        ("UPDATE answers SET question = '{\"history\":[7]}' WHERE rowid = 2", "filed under another question"),
        ("UPDATE answers SET question = '[7]' WHERE rowid = 2", r"its question is \[7\]"),
        ("UPDATE attempts SET outcome = 'failed' WHERE id = 2", "answer 2 was never asked for"),
        ("UPDATE attempts SET teacher = 9 WHERE id = 4", "of attempts belongs to nothing in teachers"),
        ("UPDATE answers SET items = '[1'", "cannot be used"),
    ],
)
def test_what_somebody_else_has_changed_is_found(
    capsys: pytest.CaptureFixture[str], file: Path, statement: str, said: str
) -> None:
    write(file, statement)
    code, out, _ = call(capsys, "ledger", "verify", file)
    assert code == 1
    assert re.search(said, out)


def test_many_findings_of_a_kind_are_counted(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    with Ledger(file) as ledger:
        LedgerTeacher(FakeTeacher(20), ledger).rank(Sequences.from_lists([[row] for row in range(1, 9)]), 1)
    write(file, "UPDATE answers SET items = '[1'")
    assert "… and 7 more of this kind" in call(capsys, "ledger", "verify", file)[1]


def test_a_damaged_page_is_found(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    with Ledger(file) as ledger:
        LedgerTeacher(FakeTeacher(3000), ledger).rank(Sequences.from_lists([[row] for row in range(1, 2000)]), 10)
    content = bytearray(file.read_bytes())
    content[-8192:-4096] = b"\xff" * 4096
    file.write_bytes(content)
    code, out, err = call(capsys, "ledger", "verify", file)
    assert code in (1, 2)
    assert "damaged" in out + err


def test_requests_of_a_dead_process_are_named(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    """Until somebody asks them anew."""
    code = (
        "import os, sys; from recdistill.teachers.ledger import Ledger; ledger = Ledger(sys.argv[1]);"
        "from recdistill.teachers.ledger_records import Terms;"
        "ledger.book(ledger.page('circle', 2, 0), [b'0123456789abcdef'], Terms()); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, env=dict(os.environ))
    code_, out, _ = call(capsys, "ledger", "verify", file)
    assert code_ == 1
    assert re.search(r"1 requests to teacher 'circle' were in flight when process \d+ ended; run again", out)


def test_requests_of_a_living_process_are_not(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    with Ledger(file) as ledger:
        page = ledger.page("circle", 2, 0)
        ledger.book(page, [b"0123456789abcdef"], Terms())
        assert call(capsys, "ledger", "verify", file)[0] == 0


# forget


def test_what_was_refused_for_good_is_forgotten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    with Ledger(file) as ledger:
        page = ledger.page("api", 5, 0)
        questions = [Question(digest(text), text) for text in ('{"history":[1]}', '{"history":[2]}', '{"history":[3]}')]
        ledger.book(page, [question.digest for question in questions], Terms())
        outcomes: list[Answer | Failure] = [Failure("who?", final=True), Failure("busy"), Answer([7])]
        ledger.settle(page, zip(questions, outcomes, strict=True))
    assert re.search(r"failures +2, 1 of them for good\n", call(capsys, "ledger", "stats", file)[1])
    assert "questions that may be asked again: 1\n" in call(capsys, "ledger", "forget", file)[1]
    assert re.search(r"failures +2\n", call(capsys, "ledger", "stats", file)[1])
