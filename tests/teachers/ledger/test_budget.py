"""That a budget is a ceiling."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from recdistill.errors import BudgetExhausted, SettingsError
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher

from .asking import histories, one_by_one


def test_a_budget_is_spent_to_the_query_and_not_beyond(ledger: Ledger) -> None:
    teacher = FakeTeacher(50, batch_size=4)
    keeper = LedgerTeacher(teacher, ledger, budget=6)
    with pytest.raises(BudgetExhausted, match="budget of 6 queries for teacher 'fake' is spent, and 4 of 10") as caught:
        keeper.rank(histories(10), 1)
    assert len(teacher.asked) == 6
    assert caught.value.ranking is not None
    assert caught.value.answered is not None
    assert caught.value.answered.tolist() == [True] * 6 + [False] * 4
    assert caught.value.ranking.items[:, 0].tolist() == [2, 3, 4, 5, 6, 7, 0, 0, 0, 0]
    assert keeper.stats().left == 0


def test_a_larger_budget_asks_only_for_the_rest(ledger: Ledger) -> None:
    teacher = FakeTeacher(50)
    LedgerTeacher(teacher, ledger, budget=6).rank_within_budget(histories(10), 1)
    LedgerTeacher(teacher, ledger, budget=10).rank(histories(10), 1)
    assert teacher.asked == [[item] for item in range(1, 11)]


def test_known_requests_are_answered_without_a_budget(ledger: Ledger) -> None:
    LedgerTeacher(FakeTeacher(50), ledger).rank(histories(3), 1)
    ranking, answered = LedgerTeacher(FakeTeacher(50), ledger, budget=0).rank_within_budget(histories(4), 1)
    assert answered.tolist() == [True, True, True, False]
    assert ranking.items[:, 0].tolist() == [2, 3, 4, 0]


def test_what_another_run_bought_while_this_one_ran_out_is_used(path: Path, ledger: Ledger) -> None:
    """The other asks in another order, so this one has not come to that row when the budget ends."""

    def rule(history: Any, k: int) -> list[int]:
        if history[0] == 1:
            with Ledger(path) as other:
                LedgerTeacher(FakeTeacher(50), other, budget=2).rank(histories(1, first=9), 1)
        return [50]

    _, answered = LedgerTeacher(FakeTeacher(50, rule, batch_size=1), ledger, budget=2).rank_within_budget(
        histories(9), 1
    )
    assert answered.tolist() == [True] + [False] * 7 + [True]


def test_each_teacher_has_its_own_budget(ledger: Ledger) -> None:
    LedgerTeacher(FakeTeacher(50), ledger, budget=2).rank(histories(2), 1)
    LedgerTeacher(FakeTeacher(50, identity="other"), ledger, budget=2).rank(histories(2), 1)


def test_a_budget_that_begins_anew_beside_others_is_told(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """As when the address of an API changed, after which it goes by another name."""
    with caplog.at_level(logging.WARNING, logger="recdistill.teachers"):
        LedgerTeacher(FakeTeacher(9, identity="old"), ledger, budget=5).rank(histories(1), 1)
        LedgerTeacher(FakeTeacher(9, identity="old"), ledger, budget=5)
    assert not caplog.text
    with caplog.at_level(logging.WARNING, logger="recdistill.teachers"):
        LedgerTeacher(FakeTeacher(9, identity="new"), ledger, budget=5)
    assert "nothing of teacher 'new', whose budget begins anew, but of 'old'" in caplog.text


def test_a_negative_budget_is_refused(ledger: Ledger) -> None:
    with pytest.raises(SettingsError, match="budget of -1"):
        LedgerTeacher(FakeTeacher(5), ledger, budget=-1)


def test_threads_share_one_budget_and_ask_nothing_twice(ledger: Ledger) -> None:
    teacher = one_by_one(100)
    keeper = LedgerTeacher(teacher, ledger, budget=30)
    results: list[list[bool]] = []
    threads = [
        threading.Thread(target=lambda: results.append(keeper.rank_within_budget(histories(40), 1)[1].tolist()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(teacher.asked) == 30
    assert len({item for (item,) in teacher.asked}) == 30
    assert [sum(answered) for answered in results] == [30] * 4
