"""What is written down, and that it is not asked again."""

import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import TeacherError
from recdistill.teachers.callable import CallableTeacher
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_check import verify
from recdistill.teachers.ledger_teacher import LedgerTeacher

from .asking import histories, one_by_one


def test_what_is_known_is_not_asked_again(path: Path) -> None:
    with Ledger(path) as ledger:
        first = LedgerTeacher(FakeTeacher(9), ledger).rank(histories(3), 2)
    teacher = FakeTeacher(9)
    with Ledger(path) as ledger:
        again = LedgerTeacher(teacher, ledger).rank(histories(4), 2)
    assert teacher.asked == [[4]]
    assert again.items[:3].tolist() == first.items.tolist() == [[2, 3], [3, 4], [4, 5]]


def test_the_same_request_twice_in_one_batch_is_asked_once(ledger: Ledger) -> None:
    teacher = FakeTeacher(9)
    ranking = LedgerTeacher(teacher, ledger).rank(Sequences.from_lists([[1], [2], [1], [1, 2]]), 1)
    assert teacher.asked == [[1], [2], [1, 2]]
    assert ranking.items.tolist() == [[2], [3], [2], [3]]


def test_it_says_what_it_has_without_asking(ledger: Ledger) -> None:
    teacher = one_by_one()
    keeper = LedgerTeacher(teacher, ledger)
    keeper.rank(histories(2), 5)
    before = list(teacher.asked)
    assert keeper.has(histories(3), 5).tolist() == [True, True, False]
    assert not keeper.has(histories(2), 6).any(), "those lists are longer"
    assert teacher.asked == before


def test_the_order_of_a_history_matters(ledger: Ledger) -> None:
    teacher = FakeTeacher(9)
    LedgerTeacher(teacher, ledger).rank(Sequences.from_lists([[1, 2], [2, 1]]), 1)
    assert len(teacher.asked) == 2


def test_an_answer_is_on_disk_before_the_next_request_is_sent(path: Path, ledger: Ledger) -> None:
    on_disk = []
    reader = sqlite3.connect(path)

    def rule(history: Any, k: int) -> list[int]:
        on_disk.append(reader.execute("SELECT count(*) FROM answers").fetchone()[0])
        return [9]

    LedgerTeacher(FakeTeacher(9, rule, batch_size=1), ledger).rank(histories(4), 1)
    reader.close()
    assert on_disk == [0, 1, 2, 3]


def test_a_longer_list_answers_for_fewer_items(ledger: Ledger) -> None:
    """Of two that do, the one that was asked for as many, else the shorter one."""
    teacher = FakeTeacher(9, lambda history, k: [k] * k)
    keeper = LedgerTeacher(teacher, ledger)
    for k in (2, 4, 6):
        keeper.rank(histories(1), k)
    assert [keeper.rank(histories(1), k).items[0, 0] for k in (1, 2, 3, 4, 5, 6)] == [2, 2, 4, 4, 6, 6]
    assert len(teacher.asked) == 3


def test_a_list_that_names_all_there_is_answers_for_more_items(ledger: Ledger) -> None:
    teacher = FakeTeacher(9, lambda history, k: [8, 9][:k])
    for k, asked in ((1, 1), (2, 2), (5, 3), (9, 3), (2, 3)):  # one of one, and two of two may not be all
        LedgerTeacher(teacher, ledger).rank(histories(1), k)
        assert len(teacher.asked) == asked


def test_k_round_and_identity_keep_answers_apart(ledger: Ledger) -> None:
    teacher, other = FakeTeacher(9), FakeTeacher(9, identity="other")
    LedgerTeacher(teacher, ledger).rank(histories(1), 1)
    LedgerTeacher(teacher, ledger).rank(histories(1), 2)
    LedgerTeacher(teacher, ledger, round=1).rank(histories(1), 1)
    LedgerTeacher(other, ledger).rank(histories(1), 1)
    assert (len(teacher.asked), len(other.asked)) == (3, 1)


def test_scores_come_back_as_they_were(ledger: Ledger) -> None:
    teacher = LedgerTeacher(FakeTeacher(9, gives_scores=True), ledger)
    for _ in range(2):
        scores = teacher.rank(Sequences.from_lists([[1]]), 3).scores
        assert scores is not None
        np.testing.assert_array_equal(scores, np.array([[1, 1 / 2, 1 / 3]], np.float32))


def test_an_empty_list_is_an_answer(ledger: Ledger) -> None:
    teacher = FakeTeacher(9, lambda history, k: [])
    for _ in range(2):
        assert LedgerTeacher(teacher, ledger).rank(histories(1), 2).items.tolist() == [[0, 0]]
    assert len(teacher.asked) == 1


def test_answers_outlive_a_change_of_the_id_map(ledger: Ledger) -> None:
    """They are kept in raw ids, and unknown ones with them: a larger id map finds what an earlier one dropped."""
    calls = []

    def fn(asked: list[list[int | str]], k: int) -> list[list[str]]:
        calls.extend(asked)
        return [["new", "b"]] * len(asked)

    small, large = IdMap(["a", "b"], first=1), IdMap(["new", "b", "x", "a"], first=1)
    before = LedgerTeacher(CallableTeacher(fn, identity="f", ids=small), ledger).rank(Sequences.from_lists([[1]]), 2)
    after = LedgerTeacher(CallableTeacher(fn, identity="f", ids=large), ledger).rank(Sequences.from_lists([[4]]), 2)
    assert before.items.tolist() == [[2, 0]]
    assert after.items.tolist() == [[1, 2]]
    assert calls == [["a"]]


def test_a_teacher_that_takes_users_is_asked_once_a_user(ledger: Ledger) -> None:
    teacher = FakeTeacher(9)
    teacher.takes = "user"
    LedgerTeacher(teacher, ledger).rank(Sequences.from_lists([[1], [2], [3]]), 1, users=np.array([7, 7, 8]))
    assert teacher.asked == [[1], [3]]


def test_a_teacher_that_is_told_user_and_history_is_asked_once_for_both(ledger: Ledger) -> None:
    teacher = FakeTeacher(9)
    teacher.names_user = True
    keeper = LedgerTeacher(teacher, ledger)
    keeper.rank(Sequences.from_lists([[1], [1], [1], [2]]), 1, users=np.array([7, 7, 8, 8]))
    assert teacher.asked == [[1], [1], [2]]
    with ledger.reading() as db:
        asked = [question for (question,) in db.execute("SELECT question FROM answers ORDER BY rowid")]
    assert asked == [f'{{"user":{user},"history":[{item}]}}' for user, item in ((7, 1), (8, 1), (8, 2))]
    assert verify(ledger) == []


@pytest.mark.parametrize("told", [{"takes": "user"}, {"names_user": True}])
def test_a_teacher_that_takes_users_needs_them(ledger: Ledger, told: dict[str, Any]) -> None:
    teacher = FakeTeacher(9)
    vars(teacher).update(told)
    with pytest.raises(TeacherError, match="pass the user of each history"):
        LedgerTeacher(teacher, ledger).rank(histories(1), 1)


def test_it_is_told_as_much_of_a_history_as_its_teacher(ledger: Ledger) -> None:
    """Probing asks whoever it is given how much of a history makes a difference."""
    teacher = FakeTeacher(9)
    teacher.max_history = 1
    assert LedgerTeacher(teacher, ledger).max_history == 1


def test_many_requests_are_looked_up(ledger: Ledger) -> None:
    """More than one statement and more than one batch."""
    teacher = FakeTeacher(5000)
    keeper = LedgerTeacher(teacher, ledger)
    first = keeper.rank(histories(3000), 1)
    again = keeper.rank(histories(3000), 1)
    assert len(teacher.asked) == 3000
    assert again.items.tolist() == first.items.tolist() == [[item + 1] for item in range(1, 3001)]


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.integers(1, 5), max_size=12), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(0, 6),
)
def test_nothing_is_asked_twice_and_nothing_beyond_the_budget(
    calls: list[list[int]], batch_size: int, budget: int
) -> None:
    """Whatever is asked, in whatever portions: the budget buys the first different requests, once each."""
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
        teacher = FakeTeacher(9, batch_size=batch_size)
        keeper = LedgerTeacher(teacher, ledger, budget=budget)
        bought: list[int] = []
        for items in calls:
            ranking, answered = keeper.rank_within_budget(Sequences.from_lists([[item] for item in items]), 1)
            for item in dict.fromkeys(items):
                if item not in bought and len(bought) < budget:
                    bought.append(item)
            assert answered.tolist() == [item in bought for item in items]
            assert ranking.items[:, 0].tolist() == [item + 1 if item in bought else 0 for item in items]
        assert teacher.asked == [[item] for item in bought]
        assert keeper.stats().spent == len(bought)
