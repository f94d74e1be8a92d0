"""OAuth 2.0 client credentials over a real socket: when a token is asked for, how, and what its faults mean."""

import asyncio
import json
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.teachers import tokens
from recdistill.teachers.exchange import Call, Reply
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.teachers.signing import OAuth
from recdistill.teachers.tokens import Tokens

ITEMS = IdMap([f"i{n}" for n in range(40)], first=1)
Grants: TypeAlias = Callable[[int], dict[str, Any] | Response]


class Server:
    """A shop whose calls need the latest token of its login; the n-th is ``token-n``."""

    def __init__(self, server: HTTPServer) -> None:
        self.base = server.url_for("").rstrip("/")
        self.logins: list[Request] = []
        self.asked: list[str] = []
        self.times: list[float] = []
        self.grants: Grants = lambda n: {"access_token": f"token-{n}", "token_type": "bearer", "expires_in": 600}
        self.status: Callable[[str], int] = lambda token: 200
        server.expect_request("/token", method="POST").respond_with_handler(self._log_in)
        server.expect_request("/recommend", method="POST").respond_with_handler(self._recommend)

    def teacher(self, signature: dict[str, Any] | None = None, **settings: Any) -> HttpTeacher:
        names = {"kind": "oauth", "client_id": "SHOP_ID", "client_secret": "SHOP_SECRET"}
        oauth = {**names, "token_url": f"{self.base}/token", **(signature or {})}
        url = f"{self.base}/recommend"
        return HttpTeacher(ITEMS, **{"url": url, "signature": oauth, "attempts": 1, "first_wait": 0.01, **settings})

    def _log_in(self, request: Request) -> Response:
        request.get_data()
        self.logins.append(request)
        grant = self.grants(len(self.logins))
        return grant if isinstance(grant, Response) else Response(json.dumps(grant), mimetype="application/json")

    def _recommend(self, request: Request) -> Response:
        self.times.append(time.monotonic())
        token = request.headers["Authorization"].removeprefix("Bearer ")
        self.asked.append(token)
        status = self.status(token)
        return Response({200: '{"items": []}', 401: "token expired", 503: "busy"}[status], status)


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_ID", "shop:1")
    monkeypatch.setenv("SHOP_SECRET", "s3cret/+ü")


@pytest.fixture
def server(api_server: HTTPServer) -> Iterator[Server]:
    yield Server(api_server)
    api_server.clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(tokens, "time", clock)
    return clock


def histories(n: int) -> Sequences:
    return Sequences.from_lists([[row + 1] for row in range(n)])


# how it is asked for


def test_a_token_is_fetched_once_and_sent_with_every_call(server: Server) -> None:
    server.teacher({"scope": "read recommend", "audience": "https://shop.example"}).rank(histories(3), 1)
    (login,) = server.logins
    assert login.form.to_dict() == {
        "grant_type": "client_credentials",
        "scope": "read recommend",
        "audience": "https://shop.example",
    }
    kind, _, pair = login.headers["Authorization"].partition(" ")
    assert (kind, b64decode(pair).decode()) == ("Basic", "shop%3A1:s3cret%2F%2B%C3%BC")
    assert server.asked == ["token-1"] * 3


def test_the_secret_goes_into_the_form_where_the_endpoint_wants_it_there(server: Server) -> None:
    server.teacher({"secret_in": "body"}).rank(histories(1), 1)
    (login,) = server.logins
    assert "Authorization" not in login.headers
    told = {"grant_type": "client_credentials", "client_id": "shop:1", "client_secret": "s3cret/+ü"}
    assert login.form.to_dict() == told


def test_threads_that_start_at_once_fetch_one_token(server: Server) -> None:
    def slowly(n: int) -> dict[str, Any]:
        time.sleep(0.2)
        return {"access_token": f"token-{n}"}

    server.grants = slowly
    teacher = server.teacher(concurrency=2)
    threads = [threading.Thread(target=teacher.rank, args=(histories(3), 1)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.logins) == 1
    assert server.asked == ["token-1"] * 12


def test_who_waits_no_more_does_not_spoil_it_for_others() -> None:
    """As when one of two threads is interrupted while both wait for a token."""
    answered = threading.Event()

    def send(call: Call) -> Reply:
        answered.wait(10)
        return Reply(200, {}, b'{"access_token": "t"}')

    async def wait() -> str:
        shared = Tokens(
            OAuth(kind="oauth", token_url="https://login.example", client_id="SHOP_ID", client_secret="SHOP_SECRET")
        )
        impatient = asyncio.create_task(shared.current(send))
        patient = asyncio.create_task(shared.current(send))
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        answered.set()
        return await patient

    assert asyncio.run(wait()) == "t"


def test_calls_that_waited_for_a_token_keep_to_the_rate(server: Server) -> None:
    """Else all of them would be sent at once when it is there."""

    def slowly(n: int) -> dict[str, Any]:
        time.sleep(0.3)
        return {"access_token": f"token-{n}"}

    server.grants = slowly
    server.teacher(rate=20).rank(histories(5), 1)
    assert max(server.times) - min(server.times) >= 3.5 / 20


def test_tokens_are_charged_to_no_budget(server: Server, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        keeper = LedgerTeacher(server.teacher(charge="calls"), ledger, budget=3)
        keeper.rank(histories(3), 1)
        assert (keeper.stats().spent, keeper.stats().calls) == (3, 3)
    assert len(server.logins) == 1


# when it is renewed


@pytest.mark.parametrize(("lasts", "until"), [(600, 540), (3600, 3540), (100, 90), ("600", 540)])
def test_a_token_is_renewed_shortly_before_it_ends(
    server: Server, clock: SimpleNamespace, lasts: Any, until: float
) -> None:
    """A minute before; with a tenth of its time left, where that is less."""
    server.grants = lambda n: {"access_token": f"token-{n}", "expires_in": lasts}
    teacher = server.teacher()
    for later in (0, until - 1, until + 1):
        clock.now = 1000 + later
        teacher.rank(histories(1), 1)
    assert server.asked == ["token-1", "token-1", "token-2"]


def test_a_token_is_of_the_moment_in_which_a_call_is_sent(server: Server) -> None:
    """Sixteen calls wait for turns up to two seconds away, and a token lasts for less; clocks differ by .4 s."""
    given: dict[str, float] = {}

    def lasting(n: int) -> dict[str, Any]:
        given[f"token-{n}"] = time.monotonic()
        return {"access_token": f"token-{n}", "expires_in": 0.6}

    server.grants = lasting
    server.status = lambda token: 200 if time.monotonic() - given[token] < 0.6 + 0.4 else 401
    teacher = server.teacher(rate=8, concurrency=16)
    teacher.rank(histories(16), 1)
    assert teacher.client.calls == {"answered": 16}
    assert len(server.logins) < 8


def test_a_token_that_does_not_say_how_long_it_lasts_is_kept(server: Server, clock: SimpleNamespace) -> None:
    server.grants = lambda n: {"access_token": f"token-{n}"}
    teacher = server.teacher()
    for clock.now in (1000.0, 1e9):
        teacher.rank(histories(1), 1)
    assert server.asked == ["token-1", "token-1"]


def test_a_token_that_is_refused_is_renewed_once_for_all(server: Server) -> None:
    """It was called back before its time; of four calls in flight each is sent again, and no other."""
    teacher = server.teacher(concurrency=4)
    teacher.rank(histories(1), 1)
    server.asked.clear()
    server.status = lambda token: 200 if token == "token-2" else 401
    teacher.rank(histories(10), 1)
    assert len(server.logins) == 2
    assert server.asked.count("token-2") == 10
    assert 1 <= server.asked.count("token-1") <= 4


def test_a_new_token_that_is_refused_as_well_ends_the_asking(server: Server) -> None:
    server.status = lambda token: 401
    with pytest.raises(
        TeacherError, match=r"fare no better; .* answered 401 .*token expired.*check the headers, the sig"
    ):
        server.teacher(concurrency=1, attempts=5).rank(histories(3), 1)
    assert server.asked == ["token-1", "token-2"]


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_new_token_costs_a_call_none_of_its_attempts(server: Server, attempts: int) -> None:
    server.status = lambda token: 401 if token == "token-1" else 503
    teacher = server.teacher(concurrency=1, attempts=attempts)
    with pytest.raises(TeacherError, match=r"1 of 1 requests failed.*503"):
        teacher.rank(histories(1), 1)
    assert server.asked == ["token-1", *["token-2"] * attempts]
    assert teacher.client.calls == {"401": 1, "503": attempts}


def test_a_token_that_was_renewed_since_is_not_dropped_again(server: Server) -> None:
    """A late 401 to the token before says nothing about the one that is there now."""
    teacher = server.teacher()
    teacher.rank(histories(1), 1)
    assert teacher.shape.tokens is not None
    teacher.shape.tokens.drop("token-0")
    teacher.rank(histories(1), 1)
    assert len(server.logins) == 1


# when there is none


@pytest.mark.parametrize(
    ("grant", "said"),
    [
        (Response('{"error": "invalid_client"}', 401), "answered 401 .*invalid_client.*environment variables"),
        (Response('{"error": "invalid_scope"}', 400), "answered 400 .*invalid_scope"),
        (Response("", 302, {"Location": "https://elsewhere.example"}), "elsewhere.example', which is not followed"),
        (Response("x" * 2000), "answered with more than 1,000 bytes"),
        (Response("<html>"), "no bearer token: Invalid JSON"),
        ({"token": "t"}, "no bearer token: access_token: Field required"),
        ({"access_token": 5}, "no bearer token: access_token: Input should be a valid string"),
        ({"access_token": "t\nt"}, "no bearer token: access_token: String should match"),
        ({"access_token": "t", "token_type": "mac"}, "no bearer token: token_type: String should match"),
        ({"access_token": "t", "expires_in": 0}, "no bearer token: expires_in: Input should be greater than 0"),
    ],
)  # fmt: skip
def test_where_no_token_is_given_nothing_is_asked(server: Server, grant: Any, said: str) -> None:
    def refuse(n: int) -> Any:
        time.sleep(0.05)  # until all four wait for it
        return grant

    server.grants = refuse
    with pytest.raises(TeacherError, match=rf"recommend was not asked, as .* signed: {server.base}/token .*{said}"):
        server.teacher(concurrency=4, largest_reply=1000, attempts=5).rank(histories(8), 1)
    assert (len(server.logins), server.asked) == (1, [])


def test_a_passing_error_is_tried_again(server: Server) -> None:
    server.grants = lambda n: Response("busy", 503) if n == 1 else {"access_token": f"token-{n}"}
    server.teacher(attempts=2, concurrency=1).rank(histories(2), 1)
    assert len(server.logins) == 2
    assert server.asked == ["token-2", "token-2"]


def test_a_passing_error_that_stays_fails_and_is_not_paid_for(server: Server, tmp_path: Path) -> None:
    server.grants = lambda n: Response("busy", 503)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        keeper = LedgerTeacher(server.teacher(attempts=2, concurrency=1, give_up_after=3), ledger, budget=10)
        with pytest.raises(TeacherError, match=r"gave up after 3 failed requests in a row.*/token answered 503"):
            keeper.rank(histories(8), 1)
        assert (keeper.stats().spent, len(server.logins), server.asked) == (0, 3 * 2, [])


@pytest.mark.parametrize("url", ["login.example/token", "ftp://login.example/token"])
def test_what_is_no_address_is_refused(server: Server, url: str) -> None:
    with pytest.raises(SettingsError, match="token_url must be a full address"):
        server.teacher({"token_url": url})
