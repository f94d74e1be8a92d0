"""One question, one call, one reply."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from recdistill.errors import TeacherError
from recdistill.teachers.exchange import Call, Garbled

from .talking import URL, about, answer, sent, settings, talk


def test_the_default_shape() -> None:
    (call,), (outcome,) = talk(settings(), [about("a", "ü")], [{"items": ["b", 7], "scores": [2, 1]}])
    assert call == Call("POST", URL, {"Content-Type": "application/json"}, '{"history":["a","ü"],"k":3}'.encode())
    assert (answer(outcome).items, answer(outcome).scores) == (["b", 7], None)


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
