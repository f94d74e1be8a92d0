"""Every fault in the table of `recdistill.teachers.client`, over a real socket."""

import gzip
import json
import math
import re
import string
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import TeacherError
from recdistill.teachers.answers import Answer, Failure, Request
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher

from .raw_api import Body, Part, RawApi, Script, response

IDS = IdMap([*string.ascii_lowercase, "ünï-🛒", "a b"], first=1)
GOOD = response({"items": ["b", "c"]})


@pytest.fixture
def api() -> Iterator[RawApi]:
    with RawApi(lambda body: GOOD).serve() as api:
        yield api


def first(api: RawApi, fault: Script) -> None:
    """Answer the first call with a fault and all others well."""
    api.answer = lambda body: fault if len(api.asked) == 1 else GOOD


def ask(api: RawApi, **settings: Any) -> Answer | Failure:
    """Ask one question, about "a", and return what came of it."""
    waiting = [Request(0, ["a"])]
    blocks = list(teacher(api, **settings).answers(lambda n: [waiting.pop()] if waiting else [], 2))
    ((_, outcome),) = [pair for block in blocks for pair in block]
    return outcome


def teacher(api: RawApi, **settings: Any) -> HttpTeacher:
    return HttpTeacher(IDS, **{"url": api.url, "first_wait": 0.01, "timeout": 5.0, **settings})


def head(length: int, **headers: str) -> bytes:
    """Return what comes before a body of so many bytes."""
    return response(b"", Content_Length=str(length), **headers)


# what passes: sent again


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ([None], "cut"),
        ([b"HTTP/1.1 200", None], "cut"),
        ([GOOD[:-5], None], "cut"),
        ([b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"ite\r\n', None], "cut"),
        ([1.5, GOOD], "timeout"),
        ([GOOD[:-5], 1.5, GOOD[-5:]], "timeout"),
        ([part for byte in GOOD for part in (bytes([byte]), 0.05)], "timeout"),
        (response({"error": "busy"}, "500 Internal Server Error"), "500"),
        (response(b"<html>bad gateway</html>", "502 Bad Gateway"), "502"),
    ],
    ids=["before headers", "in headers", "in body", "in chunks", "late", "stuck", "trickle", "500", "502"],
)
def test_a_passing_fault_is_sent_again(api: RawApi, fault: Script, kind: str) -> None:
    first(api, fault)
    asked = teacher(api, timeout=0.5 if kind == "timeout" else 5.0)
    waiting = [Request(0, ["a"])]
    blocks = list(asked.answers(lambda n: [waiting.pop()] if waiting else [], 2))
    (((_, outcome),),) = blocks
    assert isinstance(outcome, Answer)
    assert (outcome.items, outcome.calls) == (["b", "c"], 2)
    assert asked.client.calls == {kind: 1, "answered": 1}


@pytest.mark.parametrize(
    "fault",
    [
        response(b"{}", "400 Bad Request", x_amzn_ErrorType="ThrottlingException:http://internal.amazon.com/coral/"),
        response({"__type": "com.amazon.coral.availability#ThrottlingException"}, "400 Bad Request"),
        response({"__type": "ThrottlingException"}, "403 Forbidden"),
        response({"__type": "ThrottlingException"}, "402 Payment Required"),
        response({"__type": "ThrottlingException"}),
    ],
    ids=["header", "body", "403", "402", "200"],
)
def test_what_says_that_it_is_too_much_passes_under_any_status(api: RawApi, fault: Script) -> None:
    """Else questions would be refused for good that an API was only too busy for."""
    first(api, fault)
    throttling = {"codes": ["ThrottlingException"], "header": "x-amzn-ErrorType", "member": "__type"}
    asked = teacher(api, throttling=throttling, permanent=(400,))
    waiting = [Request(0, ["a"])]
    (((_, outcome),),) = asked.answers(lambda n: [waiting.pop()] if waiting else [], 2)
    assert isinstance(outcome, Answer)
    assert asked.client.calls == {"throttled": 1, "answered": 1}
    assert asked.client.window.free(0) < 8


@pytest.mark.parametrize(
    "fault",
    [
        response({"__type": "ValidationException", "message": "no ThrottlingException"}, "400 Bad Request"),
        response(b"ThrottlingException", "400 Bad Request"),
        response({"__type": ["ThrottlingExceptionOfMine"]}, "400 Bad Request"),
    ],
    ids=["another", "no json", "part of a word"],
)
def test_what_says_something_else_does_not_pass(api: RawApi, fault: Script) -> None:
    api.answer = lambda body: fault
    outcome = ask(api, throttling={"codes": ["ThrottlingException"], "header": "x-type", "member": "__type"})
    assert isinstance(outcome, Failure)
    assert (outcome.final, len(api.asked)) == (True, 1)


def test_what_was_cut_or_late_may_have_been_paid_for(api: RawApi) -> None:
    api.answer = lambda body: [None]
    outcome = ask(api, attempts=2)
    assert isinstance(outcome, Failure)
    assert (outcome.paid, outcome.calls) == (True, 2)
    assert "broke the connection" in outcome.reason


# what may not be sent again: a step of a session


SESSION = {"reads": "session", "body": {"session": "{session}", "item": "{item}"}}


@pytest.mark.parametrize(
    ("fault", "begins_anew"),
    [
        ([None], True),
        ([1.5, GOOD], True),
        (response(b"oops", "500 Internal Server Error"), True),
        (response(b"no answer from behind", "504 Gateway Timeout"), True),
        (response(b"slow down", "429 Too Many Requests", Retry_After="0"), False),
        (response(b"busy", "503 Service Unavailable", Retry_After="0"), False),
    ],
    ids=["cut", "late", "500", "504", "429", "503"],
)
def test_a_session_that_may_hold_an_item_already_is_begun_anew(
    api: RawApi, tmp_path: Path, fault: Script, begins_anew: bool
) -> None:
    """Else the API would hold the item twice, and answer for another history; all calls are charged."""
    sessions: dict[str, list[str]] = {}

    def answer(body: Body) -> Script:
        refused = len(api.asked) == 2 and not begins_anew
        if not refused:
            sessions.setdefault(body["session"], []).append(body["item"])
        return fault if len(api.asked) == 2 else GOOD

    api.answer = answer
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        asked = teacher(api, **SESSION, timeout=0.5, charge="calls")
        keeper = LedgerTeacher(asked, ledger, budget=10)
        assert keeper.rank(Sequences.from_lists([[1, 4, 5]]), 2).items.tolist() == [[2, 3]]
        stats = keeper.stats()
    whole = ["a", "d", "e"]
    assert list(sessions.values()) == ([["a", "d"], whole] if begins_anew else [whole])
    assert stats.calls == stats.spent == len(api.asked) == (5 if begins_anew else 4)


def test_a_session_is_begun_no_more_often_than_a_call_may_be_sent(api: RawApi) -> None:
    api.answer = lambda body: [None] if body["item"] == "b" else GOOD
    waiting = [Request(0, ["a", "b"])]
    blocks = list(teacher(api, **SESSION, attempts=3).answers(lambda n: [waiting.pop()] if waiting else [], 2))
    (((_, outcome),),) = blocks
    assert isinstance(outcome, Failure)
    assert (outcome.paid, outcome.calls) == (True, 6)
    assert [body["item"] for body in api.asked] == ["a", "b"] * 3
    assert len({body["session"] for body in api.asked}) == 3


# what does not pass: a failure that was paid for, and is not paid for again


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    "body",
    [
        b'{"items": ["b", ',
        b"",
        b"<!doctype html><title>Please log in</title>",
        deep(100_000),
        b'{"items": null}',
        b'{"items": {"0": "b"}}',
        b'{"items": [["b"]]}',
        b'{"items": [null]}',
        b'{"items": [true]}',
        b'{"items": ["b", "\\ud83d"]}',
        b'{"error": {"code": 17, "message": "no such model"}}',
        b'"b"',
        b"\xff\xfe\x00",
    ],
    ids=[
        "cut json",
        "empty",
        "html",
        "deep",
        "null",
        "object",
        "nested",
        "no id",
        "bool",
        "half a character",
        "error",
        "text",
        "not utf-8",
    ],
)
def test_a_senseless_answer_is_a_failure_that_quotes_it(api: RawApi, body: bytes) -> None:
    api.answer = lambda asked: response(body)
    outcome = ask(api)
    assert isinstance(outcome, Failure)
    assert (outcome.paid, outcome.calls, len(api.asked)) == (True, 1, 1)
    assert re.search(f"{api.url} answered 200 with ", outcome.reason)
    assert len(outcome.reason) < 600


@pytest.mark.parametrize("scores", [[math.nan, 0.0], [math.inf, 0.0], [2.0, -math.inf], ["2", "1"], [1.0], None])
def test_senseless_scores_are_a_failure(api: RawApi, scores: object) -> None:
    api.answer = lambda asked: response({"items": ["b", "c"], "scores": scores})
    outcome = ask(api, gives_scores=True)
    assert isinstance(outcome, Failure)
    assert (outcome.paid, len(api.asked)) == (True, 1)


def test_scores_that_rise_are_a_failure_with_a_remedy(api: RawApi) -> None:
    """As of a list that is filled up from another one."""
    api.answer = lambda asked: response({"items": ["b", "c"], "scores": [0.4, 1.7e9]})
    outcome = ask(api, gives_scores=True)
    assert isinstance(outcome, Failure)
    assert "the order is the ranking all the same, give no scores (gives_scores = false)" in outcome.reason


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
def test_a_redirect_is_refused_and_never_followed(api: RawApi, status: str) -> None:
    with RawApi(lambda body: GOOD).serve() as elsewhere:
        api.answer = lambda body: response(b"", status, Location=elsewhere.url)
        outcome = ask(api)
        assert isinstance(outcome, Failure)
        assert f"redirects to {elsewhere.url!r}, which is not followed" in outcome.reason
        assert (outcome.paid, len(api.asked), elsewhere.asked) == (False, 1, [])


# too much to read


def endless() -> Iterator[Part]:
    """Send a body without an end, 64 MiB at most."""
    yield head(1 << 40)
    for _ in range(1024):
        yield b" " * 65536


def chunked(pieces: Iterator[bytes]) -> Iterator[Part]:
    """Send a body of pieces, as one whose length is not known beforehand."""
    yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


def test_a_reply_that_says_that_it_is_over_the_limit_is_not_read(api: RawApi) -> None:
    api.answer = lambda body: endless()
    outcome = ask(api, largest_reply=100_000)
    assert isinstance(outcome, Failure)
    assert "more than 100,000 bytes, none of which were read" in outcome.reason
    assert (outcome.paid, len(api.asked)) == (True, 1)
    assert api.sent_bytes < 32 * 2**20  # what the socket's buffers hold, not what it would have sent


def test_a_reply_that_does_not_say_how_long_it_is_is_read_to_the_limit(api: RawApi) -> None:
    api.answer = lambda body: chunked(b" " * 65536 for _ in range(1024))
    outcome = ask(api, largest_reply=100_000)
    assert isinstance(outcome, Failure)
    assert "more than 100,000 bytes, which were not read on" in outcome.reason
    assert (outcome.paid, len(api.asked)) == (True, 1)
    assert api.sent_bytes < 32 * 2**20


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [("gzip", gzip.compress(bytes(64 * 2**20))), ("deflate", zlib.compress(bytes(64 * 2**20)))],
    ids=["gzip", "deflate"],
)
def test_a_small_reply_that_unpacks_to_a_huge_one_is_refused(api: RawApi, encoding: str, packed: bytes) -> None:
    assert len(packed) < 100_000
    api.answer = lambda body: response(packed, Content_Encoding=encoding)
    outcome = ask(api, largest_reply=100_000)
    assert isinstance(outcome, Failure)
    assert "more than 100,000 bytes" in outcome.reason


def test_a_reply_of_just_the_limit_is_read(api: RawApi) -> None:
    body = json.dumps({"items": ["b", "c"]}).encode()
    api.answer = lambda asked: response(body)
    assert isinstance(ask(api, largest_reply=len(body)), Answer)
    assert isinstance(ask(api, largest_reply=len(body) - 1), Failure)


def test_a_packed_reply_is_unpacked(api: RawApi) -> None:
    api.answer = lambda body: response(gzip.compress(b'{"items": ["b"]}'), Content_Encoding="gzip")
    outcome = ask(api)
    assert isinstance(outcome, Answer)
    assert outcome.items == ["b"]


def test_a_reply_that_cannot_be_unpacked_is_a_failure(api: RawApi) -> None:
    api.answer = lambda body: response(b"not packed at all", Content_Encoding="gzip")
    outcome = ask(api)
    assert isinstance(outcome, Failure)
    assert "sent what cannot be read" in outcome.reason
    assert (outcome.paid, len(api.asked)) == (True, 1)


@pytest.mark.parametrize(
    "error",
    [
        response(b"not packed at all", "503 Busy", Retry_After="0.2", Content_Encoding="gzip"),
        [b"HTTP/1.1 503 Busy\r\nRetry-After: 0.2\r\nContent-Length: 100\r\n\r\nbusy", None],
        [b"HTTP/1.1 503 Busy\r\nRetry-After: 0.2\r\nContent-Length: 100\r\n\r\nbusy", 5.0, None],
    ],
    ids=["cannot be unpacked", "cut", "stuck"],
)
def test_an_error_counts_by_its_status_also_where_its_body_cannot_be_read(api: RawApi, error: Script) -> None:
    first(api, error)
    asked = teacher(api)
    waiting = [Request(0, ["a"])]
    (((_, outcome),),) = asked.answers(lambda n: [waiting.pop()] if waiting else [], 2)
    assert isinstance(outcome, Answer)
    assert asked.client.calls == {"503": 1, "answered": 1}
    assert api.times[1] - api.times[0] >= 0.2
    assert api.times[1] - api.times[0] < 4


def test_a_key_that_is_refused_stops_the_asking_also_where_the_reply_cannot_be_read(api: RawApi) -> None:
    api.answer = lambda body: response(b"not packed", "401 Unauthorized", Content_Encoding="gzip")
    with pytest.raises(TeacherError, match="answered 401"):
        ask(api)


PAGES = {"body": {"history": "{history}", "page": "{page_number}", "n": "{k}"}, "max_k": 2}


@pytest.mark.parametrize(
    "status", ["404 Not Found", "400 Bad Request", "416 Range Not Satisfiable", "422 Unprocessable Content"]
)
def test_a_page_past_the_last_is_the_end_of_the_list(api: RawApi, tmp_path: Path, status: str) -> None:
    """Two whole pages are bought, and kept, where the API knows no third."""
    pages = {1: ["b", "c"], 2: ["d", "e"]}
    api.answer = lambda body: (
        response({"items": pages[body["page"]]}) if body["page"] in pages else response(b"Invalid page.", status)
    )
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        keeper = LedgerTeacher(teacher(api, **PAGES), ledger)
        assert keeper.rank(Sequences.from_lists([[1]]), 6).items.tolist() == [[2, 3, 4, 5, 0, 0]]
        assert (keeper.stats().answers, keeper.stats().calls) == (1, 3)


def test_a_first_page_that_is_refused_is_a_failure(api: RawApi) -> None:
    api.answer = lambda body: response(b"who?", "404 Not Found")
    outcome = ask(api, **PAGES)
    assert isinstance(outcome, Failure)
    assert (outcome.paid, outcome.final, len(api.asked)) == (False, True, 1)
    assert "answered 404" in outcome.reason


def test_an_endless_error_is_not_read_on(api: RawApi) -> None:
    def endless_error() -> Iterator[Part]:
        yield b"HTTP/1.1 404 Not Found\r\nContent-Length: 99999999999\r\n\r\n"
        for _ in range(1024):
            yield b"no " * 20000

    api.answer = lambda body: endless_error()
    outcome = ask(api)
    assert isinstance(outcome, Failure)
    assert "answered 404" in outcome.reason
    assert api.sent_bytes < 32 * 2**20


# odd lists: answers, kept as they are, and cleaned each time that they are read


@pytest.mark.parametrize(
    ("items", "listed", "dropped"),
    [
        (["b"], [2, 0, 0], {}),
        ([], [0, 0, 0], {}),
        (["b", "b", "c"], [2, 3, 0], {"repeated": 1}),
        (["new", "b", 17], [2, 0, 0], {"unknown": 2}),
        (["a", "b"], [2, 0, 0], {"seen": 1}),
        (["ünï-🛒", "a b"], [27, 28, 0], {}),
        (["b", "c", "d", "e"], [2, 3, 4], {}),
    ],
    ids=["short", "empty", "twice", "unknown", "of the history", "unicode", "long"],
)
def test_an_odd_list_is_kept_and_cleaned_when_it_is_read(
    api: RawApi, tmp_path: Path, items: list[Any], listed: list[int], dropped: dict[str, int]
) -> None:
    api.answer = lambda body: response({"items": items})
    for _ in range(2):  # from the API, then from the ledger
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            asked = teacher(api)
            ranking = LedgerTeacher(asked, ledger).rank(Sequences.from_lists([[1]]), 3)
        assert ranking.items.tolist() == [listed]
        assert {what: n for what, n in asked.dropped.items() if n} == dropped
    assert len(api.asked) == 1


@pytest.mark.parametrize("status", ["200 OK", "204 No Content"])
def test_users_of_whom_an_api_knows_nothing_have_empty_lists(api: RawApi, tmp_path: Path, status: str) -> None:
    """Forty in a row, so that they would end the asking if they were failures."""
    nothing = b"HTTP/1.1 204 No Content\r\n\r\n" if status.startswith("204") else response(b"")
    api.answer = lambda body: GOOD if len(api.asked) == 1 else nothing
    histories = Sequences.from_lists([[row // 26 + 1, row % 26 + 1] for row in range(41)])
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        keeper = LedgerTeacher(teacher(api, missing_items="empty", concurrency=1), ledger)
        assert keeper.rank(histories, 2).lengths.sum() == 2
        assert (keeper.stats().answers, keeper.stats().failures) == (41, 0)


# nothing lost


def test_faults_of_every_kind_lose_nothing(api: RawApi, tmp_path: Path) -> None:
    """Each third call meets another fault; in the end each question is answered, and charged once."""
    passing: list[Script] = [
        [None],
        [GOOD[:20], None],
        response(b"busy", "503 Service Unavailable", Retry_After="0"),
        response(b"slow down", "429 Too Many Requests", Retry_After="0"),
        response(b"oops", "500 Internal Server Error"),
    ]

    def answer(body: Body) -> Script:
        n = len(api.asked)
        return passing[n // 3 % len(passing)] if n % 3 == 0 else GOOD

    api.answer = answer
    histories = Sequences.from_lists([[row // 26 + 1, row % 26 + 1] for row in range(300)])
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        keeper = LedgerTeacher(teacher(api, attempts=10), ledger, budget=300)
        assert len(keeper.rank(histories, 2)) == 300
        stats = keeper.stats()
    assert (stats.answers, stats.spent, stats.failures, stats.lost) == (300, 300, 0, 0)
    assert stats.calls == len(api.asked)


def test_a_dead_api_is_given_up_and_what_was_bought_is_kept(api: RawApi, tmp_path: Path) -> None:
    api.answer = lambda body: GOOD if len(api.asked) <= 50 else [None]
    histories = Sequences.from_lists([[row // 26 + 1, row % 26 + 1] for row in range(300)])
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        keeper = LedgerTeacher(teacher(api, attempts=2, give_up_after=3, concurrency=4), ledger)
        with pytest.raises(TeacherError, match=r"gave up after 3 failed requests in a row.*broke the connection"):
            keeper.rank(histories, 2)
        assert keeper.stats().answers == 50
    assert len(api.asked) <= 50 + 2 * 8


def test_an_api_that_sends_pages_of_html_is_given_up_though_it_has_answered(api: RawApi, tmp_path: Path) -> None:
    """It is being mended; what it was asked meanwhile is asked again by the next run."""
    api.answer = lambda body: GOOD if len(api.asked) == 1 else response(b"<html>back soon</html>")
    histories = Sequences.from_lists([[row // 26 + 1, row % 26 + 1] for row in range(200)])
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        keeper = LedgerTeacher(teacher(api, concurrency=1), ledger)
        with pytest.raises(TeacherError, match="gave up after 10 failed requests in a row"):
            keeper.rank(histories, 2)
        assert (keeper.stats().answers, keeper.stats().refused) == (1, 0)
    assert len(api.asked) == 11
