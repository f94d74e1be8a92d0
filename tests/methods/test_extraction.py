"""Data-free extraction: what the teacher writes, how it is dealt out, and what is learned."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.extraction import Extraction, random_walks
from recdistill.models.base import Batch, build_model
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher

N = 12
USERS = Sequences.from_lists([[1, 2], [3, 4, 5], [6, 7]])


def walks(teacher: Any, **changes: Any) -> tuple[Sequences, Any]:
    settings: dict[str, Any] = {"n_walks": 5, "walk_len": 4, "k": 3, "seed": 0}
    return random_walks(teacher, N, **settings | changes, progress=lambda *_: None)


def prepared(**settings: Any) -> Extraction:
    method = Extraction(**{"walk_len": 4, "n_queries": 40, "top_k": 3} | settings)
    method.prepare(Setting(USERS, np.arange(3), N, FakeTeacher(N)))
    return method


def batch(rows: list[int]) -> TrainingBatch:
    histories = Batch.from_sequences(USERS.take(np.array(rows)))
    labels = torch.zeros_like(histories.items)
    return TrainingBatch(histories, labels, torch.tensor(rows), torch.Generator().manual_seed(0))


def test_each_step_is_one_query_and_goes_on_with_a_listed_item() -> None:
    teacher = FakeTeacher(N)
    written, lists = walks(teacher)
    assert len(teacher.asked) == 5 * 4
    assert written.lengths.tolist() == [4] * 5
    lists = lists.reshape(5, 4, 3)
    for walk, given in zip(written, lists, strict=True):
        for step in range(3):
            assert walk[step + 1] in given[step]
            assert len(set(walk[: step + 2].tolist())) == step + 2  # the teacher leaves out the history
    assert [list(walk[: step + 1]) for step in range(4) for walk in written] == teacher.asked


def test_first_items_differ_as_long_as_there_are_some() -> None:
    written, _ = walks(FakeTeacher(N), n_walks=N, walk_len=2)
    assert sorted(walk[0] for walk in written) == list(range(1, N + 1))


def test_every_listed_item_may_come_next() -> None:
    written, _ = walks(FakeTeacher(N), n_walks=60, walk_len=2)
    assert {int(b - a) % N for a, b in written} == {1, 2, 3}


def test_the_same_seed_asks_the_same_and_another_one_does_not() -> None:
    asked = []
    for seed in (0, 0, 1):
        teacher = FakeTeacher(N)
        walks(teacher, seed=seed)
        asked.append(teacher.asked)
    assert asked[0] == asked[1] != asked[2]


def test_a_walk_ends_where_the_budget_does(tmp_path: Any) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        teacher = LedgerTeacher(FakeTeacher(N), ledger, budget=8)
        written, lists = walks(teacher)
    assert written.lengths.tolist() == [2, 2, 2, 1, 1]
    assert len(lists) == 8
    assert (lists[:, 0] > 0).all()


@pytest.mark.parametrize(("n_queries", "lengths"), [(3, [3]), (4, [4]), (7, [4]), (9, [4, 4])])
def test_no_more_is_asked_than_the_queries_that_are_allowed(n_queries: int, lengths: list[int]) -> None:
    method, teacher = Extraction(walk_len=4, n_queries=n_queries, top_k=3), FakeTeacher(N)
    method.prepare(Setting(USERS, np.arange(3), N, teacher))
    assert method.walks is not None
    assert method.walks.lengths.tolist() == lengths
    assert len(teacher.asked) == sum(lengths) <= n_queries


def test_no_answer_at_all_is_an_error(tmp_path: Any) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger, pytest.raises(TeacherError, match="answered none of 5"):
        walks(LedgerTeacher(FakeTeacher(N), ledger, budget=0))


def test_all_walks_are_dealt_out_once_an_epoch() -> None:
    for n_queries in (4, 40):  # fewer walks than users, and more
        method = prepared(n_queries=n_queries)
        dealt = np.concatenate([method._dealt_to(np.array([row]), causal=True) for row in range(3)])
        assert dealt.tolist() == list(range(n_queries // 4))


def test_users_without_a_history_are_dealt_no_walk() -> None:
    """They are not read, and what was asked for them would be paid for in vain."""
    method = Extraction(walk_len=4, n_queries=40, top_k=3)
    some = Sequences.from_lists([[], [1, 2], [], [3, 4, 5]])
    method.prepare(Setting(some, np.arange(4), N, FakeTeacher(N)))
    dealt = np.concatenate([method._dealt_to(np.array([row]), causal=True) for row in (1, 3)])
    assert dealt.tolist() == list(range(10))


@pytest.mark.parametrize(("n_queries", "times"), [(4, [3]), (8, [2, 1]), (40, [1] * 10)])
def test_a_student_that_sees_both_sides_reads_as_many_parts_as_there_are_histories(
    n_queries: int, times: list[int]
) -> None:
    """Three histories: one walk is read three times an epoch, up to an item drawn anew; ten walks once each."""
    method = prepared(n_queries=n_queries)
    dealt = np.concatenate([method._dealt_to(np.array([row]), causal=False) for row in range(3)])
    assert np.bincount(dealt).tolist() == times


def test_a_walk_of_which_nothing_was_answered_is_not_learned(tmp_path: Any) -> None:
    """The budget buys the first lists of three walks out of ten; a student that sees both sides reads these alone."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        method = Extraction(walk_len=4, n_queries=40, top_k=3)
        method.prepare(Setting(USERS, np.arange(3), N, LedgerTeacher(FakeTeacher(N), ledger, budget=3)))
    assert method.walks is not None
    assert [len(walk) for walk in method.walks] == [1, 1, 1]
    student = build_model("bert4rec", N, {"dim": 4, "max_len": 4})
    assert method.loss(student, batch([0, 1, 2]))["order"].item() > 0


def test_the_student_learns_the_list_after_each_item() -> None:
    """By hand, from scores that the student gives each prefix."""
    method, model = prepared(margin=50.0), build_model("gru4rec", N, {"dim": 4, "max_len": 4}).eval()
    loss = method.loss(model, batch([0]))["order"].item()
    assert method.walks is not None
    rows = method._dealt_to(np.array([0]), causal=True)
    order = []
    with torch.no_grad():
        for row in rows:
            walk = method.walks[row]
            for step in range(4):
                scores = model.scores(Batch.from_lists([walk[: step + 1].tolist()]))[0]
                listed = method.listed[4 * row + step].tolist()
                order.append(np.mean([50 - (scores[a] - scores[b]).item() for a, b in pairwise(listed)]))
    # Against random items the margin is reached by nobody, so that each of those terms is close to 50 as well.
    assert loss == pytest.approx(np.mean(order) + 50, abs=0.5)


def test_users_without_a_walk_add_nothing() -> None:
    method, model = prepared(n_queries=4), build_model("sasrec", N, {"dim": 4, "max_len": 4})
    rows = [row for row in range(3) if not len(method._dealt_to(np.array([row]), causal=True))]
    loss = method.loss(model, batch(rows))["order"]
    assert loss.item() == 0
    loss.backward()


def test_real_histories_are_asked_once_each() -> None:
    teacher = FakeTeacher(N)
    method = Extraction(queries="histories", top_k=3)
    method.prepare(Setting(USERS, np.arange(3), N, teacher))
    assert sorted(teacher.asked) == [[1, 2], [3, 4, 5], [6, 7]]
    assert method.listed.tolist() == [[3, 4, 5], [6, 7, 8], [8, 9, 10]]


def test_a_student_that_reads_less_than_a_walk_is_refused() -> None:
    method, model = prepared(), build_model("sasrec", N, {"dim": 4, "max_len": 3})
    with pytest.raises(SettingsError, match="set walk_len to 3"):
        method.check(model, FakeTeacher(N))


@pytest.mark.parametrize("told", [{"takes": "user"}, {"names_user": True}])
def test_a_teacher_of_users_cannot_write_histories(told: dict[str, object]) -> None:
    teacher = FakeTeacher(N)
    vars(teacher).update(told)
    with pytest.raises(SettingsError, match="set queries to 'histories'"):
        Extraction().prepare(Setting(USERS, np.arange(3), N, teacher))
