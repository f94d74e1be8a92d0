import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import TeacherError
from recdistill.teachers.answers import Answer, check_items, check_scores
from recdistill.teachers.base import OutsideTeacher
from recdistill.teachers.fake import FakeTeacher

IDS = IdMap(["a", "b", "c", "d"], first=1)


class Silent(OutsideTeacher):
    """Speaks raw ids; only its translation is tested."""

    identity = "silent"

    def __init__(self, ids: IdMap = IDS, *, gives_scores: bool = False, exclude_history: bool = True) -> None:
        self.ids = ids
        self.gives_scores = gives_scores
        self.exclude_history = exclude_history


def test_a_request_holds_the_raw_ids_of_its_history() -> None:
    requests = Silent().requests(Sequences.from_lists([[1, 3], [], [4]]))
    assert [(request.row, request.history) for request in requests] == [(0, ["a", "c"]), (1, []), (2, ["d"])]


def test_a_request_holds_its_user_where_users_are_given() -> None:
    requests = FakeTeacher(4).requests(Sequences.from_lists([[1], [2]]), np.array([7, 9]))
    assert [request.user for request in requests] == [7, 9]


def test_a_user_is_named_in_the_ids_that_the_teacher_speaks() -> None:
    """An API that takes a user knows nothing of our dense numbers, which begin at 0."""
    teacher = Silent()
    teacher.user_ids = IdMap(["ann", "bob", "cy"], first=0)
    requests = teacher.requests(Sequences.from_lists([[1], [2]]), np.array([2, 0]))
    assert [request.user for request in requests] == ["cy", "ann"]


def test_a_teacher_that_takes_users_is_not_asked_without() -> None:
    teacher = Silent()
    teacher.takes = "user"
    with pytest.raises(TeacherError, match="pass the user of each history"):
        teacher.rank(Sequences.from_lists([[1]]), 2)


def test_a_teacher_is_told_no_more_than_its_newest_items() -> None:
    teacher = Silent()
    teacher.max_history = 2
    assert [r.history for r in teacher.requests(Sequences.from_lists([[1, 2, 3], [1]]))] == [["b", "c"], ["a"]]


def test_answers_are_translated_in_their_order_and_padded() -> None:
    ranking = Silent().ranking({0: Answer(["c", "b"]), 1: Answer(["a"])}, Sequences.from_lists([[1], [2]]), 3)
    assert ranking.items.tolist() == [[3, 2, 0], [1, 0, 0]]
    assert ranking.scores is None


def test_a_row_without_an_answer_lists_nothing() -> None:
    ranking = Silent().ranking({1: Answer(["a"])}, Sequences.from_lists([[1], [2]]), 1)
    assert ranking.items.tolist() == [[0], [1]]


def test_items_that_make_no_sense_are_dropped_counted_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    teacher, histories = Silent(), Sequences.from_lists([[1], [2]])
    answers = {0: Answer(["x", "a", "b", "b", "c"]), 1: Answer(["y", "b", "a"])}
    with caplog.at_level(logging.WARNING, logger="recdistill.teachers"):
        first = teacher.ranking(answers, histories, 2)
        teacher.ranking(answers, histories, 2)
    assert first.items.tolist() == [[2, 3], [1, 0]]
    assert teacher.dropped == {"unknown": 4, "repeated": 2, "seen": 4}  # 2, 1 and 2 of them, twice
    assert len(caplog.messages) == 1
    assert "2 unknown to the data, 1 listed twice, 2 of the history" in caplog.messages[0]
    assert caplog.messages[0].endswith("; it lists 'x', say: are its ids the data's own, such as 'a'?")


def test_next_to_no_strange_items_raise_no_question(caplog: pytest.LogCaptureFixture) -> None:
    answers = {row: Answer(["a", "b"] if row else ["x", "b"]) for row in range(51)}
    with caplog.at_level(logging.WARNING, logger="recdistill.teachers"):
        Silent().ranking(answers, Sequences.from_lists([[3]] * 51), 2)
    (said,) = caplog.messages
    assert said.endswith("later ones are only counted, in `dropped`")


def test_items_of_the_history_stay_where_the_teacher_does_not_exclude_them() -> None:
    ranking = Silent(exclude_history=False).ranking({0: Answer(["a", "b"])}, Sequences.from_lists([[1]]), 2)
    assert ranking.items.tolist() == [[1, 2]]


def test_scores_stay_with_their_items_when_others_are_dropped() -> None:
    answer = Answer(["x", "a", "b", "c"], [4.0, 3.0, 2.0, 1.0])
    ranking = Silent(gives_scores=True).ranking({0: answer}, Sequences.from_lists([[1]]), 3)
    assert ranking.items.tolist() == [[2, 3, 0]]
    assert ranking.scores is not None
    assert ranking.scores.tolist() == [[2.0, 1.0, -np.inf]]


def test_an_answer_without_scores_is_refused_where_scores_are_promised() -> None:
    with pytest.raises(TeacherError, match="should give scores"):
        Silent(gives_scores=True).ranking({0: Answer(["a"])}, Sequences.from_lists([[2]]), 1)


@pytest.mark.parametrize("listed", [[30, "10"], ["30", 10]])
def test_integer_ids_are_known_also_when_they_come_as_text(listed: list[int | str]) -> None:
    ranking = Silent(IdMap([10, 20, 30], first=1)).ranking({0: Answer(listed)}, Sequences.from_lists([[2]]), 2)
    assert ranking.items.tolist() == [[3, 1]]


@pytest.mark.parametrize("listed", ["007", " 7 ", "7 ", "+7", "1_04", "７", "7.0", "-0", "0x7"])
def test_text_that_no_integer_is_written_as_is_unknown_to_integer_ids(listed: str) -> None:
    """The API may mean another item by it: "007" is not 7."""
    teacher = Silent(IdMap([0, 7, 104], first=1))
    assert teacher.ranking({0: Answer([listed])}, Sequences.from_lists([[3]]), 1).items.tolist() == [[0]]
    assert teacher.dropped["unknown"] == 1


def test_text_ids_are_known_also_when_they_come_as_integers() -> None:
    ranking = Silent(IdMap(["10", "20", "30"], first=1)).ranking({0: Answer([30])}, Sequences.from_lists([[2]]), 1)
    assert ranking.items.tolist() == [[3]]


def test_ids_that_are_no_64_bit_integers_are_unknown_to_integer_ids() -> None:
    teacher = Silent(IdMap([10, 20], first=1))
    ranking = teacher.ranking({0: Answer(["x", 2**70, 10])}, Sequences.from_lists([[2]]), 3)
    assert ranking.items.tolist() == [[1, 0, 0]]
    assert teacher.dropped["unknown"] == 2


@given(st.lists(st.lists(st.sampled_from("abcdxy"), max_size=8), min_size=1, max_size=5), st.integers(1, 4))
def test_a_ranking_holds_the_first_k_known_new_items_of_each_list(lists: list[list[str]], k: int) -> None:
    """The vectorised translation against the same thing said in plain Python."""
    histories = Sequences.from_lists([[1]] * len(lists))
    ranking = Silent().ranking({row: Answer(list(one)) for row, one in enumerate(lists)}, histories, k)
    for row, one in enumerate(lists):
        expected = [" abcd".index(item) for item in dict.fromkeys(one) if item in "bcd"][:k]
        assert ranking.items[row].tolist() == expected + [0] * (k - len(expected))


@pytest.mark.parametrize("wrong", [1.5, None, True, ["a"]])
def test_an_item_id_is_an_integer_or_a_string(wrong: object) -> None:
    with pytest.raises(TeacherError, match="integers or strings"):
        check_items(["a", wrong])


@pytest.mark.parametrize(
    ("scores", "what"),
    [
        ([1.0], "has 1 scores"),
        ([1.0, float("nan")], "finite"),
        ([float("inf"), 1.0], "finite"),
        ([1e39, 1.0], "finite"),
        (["2", 1.0], "finite"),
        ([True, 0], "finite"),
        ([1.0, 2.0], "rise"),
    ],
)
def test_scores_that_make_no_sense_are_refused(scores: list[object], what: str) -> None:
    with pytest.raises(TeacherError, match=what):
        check_scores(scores, 2)


def test_a_teacher_without_a_budget_answers_everything_within_it() -> None:
    teacher, histories = FakeTeacher(5), Sequences.from_lists([[1], [2]])
    ranking, answered = teacher.rank_within_budget(histories, 2)
    assert ranking.items.tolist() == [[2, 3], [3, 4]]
    assert answered.tolist() == [True, True]
