"""What is charged, and that the budget is a ceiling."""

import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from recdistill.errors import BudgetExhausted, SettingsError, TeacherError
from recdistill.teachers.answers import Answer, Failure, Outcome, Request
from recdistill.teachers.exchange import Call, Conversation
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_records import Terms
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.teachers.meter import Charge

from ..raw_api import RawApi, response
from .paying import BUSY, GOOD, Paged, Paying, collect, histories, rows_asked


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
