import logging
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import BudgetExhausted, SettingsError, TeacherError
from recdistill.rankings import Ranking
from recdistill.teachers.answers import Answer, Failure, Outcome, Take
from recdistill.teachers.callable import CallableTeacher
from recdistill.teachers.ensemble import EnsembleTeacher
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_check import verify
from recdistill.teachers.ledger_teacher import LedgerTeacher


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as ledger:
        yield ledger


def histories(n: int, first: int = 1) -> Sequences:
    return Sequences.from_lists([[item] for item in range(first, first + n)])


def one_by_one(n_items: int = 50, **settings: Any) -> FakeTeacher:
    return FakeTeacher(n_items, batch_size=1, **settings)


# answers


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


# budget


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


# failures


class Choosy(FakeTeacher):
    """Refuses some items, one request after the other, and says whether that was paid for."""

    def __init__(self, refused: set[int], *, paid: bool, final: bool = False) -> None:
        super().__init__(50)
        self.refused = refused
        self.paid = paid
        self.final = final
        self.failed_before: list[bool] = []

    def answers(self, take: Take, k: int) -> Iterator[list[Outcome]]:
        while requests := take(1):
            (item,) = requests[0].history
            self.asked.append([int(item)])
            self.failed_before.append(requests[0].failed_before)
            refused = Failure("refused", calls=3, paid=self.paid, final=self.final)
            yield [(requests[0], refused if item in self.refused else Answer([int(item) + 1]))]


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
    assert len(keeper.look_up(histories(3), 1)[1]) == 0
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


# files


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"user,item\n" * 1000)
    with pytest.raises(TeacherError, match="is not a ledger, or is damaged"):
        Ledger(path)


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE orders (id)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(TeacherError, match="is a database of another program"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_ledger_of_a_later_format_is_refused(path: Path) -> None:
    Ledger(path).close()
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 9")
    later.close()
    with pytest.raises(TeacherError, match="is in format 9, this version of recdistill reads 1 to 3"):
        Ledger(path)


UNDO = {
    2: [
        "ALTER TABLE teachers RENAME COLUMN last_turn TO next_turn",
        "UPDATE teachers SET next_turn = 9e9",
        "ALTER TABLE attempts DROP COLUMN place",
        "DROP INDEX answers_of_any_length",
    ],
    1: [
        "DROP INDEX attempts_failed",
        "ALTER TABLE failures DROP COLUMN final",
        "ALTER TABLE attempts DROP COLUMN renewed_at",
    ],
}


@pytest.mark.parametrize("version", UNDO)
def test_a_ledger_of_an_earlier_format_is_brought_up_to_date(path: Path, version: int) -> None:
    with Ledger(path) as ledger:
        LedgerTeacher(Choosy({2}, paid=True), ledger).rank_within_budget(histories(3), 1)
    earlier = sqlite3.connect(path, isolation_level=None)
    for later in range(2, version - 1, -1):
        for statement in UNDO[later]:
            earlier.execute(statement)
    earlier.execute(f"PRAGMA user_version = {version}")
    earlier.close()
    with Ledger(path) as ledger:
        teacher = Choosy(set(), paid=True)
        LedgerTeacher(teacher, ledger).rank(histories(3), 1)
    assert teacher.asked == [[2]]


def test_a_damaged_ledger_is_named(path: Path) -> None:
    with Ledger(path) as ledger:
        LedgerTeacher(FakeTeacher(3000), ledger).rank(histories(2000), 10)
    content = bytearray(path.read_bytes())
    content[8192:-4096] = b"\xff" * (len(content) - 8192 - 4096)
    path.write_bytes(content)
    with pytest.raises(TeacherError, match=r"is damaged.*Keep a copy"), Ledger(path) as ledger:
        LedgerTeacher(FakeTeacher(3000), ledger).rank(histories(2000), 10)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("items = '[2'", "delimiter"),
        ("items = '7'", "its items are 7"),
        ("items = 'null'", "its items are null"),
        ('items = \'{"2":1,"3":1}\'', "its items are {"),
        ("items = '[null,3]'", "item ids must be integers or strings, but one is None"),
        ("items = '[2.9,3]'", r"but one is 2\.9"),
        ("items = '[true,3]'", "but one is True"),
        ("items = '[[2],3]'", r"but one is \[2\]"),
        ("items = '[\"\\ud800\",3]'", "half of a character"),
        ("items = CAST(x'ff5b325d' AS BLOB)", "decode"),
        ("scores = '[1]'", "a list of 2 items has 1 scores"),
        ("scores = 'null'", "its scores are null"),
        ("scores = '[NaN,NaN]'", "finite numbers, but one is nan"),
        ("scores = '[1.0,-Infinity]'", "but one is -inf"),
        ("scores = '[1e39,0]'", r"but one is 1e\+39"),
        ("scores = '[true,0]'", "but one is True"),
        ("scores = '[\"1\",0]'", "but one is '1'"),
        ("scores = '[0,1]'", "scores rise"),
    ],
)
def test_an_answer_that_cannot_be_read_is_named(path: Path, ledger: Ledger, changed: str, said: str) -> None:
    """SQLite does not notice when a text has changed."""
    keeper = LedgerTeacher(FakeTeacher(9, gives_scores=True), ledger)
    keeper.rank(histories(1), 2)
    with sqlite3.connect(path) as db:
        db.execute(f"UPDATE answers SET {changed}")
    db.close()
    with pytest.raises(TeacherError, match=rf"holds an answer that cannot be read: .*{said}.*ledger verify"):
        keeper.rank(histories(1), 2)


def test_a_folder_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="cannot be opened"):
        Ledger(tmp_path)


def test_an_empty_file_becomes_a_ledger(path: Path) -> None:
    path.touch()
    with Ledger(path) as ledger:
        assert LedgerTeacher(FakeTeacher(9), ledger).rank(histories(1), 1).items.tolist() == [[2]]


@pytest.fixture
def copy(path: Path, ledger: Ledger, tmp_path: Path) -> Path:
    """The file of a ledger in use, copied without the one beside it that holds three answers."""
    LedgerTeacher(FakeTeacher(9), ledger).rank(histories(3), 1)
    (tmp_path / "copy").mkdir()
    return Path(shutil.copy(path, tmp_path / "copy"))


@pytest.mark.parametrize("create", [True, False])
def test_a_copy_without_its_log_is_not_taken_for_a_new_ledger(
    path: Path, copy: Path, create: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all that was bought would be bought again."""
    monkeypatch.setattr("recdistill.teachers.ledger_file._MAKING", 0.05)
    before = copy.read_bytes()
    with pytest.raises(TeacherError, match=r"holds nothing, as a copy does .* without ledger\.sqlite-wal"):
        Ledger(copy, create=create)
    assert copy.read_bytes() == before
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    with Ledger(copy, create=create) as whole:
        assert whole.stats("fake").answers == 3


def test_what_was_written_over_a_second_ago_is_in_the_file_itself(
    path: Path, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a copy without the log lacks a second's answers, not a day's."""
    monkeypatch.setattr("recdistill.teachers.ledger_file._DURABLE", -1.0)
    LedgerTeacher(FakeTeacher(9), ledger).rank(histories(3), 1)
    with Ledger(shutil.copy(path, tmp_path / "copy.sqlite"), create=False) as copied:
        assert copied.stats("fake").answers == 3


def test_a_closed_ledger_says_so(path: Path) -> None:
    ledger = Ledger(path)
    ledger.close()
    with pytest.raises(TeacherError, match=r"cannot be used: .*closed"):
        ledger.stats("fake")


def test_a_forked_process_opens_its_own(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(TeacherError, match="opened by another process"):
        ledger.stats("fake")
