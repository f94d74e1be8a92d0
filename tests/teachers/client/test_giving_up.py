"""When an API is asked no more, and that nothing paid for is thrown away."""

import time
from collections.abc import Sequence
from typing import Any

import pytest

from recdistill.data.dataset import Sequences
from recdistill.errors import TeacherError
from recdistill.teachers.answers import Answer, Failure, Outcome, Request
from recdistill.teachers.exchange import Conversation
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.teachers.meter import Charge

from ..raw_api import Body, RawApi, response
from .paying import BUSY, GOOD, Paged, Paying, collect, histories


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


def test_an_account_that_has_nothing_left_to_pay_with_ends_the_asking_and_no_question_is_refused_for_it(
    api: RawApi, ledger: Ledger
) -> None:
    api.answer = lambda body: GOOD if len(api.asked) <= 20 else response(b"", "402 Payment Required")
    keeper = LedgerTeacher(Paying(Paged(api.url), concurrency=4), ledger)
    with pytest.raises(TeacherError, match=r"fare no better; .* 402 .* nothing left to pay with"):
        keeper.rank(histories(400), 1)
    assert (keeper.stats().answers, keeper.stats().refused) == (20, 0)
    assert len(api.asked) <= 20 + 4
    api.answer = lambda body: response(b"", "402 Payment Required") if body["rows"] == [0] else GOOD
    outcomes: list[Outcome] = []
    collect(Paying(Paged(api.url), permanent=(402,)), 8, outcomes)
    assert [request.row for request, outcome in outcomes if isinstance(outcome, Failure)] == [0]


@pytest.mark.parametrize("status", ["500 Internal Server Error", "429 Too Many Requests"])
def test_every_call_is_counted_also_of_questions_that_others_ended(api: RawApi, ledger: Ledger, status: str) -> None:
    """But those did not fail by themselves, and the next run asks them as if nothing had been."""
    api.answer = lambda body: response(b"", status)
    keeper = LedgerTeacher(Paying(Paged(api.url), attempts=3, give_up_after=3, dead_after=0.3), ledger)
    with pytest.raises(TeacherError, match="gave up after"):
        keeper.rank(histories(50), 1)
    assert keeper.stats().calls == len(api.asked) > keeper.stats().failures
    assert keeper.stats().failures <= 3 + 8
    assert keeper.stats().spent == 0


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
