"""Questions to calls and replies to answers, without a network."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path as File
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import polars as pl
import pytest

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.teachers.answers import Answer, Failure, Request
from recdistill.teachers.exchange import WHOLE, Call, Garbled, Reply
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.paths import Path
from recdistill.teachers.shape_settings import ShapeSettings
from recdistill.teachers.shapes import DeclaredShape

URL = "https://shop.example/recommend"
ITEMS = IdMap(["a", "b", "c", "d"], first=1)


def settings(**given: Any) -> ShapeSettings:
    return ShapeSettings.parse({"url": URL, **given})


def talk(
    declared: ShapeSettings, requests: list[Request], replies: list[Any], k: int = 3
) -> tuple[list[Call], list[Answer | Failure]]:
    """Hold a conversation; returns the calls that were made and the outcomes."""
    names = iter(f"s{n}" for n in range(1, 100))
    conversation = DeclaredShape(declared, new_session=lambda: next(names)).converse(requests, k)
    calls: list[Call] = []
    waiting: Iterator[Any] = iter(replies)
    reply: Reply | None = None
    while True:
        try:
            calls.append(next(conversation) if reply is None else conversation.send(reply))
        except StopIteration as end:
            assert list(waiting) == [], "a reply was not asked for"
            return calls, end.value
        body = next(waiting)
        reply = Reply(200, {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def about(*history: str, user: str | None = None) -> Request:
    return Request(0, list(history), user)


def sent(call: Call) -> Any:
    assert call.body is not None
    return json.loads(call.body)


def answer(outcome: Answer | Failure) -> Answer:
    assert isinstance(outcome, Answer)
    return outcome


def test_the_default_shape() -> None:
    (call,), (outcome,) = talk(settings(), [about("a", "ü")], [{"items": ["b", 7], "scores": [2, 1]}])
    assert call == Call("POST", URL, {"Content-Type": "application/json"}, '{"history":["a","ü"],"k":3}'.encode())
    assert (answer(outcome).items, answer(outcome).scores) == (["b", 7], None)


# Paths


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("items[*]", {"items": [1, 2]}, [1, 2]),
        ("[*]", [1, 2], [1, 2]),
        (".", 5, [5]),
        (".id", {"id": 5}, [5]),
        ("metadata.score", {"metadata": {"score": 0.5}}, [0.5]),
        ("results[*].hits[*]", {"results": [{"hits": [1]}, {"hits": [2, 3]}]}, [1, 2, 3]),
        ("results[1][0]", {"results": [[1], [2]]}, [2]),
        ("outputs[name=ids].data[*]", {"outputs": [{"name": "scores"}, {"name": "ids", "data": [4]}]}, [4]),
        ("x-id", {"x-id": None}, [None]),
        ("items[*].id", {"items": []}, []),
    ],
)
def test_a_path_leads_to_values(path: str, value: Any, found: list[Any]) -> None:
    assert Path.parse(path).all(value) == found


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("items[*]", {"error": "no", "code": 3}, "an object with 'items', but it is an object with 'error', 'code'"),
        ("items[*]", {"items": {}}, "a list, but it is an empty object"),
        ("items[*].id", {"items": ["a"]}, "an object with 'id', but it is text"),
        ("[2]", [1, 2], "a list of more than 2, but it is a list of 2"),
        (
            "out[name=ids]",
            {"out": [{"name": "x"}]},
            "a list with an object whose 'name' is 'ids', but it is a list of 1",
        ),
        ("id", None, "an object with 'id', but it is null"),
        ("id", True, "but it is true or false"),
        ("id", 1.5, "but it is a number"),
        ("id", [], "but it is an empty list"),
        ("z", dict.fromkeys("abcdefg", 0), "with 'a', 'b', 'c', 'd', 'e', …"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_and_what_is_there(path: str, value: Any, said: str) -> None:
    with pytest.raises(TeacherError) as caught:
        Path.parse(path).all(value)
    assert f"nothing at {path!r}: there should be " in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("path", ["items[", "items[*", "a..b", "[x]", "items[*]]", "[-1]"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is no path, from"):
        Path.parse(path)


# What is sent


def test_an_item_is_an_object_where_the_api_wants_one() -> None:
    declared = settings(
        item={"product": {"id": "{item}"}}, body={"events": "{history}", "n": "{length}", "to": "{last_item}"}
    )
    (call,), _ = talk(declared, [about("a", "b")], [{"items": []}])
    assert sent(call) == {"events": [{"product": {"id": "a"}}, {"product": {"id": "b"}}], "n": 2, "to": "b"}


def test_items_get_times_in_their_order() -> None:
    """An API that sorts what it is told by time must see the order of the history."""
    declared = settings(item={"id": "{item}", "at": "{time}"}, body="{history}")
    (call,), _ = talk(declared, [about("a", "b", "c")], [{"items": []}])
    times = [event["at"] for event in sent(call)]
    assert times == sorted(times)
    assert len(set(times)) == 3


def test_addresses_are_quoted_so_that_no_id_changes_what_is_asked() -> None:
    declared = settings(
        url="{server}/users/{user}/items",
        values={"server": "https://shop.example/v1", "lang": "en/gb"},
        query={"n": "{k}", "lang": "{lang}", "fresh": True},
        method="GET",
        reads="user",
    )
    (call,), _ = talk(declared, [about("a", user="../me?k=1&ü")], [{"items": []}])
    assert call.url == ("https://shop.example/v1/users/..%2Fme%3Fk%3D1%26%C3%BC/items?n=3&lang=en%2Fgb&fresh=true")
    assert (call.method, call.body, dict(call.headers)) == ("GET", None, {})


@pytest.mark.parametrize(("item", "written"), [(".", "%2E"), ("..", "%2E%2E"), ("a..b", "a..b")])
def test_an_id_of_dots_does_not_lead_to_another_address(item: str, written: str) -> None:
    declared = settings(url="https://shop.example/{last_item}/like", method="GET", reads="last_item")
    (call,), _ = talk(declared, [about(item)], [{"items": []}])
    assert call.url == f"https://shop.example/{written}/like"


@pytest.mark.parametrize("query", ["?", "?a=1", ""])
def test_parameters_are_added_to_those_of_the_address(query: str) -> None:
    declared = settings(url=f"https://shop.example/like{query}", query={"n": "{k}"})
    (call,), _ = talk(declared, [about("a")], [{"items": []}])
    assert dict(parse_qsl(urlsplit(call.url).query)) == {"n": "3"} | ({"a": "1"} if "a" in query else {})


@pytest.mark.parametrize("name", ["Content-Type", "content-type"])
def test_another_type_of_content_replaces_ours_however_it_is_written(name: str) -> None:
    (call,), _ = talk(settings(headers={name: "application/vnd.api+json"}), [about("a")], [{"items": []}])
    assert dict(call.headers) == {name: "application/vnd.api+json"}


def test_a_text_whose_placeholder_has_no_value_is_left_out() -> None:
    """Not sent as "page-None"."""
    declared = settings(body={"h": "{history}", "after": "page-{page}"}, next_page="next", max_k=1)
    calls, _ = talk(declared, [about("a")], [{"items": [1], "next": 7}, {"items": [2]}])
    assert [sent(call) for call in calls] == [{"h": ["a"]}, {"h": ["a"], "after": "page-7"}]


def test_a_history_in_the_address_is_joined_by_commas() -> None:
    (call,), _ = talk(
        settings(method="GET", url=f"{URL}?v=2", query={"items": "{history}"}), [about("a", "b,c")], [{"items": []}]
    )
    assert call.url == f"{URL}?v=2&items=a%2Cb%2Cc"


def test_k_is_no_more_than_one_call_gives() -> None:
    (call,), _ = talk(settings(max_k=2), [about("a")], [{"items": []}])
    assert sent(call)["k"] == 2


# What comes back


@pytest.mark.parametrize(
    ("declared", "reply"),
    [
        ({"items": "list[*]"}, {"list": ["b", "c"], "scores": [2, 1]}),
        ({"items": "list[*]", "id": "item.id", "score": "item.score"}, {
            "list": [{"item": {"id": "b", "score": 2}}, {"item": {"id": "c", "score": 1}}]
        }),
        ({"items": "out[name=i].data[*]", "score": "out[name=s].data[*]"}, {
            "out": [{"name": "s", "data": [2, 1]}, {"name": "i", "data": ["b", "c"]}]
        }),
    ],
)  # fmt: skip
def test_scores_lie_beside_the_ids_or_in_a_list_of_their_own(declared: dict[str, Any], reply: Any) -> None:
    _, (outcome,) = talk(settings(gives_scores=True, **declared), [about("a")], [reply])
    assert (answer(outcome).items, answer(outcome).scores) == (["b", "c"], [2.0, 1.0])


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"<html>", "something that is not JSON"),
        (b"[" * 100_000, "something that is not JSON"),
        (b"\xff", "something that is not JSON"),
        ({"items": [{"id": "b"}]}, r"nothing at 'metadata.score': there should be an object with 'metadata'"),
        ({"items": [{"id": None, "metadata": {"score": 1}}]}, "integers or strings, but one is None"),
        ({"items": [{"id": "b", "metadata": {"score": None}}]}, "finite numbers, but one is None"),
    ],
)
def test_a_reply_that_makes_no_sense_is_refused_by_what_is_wrong(reply: Any, said: str) -> None:
    declared = settings(id="id", score="metadata.score", gives_scores=True)
    with pytest.raises(TeacherError, match=said):
        talk(declared, [about("a")], [reply])


@pytest.mark.parametrize(
    ("declared", "reply"),
    [
        ({}, {}),
        ({}, {"items": None}),
        ({"items": "[*]"}, None),
        ({"items": "page.hits[*].id"}, {"page": {}}),
        ({"items": "hits[*]", "id": "id", "score": "score", "gives_scores": True}, {"hits": None}),
        ({"gives_scores": True}, {"token": "t"}),
    ],
)
def test_a_list_that_was_left_out_is_an_empty_answer_where_that_is_said(declared: dict[str, Any], reply: Any) -> None:
    with pytest.raises(TeacherError, match="nothing at"):
        talk(settings(**declared), [about("a")], [reply])
    _, (outcome,) = talk(settings(missing_items="empty", **declared), [about("a")], [reply])
    assert answer(outcome).items == []


@pytest.mark.parametrize("declared", [{}, {"items": "[*]"}, {"gives_scores": True}, {"items": "page.hits[*]"}])
def test_no_body_is_an_empty_answer_where_that_is_said(declared: dict[str, Any]) -> None:
    """As 204 has none, by which an API says of a user that there is nothing to recommend."""
    with pytest.raises(TeacherError, match="an empty body; set missing_items") as caught:
        talk(settings(**declared), [about("a")], [b""])
    assert not isinstance(caught.value, Garbled), "it is no sign that the whole API is being mended"
    _, (outcome,) = talk(settings(missing_items="empty", **declared), [about("a")], [b""])
    assert answer(outcome).items == []


@pytest.mark.parametrize("missing", ["failure", "empty"])
def test_a_page_without_a_body_is_the_last(missing: str) -> None:
    declared = settings(body={"h": "{history}", "from": "{offset}"}, max_k=2, missing_items=missing)
    _, (outcome,) = talk(declared, [about("a")], [{"items": [1, 2]}, b""], k=4)
    assert answer(outcome).items == [1, 2]


@pytest.mark.parametrize(
    ("declared", "reply", "said"),
    [
        ({}, {"items": {}}, "a list, but it is an empty object"),
        ({}, [], "an object with 'items', but it is an empty list"),
        ({"items": "page.hits[*]"}, {"pages": 3}, "an object with 'page'"),
        ({"gives_scores": True}, {"items": ["b"]}, "has 0 scores"),
    ],
)
def test_only_the_list_itself_may_be_left_out(declared: dict[str, Any], reply: Any, said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        talk(settings(missing_items="empty", **declared), [about("a")], [reply])


@pytest.mark.parametrize(
    ("declared", "told", "said"),
    [
        ({}, {"error": "warming up"}, "an error at 'error', 'warming up'"),
        ({}, {"error": {"code": 17}}, """an error at 'error', '{"code": 17}'"""),
        ({"error": "status.failed"}, {"status": {"failed": True}}, "an error at 'status.failed', 'true'"),
        ({"error": "errors[*]"}, {"errors": ["", "no\nmodel"]}, r"an error at 'errors\[\*\]', 'no model'"),
        ({}, {"error": "x" * 300}, "'x{200}…'"),
    ],
)
def test_an_error_under_success_is_no_answer(declared: dict[str, Any], told: dict[str, Any], said: str) -> None:
    """An empty list beside it would else be kept for ever."""
    with pytest.raises(TeacherError, match=said):
        talk(settings(missing_items="empty", **declared), [about("a")], [{"items": [], **told}])


@pytest.mark.parametrize("told", [None, False, 0, "", [], {}])
def test_an_error_that_says_nothing_is_none(told: Any) -> None:
    _, (outcome,) = talk(settings(), [about("a")], [{"items": ["b"], "error": told}])
    assert answer(outcome).items == ["b"]


def test_errors_are_looked_for_nowhere_where_that_is_said() -> None:
    _, (outcome,) = talk(settings(error=""), [about("a")], [{"items": ["b"], "error": "only the second shelf"}])
    assert answer(outcome).items == ["b"]


def test_what_an_error_says_is_told_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of one as well, where the message is cut."""
    monkeypatch.setenv("SHOP_KEY", "s3cret")
    declared = settings(headers={"X-Api-Key": "${SHOP_KEY}"})
    with pytest.raises(TeacherError) as caught:
        talk(declared, [about("a")], [{"items": [], "error": "x" * 197 + "s3cret"}])
    assert "s3" not in str(caught.value)


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


BATCH = {
    "body": {"instances": "{questions}"},
    "question": {"history": "{history}"},
    "answers": "predictions[*]",
    "batch_size": 3,
}


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
SESSION = {"reads": "session", "method": "GET", "query": {"s": "{session}", "i": "{item}"}, "items": "[*]"}


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


# Ids


def test_a_format_turns_ids_both_ways() -> None:
    teacher = HttpTeacher(IdMap([5, 6, 7], first=1), url=URL, item_format="item-{id}", exclude_history=False)
    assert teacher.requests(Sequences.from_lists([[1, 3]]))[0].history == ["item-5", "item-7"]
    listed = teacher.ranking({0: Answer(["item-7", "product-6", "5", "item-6"])}, Sequences.from_lists([[1]]), 4)
    assert listed.items.tolist() == [[3, 2, 0, 0]]
    assert teacher.dropped["unknown"] == 2


def test_a_file_turns_ids_both_ways(tmp_path: File) -> None:
    (tmp_path / "ids.csv").write_text("api_id,id,title\nsku9,7,Hat\nsku8,5,Cap\nsku7,6,Bag\nsku6,4,Old\n")
    teacher = HttpTeacher(IdMap([5, 6, 7], first=1), url=URL, item_file=str(tmp_path / "ids.csv"))
    assert teacher.requests(Sequences.from_lists([[1, 3]]))[0].history == ["sku8", "sku9"]
    assert teacher.ranking({0: Answer(["sku9", "sku6"])}, Sequences.from_lists([[1]]), 2).items.tolist() == [[3, 0]]


@pytest.mark.parametrize("name", ["ids.csv", "ids.parquet"])
@pytest.mark.parametrize(("settings", "sent"), [({}, [12, 11]), ({"item_format": "{id}"}, ["12", "11"])])
def test_integers_of_a_file_are_sent_as_such_unless_a_format_makes_them_text(
    tmp_path: File, name: str, settings: dict[str, Any], sent: list[int | str]
) -> None:
    frame = pl.DataFrame({"id": ["hat", "cap"], "api_id": [11, 12]})
    frame.write_csv(tmp_path / name) if name.endswith("csv") else frame.write_parquet(tmp_path / name)
    teacher = HttpTeacher(IdMap(["hat", "cap"], first=1), url=URL, item_file=str(tmp_path / name), **settings)
    assert teacher.requests(Sequences.from_lists([[2, 1]]))[0].history == sent
    assert teacher.ranking({0: Answer(sent[1:])}, Sequences.from_lists([[2]]), 1).items.tolist() == [[1]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,api_id\n5,1.5\n6,2\n7,3\n", "an api_id is .1.5., a decimal number; ids are integers or strings"),
        ("id,api_id\n5,x\n", "gives no api_id for 2 of 3 items, for example .*6.*7"),
        ("id,api_id\n5,x\n6,x\n7,y\n", "each api_id once, but names one twice"),
        ("id,api_id\n5,x\n5,y\n6,z\n7,w\n", "each id and each api_id once"),
    ],
)
def test_a_file_of_ids_that_leaves_doubts_is_refused(tmp_path: File, content: str, said: str) -> None:
    (tmp_path / "ids.csv").write_text(content)
    with pytest.raises(SettingsError, match=said):
        HttpTeacher(IdMap([5, 6, 7], first=1), url=URL, item_file=str(tmp_path / "ids.csv"))


# Settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "{server}/x"}, r"url: {server} stands for nothing here; set values.server, or use one of: .*history"),
        ({"body": {"u": "{user}"}}, r"must name {history}, or reads be 'user', as that is what they name"),
        ({"url": URL + "/{last_item}", "method": "GET"}, r"must name {history}, or reads be 'last_item', as that is"),
        ({"body": {"n": "{length}"}}, r"url, query, body or question must name {history}$"),
        ({**SESSION, "query": {"s": "{session}", "i": "{item}", "u": "{user}"}}, r"query: {user} stands for nothing"),
        ({"reads": "user", "body": {"u": "{user}", "i": "{last_item}"}}, r"{last_item} stands .* set reads to 'hist"),
        ({"url": "https://shop.example/{userId}/r"}, r"url: {userId} stands for nothing here; use one of: .*user"),
        ({"body": {"h": "{history}", "t": "for {user-id}"}}, r"body: {user-id} stands for nothing here; use one of: "),
        ({"query": {"n": "{K}"}}, r"query: {K} stands for nothing here; use one of: .*, k,"),
        ({"headers": {"X-Shop": "{Shop}"}}, r"headers: {Shop} stands for nothing here; use one of: "),
        ({"item": {"id": "{Item}"}}, r"item: {Item} stands for nothing here; use one of: item, time"),
        ({"body": {"k": "{k}"}}, r"reads is 'history', so url, query, body or question must name {history}"),
        ({"reads": "user"}, r"body: {history} stands for nothing here"),
        ({"headers": {"X-Shop": "{shop}"}}, r"headers: {shop} stands for nothing here; set values.shop"),
        ({"item": "{time} {k}"}, r"item: {k} stands for nothing here"),
        ({"values": {"Shop": 1}}, r"values.Shop: choose a name of lower-case letters"),
        ({"values": {"user": 1}}, r"values.user: choose a name .* that is not taken"),
        ({"method": "GET", "query": {"h": "{history}"}, "body": {}}, "GET sends none"),
        ({"reads": "session", "body": "{item}"}, r"must name {session}"),
        ({**SESSION, "query": {"s": "{session}", "i": "{item}", "o": "{offset}"}}, "without pages"),
        ({"body": {"h": "{history}", "p": "{page}"}}, "give both or neither"),
        ({"next_page": "next"}, "give both or neither"),
        ({"body": {"h": "{history}", "p": "{page}"}, "next_page": "next"}, r"{page} turns pages, so max_k must say"),
        ({"body": {"h": "{{history}}", "k": "{k}"}}, r"body: {{history}} would be sent with braces around the value"),
        ({"query": {"h": "{{ history }}"}, "body": "{history}"}, r"query: {{ history }} would be sent with braces"),
        ({"body": '{"h": {history}, "k": {k}}'}, "is a text, which JSON puts between quotes; write a table"),
        ({"body": "[{history}, {k}]"}, "is a text, which JSON puts between quotes"),
        ({"headers": {"Content-Length": "5"}}, "header Content-Length follows from the call itself"),
        ({"headers": {"transfer-encoding": "chunked"}}, "header transfer-encoding follows from the call itself"),
        ({"body": {"h": "{history}", "p": "{page_number}"}}, r"{page_number} turns pages, so max_k must say"),
        ({"body": {"h": "{history}", "o": "{offset}"}}, r"{offset} turns pages, so max_k must say"),
        ({"batch_size": 2}, "need question and answers"),
        ({"answers": "a[*]"}, "give both"),
        ({**BATCH, "body": {"history": 1}}, r"question and {questions} in the body belong together"),
        ({"items": "items"}, r"'items' leads to one value; add \[\*\]"),
        ({"id": "a..b"}, "is no path"),
        ({"item_format": "item"}, "must name {id} once"),
        ({"gives_scores": True, "score": ""}, "this API gives none"),
        ({"items": "$.items[*]"}, r"begins with the \$ of JSONPath; leave it out: 'items\[\*\]'"),
        ({"url": "ftp://shop.example"}, "must be a full address"),
        ({"url": "https://shop.example:99999/r"}, "url must be a full address .*:99999/r"),
        ({"url": "http://[::1/r"}, "url must be a full address"),
        ({"url": "https://shop.example/like#top"}, r"what follows the # in .https:..shop.example.like…. is not sent"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        settings(**given)


def test_answers_are_kept_apart_where_different_things_are_asked_at_one_address() -> None:
    def identity(**given: Any) -> str:
        return HttpTeacher(ITEMS, url="{server}/r", values={"server": "https://shop.example"}, **given).identity

    related = {"body": {"h": "{history}", "model": "related"}}
    assert HttpTeacher(ITEMS, url=URL, rate=5, concurrency=2).identity == URL
    assert identity().startswith("https://shop.example/r#")
    assert identity(**related) == identity(**related, rate=5, max_history=3)
    assert len({identity(), identity(**related), identity(body={"h": "{history}", "model": "bought"})}) == 3
    paged = {"body": {"h": "{history}", "page": "{page_number}"}, "max_k": 5}
    assert identity(**paged) != identity(**paged, first_page=0)
    assert identity(**related, identity="shop-1") == "shop-1"
    assert len({identity(headers={"X-Model": model}) for model in ("a", "b", "b")} | {identity()}) == 3
    assert identity(headers={"X-Key": "${SHOP_KEY}"}) == identity()


def test_a_header_is_filled_with_values_and_variables_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_SCOPE", "read")
    declared = settings(headers={"X-Scope": "${SHOP_SCOPE}/{campaign}"}, values={"campaign": "spring"})
    shape = DeclaredShape(declared)
    call = next(shape.converse([Request(0, [1])], 3))
    assert shape.sign(call, None).headers["X-Scope"] == "read/spring"
