from typing import Any

import numpy as np
import pytest
import torch

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.teachers.callable import CallableTeacher

IDS = IdMap(["a", "b", "c"], first=1)
HISTORIES = Sequences.from_lists([[1], [2, 3]])


def returning(value: Any, **settings: Any) -> CallableTeacher:
    return CallableTeacher(lambda histories, k: value, identity="mine", ids=IDS, **settings)


def test_the_function_is_given_raw_ids_and_k() -> None:
    given = []

    def fn(histories: list[list[int | str]], k: int) -> list[list[str]]:
        given.append((histories, k))
        return [["b"], ["a"]]

    ranking = CallableTeacher(fn, identity="mine", ids=IDS).rank(HISTORIES, 2)
    assert given == [([["a"], ["b", "c"]], 2)]
    assert ranking.items.tolist() == [[2, 0], [1, 0]]


def test_without_ids_the_function_speaks_dense_ids_and_zero_is_padding() -> None:
    teacher = CallableTeacher(lambda histories, k: np.array([[2, 3], [1, 0]]), identity="mine", n_items=3)
    assert teacher.rank(HISTORIES, 2).items.tolist() == [[2, 3], [1, 0]]
    assert not teacher.dropped.total()


def test_a_dense_id_outside_the_items_is_unknown() -> None:
    teacher = CallableTeacher(lambda histories, k: [[4, 2], [-1, "a", 1]], identity="mine", n_items=3)
    assert teacher.rank(HISTORIES, 3).items.tolist() == [[2, 0, 0], [1, 0, 0]]
    assert teacher.dropped["unknown"] == 3


def test_the_function_is_given_at_most_a_batch_at_a_time() -> None:
    sizes = []

    def fn(histories: list[list[int | str]], k: int) -> list[list[str]]:
        sizes.append(len(histories))
        return [["a"]] * len(histories)

    CallableTeacher(fn, identity="mine", ids=IDS, batch_size=2).rank(Sequences.from_lists([[2]] * 5), 1)
    assert sizes == [2, 2, 1]


def test_scores_come_with_the_lists() -> None:
    ranking = returning(([["b"], ["a"]], [[0.5], [2]]), gives_scores=True).rank(HISTORIES, 1)
    assert ranking.scores is not None
    assert ranking.scores.tolist() == [[0.5], [2.0]]


def test_tensors_are_taken_as_lists() -> None:
    value = (torch.tensor([[2, 3], [1, 1]]), torch.tensor([[2.0, 1.0], [4.0, 3.0]]))
    teacher = CallableTeacher(lambda histories, k: value, identity="mine", n_items=3, gives_scores=True)
    assert teacher.rank(HISTORIES, 2).items.tolist() == [[2, 3], [1, 0]]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([["b"]], "returned 1 lists for 2 histories"),
        ([["b"], ["a", "b", "c"]], "returned 3 items for a top-2 request"),
        (None, "must return lists, but returned a NoneType"),
        (["b", "a"], "a list for each history, but one is 'b'"),
        ([["b"], [None]], "integers or strings, but one is None"),
        (([["b"], ["a"]], [[1.0], [1.0]]), "set gives_scores to true"),
    ],
)
def test_what_was_not_agreed_is_refused(value: Any, what: str) -> None:
    with pytest.raises(TeacherError, match=f"'mine'.*{what}"):
        returning(value).rank(HISTORIES, 2)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([["b"], ["a"]], r"must return \(lists, scores\), but returned a list"),
        (([["b"], ["a"]], [[1.0]]), "returned 1 rows of scores for 2 histories"),
        (([["b"], ["a"]], [[1.0], [float("nan")]]), "finite"),
    ],
)
def test_scores_that_were_not_agreed_are_refused(value: Any, what: str) -> None:
    with pytest.raises(TeacherError, match=f"'mine'.*{what}"):
        returning(value, gives_scores=True).rank(HISTORIES, 2)


def test_what_the_function_raises_is_named() -> None:
    def fn(histories: list[list[int | str]], k: int) -> None:
        raise KeyError("model")

    with pytest.raises(TeacherError, match=r"'mine' raised KeyError when asked about 2 histories: 'model'"):
        CallableTeacher(fn, identity="mine", ids=IDS).rank(HISTORIES, 1)


@pytest.mark.parametrize("settings", [{}, {"ids": IDS, "n_items": 3}])
def test_it_must_be_said_which_ids_the_function_speaks(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="give either ids"):
        CallableTeacher(lambda histories, k: [], identity="mine", **settings)
