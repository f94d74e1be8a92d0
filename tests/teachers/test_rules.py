"""Rules counted in training histories, as a teacher."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data.dataset import Sequences
from recdistill.errors import DataError, SettingsError, TeacherError
from recdistill.teachers.rules import RulesTeacher

ORDERED = Sequences.from_lists([[1, 2, 3], [1, 3], [2, 3, 4]])
"""Within two steps, after 1 come 2 (once next) and 3 (once next, once by the root of ½), after 2 3 (2) and 4 (the
root of ½), after 3 4."""
PLAIN: dict[str, Any] = {"fade": 0.5, "decay": 0.5, "popularity": 0.0, "prior": 0.0}
SETS = Sequences.from_lists([[1, 2], [2, 3, 4]])


def shares(teacher: RulesTeacher, *history: int, k: int = 4) -> dict[int, float]:
    """Return the share of each listed item."""
    ranking = teacher.rank(Sequences.from_lists([history]), k)
    assert ranking.scores is not None
    listed = ranking.items[0] > 0
    return dict(zip(ranking.items[0][listed].tolist(), np.exp(ranking.scores[0][listed]).tolist(), strict=True))


def test_near_followers_and_new_items_say_most() -> None:
    teacher = RulesTeacher(ORDERED, 5, window=2, **PLAIN)
    # After 2, weight 1: of 2 + root, 3 has 2 and 4 the root. After 1, weight 1/2: 3 has 1 + root, 2 is left out.
    root = 0.5**0.5
    third, fourth = 2 + (1 + root) / 2, root
    assert shares(teacher, 1, 2) == pytest.approx({3: third / (third + fourth), 4: fourth / (third + fourth)})
    assert list(shares(teacher, 1, 2)) == [3, 4]


def test_an_item_of_which_little_is_known_says_less() -> None:
    teacher = RulesTeacher(Sequences.from_lists([[1, 2], *[[3, 4]] * 3]), 4, decay=1.0, popularity=0.0, prior=3.0)
    # Once 2 after 1, of 3 + 1; three times 4 after 3, of 3 + 3.
    assert shares(teacher, 1, 3) == pytest.approx({2: 0.25 / 0.75, 4: 0.5 / 0.75})


def test_popular_items_are_held_down_in_an_order_too() -> None:
    train = Sequences.from_lists([[1, 2], [1, 3], [4, 3], [5, 3], [6, 3]])  # 3 is held four times as often as 2
    assert shares(RulesTeacher(train, 6, popularity=0.5), 1) == pytest.approx({2: 1 / 1.5, 3: 0.5 / 1.5})
    assert shares(RulesTeacher(train, 6), 1) == pytest.approx({2: 1 / (1 + 4**-0.1), 3: 4**-0.1 / (1 + 4**-0.1)})


def test_a_walk_without_an_order_holds_popular_items_down() -> None:
    teacher = RulesTeacher(SETS, 5, ordered=False, popularity=1.0)
    # From 1 to 2 alone, which two users hold; from 3 to 2 and 4 alike.
    assert shares(teacher, 1, 3) == pytest.approx({2: 0.75 / 1.25, 4: 0.5 / 1.25})
    assert shares(RulesTeacher(SETS, 5, ordered=False, popularity=0.0), 2) == pytest.approx(
        {1: 3 / 7, 3: 2 / 7, 4: 2 / 7}
    )


def test_items_of_the_history_are_listed_where_they_may_come_again() -> None:
    again = RulesTeacher(Sequences.from_lists([[1, 2, 1, 3]]), 3, window=1, exclude_history=False, **PLAIN)
    assert shares(again, 1, 2) == pytest.approx({1: 1 / 1.5, 2: 0.25 / 1.5, 3: 0.25 / 1.5})
    assert 1 not in shares(RulesTeacher(SETS, 4, ordered=False, exclude_history=False), 1, 2)


def test_who_has_no_rules_gets_an_empty_list() -> None:
    teacher = RulesTeacher(ORDERED, 5, window=2)
    assert shares(teacher, 4) == {}
    assert shares(teacher, 5) == {}
    assert teacher.scores(Sequences.from_lists([[5]]), np.array([[1, 2]])).tolist() == [[-30, -30]]


def test_what_lies_far_back_says_nothing_in_an_order_and_is_left_out_all_the_same() -> None:
    train = Sequences.from_lists([[1, 21], [2, 1], [2, 22]])
    between = range(3, 16)  # thirteen items of which no rule is known
    teacher = RulesTeacher(train, 22, decay=0.5)
    assert shares(teacher, 1, *between) == pytest.approx({21: 1.0})
    assert shares(teacher, 1, *between, 16) == {}  # half, fourteen times, is below a ten thousandth
    assert shares(teacher, 1, *between, 16, 2) == pytest.approx({22: 1.0})  # not 1 again
    assert shares(RulesTeacher(train, 22, decay=1), 1, *between, 16) == pytest.approx({21: 1.0})


def test_of_a_long_history_only_what_is_heard_is_read_where_nothing_is_left_out() -> None:
    """The newest fourteen decide, at half a weight for each step back."""
    draws = np.random.default_rng(0)
    long = Sequences.from_lists([draws.integers(1, 30, size=60).tolist() for _ in range(20)])
    teacher = RulesTeacher(long, 30, decay=0.5, exclude_history=False)
    whole, newest = teacher.rank(long, 10), teacher.rank(long.newest(14), 10)
    assert whole.items.tolist() == newest.items.tolist()
    assert whole.items.tolist() != teacher.rank(long.newest(3), 10).items.tolist()


def test_what_is_not_among_the_best_has_the_least_score() -> None:
    teacher = RulesTeacher(ORDERED, 5, window=2, depth=1, **PLAIN)
    scores = teacher.scores(Sequences.from_lists([[1, 2]]), np.array([[4, 3, 5, 1]]))
    assert scores.tolist() == [[-30, pytest.approx(np.log((5 + 0.5**0.5) / (5 + 3 * 0.5**0.5))), -30, -30]]


histories = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=2, max_size=8)


@given(histories, st.booleans())
def test_lists_and_scores_say_the_same(rows: list[list[int]], ordered: bool) -> None:
    train = Sequences.from_lists([*rows, [1, 2]])
    teacher = RulesTeacher(train, 9, ordered=ordered)
    ranking = teacher.rank(train, 9).check(9)
    assert ranking.scores is not None
    listed = ranking.items > 0
    scores = teacher.scores(train, np.maximum(ranking.items, 1))
    assert scores[listed].tolist() == ranking.scores[listed].tolist()
    every = np.tile(np.arange(1, 10), (len(train), 1))
    assert teacher.scorer(train)(np.arange(len(train)), None).tolist() == teacher.scores(train, every).tolist()
    totals = np.exp(ranking.scores).sum(1)
    assert totals[listed.any(1)] == pytest.approx(1.0, abs=1e-5)
    for row, history in zip(ranking.items.tolist(), train, strict=True):
        assert not {*row} & {*history.tolist()}


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(0)
    train = Sequences.from_lists([draws.integers(1, 50, size=8).tolist() for _ in range(40)])
    for ordered in (True, False):
        whole = RulesTeacher(train, 50, ordered=ordered)
        with monkeypatch.context() as patched:
            patched.setattr("recdistill.teachers.rules._NUMBERS", 300)
            apart = RulesTeacher(train, 50, ordered=ordered)
            assert apart.rank(train, 5).items.tolist() == whole.rank(train, 5).items.tolist()
        assert apart.identity == whole.identity


def test_the_strongest_rules_of_an_item_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recdistill.teachers.rules._PER_ITEM", 1)
    teacher = RulesTeacher(Sequences.from_lists([[1, 2], [1, 2], [1, 3]]), 3, ordered=False)
    assert list(shares(teacher, 1)) == [2]


@pytest.mark.parametrize(
    "changed",
    [
        {"ordered": False},
        {"window": 1},
        {"fade": 1.0},
        {"decay": 0.9},
        {"popularity": 1.0},
        {"prior": 1.0},
        {"depth": 2},
    ],
)
def test_its_name_follows_from_all_that_changes_its_answers(changed: dict[str, Any]) -> None:
    plain = RulesTeacher(ORDERED, 5).identity
    assert plain == RulesTeacher(ORDERED, 5).identity
    assert plain != RulesTeacher(ORDERED, 5, **changed).identity
    assert plain != RulesTeacher(ORDERED, 5, exclude_history=False).identity


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"depth": 0},
        {"decay": 0.0},
        {"decay": 1.5},
        {"popularity": -1.0},
        {"prior": -1.0},
        {"fade": -1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="rules need window"):
        RulesTeacher(ORDERED, 5, **wrong)


@pytest.mark.parametrize("ordered", [True, False])
def test_histories_of_one_item_make_no_rules(ordered: bool) -> None:
    with pytest.raises(SettingsError, match="no history has two different items"):
        RulesTeacher(Sequences.from_lists([[1], [2, 2], []]), 3, ordered=ordered)


def test_items_that_there_are_not_are_refused() -> None:
    with pytest.raises(TeacherError, match="outside 1…5"):
        RulesTeacher(ORDERED, 5).scores(ORDERED.take(slice(0, 1)), np.array([[6]]))


def test_histories_of_other_items_are_refused() -> None:
    with pytest.raises(DataError, match="outside 1…3"):
        RulesTeacher(ORDERED, 3)
    with pytest.raises(DataError, match="outside 1…5"):
        RulesTeacher(ORDERED, 5).rank(Sequences.from_lists([[1, 6]]), 2)
