"""What a declaration may not say."""

from typing import Any

import pytest

from recdistill.errors import SettingsError
from recdistill.teachers.answers import Request
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.shapes import DeclaredShape

from .talking import BATCH, ITEMS, SESSION, URL, settings


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
