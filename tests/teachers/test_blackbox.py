import json
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from recdistill.data.dataset import IdMap, RawId, Sequences
from recdistill.errors import SettingsError
from recdistill.models.base import build_model
from recdistill.serving.blackbox import Answerer, BlackBox, main, student_answers
from recdistill.serving.student import Student
from recdistill.teachers.answers import Answer
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.http import HttpTeacher

IDS = IdMap([f"i{n}" for n in range(1, 31)], first=1)


def answers(teacher: FakeTeacher) -> Answerer:
    """Let a teacher answer in raw ids; items that it does not know are passed over."""

    def answer(histories: list[list[RawId]], k: int) -> list[Answer]:
        rows = [IDS.find(history) for history in histories]
        ranking = teacher.rank(Sequences.from_lists(row[row > 0] for row in rows), min(k, len(IDS)))
        scores = [None] * len(rows) if ranking.scores is None else ranking.scores.tolist()
        return [
            Answer(IDS.decode(items[:n]), None if told is None else told[:n])
            for items, told, n in zip(ranking.items, scores, ranking.lengths.tolist(), strict=True)
        ]

    return answer


@pytest.mark.parametrize("port", [-1, 65_536, 99_999])
def test_a_port_that_there_is_not_is_refused(port: int) -> None:
    with pytest.raises(SettingsError, match="there is no port"):
        BlackBox(answers(FakeTeacher(30)), port=port)


@pytest.fixture(scope="module")
def box() -> Iterator[BlackBox]:
    with BlackBox(answers(FakeTeacher(30))) as box:
        yield box


@pytest.fixture
def line(box: BlackBox) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", urlsplit(box.url).port or 0, timeout=30)
    yield connection
    connection.close()


def post(line: HTTPConnection, body: object, path: str = "/recommend") -> tuple[int, Any]:
    line.request("POST", path, body if isinstance(body, bytes) else json.dumps(body))
    response = line.getresponse()
    return response.status, json.loads(response.read())


def test_it_answers_in_raw_ids_without_scores(line: HTTPConnection) -> None:
    assert post(line, {"history": ["i3", "i2"], "k": 3}) == (200, {"items": ["i4", "i5", "i6"]})


def test_one_connection_serves_many_requests(line: HTTPConnection) -> None:
    post(line, {"history": ["i1"], "k": 1})
    socket = line.sock
    assert post(line, {"history": ["i2"], "k": 1}) == (200, {"items": ["i3"]})
    assert line.sock is socket


def test_unknown_items_are_passed_over(line: HTTPConnection) -> None:
    assert post(line, {"history": ["i2", "gone"], "k": 1}) == (200, {"items": ["i3"]})


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"{", "Expecting"),
        ([], "history"),
        ({"k": 3}, "history"),
        ({"history": "i1"}, "history"),
        ({"history": [1.5]}, "history"),
        ({"history": ["i1"], "k": 0}, "whole number"),
        ({"history": ["i1"], "k": True}, "whole number"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(line: HTTPConnection, body: object, what: str) -> None:
    status, answer = post(line, body)
    assert status == 400
    assert what in answer["error"]


def test_other_addresses_are_not_found(line: HTTPConnection) -> None:
    status, answer = post(line, {"history": ["i1"], "k": 1}, path="/other")
    assert status == 404
    assert "POST /recommend" in answer["error"]


def test_health_counts_the_queries_answered(box: BlackBox, line: HTTPConnection) -> None:
    before = box.served
    post(line, {"history": ["i1"], "k": 1})
    post(line, {"history": "wrong"})
    line.request("GET", "/health")
    assert json.loads(line.getresponse().read()) == {"status": "ok", "served": before + 1}


def test_a_teacher_asked_through_it_says_the_same_as_asked_directly(box: BlackBox) -> None:
    histories = Sequences.from_lists([[item, 31 - item] for item in range(1, 31)])
    through = HttpTeacher(IDS, url=box.url, concurrency=8).rank(histories, 5)
    assert through.items.tolist() == FakeTeacher(30).rank(histories, 5).items.tolist()


def test_scores_are_given_where_asked_for() -> None:
    with BlackBox(answers(FakeTeacher(30, gives_scores=True)), scores=True) as box:
        scores = HttpTeacher(IDS, url=box.url, gives_scores=True).rank(Sequences.from_lists([[1]]), 2).scores
    assert scores is not None
    assert scores.tolist() == [[1.0, 0.5]]


def test_one_bad_history_does_not_spoil_the_others_of_its_batch() -> None:
    """An empty history among eight at once: only its own client hears of it."""
    model = build_model("gru4rec", 30, {"dim": 8})
    student = Student(model, IDS)
    with BlackBox(student_answers(student)) as box:
        lines = [HTTPConnection("127.0.0.1", urlsplit(box.url).port or 0, timeout=30) for _ in range(8)]
        for number, line in enumerate(lines):
            line.request("POST", "/recommend", json.dumps({"history": ["i1"] * (number != 3), "k": 2}))
        responses = [line.getresponse() for line in lines]
        bodies = [json.loads(response.read()) for response in responses]
        for line in lines:
            line.close()
    assert [response.status for response in responses] == [200, 200, 200, 400, 200, 200, 200, 200]
    expected = [entry.item for entry in student.recommend([["i1"]], 2)[0]]
    assert all(body == {"items": expected} for number, body in enumerate(bodies) if number != 3)


def test_a_saved_student_is_served_from_the_command_line(tmp_path: Path) -> None:
    student = Student(build_model("gru4rec", 30, {"dim": 8}), IDS)
    student.save(tmp_path)
    command = [sys.executable, "-m", "recdistill.serving.blackbox", "--student", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        ranking = HttpTeacher(IDS, url=url).rank(Sequences.from_lists([[1, 2]]), 3)
        process.terminate()
    assert IDS.decode(ranking.items[0]) == [entry.item for entry in student.recommend([["i1", "i2"]], 3)[0]]


def test_a_folder_without_a_student_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--student", str(tmp_path)])
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message.startswith("error: no saved student in")
    assert message.count("\n") == 1


def test_a_list_ends_with_the_catalogue_however_long_it_may_be(line: HTTPConnection) -> None:
    status, answer = post(line, {"history": ["i3"], "k": 10**12})
    assert (status, len(answer["items"])) == (200, 29)  # all but that of the history
