"""Answers that take several calls, and calls that carry several questions."""

import logging
from typing import Any

import numpy as np
import pytest

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.teachers.answers import Failure
from recdistill.teachers.exchange import WHOLE, Reply
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.shapes import DeclaredShape

from .talking import BATCH, ITEMS, SESSION, URL, about, answer, sent, settings, talk

# Pages


def test_pages_are_turned_by_offset_until_one_brings_nothing() -> None:
    declared = settings(body={"h": "{history}", "from": "{offset}", "n": "{k}"}, max_k=2)
    pages: list[Any] = [{"items": [1, 2]}, {"items": [3, 4]}, {"items": [5]}, {"items": []}]
    calls, (outcome,) = talk(declared, [about("a")], pages, k=9)
    assert [(sent(call)["from"], sent(call)["n"]) for call in calls] == [(0, 2), (2, 2), (4, 2), (5, 2)]
    assert answer(outcome).items == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("place", ["{offset}", "{page_number}"])
@pytest.mark.parametrize("max_k", [2, 3, 4, 6])
def test_no_item_is_lost_where_pages_are_of_another_size(
    place: str, max_k: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Three to a page, whatever is asked for; cut to what was said, or taken for the last, they would leave gaps."""
    declared = settings(body={"h": "{history}", "place": place}, max_k=max_k)
    pages: list[Any] = [{"items": [1, 2, 3]}, {"items": [4, 5, 6]}, {"items": [7]}, {"items": []}]
    calls, (outcome,) = talk(declared, [about("a")], pages, k=8)
    assert [sent(call)["place"] for call in calls] == ([0, 3, 6, 7] if place == "{offset}" else [1, 2, 3, 4])
    assert answer(outcome).items == [1, 2, 3, 4, 5, 6, 7]
    assert caplog.text.count("gives pages of 3 items") == (max_k != 3)


def test_that_pages_are_of_another_size_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    shape = DeclaredShape(settings(body={"h": "{history}", "page": "{page_number}"}, max_k=3))
    for _ in range(2):
        conversation = shape.converse([about("a")], 4)
        next(conversation)
        conversation.send(Reply(200, {}, b'{"items": [1, 2]}'))
        with pytest.raises(StopIteration):
            conversation.send(Reply(200, {}, b'{"items": [3, 4]}'))
    assert caplog.text.count("gives pages of 2 items") == 1


@pytest.mark.parametrize("second", [[], [1, 2]])
def test_a_list_of_one_short_page_is_whole(second: list[int]) -> None:
    """Some APIs give the last page for every number after it."""
    declared = settings(body={"h": "{history}", "page": "{page_number}"}, max_k=5)
    calls, (outcome,) = talk(declared, [about("a")], [{"items": [1, 2]}, {"items": second}], k=9)
    assert (len(calls), answer(outcome).items) == (2, [1, 2])


def test_no_page_is_turned_for_more_than_was_asked_for() -> None:
    declared = settings(body={"h": "{history}", "from": "{offset}"}, max_k=2)
    calls, (outcome,) = talk(declared, [about("a")], [{"items": [1, 2]}, {"items": [3, 4]}], k=3)
    assert len(calls) == 2
    assert answer(outcome).items == [1, 2, 3, 4], "but what was bought is kept"


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("last", [[3, 4], []])
def test_pages_are_turned_by_number_until_one_brings_nothing_new(first: int, last: list[int]) -> None:
    declared = settings(
        method="GET",
        query={"h": "{history}", "page": "{page_number}", "size": "{k}"},
        max_k=2,
        **({} if first == 1 else {"first_page": first}),
    )
    calls, (outcome,) = talk(declared, [about("a")], [{"items": [1, 2]}, {"items": [3, 4]}, {"items": last}], k=9)
    assert [call.url for call in calls] == [f"{URL}?h=a&page={first + n}&size=2" for n in range(3)]
    assert answer(outcome).items == [1, 2, 3, 4]


def test_pages_have_one_size_though_less_is_wanted_of_the_last() -> None:
    """With another size the same number would be another page."""
    declared = settings(body={"h": "{history}", "page": "{page_number}", "size": "{k}"}, max_k=2)
    calls, (outcome,) = talk(declared, [about("a")], [{"items": [1, 2]}, {"items": [3, 4]}], k=3)
    assert [sent(call) for call in calls] == [{"h": ["a"], "page": n, "size": 2} for n in (1, 2)]
    assert answer(outcome).items == [1, 2, 3, 4], "what was bought is kept, for whoever wants four"


def test_lists_of_the_same_depth_take_the_same_calls() -> None:
    """No longer than the API gives; whatever it gives where it is not told; and pages as many as it takes."""
    body = {"h": "{history}", "n": "{k}"}
    told, fixed = settings(body=body, max_k=10), settings(body={"h": "{history}"})
    pages = settings(body=body | {"from": "{offset}"}, max_k=10)
    assert [DeclaredShape(told).depth(k) for k in (5, 10, 15)] == [5, 10, 10]
    assert [DeclaredShape(fixed).depth(k) for k in (5, 15)] == [WHOLE, WHOLE]
    assert [DeclaredShape(pages).depth(k) for k in (5, 15)] == [5, 15]


@pytest.mark.parametrize("last", [{}, {"next": None}, {"next": ""}])
def test_pages_are_turned_by_token_until_there_is_none(last: dict[str, Any]) -> None:
    """The first call has no token, so its member is left out rather than sent as null."""
    declared = settings(
        body={"h": "{history}", "page": "{page}"}, next_page="next", max_k=1, gives_scores=True, id="id", score="s"
    )
    first = {"items": [{"id": "b", "s": 3}], "next": "t1"}
    calls, (outcome,) = talk(declared, [about("a")], [first, {"items": [{"id": "c", "s": 2}], **last}])
    assert [sent(call) for call in calls] == [{"h": ["a"]}, {"h": ["a"], "page": "t1"}]
    assert (answer(outcome).items, answer(outcome).scores) == (["b", "c"], [3.0, 2.0])


def test_an_empty_page_is_the_last() -> None:
    declared = settings(body={"h": "{history}", "page": "{page}"}, next_page="next", max_k=1)
    calls, (outcome,) = talk(declared, [about("a")], [{"items": [1], "next": "t"}, {"items": [], "next": "u"}])
    assert len(calls) == 2
    assert answer(outcome).items == [1]


def test_a_page_that_is_longer_than_said_is_read_whole_where_the_reply_says_how_it_goes_on() -> None:
    declared = settings(body={"h": "{history}", "page": "{page}"}, next_page="next", max_k=2)
    calls, (outcome,) = talk(declared, [about("a")], [{"items": [1, 2, 3], "next": "t"}, {"items": [4, 5]}], k=5)
    assert len(calls) == 2
    assert answer(outcome).items == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("second", [[1, 2], [2, 1]])
def test_an_api_that_gives_the_first_page_again_is_not_paid_for_more_of_them(second: list[int]) -> None:
    """It does not turn pages at all, or not when asked in this way."""
    declared = settings(body={"h": "{history}", "from": "{offset}"}, max_k=2)
    with pytest.raises(TeacherError, match="the first page once more"):
        talk(declared, [about("a")], [{"items": [1, 2]}, {"items": second}], k=100)


@pytest.mark.parametrize("pages", [[[1, 2], [3, 4], [1, 2]], [[1, 2], [3, 4], [3, 4]], [[1, 2], [3, 4], [4, 1]]])
def test_a_page_without_a_new_item_is_the_last(pages: list[list[int]]) -> None:
    """An API that begins again behind the end of its list would else be paid for up to k pages."""
    declared = settings(body={"h": "{history}", "page": "{page}"}, next_page="next", max_k=2, gives_scores=True)
    replies = [{"items": page, "scores": [9 - n, 9 - n], "next": "t"} for n, page in enumerate(pages)]
    calls, (outcome,) = talk(declared, [about("a")], replies, k=100)
    assert len(calls) == 3
    assert (answer(outcome).items, answer(outcome).scores) == ([1, 2, 3, 4], [9.0, 9.0, 8.0, 8.0])


def test_scores_that_rise_from_page_to_page_are_refused() -> None:
    declared = settings(body={"h": "{history}", "from": "{offset}"}, max_k=1, gives_scores=True)
    with pytest.raises(TeacherError, match="scores rise"):
        talk(declared, [about("a")], [{"items": [1], "scores": [1]}, {"items": [2], "scores": [2]}], k=2)


# Several questions, sessions, single items


def test_several_questions_in_one_call_one_bad_answer_spoils_no_other() -> None:
    replies = [{"predictions": [{"items": ["x"]}, {"itemz": []}, {"items": ["z"]}]}]
    (call,), outcomes = talk(settings(**BATCH), [about("a"), about("b"), about("c")], replies)
    assert sent(call) == {"instances": [{"history": ["a"]}, {"history": ["b"]}, {"history": ["c"]}]}
    assert [answer(outcomes[0]).items, answer(outcomes[2]).items] == [["x"], ["z"]]
    assert isinstance(outcomes[1], Failure)
    assert outcomes[1].paid
    assert f"{URL} answered one of several with nothing at 'items[*]'" in outcomes[1].reason


def test_several_questions_in_one_call_of_which_no_answer_makes_sense_are_refused_together() -> None:
    """With a wrong path every answer is lost: the client must see failures in a row, and stop paying."""
    with pytest.raises(TeacherError, match=r"nothing at 'items\[\*\]'"):
        talk(settings(**BATCH), [about("a"), about("b")], [{"predictions": [{"ids": []}, {"ids": []}]}])


def test_an_error_is_looked_for_in_the_reply_and_in_each_answer_of_several() -> None:
    fine, wrong = {"items": ["x"]}, {"items": [], "error": "no such item"}
    _, outcomes = talk(settings(**BATCH), [about("a"), about("b")], [{"predictions": [fine, wrong]}])
    assert answer(outcomes[0]).items == ["x"]
    assert isinstance(outcomes[1], Failure)
    assert "an error at 'error', 'no such item'" in outcomes[1].reason
    with pytest.raises(TeacherError, match="an error at 'error', 'overloaded'"):
        talk(settings(**BATCH), [about("a")], [{"predictions": [fine], "error": "overloaded"}])


def test_another_number_of_answers_than_questions_is_refused() -> None:
    """They could not be told apart."""
    with pytest.raises(TeacherError, match=r"1 answers at 'predictions\[\*\]' to 2 questions"):
        talk(settings(**BATCH), [about("a"), about("b")], [{"predictions": [{"items": []}]}])


NAMED = BATCH | {"question": {"id": "{question_id}", "history": "{history}"}, "answer_id": "id"}


@pytest.mark.parametrize("form", [int, str])
def test_answers_of_several_are_told_apart_by_their_names(form: type) -> None:
    """By their places each would be recorded as that to another question."""
    told = [{"id": form(n), "items": [f"x{n}"]} for n in (2, 0, 1)]
    (call,), outcomes = talk(settings(**NAMED), [about("a"), about("b"), about("c")], [{"predictions": told}])
    assert [question["id"] for question in sent(call)["instances"]] == [0, 1, 2]
    assert [answer(outcome).items for outcome in outcomes] == [["x0"], ["x1"], ["x2"]]


@pytest.mark.parametrize(
    ("ids", "said"),
    [([0, 0], r"\['1'\] at 'id'"), ([1, 2], r"\['0', '2'\] at 'id'"), ([0, None], r"\['1', 'None'\] at 'id'")],
)
def test_answers_that_name_other_questions_are_refused(ids: list[Any], said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        talk(settings(**NAMED), [about("a"), about("b")], [{"predictions": [{"id": id, "items": []} for id in ids]}])
    with pytest.raises(TeacherError, match="nothing at 'id'"):
        talk(settings(**NAMED), [about("a")], [{"predictions": [{"items": []}]}])


BOTH = {"body": {"user": "{user}", "history": "{history}"}}


def test_a_session_is_replayed_from_its_beginning_under_a_new_name_and_the_last_answer_counts() -> None:
    calls, (outcome,) = talk(settings(**SESSION), [about("a", "b", "a")], [["x"], ["y"], ["z"]])
    assert [call.url for call in calls] == [f"{URL}?s=s1&i={item}" for item in "aba"]
    assert answer(outcome).items == ["z"]


def test_a_session_of_which_a_step_was_not_taken_is_no_answer() -> None:
    with pytest.raises(TeacherError, match="an error at 'error', 'busy'"):
        talk(settings(**SESSION), [about("a", "b")], [{"error": "busy"}])


@pytest.mark.parametrize(
    ("declared", "k", "calls"),
    [
        ({}, 20, 1),
        ({"max_k": 5}, 20, 1),  # lists end there
        ({"body": {"h": "{history}", "o": "{offset}"}, "max_k": 5}, 20, 4),
        ({"body": {"h": "{history}", "o": "{offset}"}, "max_k": 5}, 21, 5),
        ({"body": {"h": "{history}", "p": "{page}"}, "next_page": "next", "max_k": 7}, 20, 3),
        ({"reads": "session", "body": {"s": "{session}", "i": "{item}"}}, 20, 3),
        ({"reads": "last_item", "body": {"i": "{last_item}"}}, 20, 1),
        ({"question": {"h": "{history}"}, "answers": "a[*]", "batch_size": 8, "body": {"q": "{questions}"}}, 20, 1),
    ],
)
def test_how_many_calls_a_conversation_takes(declared: dict[str, Any], k: int, calls: int) -> None:
    assert DeclaredShape(settings(**declared)).calls(about("a", "b", "c"), k) == calls


def test_without_an_item_no_call_is_made() -> None:
    for reads, item in (("session", "{item}"), ("last_item", "{last_item}")):
        declared = settings(reads=reads, body={"s": "{session}", "i": item})
        assert DeclaredShape(declared).calls(about(), 3) == 0
    assert DeclaredShape(settings()).calls(about(), 3) == 1


def test_a_session_is_named_only_where_it_is_told() -> None:
    """Naming one draws random bytes, for each question."""
    shape = DeclaredShape(settings(), new_session=lambda: pytest.fail("a session was named"))
    assert sent(next(shape.converse([about("a")], 3)))["history"] == ["a"]


def test_the_names_of_sessions_do_not_repeat() -> None:
    shape = DeclaredShape(settings(**SESSION))
    assert len({next(shape.converse([about("a")], 1)).url for _ in range(100)}) == 100


@pytest.mark.parametrize("declared", [SESSION, {"reads": "last_item", "body": "{last_item}"}])
def test_without_an_item_there_is_nothing_to_ask(declared: dict[str, Any]) -> None:
    calls, (outcome,) = talk(settings(**declared), [about()], [])
    assert calls == []
    assert isinstance(outcome, Failure)
    assert (outcome.calls, outcome.paid) == (0, False)


def test_a_teacher_of_single_items_is_asked_once_for_all_histories_that_end_alike() -> None:
    """The ledger files answers under what was asked: the cut must be made before."""
    teacher = HttpTeacher(ITEMS, url=URL, reads="last_item", body={"id": "{last_item}"})
    requests = teacher.requests(Sequences.from_lists([[1, 3], [2, 4, 3]]))
    assert [request.history for request in requests] == [["c"], ["c"]]
    assert (teacher.takes, teacher.max_history) == ("history", 1)


def test_a_limit_keeps_the_newest_items() -> None:
    teacher = HttpTeacher(ITEMS, url=URL, max_history=2)
    assert [request.history for request in teacher.requests(Sequences.from_lists([[1, 2, 3]]))] == [["b", "c"]]


def test_a_teacher_of_users_is_told_the_users_of_the_data() -> None:
    users = IdMap([7, 9], first=0)
    teacher = HttpTeacher(ITEMS, url=URL, reads="user", body={"u": "{user}"}, user_format="u-{id}", users=users)
    requests = teacher.requests(Sequences.from_lists([[1], [2]]), np.array([1, 0]))
    assert [request.user for request in requests] == ["u-9", "u-7"]
    assert teacher.takes == "user"


def test_a_teacher_of_users_without_users_is_refused() -> None:
    with pytest.raises(
        SettingsError, match=r"told the user, so.*pass users.*or choose a shape that is told the history"
    ):
        HttpTeacher(ITEMS, url=URL, reads="user", body={"u": "{user}"})


@pytest.mark.parametrize(
    ("declared", "history"),
    [
        ({"body": {"u": "{user}", "h": "{history}"}}, {"h": ["a", "c"]}),
        ({"body": {"u": "{user}", "i": "{last_item}"}, "reads": "last_item"}, {"i": "c"}),
    ],
)
def test_the_user_is_told_beside_the_history(declared: dict[str, Any], history: dict[str, Any]) -> None:
    users = IdMap([7, 9], first=0)
    teacher = HttpTeacher(ITEMS, url=URL, user_format="u-{id}", users=users, **declared)
    (request,) = teacher.requests(Sequences.from_lists([[1, 3]]), np.array([1]))
    (call,), _ = talk(teacher.config, [request], [{"items": []}])
    assert sent(call) == {"u": "u-9", **history}
    assert (teacher.takes, teacher.needs_users) == ("history", True)
    with pytest.raises(SettingsError, match="told the user, so it must know whom: pass users"):
        HttpTeacher(ITEMS, url=URL, **declared)


def test_braces_that_hold_no_name_are_sent_as_they_are() -> None:
    declared = settings(body={"h": "{history}", "ask": "query { items(n: 3) {\n id } }", "like": "a{3}", "none": "{}"})
    (call,), _ = talk(declared, [about("a")], [{"items": []}])
    assert sent(call) == {"h": ["a"], "ask": "query { items(n: 3) {\n id } }", "like": "a{3}", "none": "{}"}


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (SESSION, "a call for each item of its history"),
        ({"varies": True}, "reads too low"),
        (BOTH, "looks the user up"),
    ],
)
def test_what_costs_more_or_is_worth_less_is_said_beforehand(
    declared: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="recdistill.teachers"):
        HttpTeacher(ITEMS, url=URL, users=IdMap(["ann"], first=0), **declared)
    assert said in caplog.text
