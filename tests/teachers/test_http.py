import asyncio
import json
import logging
import string
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from werkzeug import Response

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.teachers.answers import Failure, Request
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_check import verify
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.teachers.transport import retry_after

from .conftest import Api

IDS = IdMap(list(string.ascii_lowercase), first=1)


def ask(api: Api, **settings: Any) -> HttpTeacher:
    return HttpTeacher(IDS, **{"url": api.url, "first_wait": 0.01, **settings})


def histories(n: int) -> Sequences:
    return Sequences.from_lists([[row % 26 + 1] for row in range(n)])


def test_it_posts_raw_ids_and_reads_raw_ids(api: Api) -> None:
    ranking = ask(api).rank(Sequences.from_lists([[1, 3]]), 2)
    assert api.asked == [{"history": ["a", "c"], "k": 2}]
    assert ranking.items.tolist() == [[4, 5]]
    assert ranking.scores is None


def test_each_row_has_its_own_answer_in_whatever_order_they_come(api: Api) -> None:
    def slow_for_early_letters(body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.05 if body["history"][-1] < "e" else 0)
        return Api.next_letters(body)

    api.answer = slow_for_early_letters
    assert ask(api).rank(histories(12), 1).items[:, 0].tolist() == list(range(2, 14))


def test_scores_are_read_where_the_api_gives_them(api: Api) -> None:
    api.answer = lambda body: {"items": ["b", "c"], "scores": [2, 0.5]}
    scores = ask(api, gives_scores=True).rank(histories(1), 2).scores
    assert scores is not None
    assert scores.tolist() == [[2.0, 0.5]]


def test_numbered_pages_become_one_list_and_each_is_a_call_that_is_charged(api: Api, tmp_path: Path) -> None:
    """The list has moved on by one between the first and the second page, so that "c" is on both."""
    pages = {1: ["b", "c"], 2: ["c", "d"], 3: ["e"], 4: []}
    api.answer = lambda body: {"items": pages[body["page"]]}
    body = {"history": "{history}", "page": "{page_number}", "size": "{k}"}
    teacher = ask(api, body=body, max_k=2, charge="calls")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        keeper = LedgerTeacher(teacher, ledger, budget=10)
        assert keeper.rank(histories(1), 6).items.tolist() == [[2, 3, 4, 5, 0, 0]]
        assert keeper.rank(histories(1), 6).items.tolist() == [[2, 3, 4, 5, 0, 0]]  # paid for once
        assert (keeper.stats().spent, keeper.stats().answers) == (4, 1)
    assert api.asked == [{"history": ["a"], "page": page, "size": 2} for page in pages]
    assert teacher.dropped["repeated"] == 2  # counted each time that it is read


@pytest.mark.parametrize(
    ("shape", "lengths", "calls"),
    [
        ({"max_k": 2}, (4, 3, 2, 9), 1),
        ({"max_k": 2}, (1, 2, 1, 9), 2),
        ({"body": {"history": "{history}"}}, (2, 1, 4, 9), 1),
        ({"body": {"history": "{history}", "from": "{offset}", "k": "{k}"}, "max_k": 2}, (3, 4, 1), 2),
        ({}, (4, 2, 3), 1),
    ],
)
def test_no_call_is_paid_for_twice_because_another_number_of_items_is_wanted(
    api: Api, tmp_path: Path, shape: dict[str, Any], lengths: tuple[int, ...], calls: int
) -> None:
    def letters(body: dict[str, Any]) -> dict[str, Any]:
        start = body.get("from", 0)
        return {"items": list("bcdefghi")[start : start + body.get("k", 3)]}

    api.answer = letters
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for k in lengths:
            LedgerTeacher(ask(api, **shape), ledger).rank(histories(1), k)
            assert verify(ledger) == []
    assert len(api.asked) == calls


def test_a_short_list_is_padded_and_a_long_one_cut(api: Api) -> None:
    api.answer = lambda body: {"items": ["c"] if body["history"] == ["a"] else ["c", "d", "e"]}
    assert ask(api).rank(histories(2), 2).items.tolist() == [[3, 0], [3, 4]]


def test_unknown_ids_are_dropped_and_reported(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    api.answer = lambda body: {"items": ["new", "c"]}
    teacher = ask(api)
    with caplog.at_level(logging.WARNING, logger="recdistill.teachers"):
        assert teacher.rank(histories(1), 2).items.tolist() == [[3, 0]]
    assert teacher.dropped["unknown"] == 1
    assert "1 unknown to the data" in caplog.text


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_error_is_asked_again(api: Api, status: int) -> None:
    api.in_turn(Response("busy", status))
    assert ask(api).rank(histories(1), 1).items.tolist() == [[2]]
    assert len(api.asked) == 2


def test_it_waits_as_long_as_retry_after_says(api: Api) -> None:
    api.in_turn(Response("slow down", 429, {"Retry-After": "0.3"}))
    ask(api).rank(histories(1), 1)
    assert 0.3 <= api.times[1] - api.times[0] < 2


def test_it_waits_until_the_date_that_retry_after_names(api: Api) -> None:
    def busy_at_first(body: dict[str, Any]) -> Response | dict[str, Any]:
        soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)  # a date has whole seconds
        return api.next_letters(body) if api.asked[1:] else Response("maintenance", 503, {"Retry-After": soon})

    api.answer = busy_at_first
    ask(api).rank(histories(1), 1)
    assert 0.9 <= api.times[1] - api.times[0] < 4


def test_a_date_without_a_zone_is_universal_time() -> None:
    in_a_minute = (datetime.now(UTC) + timedelta(seconds=60)).strftime("%a, %d %b %Y %H:%M:%S")
    assert retry_after(in_a_minute) == pytest.approx(60, abs=2)


@pytest.mark.parametrize("value", [None, "soon", "nan", "inf", "", "Wed, 21 Oct 2015 07:28:00 +99999999999"])
def test_an_unreadable_retry_after_is_passed_over(value: str | None) -> None:
    assert retry_after(value) is None


@pytest.mark.parametrize("value", ["0", "-5", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_wait_that_is_over_already_is_as_long_as_ours(api: Api, value: str) -> None:
    """Else an API whose clock runs behind ours would be asked again and again without any pause."""
    api.in_turn(Response("slow down", 429, {"Retry-After": value}))
    ask(api, first_wait=0.2).rank(histories(1), 1)
    assert api.times[1] - api.times[0] >= 0.2


def test_a_longer_wait_than_allowed_is_not_waited_for(api: Api) -> None:
    api.in_turn(Response("tomorrow", 429, {"Retry-After": "86400"}))
    with pytest.raises(TeacherError, match=r"asks to wait 86,400 s, more than longest_wait \(60 s\)"):
        ask(api).rank(histories(1), 1)
    assert len(api.asked) == 1


def test_a_passing_error_that_stays_fails_with_url_status_and_body(api: Api) -> None:
    api.answer = lambda body: Response("<h1>overloaded</h1>", 503)
    with pytest.raises(TeacherError, match=f"1 of 1 requests failed.*{api.url} answered 503 .*overloaded"):
        ask(api, attempts=3).rank(histories(1), 1)
    assert len(api.asked) == 3


@pytest.mark.parametrize("status", [400, 404, 422, 301])
def test_a_permanent_error_is_not_asked_again(api: Api, status: int) -> None:
    api.answer = lambda body: Response("no", status, {"Location": api.url})
    with pytest.raises(TeacherError, match=f"answered {status} .*'no'"):
        ask(api).rank(histories(1), 1)
    assert len(api.asked) == 1


def test_a_status_that_is_said_to_be_permanent_is_not_asked_again(api: Api) -> None:
    """Some APIs say 500 where they mean a user that they do not know."""
    api.answer = lambda body: Response("<h1>unknown user</h1>", 500)
    with pytest.raises(TeacherError, match=r"answered 500 .*unknown user"):
        ask(api, permanent=[500]).rank(histories(1), 1)
    assert len(api.asked) == 1


def test_a_refused_key_stops_everything(api: Api) -> None:
    api.answer = lambda body: Response("who are you?", 401)
    with pytest.raises(TeacherError, match=r"answered 401 .*check the headers"):
        ask(api, concurrency=2).rank(histories(26), 1)
    assert len(api.asked) == 2


def test_it_gives_up_after_too_many_failures_in_a_row(api: Api) -> None:
    api.answer = lambda body: Response("no", 404)
    with pytest.raises(TeacherError, match=r"gave up after 3 failed requests in a row.*404"):
        ask(api, concurrency=1, give_up_after=3).rank(histories(26), 1)
    assert len(api.asked) == 3


def test_failures_between_answers_do_not_stop_it(api: Api) -> None:
    api.answer = lambda body: Response("no", 404) if body["history"][-1] in "acegik" else Api.next_letters(body)
    with pytest.raises(TeacherError, match="6 of 12 requests failed"):
        ask(api, concurrency=1, give_up_after=2).rank(histories(12), 1)
    assert len(api.asked) == 12


def test_a_slow_answer_times_out_and_is_asked_again(api: Api) -> None:
    late = threading.Event()

    def first_never(body: dict[str, Any]) -> dict[str, Any]:
        if len(api.asked) == 1:
            late.wait(10)
        return Api.next_letters(body)

    api.answer = first_never
    assert ask(api, timeout=1).rank(histories(1), 1).items.tolist() == [[2]]
    assert len(api.asked) == 2
    late.set()


def test_a_timeout_may_have_been_paid_for(api: Api) -> None:
    late = threading.Event()
    api.answer = lambda body: {"items": []} if late.wait(10) else {}
    failure = only_failure(ask(api, timeout=0.2, attempts=2))
    late.set()
    assert failure.paid
    assert failure.calls == 2
    assert f"{api.url} did not answer within 0.2 s" in failure.reason


def test_what_was_never_sent_or_was_refused_is_not_paid_for(api: Api) -> None:
    api.answer = lambda body: Response("busy", 503)
    assert not only_failure(ask(api, attempts=2)).paid
    nobody = only_failure(ask(api, url="http://127.0.0.1:9/recommend", attempts=2))
    assert not nobody.paid
    assert "http://127.0.0.1:9/recommend cannot be reached" in nobody.reason


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ('{"items": ["b"', "answered 200 with"),
        ("<html>login</html>", "answered 200 with .*login"),
        ('["b"]', r"nothing at 'items\[\*\]': there should be an object with 'items', but it is a list of 1"),
        ('{"items": "b"}', r"nothing at 'items\[\*\]': there should be a list, but it is text"),
        ('{"items": [{"id": "b"}]}', "integers or strings"),
        ('{"items": [1.5]}', "integers or strings"),
        ('{"items": ["b"]}', r"nothing at 'scores\[\*\]': there should be an object with 'scores'"),
        ('{"items": ["b"], "scores": [NaN]}', "finite"),
        ('{"items": ["b"], "scores": [1, 2]}', "has 2 scores"),
        ('{"items": ["b", "c"], "scores": [1, 2]}', "rise"),
    ],
)
def test_a_malformed_answer_is_a_failure_that_was_paid_for_and_is_not_paid_again(
    api: Api, body: str, what: str
) -> None:
    api.answer = lambda asked: Response(body, 200)
    teacher = ask(api, gives_scores=True)
    with pytest.raises(TeacherError, match=what):
        teacher.rank(histories(1), 2)
    assert len(api.asked) == 1
    assert only_failure(teacher).paid


def test_no_more_requests_are_in_flight_than_allowed(api: Api) -> None:
    def patient(body: dict[str, Any]) -> dict[str, Any]:
        """Wait for as many as may come, and a while for more."""
        deadline = time.monotonic() + 30
        while api.most_in_flight < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        return Api.next_letters(body)

    api.answer = patient
    ask(api, concurrency=4).rank(histories(26), 1)
    assert api.most_in_flight == 4


def test_the_rate_is_kept_within_a_call_and_from_one_to_the_next(api: Api) -> None:
    teacher, start = ask(api, rate=20, concurrency=8), time.monotonic()
    for n in (5, 1, 1):
        teacher.rank(histories(n), 1)
    assert time.monotonic() - start >= 6 / 20  # seven calls, six gaps
    assert len(api.asked) == 7


def test_retries_keep_to_the_rate(api: Api) -> None:
    api.in_turn(*[Response("busy", 503, {"Retry-After": "0"}) for _ in range(3)])
    start = time.monotonic()
    ask(api, rate=20).rank(histories(1), 1)
    assert time.monotonic() - start >= 3 / 20


def test_a_request_is_taken_only_when_it_can_be_sent(api: Api) -> None:
    """The ledger books a query when it is taken: what waits for a free place must not be booked."""
    taken = []

    def take(n: int) -> list[Request]:
        taken.append((n, len(api.asked)))
        return [Request(row, ["a"]) for row in range(n)] if len(taken) < 4 else []

    for _ in ask(api, concurrency=2).answers(take, 1):
        pass
    assert taken[0] == (2, 0)
    assert all(n <= 2 for n, _ in taken)
    assert [sent for _, sent in taken] == sorted(sent for _, sent in taken)


def test_nothing_is_opened_when_there_is_nothing_to_ask(api: Api) -> None:
    assert list(ask(api).answers(lambda n: [], 1)) == []


def test_it_works_inside_a_running_event_loop(api: Api) -> None:
    """As in a notebook."""

    async def cell() -> list[list[int]]:
        lists: list[list[int]] = ask(api).rank(histories(3), 1).items.tolist()
        return lists

    assert asyncio.run(cell()) == [[2], [3], [4]]


def test_a_secret_comes_from_the_environment(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "s3cret")
    teacher = ask(api, headers={"Authorization": "Bearer ${SHOP_KEY}", "X-Shop": "north"})
    teacher.rank(histories(1), 1)
    assert api.headers[0]["Authorization"] == "Bearer s3cret"
    assert api.headers[0]["X-Shop"] == "north"
    assert "s3cret" not in json.dumps(teacher.config.model_dump())
    assert "s3cret" not in teacher.identity


def test_a_secret_that_the_api_repeats_is_not_in_the_error(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "s3cret")
    api.answer = lambda body: Response("x" * 195 + "unknown key s3cret", 403)
    with pytest.raises(TeacherError) as caught:
        ask(api, headers={"X-Api-Key": "${SHOP_KEY}"}).rank(histories(1), 1)
    assert "s3" not in str(caught.value)


def test_a_variable_that_is_not_set_is_named_before_anything_is_asked(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOP_KEY", raising=False)

    def take(n: int) -> list[Request]:
        raise AssertionError("a query was booked")

    with pytest.raises(SettingsError, match="environment variable SHOP_KEY is not set"):
        list(ask(api, headers={"X-Api-Key": "${SHOP_KEY}"}).answers(take, 1))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"headers": {"Authorization": "Bearer abc"}}, "header Authorization carries a secret"),
        ({"url": "https://me:word@shop.example/"}, "must hold no secret"),
        ({"url": "https://shop.example/?api_key=abc"}, "must hold no secret"),
        ({"url": "shop.example"}, "must be a full address"),
        ({"tiemout": 3}, "did you mean 'timeout'"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(SettingsError, match=what):
        HttpTeacher(IDS, **{"url": "https://shop.example/", **settings})


def only_failure(teacher: HttpTeacher) -> Failure:
    """Ask one question and return how it failed."""
    waiting = [Request(0, ["a"])]
    blocks = list(teacher.answers(lambda n: [waiting.pop()] if waiting else [], 2))
    ((_, outcome),) = blocks[0]
    assert isinstance(outcome, Failure)
    return outcome
