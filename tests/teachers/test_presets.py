"""Each preset against a fixture: a request and its response, made from the source that the fixture names."""

import json
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import SettingsError
from recdistill.teachers import signing
from recdistill.teachers.http import HttpConfig, HttpTeacher
from recdistill.teachers.presets import presets
from recdistill.teachers.tokens import Tokens

FIXTURES = {path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "fixtures").iterdir())}
ITEMS, USERS = IdMap(list(range(101, 111)), first=1), IdMap(["ann", "bob"], first=0)
KEYS = {"ALGOLIA_API_KEY", "GORSE_API_KEY", "SHAPED_API_KEY", "RECOMBEE_PRIVATE_TOKEN"} | {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
}
PROOFS = {"hmac_timestamp", "hmac_sign"}
"""Parameters that hold a signature; they are the matter of other tests."""


class Recorder:
    """Answers each request with what the fixture says, in turn, and keeps what was asked."""

    def __init__(self, server: HTTPServer) -> None:
        self.base = server.url_for("").rstrip("/")
        self.responses: list[Any] = []
        self.asked: list[dict[str, Any]] = []
        server.expect_request(re.compile(".*")).respond_with_handler(self._handle)

    def _handle(self, request: Request) -> Response:
        address = urlsplit(request.environ["REQUEST_URI"])
        self.asked.append(
            {
                "method": request.method,
                "path": address.path,
                "query": {name: value for name, value in parse_qsl(address.query) if name not in PROOFS},
                "headers": request.headers,
                "body": json.loads(request.data) if request.data else None,
            }
        )
        return Response(json.dumps(self.responses.pop(0)), mimetype="application/json")


@pytest.fixture
def recorder(api_server: HTTPServer) -> Iterator[Recorder]:
    yield Recorder(api_server)
    api_server.clear()


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.setenv(name, "k3y")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    monkeypatch.setattr(signing, "_google_account", lambda key, name: None)

    async def current(tokens: Tokens, send: object) -> str:
        return "t0ken"

    monkeypatch.setattr(Tokens, "current", current)


def config(name: str, base: str | None = None, **more: Any) -> HttpConfig:
    """Read the settings of a fixture; with ``base``, for a server that listens there."""
    settings = {**({"preset": name} if name in presets() else {}), **FIXTURES[name]["settings"], **more}
    declared = HttpConfig.parse(settings)
    if base is None:
        return declared
    return HttpConfig.parse(settings | {"url": re.sub(r"^(\{server\}|https?://[^/]+)", base, declared.url)})


def test_there_is_a_fixture_for_every_preset_and_it_says_where_it_is_from() -> None:
    assert set(FIXTURES) == set(presets()) | {"recdistill"}
    for fixture in FIXTURES.values():
        assert "not recorded from the service" in fixture["made_by"]
        assert fixture["source"]


@pytest.mark.parametrize("name", FIXTURES)
def test_the_request_that_arrives_and_the_ranking_that_comes_out(name: str, recorder: Recorder) -> None:
    for example in FIXTURES[name]["examples"]:
        teacher = HttpTeacher(ITEMS, config(name, recorder.base, concurrency=1), users=USERS)
        names = count(1)
        teacher.shape.new_session = lambda names=names: f"session-{next(names)}"  # type: ignore[misc]
        recorder.responses = [call["response"] for call in example["calls"]]
        recorder.asked.clear()

        histories = Sequences.from_lists([ITEMS.encode(history).tolist() for history in example["histories"]])
        users = USERS.find(example["users"]) if "users" in example else None
        ranking = teacher.rank(histories, example["k"], users=users)

        for arrived, expected in zip(recorder.asked, [call["request"] for call in example["calls"]], strict=True):
            headers = arrived.pop("headers")
            assert {header: headers.get(header) for header in expected["headers"]} == expected["headers"]
            assert arrived == {key: value for key, value in expected.items() if key != "headers"}
        listed = [[ITEMS.raw[item - 1] for item in row if item] for row in ranking.items.tolist()]
        assert listed == example["items"]
        if example["scores"] is None:
            assert ranking.scores is None
        else:
            assert ranking.scores is not None
            given = [score for row in example["scores"] for score in row]
            assert ranking.scores[np.isfinite(ranking.scores)].tolist() == pytest.approx(given)


@pytest.mark.parametrize("name", [name for name in presets() if name.startswith("personalize")])
def test_amazons_own_model_of_the_service_takes_the_request(name: str) -> None:
    from botocore.session import get_session
    from botocore.validate import validate_parameters

    shape = get_session().get_service_model("personalize-runtime").operation_model("GetRecommendations").input_shape
    for call in FIXTURES[name]["examples"][0]["calls"]:
        validate_parameters(call["request"]["body"], shape)
        assert set(call["request"]["body"]) <= set(shape.members)


@pytest.mark.parametrize("name", [name for name in presets() if name.startswith("personalize")])
def test_amazon_says_under_status_400_that_it_is_asked_too_much(name: str) -> None:
    """These are the errors that its own library sends again, and the name it has for them under a status of 400."""
    from botocore.retries.standard import ThrottledRetryableChecker

    throttling = config(name).throttling
    assert throttling is not None
    assert throttling.is_told({"x-amzn-ErrorType": "ThrottlingException"}, b"")
    assert throttling.is_told({}, b'{"__type": "com.amazon.coral.availability#TooManyRequestsException"}')
    assert set(throttling.codes) - {"RequestExpired"} <= set(ThrottledRetryableChecker._THROTTLED_ERROR_CODES)


@pytest.mark.parametrize("name", presets())
def test_what_was_dumped_is_the_same_api_without_the_preset(name: str) -> None:
    """A run that is taken up again must not depend on what a preset says by then."""
    dumped = json.loads(json.dumps(config(name).model_dump(mode="json")))
    assert dumped["preset"] is None
    assert HttpConfig.parse(dumped) == config(name)


@pytest.mark.parametrize("name", presets())
def test_a_preset_says_what_it_is_told_and_what_it_needs(name: str) -> None:
    about, settings = presets()[name], FIXTURES[name]["settings"]
    assert "told the" in about or "one call" in about
    assert all(f"values.{value}" in about for value in settings["values"])


@pytest.mark.parametrize("name", presets())
def test_a_preset_that_lacks_a_value_asks_for_it(name: str) -> None:
    without = {key: value for key, value in FIXTURES[name]["settings"].items() if key != "values"}
    with pytest.raises(SettingsError, match=r"stands for nothing here; set values\.\w+"):
        HttpConfig.parse({"preset": name, **without})


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match="unknown preset 'gorse-sesion'; did you mean 'gorse-session'"):
        HttpConfig.parse({"preset": "gorse-sesion"})


def test_any_setting_of_a_preset_is_replaced_and_tables_are_merged() -> None:
    settings = config("metarank", max_history=5, gives_scores=False, body={"user": "alice", "count": 7})
    assert settings.body == {"count": 7, "items": "{history}", "user": "alice"}
    assert (settings.max_history, settings.gives_scores, settings.id) == (5, False, "item")
