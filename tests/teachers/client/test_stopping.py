"""Whoever stops, and whatever cannot be sent: what is in flight is kept, and nothing unsent is charged."""

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from recdistill.errors import SettingsError, TeacherError
from recdistill.teachers.answers import Answer, Failure, Outcome, Request
from recdistill.teachers.exchange import Call, Conversation
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_records import Page, Question
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.teachers.meter import Charge, Unsent

from ..raw_api import Body, RawApi, response
from .paying import GOOD, Paged, Paying, collect, histories, rows_asked


def test_what_waits_is_not_sent_once_asking_is_stopped(api: RawApi) -> None:
    """The key is refused while the other request waits for its turn, a minute away."""
    api.answer = lambda body: response(b"", "401 Unauthorized")
    outcomes: list[Outcome] = []
    start = time.monotonic()
    with pytest.raises(TeacherError, match="fare no better"):
        collect(Paying(Paged(api.url), rate=1 / 60), 2, outcomes)
    assert len(api.asked) == 1
    assert time.monotonic() - start < 10
    assert {request.row: type(outcome) for request, outcome in outcomes} == {0: Failure, 1: Unsent}


def test_a_fault_of_our_own_keeps_what_is_in_flight(api: RawApi) -> None:
    """One request makes the shape raise; the other's answer is on its way and still handed on."""

    class Broken(Paged):
        def converse(self, requests: Sequence[Request], k: int) -> Conversation:
            if requests[0].row == 1:
                raise ZeroDivisionError
            return super().converse(requests, k)

    api.answer = lambda body: [0.1, GOOD]
    outcomes: list[Outcome] = []
    with pytest.raises(ZeroDivisionError):
        collect(Paying(Broken(api.url)), 2, outcomes)
    assert [request.row for request, _ in outcomes] == [0]


def test_ctrl_c_while_an_answer_is_written_down_keeps_what_is_in_flight(
    api: RawApi, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the transaction would be rolled back, and the other answers, paid for as well, would be dropped."""
    settle, settled = ledger.settle, []

    def interrupted(page: Page, outcomes: Iterable[tuple[Question, Answer | Failure]]) -> None:
        settled.append(page)
        if len(settled) == 1:
            signal.raise_signal(signal.SIGINT)
        settle(page, outcomes)

    monkeypatch.setattr(ledger, "settle", interrupted)
    api.answer = lambda body: [0.1 * body["rows"][0], GOOD]
    keeper = LedgerTeacher(Paying(Paged(api.url), concurrency=4), ledger)
    with pytest.raises(KeyboardInterrupt):
        keeper.rank(histories(8), 1)
    assert (keeper.stats().answers, keeper.stats().lost) == (len(api.asked), 0)
    assert len(api.asked) < 8


def test_a_second_ctrl_c_keeps_what_came_back_and_says_what_it_drops(
    api: RawApi, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """What is dropped stays charged, and is asked again."""

    def answer(body: Body) -> list[bytes | float]:
        if len(api.asked) == 4:
            for seconds in (0.1, 1.2):
                threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        return [0.4 if body["rows"][0] < 2 else 60.0, GOOD]

    api.answer = answer
    keeper = LedgerTeacher(Paying(Paged(api.url), concurrency=4), ledger)
    with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING, logger="recdistill.teachers"):
        keeper.rank(histories(8), 1)
    stats = keeper.stats()
    assert (stats.answers, stats.lost, stats.spent, stats.open) == (2, 2, 4, 0)
    assert re.findall(r"(\d) calls in flight (\w+ \w+)", caplog.text) == [("4", "are waited"), ("2", "were dropped")]


@pytest.mark.parametrize("charge", ["queries", "calls"])
@pytest.mark.parametrize("error", [TeacherError("no token, key s3cret"), SettingsError("no package, key s3cret")])
def test_what_cannot_be_signed_ends_the_asking_and_is_not_charged(
    api: RawApi, ledger: Ledger, charge: Charge, error: Exception
) -> None:
    """The first call is on its way when the second cannot be signed; nobody tries to sign a third."""
    signed = []

    class Expired(Paged):
        def sign(self, call: Call, token: str | None) -> Call:
            signed.append(call)
            if len(signed) > 1:
                raise error
            return call

    api.answer = lambda body: [0.1, GOOD]
    keeper = LedgerTeacher(Paying(Expired(api.url), charge=charge), ledger, budget=10)
    with pytest.raises(
        TeacherError, match=r"fare no better; the last: .* not asked, as .* cannot be signed: no .*\*\*\*"
    ):
        keeper.rank(histories(8), 1)
    stats = keeper.stats()
    assert (stats.answers, stats.failures, stats.spent, stats.lost, stats.open) == (1, 1, 1, 0, 0)
    assert (len(signed), rows_asked(api)) == (2, [0])


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Who", "Zoë"), ("X-Who", "a\ns3cret"), ("X-Who", "s3cret "), ("X Who", "s3cret")],
    ids=["letters", "line break", "space", "name"],
)
def test_a_header_that_cannot_be_sent_ends_the_asking_and_is_not_charged(
    api: RawApi, ledger: Ledger, name: str, value: str
) -> None:
    class Named(Paged):
        def sign(self, call: Call, token: str | None) -> Call:
            return replace(call, headers={name: value})

    keeper = LedgerTeacher(Paying(Named(api.url), charge="calls"), ledger, budget=10)
    with pytest.raises(TeacherError, match=rf"fare no better; .* not asked, as .*: header '{name}' has a") as caught:
        keeper.rank(histories(8), 1)
    assert value not in str(caught.value)
    assert (keeper.stats().spent, keeper.stats().lost, api.asked) == (0, 0, [])


@pytest.mark.parametrize("address", ["http://127.0.0.1:http/", "http://127.0.0.1/?history=" + "i" * 70_000])
def test_what_is_no_address_is_a_failure_and_not_charged(ledger: Ledger, address: str) -> None:
    """As where one long history of many is written into the query."""
    keeper = LedgerTeacher(Paying(Paged(address), charge="calls"), ledger, budget=10)
    with pytest.raises(TeacherError, match=r"1 failed, the first: http://127.* was not asked") as caught:
        keeper.rank(histories(1), 1)
    assert len(str(caught.value)) < 700
    assert (keeper.stats().spent, keeper.stats().failures) == (0, 1)


# proxies and certificates, which the environment names


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "socks5://me:hunter2@127.0.0.1:1", "names a SOCKS proxy, which needs a package"),
        ("HTTP_PROXY", "http://me:hun/ter2@:x", "does not name a proxy that can be used"),
        ("HTTP_PROXY", "ftp://me:hunter2@proxy", "does not name a proxy that can be used"),
        ("SSL_CERT_FILE", "/nowhere.pem", "names no file or folder of certificates: .*No such file"),
    ],
    ids=["socks", "port", "scheme", "certificates"],
)
def test_what_of_the_environment_cannot_be_used_is_refused_before_anything_is_charged(
    api: RawApi, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv(name, value)
    keeper = LedgerTeacher(Paying(Paged(api.url)), ledger, budget=10)
    with pytest.raises(SettingsError, match=f"environment variable {name} {said}") as caught:
        keeper.rank(histories(8), 1)
    assert "hun" not in str(caught.value)
    assert (keeper.stats().spent, keeper.stats().lost, api.asked) == (0, 0, [])


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "403 Forbidden"])
def test_a_proxy_that_lets_nobody_through_ends_the_asking_and_is_not_paid(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, scheme: str, status: str
) -> None:
    with RawApi(lambda body: response(b"", status)).serve() as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.url)
        keeper = LedgerTeacher(Paying(Paged(f"{scheme}://shop.invalid/"), concurrency=1), ledger, budget=10)
        with pytest.raises(TeacherError, match="fare no better"):
            keeper.rank(histories(8), 1)
    assert keeper.stats().spent == 0


def test_a_proxy_that_is_not_there_is_named(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
    keeper = LedgerTeacher(Paying(Paged("http://shop.invalid/"), attempts=1), ledger, budget=10)
    with pytest.raises(TeacherError, match="cannot be reached by the proxy of environment variable HTTP_PROXY"):
        keeper.rank(histories(1), 1)
    assert keeper.stats().spent == 0
