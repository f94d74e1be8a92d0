"""Signatures as they arrive over a real socket, checked by hand as the other side would."""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import RecDistillError, SettingsError, TeacherError
from recdistill.runs.file import Run
from recdistill.teachers.exchange import Call, Reply
from recdistill.teachers.http import HttpConfig, HttpTeacher
from recdistill.teachers.shapes import DeclaredShape
from recdistill.teachers.transport import Transport

ITEMS = IdMap(["a", "b"], first=1)


class Server:
    """Lists nothing, and keeps the requests."""

    def __init__(self, server: HTTPServer) -> None:
        self.base = server.url_for("").rstrip("/")
        self.asked: list[Request] = []
        self.token: dict[str, Any] | Response = {"access_token": "t0ken", "expires_in": 3600, "token_type": "Bearer"}
        server.expect_request("/token", method="POST").respond_with_handler(self._give_token)
        server.expect_request("/asked").respond_with_handler(self._handle)

    def ask(self, n: int = 1, **settings: Any) -> None:
        teacher = HttpTeacher(ITEMS, url=f"{self.base}/asked", attempts=1, concurrency=1, **settings)
        teacher.rank(Sequences.from_lists([[1 + row] for row in range(n)]), 2)

    @property
    def last(self) -> Request:
        return self.asked[-1]

    def _handle(self, request: Request) -> Response:
        request.get_data()
        self.asked.append(request)
        return Response('{"items": []}', mimetype="application/json")

    def _give_token(self, request: Request) -> Response:
        self.asked.append(request)
        request.get_data()
        token = self.token
        return token if isinstance(token, Response) else Response(json.dumps(token), mimetype="application/json")


@pytest.fixture
def server(api_server: HTTPServer) -> Iterator[Server]:
    yield Server(api_server)
    api_server.clear()


# Amazon


@pytest.fixture
def amazon(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/K7")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    return {"kind": "sigv4", "region": "eu-west-1"}


def signature_by_hand(request: Request, key: str) -> tuple[str, str]:
    """Work out a signature as Amazon's description of version 4 says; returns the one that came, and the right one."""
    algorithm, _, told = request.headers["Authorization"].partition(" ")
    parts = dict(part.strip().split("=", 1) for part in told.split(","))
    names, scope = parts["SignedHeaders"].split(";"), parts["Credential"].split("/", 1)[1]
    canonical = "\n".join(
        [
            request.method,
            request.path,
            request.query_string.decode(),
            *[f"{name}:{request.headers[name]}" for name in names],
            "",
            ";".join(names),
            hashlib.sha256(request.get_data()).hexdigest(),
        ]
    )
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    signing_key = f"AWS4{key}".encode()
    for part in scope.split("/"):
        signing_key = hmac.new(signing_key, part.encode(), "sha256").digest()
    text = "\n".join([algorithm, request.headers["X-Amz-Date"], scope, hashed])
    return parts["Signature"], hmac.new(signing_key, text.encode(), "sha256").hexdigest()


def test_amazons_signature_is_the_one_that_amazon_works_out(server: Server, amazon: dict[str, str]) -> None:
    server.ask(signature=amazon)
    came, right = signature_by_hand(server.last, "wJalr/K7")
    assert came == right
    assert "/eu-west-1/personalize/aws4_request" in server.last.headers["Authorization"]
    assert json.loads(server.last.get_data()) == {"history": ["a"], "k": 2}


def test_a_temporary_key_of_amazon_comes_with_its_token(
    server: Server, amazon: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "FwoGZ")
    server.ask(signature=amazon)
    came, right = signature_by_hand(server.last, "wJalr/K7")
    assert came == right
    assert server.last.headers["X-Amz-Security-Token"] == "FwoGZ"


# HMAC


def test_an_hmac_covers_path_and_query_and_a_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "s3cret")
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.4)
    server.ask(signature={"kind": "hmac", "key": "SHOP_KEY"}, query={"who": "ann & ü"})
    signed, _, came = str(server.last.environ["REQUEST_URI"]).partition("&hmac_sign=")
    assert signed == "/asked?who=ann%20%26%20%C3%BC&hmac_timestamp=1700000000"
    assert came == hmac.new(b"s3cret", signed.encode(), "sha1").hexdigest()


@pytest.mark.parametrize("path", ["/dätabase", "/my db", "/a|b", "/db/./x", "/db?x=a b"])
def test_what_is_signed_is_the_address_that_is_sent(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Escaped, and without dots; a signature of what was written would be refused."""
    monkeypatch.setenv("SHOP_KEY", "s3cret")
    settings = HttpConfig.parse({"url": f"http://127.0.0.1{path}", "signature": {"kind": "hmac", "key": "SHOP_KEY"}})
    transport = Transport(settings, DeclaredShape(settings), str, ssl.create_default_context())
    signed, _, came = httpx2.URL(transport.sign(Call("GET", settings.url), None).url).raw_path.partition(b"&hmac_sign=")
    assert came.decode() == hmac.new(b"s3cret", signed, "sha1").hexdigest()


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "SHOP_KEY", "ID"])
@pytest.mark.parametrize("value", ["s3cret\n", " s3cret", "s3cret\r\n"])
def test_a_secret_with_a_space_or_a_line_break_around_it_is_refused(
    server: Server, amazon: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """As one that was read from a file: it would sign, and be refused by the API without a reason."""
    for other in ("SHOP_KEY", "ID", "SECRET"):
        monkeypatch.setenv(other, "fine")
    monkeypatch.setenv(name, value)
    oauth = {"kind": "oauth", "token_url": f"{server.base}/token", "client_id": "ID", "client_secret": "SECRET"}
    signature = {"SHOP_KEY": {"kind": "hmac", "key": "SHOP_KEY"}, "ID": oauth}.get(name, amazon)
    with pytest.raises(SettingsError, match=f"environment variable {name} holds a line break or a space at an end"):
        server.ask(signature=signature)
    assert server.asked == []


def test_an_hmac_is_made_anew_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature holds for seconds, a retry may be a minute later."""
    monkeypatch.setenv("SHOP_KEY", "s3cret")
    settings = {
        "url": "https://shop.example/x",
        "signature": {"kind": "hmac", "key": "SHOP_KEY", "algorithm": "sha256"},
    }
    shape, call = DeclaredShape(HttpConfig.parse(settings)), Call("POST", "https://shop.example/x")
    times = iter([10.0, 70.0])
    monkeypatch.setattr("time.time", lambda: next(times))
    for seconds in ("10", "70"):
        signed = f"/x?hmac_timestamp={seconds}"
        assert parse_qs(urlsplit(shape.sign(call, None).url).query) == {
            "hmac_timestamp": [seconds],
            "hmac_sign": [hmac.new(b"s3cret", signed.encode(), "sha256").hexdigest()],
        }


# Google


@pytest.fixture(scope="session")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


@pytest.fixture
def google(server: Server, private_key: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    account = {
        "type": "service_account",
        "client_email": "shop@project.example",
        "private_key": private_key,
        "token_uri": f"{server.base}/token",
    }
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    return {"kind": "google"}


def test_a_service_account_is_given_a_token_for_what_it_signs(
    server: Server, google: dict[str, str], private_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.4)
    server.ask(2, signature=google)
    assert [request.path for request in server.asked] == ["/token", "/asked", "/asked"]
    assert {request.headers["Authorization"] for request in server.asked[1:]} == {"Bearer t0ken"}
    form = server.asked[0].form
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    key = serialization.load_pem_private_key(private_key.encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    signed, _, signature = form["assertion"].rpartition(".")
    key.public_key().verify(unpadded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    assert json.loads(unpadded(signed.partition(".")[2])) == {
        "iss": "shop@project.example",
        "scope": "https://www.googleapis.com/auth/cloud-platform",
        "aud": "https://oauth2.googleapis.com/token",
        "iat": 1_700_000_000,
        "exp": 1_700_003_600,
    }


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_other_calls_go_on_while_a_service_account_waits_for_its_token(google: dict[str, str]) -> None:
    """The token is given only once somebody else on the same event loop has had a turn; it is fetched once for all."""
    others, sent = threading.Event(), []

    def send(call: Call) -> Reply:
        sent.append(call)
        assert others.wait(10)
        return Reply(200, {}, b'{"access_token": "t"}')

    async def wait() -> list[str]:
        tokens = DeclaredShape(HttpConfig.parse({"url": "https://shop.example", "signature": google})).tokens
        assert tokens is not None
        waiting = [asyncio.create_task(tokens.current(send)) for _ in range(3)]
        await asyncio.sleep(0)
        others.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(wait()) == ["t"] * 3
    assert len(sent) == 1


def test_where_no_token_is_given_nothing_is_asked(server: Server, google: dict[str, str]) -> None:
    server.token = Response(json.dumps({"error": "invalid_grant", "error_description": "unknown account"}), 400)
    with pytest.raises(TeacherError, match=r"/asked was not asked, as .*/token answered 400 .*unknown account"):
        server.ask(signature=google)
    assert [request.path for request in server.asked] == ["/token"]


@pytest.mark.parametrize("key", ["{", "[]", "{}", '{"private_key": "abc", "client_email": "x", "token_uri": "y"}'])
def test_what_is_no_key_of_google_is_refused_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", key)
    with pytest.raises(SettingsError) as caught:
        HttpTeacher(ITEMS, url="https://shop.example", signature={"kind": "google"}).rank(
            Sequences.from_lists([[1]]), 1
        )
    assert str(caught.value).startswith("environment variable GOOGLE_SERVICE_ACCOUNT_KEY does not hold the key")
    assert caught.value.__cause__ is None


# All


def test_a_run_may_be_taken_up_again_with_another_signature() -> None:
    """Who asks changes no answer."""
    sections = {"data": {"path": "clicks.csv"}, "teacher": {"kind": "http", "url": "https://shop.example"}}
    key = {"signature": {"kind": "hmac", "key": "SHOP_KEY"}}
    assert Run.parse(sections).differences(Run.parse(sections | {"teacher": sections["teacher"] | key})) == []


@pytest.mark.parametrize(
    ("signature", "package", "extra"),
    [
        ({"kind": "sigv4", "region": "x"}, "botocore.auth", "aws"),
        ({"kind": "google"}, "google.auth.crypt", "google"),
    ],
)
def test_a_package_that_is_not_there_is_named(
    signature: dict[str, str], package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_SERVICE_ACCOUNT_KEY"):
        monkeypatch.setenv(name, "{}")
    monkeypatch.setitem(sys.modules, package, None)
    teacher = HttpTeacher(ITEMS, url="http://127.0.0.1:9", signature=signature)
    with pytest.raises(RecDistillError, match=rf"pip install 'recdistill\[{extra}\]'"):
        teacher.rank(Sequences.from_lists([[1]]), 1)


def test_packages_for_signatures_are_imported_only_where_they_are_used() -> None:
    command = "import sys, recdistill.teachers.http; print(*{'botocore', 'google.auth'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
