"""Several questions in one call as tensors, which have a shape."""

from typing import Any

import pytest

from recdistill.data.dataset import IdMap
from recdistill.errors import SettingsError, TeacherError
from recdistill.teachers.answers import Answer, Failure
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.tensors import Stacking, cut, stack

from .talking import URL, about, answer, sent, settings, talk

STACKED: dict[str, Any] = {
    "body": {"inputs": "{questions}"},
    "question": [{"name": "h", "data": "{history}"}, {"name": "n", "data": ["{length}"]}],
    "tensors": {"padding": "", "side": "right"},
    "batch_size": 3,
    "answers": "outputs[*]",
    "items": "[name=items].data[*]",
    "score": "[name=scores].data[*]",
}


def outputs(rows: int, items: list[Any], scores: list[Any]) -> dict[str, Any]:
    shape = [rows, len(items) // rows]
    tensors = {"items": items, "scores": scores}
    return {"outputs": [{"name": name, "shape": shape, "data": data} for name, data in tensors.items()]}


def test_each_question_is_a_row_filled_up_to_the_longest() -> None:
    (call,), _ = talk(settings(**STACKED), [about("a"), about("b", "c"), about()], [outputs(3, ["x"] * 3, [1.0] * 3)])
    assert sent(call) == {
        "inputs": [
            {"name": "h", "shape": [3, 2], "data": ["a", "", "b", "c", "", ""]},
            {"name": "n", "shape": [3, 1], "data": [1, 2, 0]},
        ]
    }


@pytest.mark.parametrize(("side", "data"), [("left", [0, 5, 6, 7]), ("right", [5, 0, 6, 7])])
def test_padding_is_where_the_model_wants_it(side: str, data: list[int]) -> None:
    questions = [[{"name": "h", "data": [5]}], [{"name": "h", "data": [6, 7]}]]
    assert stack(questions, Stacking.parse({"side": side})) == [{"name": "h", "shape": [2, 2], "data": data}]


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
def test_a_reply_is_cut_into_rows_however_its_data_lie(data: list[Any]) -> None:
    answers = cut([{"name": "items", "shape": [2, 3], "datatype": "INT64", "data": data}], 2)
    assert answers == [[{"name": "items", "data": [1, 2, 3]}], [{"name": "items", "data": [4, 5, 6]}]]


def test_a_list_ends_where_padding_begins_whatever_is_said_of_that() -> None:
    """A model may fill its scores up with anything, also with what is no number."""
    reply = outputs(2, ["x", "", "y", "z"], [2.0, float("nan"), 1.0, 0.5])
    _, outcomes = talk(settings(**STACKED, gives_scores=True), [about("a"), about("b")], [reply])
    told = [(answer(outcome).items, answer(outcome).scores) for outcome in outcomes]
    assert told == [(["x"], [2.0]), (["y", "z"], [1.0, 0.5])]


def test_one_bad_row_spoils_no_other() -> None:
    reply = outputs(2, ["x", "y", "z", ""], [2.0, float("nan"), 1.0, 0.0])
    _, (bad, good) = talk(settings(**STACKED, gives_scores=True), [about("a"), about("b")], [reply])
    assert isinstance(bad, Failure)
    assert "finite numbers" in bad.reason
    assert isinstance(good, Answer)
    assert good.items == ["z"]


def test_another_number_of_scores_than_items_is_refused() -> None:
    reply = {
        "outputs": [*outputs(1, ["x", "y"], [])["outputs"][:1], {"name": "scores", "shape": [1, 1], "data": [2.0]}]
    }
    with pytest.raises(TeacherError, match="a list of 2 items has 1 scores"):
        talk(settings(**STACKED, gives_scores=True), [about("a")], [reply])


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ({"outputs": [{"name": "items", "shape": [3, 1], "data": [1, 2, 3]}]}, r"of shape \[3, 1\] and 3 values to 2"),
        ({"outputs": [{"name": "items", "shape": [2, 2], "data": [1, 2, 3]}]}, r"of shape \[2, 2\] and 3 values to 2"),
        ({"outputs": [{"name": "items", "shape": [2, 2], "data": [[1, 2], 3]}]}, "and 2 values to 2 questions"),
        ({"outputs": [{"name": "items", "shape": [], "data": [1]}]}, "something that is no tensor"),
        ({"outputs": [{"name": "items", "shape": [2, None], "data": [1]}]}, "something that is no tensor"),
        ({"outputs": [{"name": "items", "shape": [2, 1], "data": 5}]}, "something that is no tensor"),
        ({"outputs": [5]}, "something that is no tensor"),
        ({"outputs": []}, r"nothing at '\[name=items\]"),
        ({"model": "m"}, r"nothing at 'outputs\[\*\]'"),
        ({"error": "no such model"}, "an error at 'error', 'no such model'"),
    ],
)  # fmt: skip
def test_a_reply_that_has_not_a_row_for_each_question_is_refused(reply: Any, said: str) -> None:
    """Rows would be taken for the answers to other questions."""
    with pytest.raises(TeacherError, match=said):
        talk(settings(**STACKED), [about("a"), about("b")], [reply])


@pytest.mark.parametrize(
    ("ids", "padding", "said"),
    [
        ([0, 1], 0, "padding 0 is the id of an item"),
        (["a", ""], "", "padding '' is the id of an item"),
        (["a"], 0, "padding is 0, but ids are text"),
        ([1], "", "padding is '', but ids are integers"),
    ],
)
def test_padding_that_cannot_be_told_from_an_item_is_refused(ids: list[Any], padding: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        HttpTeacher(IdMap(ids, first=1), url=URL, **STACKED | {"tensors": {"padding": padding}})


@pytest.mark.parametrize(
    "question",
    [{"h": "{history}"}, [{"h": "{history}"}], [{"data": "{last_item}", "name": "{history}"}], ["{history}"]],
)
def test_what_cannot_be_stacked_is_refused(question: Any) -> None:
    with pytest.raises(SettingsError, match="tensors: question must be a list of tensors"):
        settings(**STACKED | {"question": question})


def test_tensors_without_a_question_are_refused() -> None:
    with pytest.raises(SettingsError, match="tensors: question must be a list of tensors"):
        settings(tensors={})


def test_answers_are_kept_apart_by_how_questions_are_stacked() -> None:
    def identity(**given: Any) -> str:
        return HttpTeacher(IdMap(["a"], first=1), url=URL, **STACKED | given).identity

    assert identity() != identity(tensors={"padding": "", "side": "left"})
    assert identity() == identity(rate=5)
