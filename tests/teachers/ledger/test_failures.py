"""Questions without an answer."""

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import TeacherError
from recdistill.rankings import Ranking
from recdistill.teachers.answers import Answer, Failure, Outcome, Take
from recdistill.teachers.callable import CallableTeacher
from recdistill.teachers.ensemble import EnsembleTeacher
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher

from .asking import Choosy, histories, one_by_one


def test_one_failure_does_not_cost_the_other_answers(ledger: Ledger) -> None:
    teacher = Choosy({2}, paid=False)
    keeper = LedgerTeacher(teacher, ledger)
    with pytest.raises(TeacherError, match=r"left 1 of 4 requests unanswered; 1 failed, the first: refused\. all ans"):
        keeper.rank(histories(4), 1)
    teacher.refused = set()
    assert keeper.rank(histories(4), 1).items[:, 0].tolist() == [2, 3, 4, 5]
    assert teacher.asked == [[1], [2], [3], [4], [2]]


def test_what_failed_before_is_asked_again_as_such(ledger: Ledger) -> None:
    teacher = Choosy({2}, paid=False)
    keeper = LedgerTeacher(teacher, ledger)
    keeper.rank_within_budget(histories(3), 1)
    keeper.rank_within_budget(histories(4), 1)
    assert list(zip(teacher.asked[3:], teacher.failed_before[3:], strict=True)) == [([2], True), ([4], False)]


def test_what_was_refused_for_good_is_not_asked_again_until_that_is_forgotten(
    path: Path, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = Choosy({2}, paid=False, final=True)
    keeper = LedgerTeacher(teacher, ledger)
    keeper.rank_within_budget(histories(3), 1)
    known = keeper.look_up(histories(3), 1)
    assert (len(known.asked), len(known.refused), len(known.missing)) == (3, 1, 0)
    with caplog.at_level(logging.WARNING, logger="recdistill.teachers"):
        _, answered = keeper.rank_within_budget(histories(3), 1)
    assert (answered.tolist(), len(teacher.asked)) == ([True, False, True], 3)
    assert f"1 was refused for good, 'recdistill ledger forget {path}'" in caplog.text
    assert (keeper.stats().failures, keeper.stats().refused) == (1, 1)
    teacher.refused = set()
    assert ledger.forget_refusals() == 1
    assert keeper.stats().refused == 0
    assert keeper.rank(histories(3), 1).items[:, 0].tolist() == [2, 3, 4]
    assert teacher.asked[3:] == [[2]]


def test_what_was_refused_just_before_a_teacher_gave_up_is_asked_again(ledger: Ledger) -> None:
    """All that it was asked last was refused: it may be the teacher that was at fault."""

    class Ending(Choosy):
        def answers(self, take: Take, k: int) -> Iterator[list[Outcome]]:
            yield from super().answers(take, k)
            raise TeacherError("gave up")

    teacher = Ending({2, 4, 5}, paid=False, final=True)
    keeper = LedgerTeacher(teacher, ledger)
    with pytest.raises(TeacherError, match="gave up"):
        keeper.rank_within_budget(histories(5), 1)
    assert keeper.stats().refused == 1
    with pytest.raises(TeacherError, match="gave up"):
        keeper.rank_within_budget(histories(5), 1)
    assert teacher.asked[5:] == [[4], [5]]


def test_what_was_refused_beside_the_last_answer_is_asked_again(ledger: Ledger) -> None:
    """As by an API that began to refuse everything while an answer was on its way."""

    class Ending(FakeTeacher):
        def answers(self, take: Take, k: int) -> Iterator[list[Outcome]]:
            first, *others = take(3)
            for request in others:
                yield [(request, Failure("refused", final=True))]
            yield [(first, Answer([1]))]
            raise TeacherError("gave up")

    keeper = LedgerTeacher(Ending(50), ledger)
    with pytest.raises(TeacherError, match="gave up"):
        keeper.rank_within_budget(histories(5), 1)
    assert (keeper.stats().answers, keeper.stats().failures, keeper.stats().refused) == (1, 2, 0)


def test_lists_that_name_nothing_we_know_are_not_bought_on(ledger: Ledger) -> None:
    """As when the format of the ids was forgotten."""
    asked: list[list[Any]] = []

    def stranger(history: list[Any], k: int) -> list[str]:
        asked.append(history)
        return [f"item-{history[0]}"]

    ids = IdMap([f"{item}" for item in range(1, 501)], first=1)
    keeper = LedgerTeacher(CallableTeacher(stranger, identity="stranger", ids=ids, batched=False), ledger, budget=400)
    with pytest.raises(
        TeacherError, match=r"no item of the data in 100 lists, .* begins with \['item-100'\]; see item_f"
    ):
        keeper.rank_within_budget(histories(300), 1)
    assert (len(asked), keeper.stats().answers) == (100, 100)


def test_lists_that_were_understood_before_count(ledger: Ledger) -> None:
    """New items alone are listed now, as it may be."""
    ids = IdMap([f"{item}" for item in range(1, 501)], first=1)
    told = {"items": "7"}
    teacher = CallableTeacher(lambda history, k: [told["items"]], identity="old", ids=ids, batched=False)
    LedgerTeacher(teacher, ledger).rank(histories(1), 1)
    told["items"] = "new"
    assert LedgerTeacher(teacher, ledger).rank_within_budget(histories(300), 1)[1].all()
    with pytest.raises(TeacherError, match="no item of the data in 299 lists"):
        LedgerTeacher(teacher, ledger).rank_within_budget(histories(400, first=2), 1)


def test_an_ensemble_of_users_and_histories_is_kept_by_both(ledger: Ledger) -> None:
    class OfUsers(FakeTeacher):
        takes = "user"

        def rank(self, histories: Sequences, k: int, *, users: Any = None) -> Ranking:
            return Ranking(np.where(self._check_users(users)[:, None] == 5, 3, 1).astype(np.int32))

    keeper = LedgerTeacher(EnsembleTeacher([FakeTeacher(9), OfUsers(9)]), ledger)
    told = [keeper.rank(histories(1, first=item), 2, users=np.array([5])).items for item in (5, 7)]
    assert [sorted(items[0].tolist()) for items in told] == [[3, 6], [3, 8]]
    assert not keeper.hears_parts


def test_one_item_that_we_know_is_enough_to_go_on(ledger: Ledger) -> None:
    ids = IdMap([f"{item}" for item in range(1, 501)], first=1)
    teacher = CallableTeacher(
        lambda history, k: ["7" if history[0] == "90" else "?"], identity="odd", ids=ids, batched=False
    )
    assert LedgerTeacher(teacher, ledger).rank(histories(300), 1).items.sum() == 7


def test_within_a_budget_a_failure_is_reported_and_left_unanswered(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="recdistill.teachers"):
        _, answered = LedgerTeacher(Choosy({2}, paid=False), ledger).rank_within_budget(histories(3), 1)
    assert answered.tolist() == [True, False, True]
    assert "failed on 1 of 3 requests" in caplog.text


@pytest.mark.parametrize(("paid", "spent", "asked"), [(False, 3, [1, 2, 3, 4]), (True, 3, [1, 2, 3])])
def test_only_what_was_surely_not_served_is_given_back(
    ledger: Ledger, paid: bool, spent: int, asked: list[int]
) -> None:
    teacher = Choosy({2}, paid=paid)
    keeper = LedgerTeacher(teacher, ledger, budget=3)
    keeper.rank_within_budget(histories(6), 1)
    assert teacher.asked == [[item] for item in asked]
    assert keeper.stats().spent == spent


def test_what_a_teacher_raised_on_counts_as_spent_and_is_asked_again(ledger: Ledger) -> None:
    teacher = one_by_one()
    teacher.fails_on = {5}
    keeper = LedgerTeacher(teacher, ledger, budget=20)
    with pytest.raises(TeacherError, match="told to fail on query 5"):
        keeper.rank(histories(10), 1)
    assert (keeper.stats().answers, keeper.stats().failures, keeper.stats().spent) == (4, 1, 5)
    assert keeper.rank(histories(10), 1).items[:, 0].tolist() == list(range(2, 12))
    assert [item for (item,) in teacher.asked] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10]


def test_an_interruption_keeps_every_finished_answer(ledger: Ledger) -> None:
    """After 900 of 1000 answers."""

    class Interrupted(FakeTeacher):
        def answers(self, take: Take, k: int) -> Iterator[list[Outcome]]:
            for block in super().answers(take, k):
                if len(self.asked) > 900:
                    raise KeyboardInterrupt
                yield block

    with pytest.raises(KeyboardInterrupt):
        LedgerTeacher(Interrupted(2000, batch_size=1), ledger).rank(histories(1000), 1)
    rest = FakeTeacher(2000)
    keeper = LedgerTeacher(rest, ledger)
    assert (keeper.stats().answers, keeper.stats().lost, keeper.stats().spent) == (900, 1, 901)
    keeper.rank(histories(1000), 1)
    assert len(rest.asked) == 100


def test_stats_say_what_was_spent(ledger: Ledger) -> None:
    keeper = LedgerTeacher(Choosy({2}, paid=True), ledger, budget=10)
    keeper.rank_within_budget(histories(3), 1)
    stats = keeper.stats()
    assert (stats.answers, stats.failures, stats.spent, stats.left, stats.calls) == (2, 1, 3, 7, 1 + 3 + 1)


def test_an_unknown_teacher_has_spent_nothing(ledger: Ledger) -> None:
    assert ledger.stats("nobody").spent == 0


def test_a_failure_is_a_row_with_its_reason(path: Path, ledger: Ledger) -> None:
    LedgerTeacher(Choosy({2}, paid=True), ledger).rank_within_budget(histories(3), 1)
    reader = sqlite3.connect(path)
    rows = reader.execute("SELECT reason, calls, charged FROM failures JOIN attempts ON attempt = id").fetchall()
    reader.close()
    assert rows == [("refused", 3, 1)]


def test_a_teacher_that_forgets_requests_is_refused(ledger: Ledger) -> None:
    class Forgetful(FakeTeacher):
        def answers(self, take: Take, k: int) -> Iterator[list[Outcome]]:
            take(3)
            yield []

    with pytest.raises(TeacherError, match="left 3 requests without an outcome"):
        LedgerTeacher(Forgetful(9), ledger).rank(histories(3), 1)
