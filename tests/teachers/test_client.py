"""How hard the API is asked, when it is given up, and what is charged for it; faults stand in test_faults.py."""

import logging
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import BudgetExhausted, SettingsError, TeacherError
from recdistill.teachers.answers import Answer, Failure, Outcome, Request, Take
from recdistill.teachers.client import Client
from recdistill.teachers.exchange import Call, Conversation
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_records import Page, Question, Terms
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.teachers.meter import Charge, Meter, MeteredTeacher, Pace, Unsent
from recdistill.teachers.transport_settings import TransportSettings
from recdistill.teachers.window import Window

from .raw_api import Body, RawApi, response

GOOD = response({"items": ["1"]})
BUSY = response(b"busy", "503 Service Unavailable")


@dataclass(frozen=True)
class Paged:
    """Some questions in one call, and as many calls one after another as there are pages."""

    url: str
    batch_size: int = 1
    pages: int = 1
    tokens: None = None

    def calls(self, request: Request, k: int) -> int:
        return self.pages

    def depth(self, k: int) -> int:
        return k

    def converse(self, requests: Sequence[Request], k: int) -> Conversation:
        for page in range(self.pages):
            rows = ",".join(str(request.row) for request in requests)
            yield Call("POST", self.url, body=f'{{"rows": [{rows}], "page": {page}}}'.encode())
        return [Answer([request.row + 1]) for request in requests]

    def sign(self, call: Call, token: str | None) -> Call:
        return call


class Paying(MeteredTeacher):
    """A teacher with a shape of its own."""

    def __init__(self, shape: Paged, **settings: Any) -> None:
        self.shape = shape
        self.client = Client(TransportSettings.parse({"first_wait": 0.001, **settings}))
        self.charge = self.client.settings.charge
        self.ids = IdMap(list(range(1, 1001)), first=1)
        self.exclude_history = False

    @property
    def identity(self) -> str:
        return "paying"

    def answers(self, take: Take, k: int, meter: Meter | None = None) -> Iterator[list[Outcome]]:
        return self.client.answers(self.shape, take, k, meter=meter, hide=lambda text: text.replace("s3cret", "***"))


@pytest.fixture
def api() -> Iterator[RawApi]:
    with RawApi(lambda body: GOOD).serve() as api:
        yield api


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def histories(n: int) -> Sequences:
    return Sequences.from_lists([[row + 1] for row in range(n)])


def collect(teacher: Paying, n: int, outcomes: list[Outcome]) -> None:
    """Ask n questions and note what comes of them as soon as it is known."""
    waiting = iter(range(n))
    for block in teacher.answers(lambda most: [Request(row, [row + 1]) for row in islice(waiting, most)], 1):
        outcomes += block


def bearing(most: int, *, seconds: float) -> Callable[[Body], Iterator[bytes | float]]:
    """Return what answers so many calls at once, each after some seconds, and refuses any other at once."""
    in_flight = [0]

    def answer(body: Body) -> Iterator[bytes | float]:
        in_flight[0] += 1
        too_much = in_flight[0] > most
        yield 0.0 if too_much else seconds
        in_flight[0] -= 1
        yield response(b"", "429 Too Many Requests") if too_much else GOOD

    return answer


def rows_asked(api: RawApi) -> list[int]:
    return sorted(row for body in api.asked for row in body["rows"])


# how much at once


def test_the_window_halves_once_for_each_wave_and_grows_by_one_for_each_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    window = Window(8)
    assert [window.shrink(sent_at=9.0), window.shrink(sent_at=9.5), window.free(0)] == [True, False, 4]
    now[0] = 11.0
    assert [window.shrink(sent_at=10.5), window.free(1), window.free(5)] == [True, 1, 0]
    for _ in range(10 * 2):  # for ten rounds of two it stays as it is
        window.grow()
    assert (window.size, window.free(0)) == (2.0, 2)
    for _ in range(3):  # 2 + 1/2 + 1/2.5 + 1/2.9 is more than 3
        window.grow()
    assert window.free(0) == 3
    for _ in range(100):
        window.grow()
    assert window.free(0) == 8


class Interrupted(float):
    """A number at whose use another thread cuts in, and is given time to do its own."""

    def __new__(cls, number: float, cut_in: Callable[[], object]) -> "Interrupted":
        made = super().__new__(cls, number)
        made.cut_in = threading.Thread(target=cut_in)
        return made

    cut_in: threading.Thread

    def _interrupt(self) -> None:
        if self.cut_in.ident is None:
            self.cut_in.start()
            self.cut_in.join(0.2)

    def __add__(self, other: float) -> float:
        self._interrupt()
        return float(self) + other

    def __ge__(self, other: float) -> bool:
        self._interrupt()
        return float(self) >= other


def test_threads_that_are_refused_at_once_are_one_wave() -> None:
    """Each of them would halve the window, down to one call at a time for a single burst of refusals."""
    window = Window(8)
    window._shrunk_at = last = Interrupted(-1.0, lambda: window.shrink(sent_at=0.0))
    assert window.shrink(sent_at=0.0)
    last.cut_in.join()
    assert window.free(0) == 4


def test_no_success_is_lost_between_threads() -> None:
    window = Window(8)
    window.size = size = Interrupted(4.0, window.grow)
    window.grow()
    size.cut_in.join()
    assert window.size == 4.25 + 1 / 4.25


def test_what_is_too_much_while_others_get_through_is_no_attempt(api: RawApi) -> None:
    """The API bears one call at once, and refuses any other, of which none is lost for that.

    The first refusals come while it has not answered anybody yet.
    """
    api.answer = bearing(1, seconds=0.02)
    teacher = Paying(Paged(api.url), concurrency=32, attempts=2)
    assert len(teacher.rank(histories(80), 1)) == 80
    assert teacher.client.calls["429"] < 32 + 16 + 8 + 4 + 2 + 80 // 10


def test_what_is_always_too_much_is_not_sent_for_ever(api: RawApi) -> None:
    """One question is, while all others are answered."""
    api.answer = lambda body: BUSY if body["rows"] == [0] else [0.005, GOOD]
    outcomes: list[Outcome] = []
    collect(Paying(Paged(api.url), concurrency=2, attempts=2, dead_after=0.3, longest_wait=0.01), 300, outcomes)
    assert [request.row for request, outcome in outcomes if isinstance(outcome, Failure)] == [0]
    assert len(outcomes) == 300


def test_the_window_never_closes() -> None:
    window = Window(4)
    for sent_at in range(10):
        window._shrunk_at = -math.inf
        window.shrink(sent_at=float(sent_at))
    assert window.free(0) == 1


def test_an_api_that_bears_less_is_asked_less_at_once(api: RawApi) -> None:
    """It bears two calls at once; of the first eight, six are too much, then the window finds out.

    Eight at once to the end would be three hundred refusals.
    """
    api.answer = bearing(2, seconds=0.01)
    teacher = Paying(Paged(api.url), concurrency=8)
    assert len(teacher.rank(histories(100), 1)) == 100
    assert teacher.client.calls["answered"] == 100
    assert teacher.client.calls["429"] < 120
    assert teacher.client.window.free(0) < 8


def test_one_refusal_holds_all_requests(api: RawApi) -> None:
    api.answer = lambda body: response(b"", "429 Too Many Requests", Retry_After="0.4") if len(api.asked) == 3 else GOOD
    Paying(Paged(api.url), concurrency=2).rank(histories(20), 1)
    gaps = [later - earlier for earlier, later in zip(api.times[2:], api.times[3:], strict=False)]
    assert max(gaps) >= 0.35
    assert sum(gap > 0.3 for gap in gaps) == 1


def test_the_rate_is_kept_after_a_wait_that_the_api_asked_for(api: RawApi) -> None:
    """Those whose turns came meanwhile take new ones, instead of going all at once when it is over."""
    api.answer = lambda body: response(b"", "429 Too Many Requests", Retry_After="0.3") if len(api.asked) == 1 else GOOD
    Paying(Paged(api.url), rate=20, concurrency=8).rank(histories(8), 1)
    held = [time for time in api.times if time - api.times[0] >= 0.25]
    assert len(api.times) == 9
    assert len(held) >= 4, "few went before the refusal was read"
    assert held[-1] - held[0] >= 0.9 * (len(held) - 1) / 20


def test_threads_share_one_rate(api: RawApi) -> None:
    teacher = Paying(Paged(api.url), rate=50)
    threads = [threading.Thread(target=teacher.rank, args=(histories(5), 1)) for _ in range(4)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(api.asked) == 20
    assert time.monotonic() - start >= 19 / 50


def test_threads_share_the_places_of_calls_in_flight(api: RawApi) -> None:
    in_flight, most = [0], [0]

    def count(body: Body) -> Iterator[bytes | float]:
        in_flight[0] += 1
        most[0] = max(most[0], in_flight[0])
        yield 0.01
        in_flight[0] -= 1
        yield GOOD

    api.answer = count
    teacher = Paying(Paged(api.url), concurrency=2)
    threads = [threading.Thread(target=teacher.rank, args=(histories(5), 1)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(api.asked), most[0]) == (20, 2)


def test_what_waits_long_for_its_turn_is_not_taken_for_lost(
    api: RawApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two labelling runs share a slow rate; each keeps what it has booked."""
    monkeypatch.setattr("recdistill.teachers.liveness.STALE", 0.3)
    monkeypatch.setattr("recdistill.teachers.ledger_session._RENEWED", 0.05)

    def label() -> None:
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            LedgerTeacher(Paying(Paged(api.url), rate=20, concurrency=6), ledger).rank(histories(12), 1)

    threads = [threading.Thread(target=label) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows_asked(api) == list(range(12))


def test_turns_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace()
    assert [pace.turn(0.125) for _ in range(3)] == [0.0, 0.125, 0.25]
    assert [pace.turn(0.125) for _ in range(2)] == [0.375, 0.375], "too far off to be given to anybody"
    now[0] = 103.0
    pace.hold(5.0)
    assert (pace.held(), pace.turn(0.125)) == (5.0, 5.0)
    now[0] = 108.0
    assert (pace.held(), pace.turn(0.125), pace.turn(0.125)) == (0.0, 0.0, 0.125)
    now[0] = 120.0
    assert (pace.held(), pace.turn(2.0)) == (0.0, 0.0)


def test_processes_share_turns_and_waits_by_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two openings of one file stand for two processes."""
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    with Ledger(tmp_path / "ledger.sqlite") as one, Ledger(tmp_path / "ledger.sqlite") as two:
        page = one.page("api", 10, 0)
        assert [asked.turn(page, 0.125) for asked in (one, two, one)] == [0.0, 0.125, 0.25]
        assert [asked.turn(page, 0.125) for asked in (two, two)] == [0.375, 0.375]
        two.hold(page, 60.0)
        one.hold(page, 5.0)  # a shorter wait takes nothing from a longer one
        assert one.held(page) == 60.0
        assert one.turn(page, 0.125) == 60.0
        assert two.turn(page, 0.0) == 60.0  # without a rate as well


def test_turns_and_waits_are_forgotten_where_the_clock_is_set_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a clock that was a year ahead for a minute would keep everybody waiting for a year."""
    now = [2e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    page = ledger.page("api", 1, 0)
    ledger.book(page, [b"first"], Terms())
    ledger.turn(page, 60.0)
    ledger.hold(page, 30.0)
    ledger.book(page, [b"second"], Terms())
    assert ledger.held(page) == 30.0
    now[0] = 1e9
    ledger.book(page, [b"third"], Terms())
    assert (ledger.held(page), ledger.turn(page, 60.0)) == (0.0, 0.0)
    assert ledger.turn(page, 60.0) == 60.0


def test_whoever_is_stopped_leaves_no_turns_behind(api: RawApi, ledger: Ledger) -> None:
    """A rate that was set too low is set right: nobody waits for the turns of those who were stopped meanwhile."""
    api.answer = lambda body: response(b"", "401 Unauthorized")
    with pytest.raises(TeacherError, match="401"):
        LedgerTeacher(Paying(Paged(api.url), rate=1 / 60), ledger).rank(histories(8), 1)
    api.answer = lambda body: GOOD
    start = time.monotonic()
    LedgerTeacher(Paying(Paged(api.url), rate=50), ledger).rank(histories(8), 1)
    assert time.monotonic() - start < 10


def test_a_slow_rate_says_what_it_waits_for(
    api: RawApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("recdistill.teachers.client._LONG", 0.2)
    with caplog.at_level(logging.WARNING, logger="recdistill.teachers"):
        Paying(Paged(api.url), rate=2).rank(histories(2), 1)
    assert re.findall(r"the next call waits \d s for its turn", caplog.text)


# what is paid for is not thrown away


def test_who_has_bought_pages_buys_the_others_though_asking_is_stopped(api: RawApi) -> None:
    """The key is refused to another question meanwhile; a slow rate makes each page wait for its turn."""

    def answer(body: Body) -> Any:
        return GOOD if body["rows"] == [0] else response(b"", "401 Unauthorized")

    api.answer = answer
    outcomes: list[Outcome] = []
    with pytest.raises(TeacherError, match="401"):
        collect(Paying(Paged(api.url, pages=5), rate=20, concurrency=2), 2, outcomes)
    ((bought, answered),) = [(request.row, outcome) for request, outcome in outcomes if isinstance(outcome, Answer)]
    assert (bought, answered.calls) == (0, 5)


def test_one_question_that_is_refused_takes_no_other_of_its_call_with_it(api: RawApi) -> None:
    """Of eight that go together the sixth is wrong: it is found by halves, and alone is not asked again."""
    api.answer = lambda body: response(b"who?", "422 Unprocessable") if 5 in body["rows"] else GOOD
    outcomes: list[Outcome] = []
    collect(Paying(Paged(api.url, batch_size=8)), 8, outcomes)
    failed = [(request.row, outcome.final) for request, outcome in outcomes if isinstance(outcome, Failure)]
    assert failed == [(5, True)]
    assert sorted(request.row for request, _ in outcomes) == list(range(8))
    assert [body["rows"] for body in api.asked] == [[*range(8)], [*range(4)], [4, 5, 6, 7], [4, 5], [4], [5], [6, 7]]
    assert sum(outcome.calls for _, outcome in outcomes) == len(api.asked)


def test_what_is_wrong_with_every_question_is_not_looked_for_by_halves(api: RawApi) -> None:
    api.answer = lambda body: response(b"", "301 Moved Permanently", Location="http://elsewhere.example")
    outcomes: list[Outcome] = []
    collect(Paying(Paged(api.url, batch_size=8)), 8, outcomes)
    assert len(api.asked) == 1
    assert all(isinstance(outcome, Failure) and outcome.final for _, outcome in outcomes)


# when to stop


def test_nothing_but_failed_calls_is_given_up_after_a_time(api: RawApi) -> None:
    """Long before each request has been tried as often as is allowed."""
    api.answer = lambda body: BUSY
    start = time.monotonic()
    with pytest.raises(TeacherError, match=r"gave up after 0.3 s of failed calls only \(dead_after\); the last: .*503"):
        Paying(Paged(api.url), dead_after=0.3, attempts=1000, give_up_after=1000, longest_wait=0.05).rank(
            histories(100), 1
        )
    assert 0.3 < time.monotonic() - start < 5


def test_waits_that_the_api_asked_for_are_no_failures(api: RawApi) -> None:
    api.answer = lambda body: response(b"", "503 Busy", Retry_After="0.3") if len(api.asked) <= 3 else GOOD
    assert len(Paying(Paged(api.url), dead_after=0.2).rank(histories(1), 1)) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_status_that_is_permanent_lies_in_the_question_whatever_else_it_may_mean(api: RawApi, status: int) -> None:
    """As 403 for a user who has opted out."""
    api.answer = lambda body: response(b"opted out", f"{status} No") if body["rows"] == [3] else GOOD
    outcomes: list[Outcome] = []
    collect(Paying(Paged(api.url), permanent=(status,), concurrency=1), 8, outcomes)
    assert [(request.row, outcome.final) for request, outcome in outcomes if isinstance(outcome, Failure)] == [
        (3, True)
    ]
    assert len(outcomes) == 8


def test_one_slow_call_does_not_end_what_goes_well_beside_it(api: RawApi) -> None:
    """Though it takes longer until it is given up than the API may be silent."""
    api.answer = lambda body: [2.0, GOOD] if body["rows"] == [0] else [0.02, GOOD]
    outcomes: list[Outcome] = []
    collect(Paying(Paged(api.url), timeout=0.5, dead_after=0.3, attempts=2, concurrency=2), 100, outcomes)
    assert [request.row for request, outcome in outcomes if isinstance(outcome, Failure)] == [0]
    assert len(outcomes) == 100


def test_an_api_that_refuses_slowly_is_not_dead(api: RawApi) -> None:
    """It lives, and does not know some users."""
    api.answer = lambda body: GOOD if body["rows"] == [7] else [0.05, response(b"who?", "404 Not Found"), None]
    outcomes: list[Outcome] = []
    collect(Paying(Paged(api.url), dead_after=0.1, concurrency=1), 8, outcomes)
    assert len(api.asked) == 8


def test_a_silence_that_is_too_long_for_us_ends_the_asking(api: RawApi) -> None:
    """The quota of the day is used up, say."""
    api.answer = lambda body: GOOD if len(api.asked) < 5 else response(b"", "429 No", Retry_After="3600")
    with pytest.raises(TeacherError, match=r"asks for a longer silence than longest_wait; the last: .*wait 3,600 s"):
        Paying(Paged(api.url), concurrency=2).rank(histories(100), 1)
    assert len(api.asked) <= 6


def test_questions_refused_each_for_itself_are_borne_by_the_dozen_once_the_api_has_answered(api: RawApi) -> None:
    """Users who came last are unknown to it, one after the other; an endless row of them is another matter."""
    who = response(b"who?", "404 Not Found")
    api.answer = lambda body: GOOD if body["rows"] == [0] else who
    outcomes: list[Outcome] = []
    collect(Paying(Paged(api.url), concurrency=1), 100, outcomes)
    assert len(outcomes) == 100
    with pytest.raises(TeacherError, match="gave up after 100 failed requests in a row"):
        Paying(Paged(api.url), concurrency=1).rank(histories(200), 1)
    api.answer = lambda body: who
    with pytest.raises(TeacherError, match="gave up after 10 failed requests in a row"):
        Paying(Paged(api.url), concurrency=1).rank(histories(200), 1)


def test_unknown_users_do_not_add_up_with_other_failures(api: RawApi) -> None:
    """Twelve in a row, then one reply that is cut: that is one failure, not the thirteenth."""

    def answer(body: Body) -> Any:
        (row,) = body["rows"]
        return [None] if row == 13 else GOOD if row in (0, 14) else response(b"who?", "404 Not Found")

    api.answer = answer
    outcomes: list[Outcome] = []
    collect(Paying(Paged(api.url), concurrency=1, attempts=1), 15, outcomes)
    assert len(outcomes) == 15


def test_that_an_api_has_answered_is_known_in_the_next_ranking_and_in_the_next_run(api: RawApi, ledger: Ledger) -> None:
    """Twenty unknown users may begin a block."""
    api.answer = lambda body: GOOD if body["rows"] == [0] and len(api.asked) == 1 else response(b"who?", "404 No")
    teacher = Paying(Paged(api.url), concurrency=1)
    LedgerTeacher(teacher, ledger).rank(histories(1), 1)
    for asked in (teacher, Paying(Paged(api.url), concurrency=1)):
        strangers = Sequences.from_lists([[item] for item in range(101, 121)])
        _, answered = LedgerTeacher(asked, ledger, round=int(asked is teacher)).rank_within_budget(strangers, 1)
        assert not answered.any()


def test_questions_that_failed_before_are_not_borne_for_ever(api: RawApi, ledger: Ledger) -> None:
    """The API has moved meanwhile."""
    teacher = Paying(Paged(api.url), concurrency=1, attempts=1)
    api.answer = lambda body: GOOD if body["rows"][0] % 2 else response(b"", "500 Oops")
    LedgerTeacher(teacher, ledger).rank_within_budget(histories(400), 1)
    api.asked.clear()
    api.answer = lambda body: response(b"", "404 Not Found")
    with pytest.raises(TeacherError, match="gave up after 100 failed requests in a row"):
        LedgerTeacher(teacher, ledger).rank_within_budget(histories(400), 1)
    assert len(api.asked) == 100


def test_one_conversation_that_overruns_the_budget_does_not_cut_the_others_short(api: RawApi, ledger: Ledger) -> None:
    """Three pages each; the first row's first page is lost once, so the budget of six ends before its last one."""
    lost: list[Body] = []

    def answer(body: Body) -> Any:
        if body["rows"] == [0] and not lost:
            lost.append(body)
            return [None]
        return [0.02 if body["rows"] == [0] else 0.05, GOOD]

    api.answer = answer
    keeper = LedgerTeacher(Paying(Paged(api.url, pages=3), charge="calls", concurrency=2), ledger, budget=6)
    _, answered = keeper.rank_within_budget(histories(2), 1)
    assert answered.sum() == 1
    assert keeper.stats().spent <= 6


@pytest.mark.parametrize(("status", "asked_again"), [("404 Not Found", 0), ("500 Oops", 40)])
def test_questions_that_failed_among_answers_do_not_end_the_next_run(
    api: RawApi, ledger: Ledger, status: str, asked_again: int
) -> None:
    """They are all that it has left to ask; those that were refused for good are not asked at all."""
    api.answer = lambda body: response(b"who?", status) if body["rows"][0] % 5 == 0 else GOOD
    for _ in range(3):
        _, answered = LedgerTeacher(Paying(Paged(api.url), attempts=1), ledger).rank_within_budget(histories(100), 1)
        assert answered.sum() == 80
    assert len(api.asked) == 100 + asked_again


class Lame(Paged):
    """Reads each reply, and finds an answer to those questions alone whose row is a multiple of the batch's size."""

    def converse(self, requests: Sequence[Request], k: int) -> Conversation:
        answers = yield from super().converse(requests, k)
        return [
            answer if request.row % self.batch_size == 0 else Failure("quota exceeded")
            for request, answer in zip(requests, answers, strict=True)
        ]


class Wrong(Paged):
    """Can read no reply."""

    def converse(self, requests: Sequence[Request], k: int) -> Conversation:
        yield from super().converse(requests, k)
        raise TeacherError("nothing at 'predictions[*]'")


@pytest.mark.parametrize(("charge", "asked", "spent"), [("queries", 10, 10), ("rows", 10, 10), ("calls", 64, 1)])
def test_a_reply_to_several_questions_that_cannot_be_read_costs_ten_of_them(
    api: RawApi, ledger: Ledger, charge: Charge, asked: int, spent: int
) -> None:
    """Not eight batches of 64, or ten; where calls are charged, one may as well be full."""
    keeper = LedgerTeacher(Paying(Wrong(api.url, 64), charge=charge), ledger, budget=2000)
    with pytest.raises(TeacherError, match=f"gave up after {asked} failed requests in a row"):
        keeper.rank(histories(1000), 1)
    assert [len(body["rows"]) for body in api.asked] == [asked]
    assert keeper.stats().spent == spent


def test_every_question_of_a_call_that_failed_counts(api: RawApi) -> None:
    """After one answer ten batches of eight would be eighty failures, where thirteen are a hundred."""
    api.answer = lambda body: GOOD if len(api.asked) == 1 else response(b"", "301 Moved", Location="http://x.example")
    with pytest.raises(TeacherError, match="gave up after 104 failed requests in a row"):
        Paying(Paged(api.url, 8), concurrency=1).rank(histories(400), 1)
    assert len(api.asked) == 1 + 13


def test_calls_that_fail_on_most_of_their_questions_are_given_up(api: RawApi, ledger: Ledger) -> None:
    """One good answer in each of them would keep the asking going to the end of the budget."""
    keeper = LedgerTeacher(Paying(Lame(api.url, 8), concurrency=1), ledger, budget=2000)
    with pytest.raises(TeacherError, match=r"gave up after 10 calls in a row most of .*: quota exceeded"):
        keeper.rank(histories(800), 1)
    assert (keeper.stats().answers, keeper.stats().spent) == (10, 80)


def test_calls_that_fail_on_half_of_their_questions_are_not_given_up(api: RawApi) -> None:
    outcomes: list[Outcome] = []
    collect(Paying(Lame(api.url, 2)), 40, outcomes)
    assert sum(isinstance(outcome, Answer) for _, outcome in outcomes) == 20


def test_an_api_that_answers_now_and_then_is_not_dead(api: RawApi) -> None:
    api.answer = lambda body: GOOD if len(api.asked) % 4 == 0 else [0.05, None]
    teacher = Paying(Paged(api.url), dead_after=0.4, concurrency=1, attempts=10)
    assert len(teacher.rank(histories(8), 1)) == 8


@pytest.mark.parametrize("reply", [b"HTTP/1.1 401 not s3cret\r\n\r\n", b"HTTP/1.1 200 OK\r\nno header, s3cret\r\n\r\n"])
def test_what_ends_the_asking_is_told_without_secrets(api: RawApi, reply: bytes) -> None:
    """Also where it is no part of a body."""
    api.answer = lambda body: [reply, None]
    with pytest.raises(TeacherError, match=r"\*\*\*") as caught:
        Paying(Paged(api.url), attempts=1, give_up_after=1).rank(histories(1), 1)
    assert "s3cret" not in str(caught.value)


def test_what_waits_is_not_sent_once_asking_is_stopped(api: RawApi) -> None:
    """The key is refused while the other request waits for its turn, a minute away."""
    api.answer = lambda body: response(b"", "401 Unauthorized")
    outcomes: list[Outcome] = []
    start = time.monotonic()
    with pytest.raises(TeacherError, match="fare no better"):
        collect(Paying(Paged(api.url), rate=1 / 60), 2, outcomes)
    assert len(api.asked) == 1
    assert time.monotonic() - start < 10
    assert {request.row: type(outcome) for request, outcome in outcomes} == {0: Failure, 1: Unsent}


def test_a_fault_of_our_own_keeps_what_is_in_flight(api: RawApi) -> None:
    """One request makes the shape raise; the other's answer is on its way and still handed on."""

    class Broken(Paged):
        def converse(self, requests: Sequence[Request], k: int) -> Conversation:
            if requests[0].row == 1:
                raise ZeroDivisionError
            return super().converse(requests, k)

    api.answer = lambda body: [0.1, GOOD]
    outcomes: list[Outcome] = []
    with pytest.raises(ZeroDivisionError):
        collect(Paying(Broken(api.url)), 2, outcomes)
    assert [request.row for request, _ in outcomes] == [0]


def test_ctrl_c_while_an_answer_is_written_down_keeps_what_is_in_flight(
    api: RawApi, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the transaction would be rolled back, and the other answers, paid for as well, would be dropped."""
    settle, settled = ledger.settle, []

    def interrupted(page: Page, outcomes: Iterable[tuple[Question, Answer | Failure]]) -> None:
        settled.append(page)
        if len(settled) == 1:
            signal.raise_signal(signal.SIGINT)
        settle(page, outcomes)

    monkeypatch.setattr(ledger, "settle", interrupted)
    api.answer = lambda body: [0.1 * body["rows"][0], GOOD]
    keeper = LedgerTeacher(Paying(Paged(api.url), concurrency=4), ledger)
    with pytest.raises(KeyboardInterrupt):
        keeper.rank(histories(8), 1)
    assert (keeper.stats().answers, keeper.stats().lost) == (len(api.asked), 0)
    assert len(api.asked) < 8


def test_a_second_ctrl_c_keeps_what_came_back_and_says_what_it_drops(
    api: RawApi, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """What is dropped stays charged, and is asked again."""

    def answer(body: Body) -> list[bytes | float]:
        if len(api.asked) == 4:
            for seconds in (0.1, 1.2):
                threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        return [0.4 if body["rows"][0] < 2 else 60.0, GOOD]

    api.answer = answer
    keeper = LedgerTeacher(Paying(Paged(api.url), concurrency=4), ledger)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING, logger="recdistill.teachers"):
        keeper.rank(histories(8), 1)
    stats = keeper.stats()
    assert (stats.answers, stats.lost, stats.spent, stats.open) == (2, 2, 4, 0)
    assert re.findall(r"(\d) calls in flight (\w+ \w+)", caplog.text) == [("4", "are waited"), ("2", "were dropped")]


@pytest.mark.parametrize("charge", ["queries", "calls"])
@pytest.mark.parametrize("error", [TeacherError("no token, key s3cret"), SettingsError("no package, key s3cret")])
def test_what_cannot_be_signed_ends_the_asking_and_is_not_charged(
    api: RawApi, ledger: Ledger, charge: Charge, error: Exception
) -> None:
    """The first call is on its way when the second cannot be signed; nobody tries to sign a third."""
    signed = []

    class Expired(Paged):
        def sign(self, call: Call, token: str | None) -> Call:
            signed.append(call)
            if len(signed) > 1:
                raise error
            return call

    api.answer = lambda body: [0.1, GOOD]
    keeper = LedgerTeacher(Paying(Expired(api.url), charge=charge), ledger, budget=10)
    with pytest.raises(
        TeacherError, match=r"fare no better; the last: .* not asked, as .* cannot be signed: no .*\*\*\*"
    ):
        keeper.rank(histories(8), 1)
    stats = keeper.stats()
    assert (stats.answers, stats.failures, stats.spent, stats.lost, stats.open) == (1, 1, 1, 0, 0)
    assert (len(signed), rows_asked(api)) == (2, [0])


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Who", "Zoë"), ("X-Who", "a\ns3cret"), ("X-Who", "s3cret "), ("X Who", "s3cret")],
    ids=["letters", "line break", "space", "name"],
)
def test_a_header_that_cannot_be_sent_ends_the_asking_and_is_not_charged(
    api: RawApi, ledger: Ledger, name: str, value: str
) -> None:
    class Named(Paged):
        def sign(self, call: Call, token: str | None) -> Call:
            return replace(call, headers={name: value})

    keeper = LedgerTeacher(Paying(Named(api.url), charge="calls"), ledger, budget=10)
    with pytest.raises(TeacherError, match=rf"fare no better; .* not asked, as .*: header '{name}' has a") as caught:
        keeper.rank(histories(8), 1)
    assert value not in str(caught.value)
    assert (keeper.stats().spent, keeper.stats().lost, api.asked) == (0, 0, [])


@pytest.mark.parametrize("address", ["http://127.0.0.1:http/", "http://127.0.0.1/?history=" + "i" * 70_000])
def test_what_is_no_address_is_a_failure_and_not_charged(ledger: Ledger, address: str) -> None:
    """As where one long history of many is written into the query."""
    keeper = LedgerTeacher(Paying(Paged(address), charge="calls"), ledger, budget=10)
    with pytest.raises(TeacherError, match=r"1 failed, the first: http://127.* was not asked") as caught:
        keeper.rank(histories(1), 1)
    assert len(str(caught.value)) < 700
    assert (keeper.stats().spent, keeper.stats().failures) == (0, 1)


# proxies and certificates, which the environment names


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "socks5://me:hunter2@127.0.0.1:1", "names a SOCKS proxy, which needs a package"),
        ("HTTP_PROXY", "http://me:hun/ter2@:x", "does not name a proxy that can be used"),
        ("HTTP_PROXY", "ftp://me:hunter2@proxy", "does not name a proxy that can be used"),
        ("SSL_CERT_FILE", "/nowhere.pem", "names no file or folder of certificates: .*No such file"),
    ],
    ids=["socks", "port", "scheme", "certificates"],
)
def test_what_of_the_environment_cannot_be_used_is_refused_before_anything_is_charged(
    api: RawApi, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv(name, value)
    keeper = LedgerTeacher(Paying(Paged(api.url)), ledger, budget=10)
    with pytest.raises(SettingsError, match=f"environment variable {name} {said}") as caught:
        keeper.rank(histories(8), 1)
    assert "hun" not in str(caught.value)
    assert (keeper.stats().spent, keeper.stats().lost, api.asked) == (0, 0, [])


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "403 Forbidden"])
def test_a_proxy_that_lets_nobody_through_ends_the_asking_and_is_not_paid(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, scheme: str, status: str
) -> None:
    with RawApi(lambda body: response(b"", status)).serve() as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.url)
        keeper = LedgerTeacher(Paying(Paged(f"{scheme}://shop.invalid/"), concurrency=1), ledger, budget=10)
        with pytest.raises(TeacherError, match="fare no better"):
            keeper.rank(histories(8), 1)
    assert keeper.stats().spent == 0


def test_a_proxy_that_is_not_there_is_named(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
    keeper = LedgerTeacher(Paying(Paged("http://shop.invalid/"), attempts=1), ledger, budget=10)
    with pytest.raises(TeacherError, match="cannot be reached by the proxy of environment variable HTTP_PROXY"):
        keeper.rank(histories(1), 1)
    assert keeper.stats().spent == 0


# what is charged


@pytest.mark.parametrize(
    ("charge", "spent"),
    [
        ("queries", 6),
        ("calls", 2 * 3 + 1),  # two batches of three pages, and a retry
        ("rows", (4 + 2) * 3 + 4),  # the retry was one of four
    ],
)
def test_what_is_charged(api: RawApi, ledger: Ledger, charge: Charge, spent: int) -> None:
    """Six questions, four in a call, three pages each, and one call that had to be sent again."""
    api.answer = lambda body: BUSY if len(api.asked) == 1 else GOOD
    keeper = LedgerTeacher(Paying(Paged(api.url, 4, 3), charge=charge, concurrency=1), ledger, budget=100)
    keeper.rank(histories(6), 1)
    assert (keeper.stats().spent, keeper.stats().charge, keeper.stats().answers) == (spent, charge, 6)
    assert keeper.stats().calls == len(api.asked) == 7


@pytest.mark.parametrize(
    ("charge", "budget", "calls", "answers"),
    [
        ("calls", 5, 5, 8),
        ("rows", 11, 6, 9),
    ],  # eleven rows: five calls about two, the first for nothing, and one about one
)
def test_the_budget_is_a_ceiling_on_calls_and_rows_and_is_spent_to_the_last(
    api: RawApi, ledger: Ledger, charge: Charge, budget: int, calls: int, answers: int
) -> None:
    """Twenty questions, two in a call, and the first call sent twice."""
    api.answer = lambda body: BUSY if len(api.asked) == 1 else GOOD
    keeper = LedgerTeacher(Paying(Paged(api.url, 2), charge=charge, concurrency=1), ledger, budget=budget)
    with pytest.raises(BudgetExhausted, match=f"the budget of {budget} {charge} .* is spent") as caught:
        keeper.rank(histories(20), 1)
    assert caught.value.answered is not None
    assert int(caught.value.answered.sum()) == answers
    assert (keeper.stats().spent, len(api.asked)) == (budget, calls)


def test_an_unanswered_page_is_charged_but_the_question_is_not_answered(api: RawApi, ledger: Ledger) -> None:
    """Two pages a question, and a budget of two calls, of which the first has to be made again."""
    api.answer = lambda body: BUSY if len(api.asked) == 1 else GOOD
    keeper = LedgerTeacher(Paying(Paged(api.url, 1, 2), charge="calls", concurrency=1), ledger, budget=2)
    _, answered = keeper.rank_within_budget(histories(2), 1)
    assert answered.tolist() == [False, False]
    assert (keeper.stats().spent, len(api.asked)) == (2, 2)
    larger = LedgerTeacher(Paying(Paged(api.url, 1, 2), charge="calls"), ledger, budget=10)
    larger.rank(histories(2), 1)
    assert larger.stats().spent == 6


@pytest.mark.parametrize("charge", ["calls", "rows"])
def test_no_conversation_is_begun_that_the_budget_does_not_last_for(
    api: RawApi, ledger: Ledger, caplog: pytest.LogCaptureFixture, charge: Charge
) -> None:
    """Eight at once of four calls each would spend all ten on first pages, and be answered nothing."""
    keeper = LedgerTeacher(Paying(Paged(api.url, 1, 4), charge=charge, concurrency=8), ledger, budget=10)
    _, answered = keeper.rank_within_budget(histories(20), 1)
    assert answered.tolist() == [True] * 2 + [False] * 18
    assert (keeper.stats().spent, len(api.asked)) == (8, 8)
    assert "has 2 left while the next request takes 4, and 18 of 20 requests are not answered" in caplog.text


def test_a_budget_that_buys_no_answer_is_not_spent_and_says_what_one_takes(api: RawApi, ledger: Ledger) -> None:
    keeper = LedgerTeacher(Paying(Paged(api.url, 1, 4), charge="calls"), ledger, budget=3)
    with pytest.raises(BudgetExhausted, match="has 3 left while the next request takes 4, and 5 of 5 requests"):
        keeper.rank(histories(5), 1)
    assert (keeper.stats().spent, api.asked) == (0, [])


def test_what_a_failed_conversation_did_not_take_buys_another(api: RawApi, ledger: Ledger) -> None:
    """Ten calls last for two at once of four; the first page of one of them is refused, so that nine remain for two."""
    api.answer = lambda body: response(b"", "404 Not Found") if body["rows"] == [0] else GOOD
    keeper = LedgerTeacher(Paying(Paged(api.url, 1, 4), charge="calls", concurrency=8), ledger, budget=10)
    _, answered = keeper.rank_within_budget(histories(20), 1)
    assert answered.tolist() == [False, True, True] + [False] * 17
    assert keeper.stats().spent == 9


def test_several_requests_in_a_call_take_one_together(api: RawApi, ledger: Ledger) -> None:
    """Two calls of four pay for eight, although there are eight places."""
    keeper = LedgerTeacher(Paying(Paged(api.url, 4), charge="calls", concurrency=8), ledger, budget=2)
    _, answered = keeper.rank_within_budget(histories(20), 1)
    assert answered.tolist() == [True] * 8 + [False] * 12
    assert keeper.stats().failures == 0


def test_openings_of_one_ledger_share_a_budget_of_calls(api: RawApi, tmp_path: Path) -> None:
    """As processes do; every call, and every retry, is booked before it is sent."""
    api.answer = lambda body: BUSY if len(api.asked) % 3 == 0 else GOOD

    def run() -> None:
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            keeper = LedgerTeacher(Paying(Paged(api.url), charge="calls", concurrency=3), ledger, budget=40)
            keeper.rank_within_budget(histories(100), 1)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.stats("paying").spent == 40
    assert len(api.asked) == 40


def test_what_was_stopped_before_its_turn_is_not_charged(api: RawApi, ledger: Ledger) -> None:
    api.answer = lambda body: response(b"", "401 Unauthorized")
    keeper = LedgerTeacher(Paying(Paged(api.url), charge="calls", rate=1 / 60), ledger)
    with pytest.raises(TeacherError, match="fare no better"):
        keeper.rank(histories(8), 1)
    assert (keeper.stats().spent, keeper.stats().failures, keeper.stats().open) == (1, 1, 0)


def test_a_connection_that_nobody_takes_was_not_paid_for() -> None:
    """A full queue of connections that are never accepted, as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        address = server.getsockname()
        queued = [socket.socket() for _ in range(4)]
        for line in queued:
            line.setblocking(False)
            line.connect_ex(address)
        outcomes: list[Outcome] = []
        collect(Paying(Paged(f"http://127.0.0.1:{address[1]}/"), timeout=0.4, attempts=1), 1, outcomes)
        for line in queued:
            line.close()
    ((_, failure),) = outcomes
    assert isinstance(failure, Failure)
    assert "cannot be reached: ConnectTimeout" in failure.reason
    assert not failure.paid


def test_what_is_charged_cannot_change_once_something_was_spent(api: RawApi, ledger: Ledger) -> None:
    LedgerTeacher(Paying(Paged(api.url)), ledger)
    LedgerTeacher(Paying(Paged(api.url), charge="calls"), ledger).rank(histories(2), 1)
    with pytest.raises(SettingsError, match=r'has counted 2 calls of .* in queries; set charge = "calls"'):
        LedgerTeacher(Paying(Paged(api.url)), ledger)


def test_two_who_count_otherwise_do_not_spend_from_one_budget(api: RawApi, ledger: Ledger) -> None:
    """Else each would see only what it counts itself, and the budget would be no ceiling."""
    queries = LedgerTeacher(Paying(Paged(api.url)), ledger, budget=5)
    LedgerTeacher(Paying(Paged(api.url), charge="calls"), ledger, budget=5)
    with pytest.raises(SettingsError, match=r'has counted 0 calls of .* in queries; set charge = "calls"'):
        queries.rank_within_budget(histories(20), 1)
    assert not api.asked


def test_what_is_charged_cannot_change_while_somebody_asks(api: RawApi, ledger: Ledger) -> None:
    """Though nothing is spent yet: an attempt is booked, and its call waits for its turn."""
    LedgerTeacher(Paying(Paged(api.url), charge="calls"), ledger)
    page = ledger.page("paying", 1, 0)
    ledger.book(page, [b"first"], Terms(charge="calls"))
    with pytest.raises(SettingsError, match="has counted 0 calls"):
        LedgerTeacher(Paying(Paged(api.url)), ledger)
    with pytest.raises(SettingsError, match="has counted 0 calls"):
        ledger.charge(page, [b"first"], Terms())
    ledger.lose(page, [b"first"])
    LedgerTeacher(Paying(Paged(api.url)), ledger)


def test_a_call_carries_no_more_questions_than_the_shape_allows(api: RawApi) -> None:
    teacher = Paying(Paged(api.url, batch_size=4), concurrency=2)
    assert teacher.rank(histories(10), 1).items[:, 0].tolist() == list(range(1, 11))
    assert sorted(len(body["rows"]) for body in api.asked) == [2, 4, 4]
    assert rows_asked(api) == list(range(10))


def test_one_bad_row_does_not_cost_its_batch(api: RawApi, ledger: Ledger) -> None:
    """And what the shape quotes of the reply is told without secrets."""

    class Choosy(Paged):
        def converse(self, requests: Sequence[Request], k: int) -> Conversation:
            yield Call("POST", self.url, body=b'{"rows": []}')
            return [
                Failure("no such user, key s3cret") if request.row == 1 else Answer([request.row + 1])
                for request in requests
            ]

    _, answered = LedgerTeacher(Paying(Choosy(api.url, 3)), ledger).rank_within_budget(histories(3), 1)
    assert answered.tolist() == [True, False, True]
    with ledger.reading() as db:
        assert db.execute("SELECT reason FROM failures").fetchall() == [("no such user, key ***",)]
