import math
from collections.abc import Callable

import numpy as np
import pytest

from recdistill.data.dataset import Sequences
from recdistill.data.groups import Groups
from recdistill.data.splits import Cases
from recdistill.evaluation.beside import Answered, ask_about, beside
from recdistill.evaluation.full_ranking import evaluate
from recdistill.models.base import Model
from recdistill.rankings import Ranking
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher

Table = list[list[float]]
MakeCases = Callable[..., Cases]
N_ITEMS = 4


def groups(head: list[bool]) -> Groups:
    """Users of whom some are the head; items are all alike."""
    n_users = len(head)
    bands, items = np.ones(n_users, np.int64), np.zeros(N_ITEMS + 1, np.bool_)
    return Groups(np.array(head), bands, items, user_cut=1, band_cuts=(1, 1, 1, 1), item_cut=1)


def test_both_are_measured_on_the_same_cases_by_stratum(
    table_model: Callable[[Table], Model], make_cases: MakeCases
) -> None:
    """User 0, the head: the teacher has the target second, the student first. User 1: first and not in the top 2."""
    cases = make_cases([[1], [2]])
    said = Answered(cases, Ranking(np.array([[3, 1], [2, 4]], np.int32)), n_asked=2)
    student = table_model([[4, 3, 2, 1], [4, 1, 3, 2]])
    found = beside(said, student, groups([True, False]), ks=(2,), protocol="a cut")
    rows = {(row["stratum"], row["metric"]): row for row in found["rows"]}
    second = 1 / math.log2(3)
    assert (found["asked"], found["answered"], len(rows)) == (2, 2, 6)
    assert (rows["head", "ndcg"]["teacher"], rows["head", "ndcg"]["student"]) == (pytest.approx(second), 1.0)
    assert (rows["tail", "ndcg"]["teacher"], rows["tail", "ndcg"]["student"]) == (1.0, 0.0)
    assert rows["all", "ndcg"]["difference"] == pytest.approx((1.0 - second - 1.0) / 2)
    assert (rows["all", "hr"]["teacher"], rows["all", "hr"]["student"], rows["all", "hr"]["users"]) == (1.0, 0.5, 2)
    assert rows["head", "ndcg"]["agreement"] == 0.5, "the student lists 1 and 2, the teacher 3 and 1"
    assert rows["tail", "ndcg"]["agreement"] == 0.0, "the student lists 1 and 3, the teacher 2 and 4"


def test_nothing_answered_gives_no_rows(table_model: Callable[[Table], Model], make_cases: MakeCases) -> None:
    cases = make_cases([[1]])
    said = Answered(cases.take(np.arange(0)), Ranking(np.zeros((0, 2), np.int32)), n_asked=1)
    found = beside(said, table_model([[4, 3, 2, 1]]), groups([False]), ks=(2,), protocol="a cut")
    assert found == {"asked": 1, "answered": 0, "rows": []}


def some_cases(n: int) -> Cases:
    """Case c has seen item c+1 and waits for the next."""
    return Cases(
        users=np.arange(n),
        histories=Sequences.from_lists([[1 + c] for c in range(n)]),
        targets=Sequences.from_lists([[2 + c] for c in range(n)]),
        masked=Sequences.from_lists([[1 + c] for c in range(n)]),
    )


def test_the_same_cases_are_drawn_each_time_and_again_among_more() -> None:
    """So that runs that share a ledger, and a run that wants more, pay for them once."""
    teacher = FakeTeacher(200)
    few, more = (set(ask_about(teacher, some_cases(100), n, 5).cases.users.tolist()) for n in (10, 30))
    assert few < more
    assert (len(few), len(more)) == (10, 30)
    assert few != set(range(10)), "drawn at random"


def test_all_cases_are_asked_about_where_that_many_are_wanted() -> None:
    said = ask_about(FakeTeacher(30), some_cases(20), 1000, 5)
    assert (said.n_asked, sorted(said.cases.users.tolist())) == (20, list(range(20)))


def test_lists_stay_with_their_cases() -> None:
    """The item after the last is first in the list of every case, whatever the order of the draw."""
    said = ask_about(FakeTeacher(200), some_cases(100), 40, 3)
    found = evaluate(said.ranking, said.cases, n_items=200, ks=(1,))
    assert found.mean("hr", 1) == 1.0


def test_what_the_budget_does_not_buy_is_left_out(tmp_path: object) -> None:
    with Ledger(f"{tmp_path}/ledger.sqlite") as ledger:
        said = ask_about(LedgerTeacher(FakeTeacher(200), ledger, budget=7), some_cases(100), 20, 3)
    assert (said.n_asked, len(said.cases), len(said.ranking)) == (20, 7, 7)
    assert evaluate(said.ranking, said.cases, n_items=200, ks=(1,)).mean("hr", 1) == 1.0
