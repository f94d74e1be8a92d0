"""Several teachers as one."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.rankings import Ranking
from recdistill.teachers.base import Teacher
from recdistill.teachers.ensemble import EnsembleTeacher, fuse
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.stored import StoredTeacher

HISTORIES = Sequences.from_lists([[1], [2, 3]])


class Told(Teacher):
    """Answers what it was told, as far as its budget goes."""

    def __init__(self, items: list[list[int]], scores: list[list[float]] | None = None, budget: int = 99) -> None:
        self.told = Ranking(np.array(items, np.int32), None if scores is None else np.array(scores, np.float32))
        self.gives_scores = scores is not None
        self.budget = budget

    @property
    def identity(self) -> str:
        return "told"

    def rank(self, histories: Sequences, k: int, *, users: object = None) -> Ranking:
        return self.told

    def rank_within_budget(
        self, histories: Sequences, k: int, *, users: object = None
    ) -> tuple[Ranking, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
        answered = np.arange(len(histories)) < self.budget
        return Ranking(np.where(answered[:, None], self.told.items, 0).astype(np.int32)), answered


def test_lists_are_fused_by_reciprocal_ranks() -> None:
    # Shares of a list of three: 6/11, 3/11, 2/11; of a list of two: 2/3, 1/3.
    fused = EnsembleTeacher([Told([[4, 5, 6], [7, 8, 0]]), Told([[6, 5, 4], [9, 7, 8]])]).rank(HISTORIES, 3)
    assert fused.scores is None
    assert fused.items.tolist() == [[4, 6, 5], [7, 9, 8]]


def test_a_heavier_teacher_decides() -> None:
    fused = EnsembleTeacher([Told([[4, 5]]), Told([[6, 4]])], weights=[1, 3]).rank(HISTORIES, 2)
    assert fused.items.tolist() == [[6, 4]]


def test_a_list_without_weight_is_not_heard() -> None:
    lists = [Told([[4, 5]], [[2.0, 1.0]]).told, Told([[6, 4]], [[9.0, 8.0]]).told]
    for by_score in (False, True):
        fused = fuse(lists, [1, 0], 3, by_score=by_score)
        assert fused.items.tolist() == [[4, 5, 0]]


def test_scores_are_fused_as_probabilities() -> None:
    first, second = Told([[4, 5]], [[np.log(3), 0.0]]), Told([[5, 6]], [[7 + np.log(9), 7.0]])
    fused = EnsembleTeacher([first, second]).rank(HISTORIES, 3)
    assert fused.items.tolist() == [[5, 4, 6]]
    assert fused.scores is not None
    assert np.exp(fused.scores) == pytest.approx(np.array([[(0.25 + 0.9) / 2, 0.375, 0.05]]))


def test_a_hopeless_score_still_counts_as_listed() -> None:
    fused = EnsembleTeacher([Told([[4, 5]], [[0.0, -1e4]]), Told([[4, 6]], [[0.0, -1.0]])]).rank(HISTORIES, 3)
    assert fused.items.tolist() == [[4, 6, 5]]
    fused.check(6)


def scored(*rows: list[float], **settings: Any) -> StoredTeacher:
    """Make a teacher with a row of scores, one for every item, for each of the users 0, 1, 2."""
    frame = pl.DataFrame(
        [(user, item, score) for user, row in enumerate(rows) for item, score in enumerate(row, 1)],
        schema=["user", "item", "score"],
        orient="row",
    )
    n_items = len(rows[0])
    return StoredTeacher(
        frame, ids=IdMap(range(1, n_items + 1), first=1), users=IdMap(range(len(rows)), first=0), **settings
    )


def test_scores_of_any_item_are_mixed_probabilities() -> None:
    """A constant added to all scores of one teacher changes nothing."""
    one = scored([0.0, np.log(2), 0.0], [0.0, 0.0, 0.0])  # 1/4, 1/2, 1/4; thirds
    other = scored([7.0, 7.0, 7 + np.log(2)], [-5.0, -5.0, np.log(6) - 5])  # 1/4, 1/4, 1/2; 1/8, 1/8, 3/4
    ensemble = EnsembleTeacher([one, other], weights=[1, 3])
    assert ensemble.scores_items
    assert ensemble.free
    scores = ensemble.scores(HISTORIES, np.array([[3, 1], [2, 3]]), users=np.arange(2))
    expected = [[1 / 16 + 3 / 8, 1 / 16 + 3 / 16], [1 / 12 + 3 / 32, 1 / 12 + 9 / 16]]
    assert np.exp(scores) == pytest.approx(np.array(expected))


def test_lists_of_all_items_and_scores_of_chosen_ones_say_the_same() -> None:
    draws = np.random.default_rng(0).normal(size=(2, 2, 5)) * 3
    ensemble = EnsembleTeacher([scored(*rows.tolist(), exclude_history=False) for rows in draws])
    users = np.arange(2)
    ranking = ensemble.rank(HISTORIES, 5, users=users)
    listed = ranking.items.astype(np.int64)
    assert ranking.scores is not None
    assert ensemble.scores(HISTORIES, listed, users=users) == pytest.approx(ranking.scores, abs=1e-5)


def test_what_both_find_good_is_listed_though_neither_lists_it() -> None:
    """The means of the two are .255, .255 and .49: the top 1 of the ensemble is nobody's."""
    one, other = ([[float(np.log(p)) for p in row]] for row in ([0.5, 0.01, 0.49], [0.01, 0.5, 0.49]))
    ensemble = EnsembleTeacher([scored(*one, exclude_history=False), scored(*other, exclude_history=False)])
    first = HISTORIES.take(slice(0, 1))
    for ranking in (
        ensemble.rank(first, 1, users=np.zeros(1, np.int64)),
        ensemble.rank_within_budget(first, 1, users=np.zeros(1, np.int64))[0],
    ):
        assert ranking.items.tolist() == [[3]]
        assert ranking.scores is not None
        assert np.exp(ranking.scores) == pytest.approx(np.array([[0.49]]))
    without = EnsembleTeacher([scored(*one), scored(*other)])
    third = Sequences.from_lists([[3]])
    assert without.rank(third, 3, users=np.zeros(1, np.int64)).items.tolist() == [[1, 2, 0]]


def test_a_user_whom_one_of_them_does_not_know_has_the_others_scores() -> None:
    one, other = scored([1.0, 2.0], [3.0, 5.0], []), scored([7.0, 4.0], [], [])
    ensemble = EnsembleTeacher([one, other], weights=[1, 3])
    assert ensemble.knows(np.array([2, 1, 0])).tolist() == [False, True, True]
    asked = HISTORIES.take(np.array([1, 0]))
    scores = ensemble.scores(asked, np.array([[1, 2], [1, 2]]), users=np.array([1, 0]))
    assert scores[0, 1] - scores[0, 0] == pytest.approx(2.0, abs=1e-6)
    first, second = (np.exp([[1.0, 2.0], [7.0, 4.0]]) / np.exp([[1.0, 2.0], [7.0, 4.0]]).sum(1, keepdims=True)).T
    expected = [first[0] / 4 + 3 * first[1] / 4, second[0] / 4 + 3 * second[1] / 4]
    assert np.exp(scores[1]) == pytest.approx(np.array(expected))
    every = np.array([[1, 2], [1, 2]])
    all_items = ensemble.scorer(asked, users=np.array([1, 0]))(np.arange(2), None)
    assert all_items.tolist() == ensemble.scores(asked, every, users=np.array([1, 0])).tolist()


def test_extreme_scores_stay_finite() -> None:
    ensemble = EnsembleTeacher([scored([1e4, -1e4, 0.0]), scored([1e4, 0.0, -1e4])])
    scores = ensemble.scores(HISTORIES.take(slice(0, 1)), np.array([[1, 2, 3]]), users=np.zeros(1, np.int64))
    assert scores == pytest.approx(np.array([[0.0, np.log(0.5) - 1e4, np.log(0.5) - 1e4]]))


def test_many_users_are_scored_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 4)).tolist()
    histories, users, candidates = HISTORIES.take(np.zeros(7, np.int64)), np.arange(7), np.full((7, 1), 2)
    ensemble = EnsembleTeacher([scored(*rows), scored(*rows[::-1])])
    whole = ensemble.scores(histories, candidates, users=users)
    monkeypatch.setattr("recdistill.teachers.ensemble._NUMBERS", 8)
    assert ensemble.scores(histories, candidates, users=users).tolist() == whole.tolist()


def test_one_teacher_of_lists_makes_it_one_of_lists() -> None:
    lists = FakeTeacher(3, gives_scores=True)
    lists.takes = "user"
    ensemble = EnsembleTeacher([scored([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]), lists])
    assert not ensemble.scores_items
    assert ensemble.gap == "its teacher 'fake': gives lists"
    assert not ensemble.free
    with pytest.raises(TeacherError, match="'fake' gives lists, not the scores of chosen items"):
        ensemble.scorer(HISTORIES, users=np.arange(2))


def test_it_is_given_users_where_one_of_its_teachers_is_told_them_beside_the_history() -> None:
    told = FakeTeacher(3)
    assert not EnsembleTeacher([told, FakeTeacher(3)]).needs_users
    told.names_user = True
    assert EnsembleTeacher([FakeTeacher(3), told]).needs_users


def test_without_scores_of_all_there_are_none() -> None:
    fused = EnsembleTeacher([Told([[4, 5]], [[9.0, 0.0]]), Told([[5, 4]])]).rank(HISTORIES, 2)
    assert fused.scores is None
    assert fused.items.tolist() == [[4, 5]]


def test_who_has_no_budget_left_is_left_out() -> None:
    lists: list[list[int]] = [[4, 5], [6, 7]]
    ensemble = EnsembleTeacher([Told(lists, budget=1), Told([[5, 4], [7, 6]], budget=2)])
    ranking, answered = ensemble.rank_within_budget(HISTORIES, 2)
    assert answered.tolist() == [True, True]
    assert ranking.items.tolist() == [[4, 5], [7, 6]]
    ensemble = EnsembleTeacher([Told(lists, budget=1), Told(lists, budget=0)])
    assert ensemble.rank_within_budget(HISTORIES, 2)[1].tolist() == [True, False]


def test_one_that_is_told_users_answers_beside_one_that_reads_histories() -> None:
    """The users tell the one, the histories the other: item h + 1 after h, and item 3 for user 5."""

    class OfUsers(FakeTeacher):
        takes = "user"

        def rank(self, histories: Sequences, k: int, *, users: Any = None) -> Ranking:
            return Ranking(np.where(self._check_users(users)[:, None] == 5, 3, 1).astype(np.int32))

    for pair in ([FakeTeacher(9), OfUsers(9)], [OfUsers(9), FakeTeacher(9)]):
        ensemble = EnsembleTeacher(pair)
        assert (ensemble.needs_users, ensemble.hears_parts) == (True, False)
        ranking = ensemble.rank(Sequences.from_lists([[6], [7]]), 2, users=np.array([5, 6]))
        assert np.sort(ranking.items).tolist() == [[3, 7], [1, 8]]
        with pytest.raises(TeacherError, match="pass the user of each history"):
            ensemble.rank(Sequences.from_lists([[6]]), 2)


def test_its_name_follows_from_its_members() -> None:
    a, b = FakeTeacher(3, identity="a"), FakeTeacher(3, identity="b")
    names = {EnsembleTeacher(pair).identity for pair in ([a, b], [b, a], [a, a])}
    names |= {EnsembleTeacher([a, b], weights=[1, 2]).identity}
    assert len(names) == 4
    assert EnsembleTeacher([a, b], weights=[2, 2]).identity == EnsembleTeacher([a, b]).identity


def test_teachers_that_cannot_answer_together_are_refused() -> None:
    one, other = FakeTeacher(3), FakeTeacher(3)
    with pytest.raises(SettingsError, match="two teachers or more, and 1 was given"):
        EnsembleTeacher([one])
    for weights in ([1.0], [1.0, 0.0]):
        with pytest.raises(SettingsError, match="as many weights above 0"):
            EnsembleTeacher([one, other], weights=weights)
    other.n_items = 4
    with pytest.raises(SettingsError, match=r"differ in how many items they know \('fake': 3, 'fake': 4\)"):
        EnsembleTeacher([one, other])
    other.n_items, other.exclude_history = 3, False
    with pytest.raises(SettingsError, match="whether items of the history are listed"):
        EnsembleTeacher([one, other])


def test_it_is_told_as_much_as_one_of_them_reads() -> None:
    one, other = FakeTeacher(3), FakeTeacher(3)
    one.max_history = 1
    assert EnsembleTeacher([one, other]).max_history is None
    other.max_history = 5
    assert EnsembleTeacher([one, other]).max_history == 5


def test_members_can_be_replaced_and_one_teacher_is_its_own_member() -> None:
    one, other, third = (FakeTeacher(3, identity=name) for name in "abc")
    ensemble = EnsembleTeacher([one, other], weights=[3, 1])
    changed = ensemble.with_members([third, other])
    assert (*changed.members, changed.weights) == (third, other, [0.75, 0.25])
    assert [*one.members, one.with_members([other])] == [one, other]
    with pytest.raises(ValueError, match="too many values"):
        one.with_members([other, third])
