import pytest

from recdistill.data.dataset import Sequences
from recdistill.errors import TeacherError
from recdistill.teachers.fake import FakeTeacher


def test_it_lists_what_follows_in_the_circle_without_the_history() -> None:
    ranking = FakeTeacher(5).rank(Sequences.from_lists([[5, 4], [2]]), 3).check(5)
    assert ranking.items.tolist() == [[1, 2, 3], [3, 4, 5]]


def test_lists_are_padded_when_the_circle_is_short() -> None:
    assert FakeTeacher(3).rank(Sequences.from_lists([[1, 2]]), 3).items.tolist() == [[3, 0, 0]]


def test_the_nth_score_is_one_over_n() -> None:
    scores = FakeTeacher(5, gives_scores=True).rank(Sequences.from_lists([[1]]), 2).scores
    assert scores is not None
    assert scores.tolist() == [[1.0, 0.5]]


def test_it_answers_by_another_rule() -> None:
    teacher = FakeTeacher(5, lambda history, k: history[::-1][:k].tolist())
    assert teacher.rank(Sequences.from_lists([[1, 2, 3]]), 2).items.tolist() == [[3, 2]]


def test_it_fails_on_the_query_it_is_told_to_and_not_later() -> None:
    teacher = FakeTeacher(5)
    teacher.fails_on = {2}
    with pytest.raises(TeacherError, match="query 2"):
        teacher.rank(Sequences.from_lists([[1], [2], [3]]), 1)
    assert teacher.asked == [[1], [2]]
    assert teacher.rank(Sequences.from_lists([[3]]), 1).items.tolist() == [[4]]
