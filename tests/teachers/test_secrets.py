"""Nothing that a run leaves behind holds a secret: not its output, its log, its errors, its folder, or its ledger."""

import html
import json
import logging
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, quote_plus

import httpx2
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from recdistill.cli import main
from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.runs.folder import LEDGER
from recdistill.teachers import signing
from recdistill.teachers.exchange import Call
from recdistill.teachers.http import HttpConfig, HttpTeacher
from recdistill.teachers.secrets import hide
from recdistill.teachers.shapes import DeclaredShape

SECRET = 'Zx9+/q"w%8'
"""Reads differently in an address, in JSON and in base 64."""
TOKEN = 'Yt7+/k"j%5'
"""What is given for it where tokens are fetched."""
BASIC = f"{quote(SECRET, '')}:{quote(SECRET, '')}"
"""What is sent for it there, in base 64."""
AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
HELD = {"SHOP_LOGIN": f"Bearer {SECRET}", "SHOP_PAIR": b64encode(f"ann:{SECRET}".encode()).decode()}
"""Variables that hold the secret as a part of what a header says."""
NAMES = ("SHOP_ID", "SHOP_KEY", "GOOGLE_SERVICE_ACCOUNT_KEY", *AWS, *HELD)
LOGIN = "https://login.example"
"""Stands for the server of a test."""
OAUTH = {"kind": "oauth", "token_url": f"{LOGIN}/token", "client_id": "SHOP_ID", "client_secret": "SHOP_KEY"}
AUTH: dict[str, dict[str, Any]] = {
    "header": {"headers": {"Authorization": "Bearer ${SHOP_KEY}"}},
    "whole header": {"headers": {"Authorization": "${SHOP_LOGIN}"}},
    "pair": {"headers": {"Authorization": "Basic ${SHOP_PAIR}"}},
    "hmac": {"signature": {"kind": "hmac", "key": "SHOP_KEY"}},
    "sigv4": {"signature": {"kind": "sigv4", "region": "eu-west-1"}},
    "google": {"signature": {"kind": "google"}},
    "oauth": {"signature": OAUTH},
    "oauth in body": {"signature": OAUTH | {"secret_in": "body"}},
}


def forms(secret: str) -> list[str]:
    """Return a secret as APIs quote it: as it is, in JSON, HTML, addresses, forms and in base 64."""

    def escaped(form: str) -> str:
        return "".join(char if char.isalnum() else form.format(ord(char)) for char in secret)

    encoded = b64encode(secret.encode()).decode()
    in_json = json.dumps(secret)[1:-1]
    in_code = [escaped(r"\u{:04X}"), escaped(r"\u{:04x}"), escaped(r"\x{:02x}")]
    in_text = [secret, in_json, in_json.replace("/", r"\/"), *in_code]
    in_html = [html.escape(secret), escaped("&#{};"), escaped("&#{:03};"), escaped("&#x{:X};"), escaped("&#x{:x};")]
    in_address = [quote(secret, ""), quote(secret), quote_plus(secret), quote(quote(secret, ""), "")]
    lower = [re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), written) for written in in_address]
    in_base_64 = [encoded.rstrip("="), encoded, quote(encoded, ""), urlsafe_b64encode(secret.encode()).decode()]
    within = [b64encode(b"Be" + secret.encode() + b"12")[3:], b64encode(b"B" + secret.encode() + b"1")[2:]]
    whole = [
        part[: (8 * len(secret.encode()) + bits) // 6].decode() for part, bits in zip(within, (-2, -4), strict=True)
    ]
    return [*in_text, *in_html, *in_address, *lower, secret.replace("+", " "), *in_base_64, *whole]


def answers(request: Request) -> Response:
    listed = [f"p{n}" for n in range(12)]
    return Response(json.dumps({"items": listed[: request.get_json()["k"]]}), mimetype="application/json")


def repeats(status: int, **headers: str) -> Callable[[Request], Response]:
    """Answer with whatever has come, and the secret in every form that there is."""

    def answer(request: Request) -> Response:
        header = request.headers.get("Authorization", "")
        proof = header.partition(" ")[2]
        signed = request.query_string.decode().partition("hmac_")[2]
        told = [signed, SECRET, proof, *forms(SECRET), *forms(proof), request.get_data(as_text=True)]
        echoed = [b64encode(header.encode()).decode(), str(request.headers), str(request.environ["REQUEST_URI"])]
        return Response(" ".join([*told, *echoed]), status, headers)

    return answer


def gives_a_token(request: Request) -> Response:
    return Response(json.dumps({"access_token": TOKEN, "token_type": "Bearer"}), mimetype="application/json")


def gives_a_token_elsewhere(request: Request) -> Response:
    return Response(json.dumps({"token": TOKEN, "given_to": SECRET}), mimetype="application/json")


def repeats_in_json(request: Request) -> Response:
    return Response(json.dumps({SECRET: {"items": SECRET}}), mimetype="application/json")


def repeats_as_item(request: Request) -> Response:
    return Response(json.dumps({"items": [{"id": SECRET}]}), mimetype="application/json")


def repeats_in_a_list(request: Request) -> Response:
    listed = ["p1", SECRET, f"unknown key {quote(SECRET, '')}", "p2"]
    return Response(json.dumps({"items": listed}), mimetype="application/json")


def repeats_in_one_of_several(request: Request) -> Response:
    answers = [{"items": [{"id": SECRET} if place == 1 else "p1"]} for place in range(len(request.get_json()["asked"]))]
    return Response(json.dumps({"answers": answers}), mimetype="application/json")


SEVERAL = {"body": {"asked": "{questions}"}, "question": "{history}", "answers": "answers[*]", "batch_size": 5}
FAULTS = {
    "unknown": repeats(401),
    "refused": repeats(403),
    "broken": repeats(400),
    "busy": repeats(503),
    "no JSON": repeats(200),
    "another JSON": repeats_in_json,
    "no ids": repeats_as_item,
    "redirect": repeats(302, Location=f"http://elsewhere.example/?key={quote(SECRET, '')}"),
}
LOGIN_FAULTS = {name: FAULTS[name] for name in ("refused", "broken", "busy", "no JSON", "redirect")} | {
    "another JSON": gives_a_token_elsewhere
}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch, api_server: HTTPServer) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, HELD.get(name, SECRET))
    signer = SimpleNamespace(key_id=None, sign=lambda message: b"signature")
    account = SimpleNamespace(signer=signer, email="shop@project.example", token_url=api_server.url_for("/token"))
    monkeypatch.setattr(signing, "_google_account", lambda key, name: account)


@pytest.fixture
def serve(api_server: HTTPServer) -> Iterator[Callable[..., str]]:
    def start(answer: Callable[[Request], Response], login: Callable[[Request], Response]) -> str:
        api_server.expect_request("/recommend", method="POST").respond_with_handler(answer)
        api_server.expect_request("/token", method="POST").respond_with_handler(login)
        return str(api_server.url_for("")).rstrip("/")

    yield start
    api_server.clear()


def write_run(sections: dict[str, Any], file: Path) -> None:
    """Write a run file."""
    text = "".join(
        f"[{section}]\n" + "".join(f"{name} = {_toml(value)}\n" for name, value in inner.items())
        for section, inner in sections.items()
    )
    file.write_text(text)


def command(*words: str | Path) -> tuple[int, str]:
    """Run a command; returns the exit code, and the texts of all errors on the way."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    said = []
    error: BaseException | None = stopped.value
    while error is not None:
        said.append(f"{error!r} {error}")
        error = error.__cause__ or error.__context__
    return int(stopped.value.code or 0), "\n".join(said)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }"
    return json.dumps(value)


def assert_clean(where: dict[str, bytes]) -> None:
    """Look for the secret and what is made of it, in every form that they may have, in everything there is."""
    sought = [form for secret in (SECRET, TOKEN, BASIC) for form in forms(secret)]
    found = [(place, form) for place, content in where.items() for form in sought if form.encode() in content]
    found += [(place, "hmac_sign") for place, content in where.items() if re.search(rb"hmac_sign=[0-9a-f]{8}", content)]
    assert found == []


@pytest.mark.parametrize(
    ("auth", "answer", "login"),
    [(AUTH[name], answers, gives_a_token) for name in AUTH]
    + [(AUTH["header"], FAULTS[name], gives_a_token) for name in FAULTS]
    + [(AUTH[name], FAULTS["broken"], gives_a_token) for name in ("whole header", "pair", "hmac", "sigv4")]
    + [(AUTH["header"], repeats_in_a_list, gives_a_token)]
    + [(AUTH["header"] | SEVERAL, repeats_in_one_of_several, gives_a_token)]
    + [(AUTH["oauth"], FAULTS[name], gives_a_token) for name in ("refused", "unknown", "broken", "no JSON")]
    + [(AUTH[form], answers, login) for form in ("oauth", "oauth in body") for login in LOGIN_FAULTS.values()],
    ids=[
        *AUTH,
        *FAULTS,
        "whole header, broken",
        "pair, broken",
        "hmac, broken",
        "sigv4, broken",
        "list",
        "one of several",
        *[f"oauth, {name}" for name in ("refused", "unknown", "broken", "no JSON")],
        *[f"{form}, login {name}" for form in ("oauth", "oauth in body") for name in LOGIN_FAULTS],
    ],
)
def test_a_run_leaves_no_secret_anywhere(
    auth: dict[str, Any],
    answer: Callable[[Request], Response],
    login: Callable[[Request], Response],
    serve: Callable[..., str],
    little_run: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    patience = {"attempts": 2, "first_wait": 0, "give_up_after": 2}
    base = serve(answer, login)
    told = json.loads(json.dumps(auth).replace(LOGIN, base))
    teacher = {"kind": "http", "url": f"{base}/recommend", "identity": "shop", **patience, **told}
    method = {"name": "kd", "top_k": 4}
    with caplog.at_level(logging.DEBUG):
        sections = little_run | {"teacher": teacher, "method": method, "training": {"epochs": 1}}
        file, out_folder = tmp_path / "run.toml", tmp_path / "out"
        write_run(sections, file)
        ledger = out_folder / LEDGER
        said = {
            "probe": command("probe", file, "--out", out_folder),
            "dry run": command("probe", file, "--out", out_folder, "--dry-run"),
            "distill": command("distill", file, "--out", out_folder),
            "stats": command("ledger", "stats", ledger),
            "verify": command("ledger", "verify", ledger),
            "export": command("ledger", "export", ledger, tmp_path / "answers.csv"),
        }
    out, err = capfd.readouterr()
    files = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {str(ledger), str(tmp_path / "answers.csv")} <= files.keys()
    fault = 2 if {answer, login} & {*FAULTS.values(), *LOGIN_FAULTS.values()} else 0
    codes = {name: code for name, (code, _) in said.items()}
    assert codes == {name: fault if name in ("probe", "distill") else 0 for name in said}, err

    log = "\n".join(record.getMessage() for record in caplog.records if record.name != "werkzeug")  # the API's own
    texts = {"stdout": out, "stderr": err, "log": log} | {f"errors of {name}": text for name, (_, text) in said.items()}
    assert_clean({place: text.encode() for place, text in texts.items()} | files)


def test_the_search_finds_what_it_looks_for() -> None:
    """Else all of the above would say nothing."""
    for form in [*forms(SECRET), *forms(TOKEN), *forms(BASIC)]:
        with pytest.raises(AssertionError):
            assert_clean({"log": f"key {form} refused".encode()})


@pytest.mark.parametrize("secret", [SECRET, TOKEN, BASIC, "two words/é\n"])
def test_a_secret_is_hidden_in_every_form(secret: str) -> None:
    """All but the end of base 64, which says nothing."""
    for form in forms(secret):
        assert re.fullmatch(r"key \*\*\*(=|%3D)* refused", hide(f"key {form} refused", [secret]))


@pytest.mark.parametrize("auth", ["hmac", "sigv4"])
def test_signatures_are_hidden_however_they_are_quoted(auth: str) -> None:
    """Whoever reads one could ask the same for a while."""
    shape = DeclaredShape(HttpConfig.parse({"url": "https://shop.example", **AUTH[auth]}))
    signed = shape.sign(Call("POST", "https://shop.example/r", {}, b"{}"), None)
    carried = signed.url + signed.headers.get("Authorization", "")
    (signature,) = re.findall("(?:hmac_sign=|Signature=)([0-9a-f]+)", carried)
    for quoted in (carried, quote(carried, ""), json.dumps({"sign": signature}), signature.upper()):
        hidden = shape.hide(f"cannot POST {quoted}")
        assert hidden.startswith("cannot POST ")
        assert signature[4:-4] not in hidden.lower()
    assert shape.hide("no item 0123456789abcdef") == "no item 0123456789abcdef"


@pytest.mark.parametrize(
    ("held", "quoted"),
    [
        ("Bearer Zx9+k8", "Zx9+k8"),
        ("Basic YW5uOlp4OQ==", "ann:Zx9"),
        ("YW5uOlp4OQ", "Zx9"),
        ("session=Zx9+k8; theme=dark", "Zx9+k8"),
        ('Token token="Zx9+k8", id=1', "Zx9+k8"),
        ("ApiKey shop:Zx9+k8", "Zx9+k8"),
    ],
)
def test_what_is_secret_within_a_header_is_hidden_by_itself(
    held: str, quoted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_LOGIN", held)
    shape = DeclaredShape(HttpConfig.parse({"url": "https://shop.example", **AUTH["whole header"]}))
    said = "no Bearer, Basic, or ApiKey token of a dark shop: "
    assert hide(said + quoted, shape.secrets()) == f"{said}***"


def test_the_log_of_other_calls_over_http_is_left_alone(
    serve: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    base = serve(answers, gives_a_token)
    with caplog.at_level(logging.INFO, logger="httpx2"):
        HttpTeacher(IdMap(["p0"], first=1), url=f"{base}/recommend").rank(Sequences.from_lists([[1]]), 1)
        httpx2.post(f"{base}/token")
    logged = [record.getMessage() for record in caplog.records if record.name == "httpx2"]
    assert logged == [f'HTTP Request: POST {base}/token "HTTP/1.1 200 OK"']


def test_an_item_that_is_called_like_a_variable_is_kept(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header may well hold what is no secret, such as a version."""
    monkeypatch.setenv("SHOP_KEY", "1")
    url = f"{serve(answers, gives_a_token)}/recommend"
    teacher = HttpTeacher(IdMap(["p0", "p1"], first=1), url=url, **AUTH["header"])
    assert teacher.rank(Sequences.from_lists([[1]]), 3).items.tolist() == [[2, 0, 0]]


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"headers": {"X-Api-Key": SECRET}}, "header X-Api-Key carries a secret"),
        ({"headers": {"X-Api-Key": "sk-Zx9 ${SHOP_ID}"}}, "header X-Api-Key carries a secret"),
        ({"headers": {"Authorization": "Bearer Zx9${SHOP_ID}"}}, "header Authorization carries a secret"),
        ({"headers": {"Cookie": "session=Zx9; shop=${SHOP_ID}"}}, "header Cookie carries a secret"),
        ({"headers": {"X-Pwd": "Zx9"}}, "header X-Pwd carries a secret"),
        ({"query": {"pwd": "Zx9"}}, "query: pwd must hold no secret"),
        ({"query": {"apiSig": "Zx9"}}, "query: apiSig must hold no secret"),
        ({"query": {"hmac_sign": "Zx9"}}, "query: hmac_sign must hold no secret"),
        ({"query": {"PHPSESSID": "Zx9"}}, "query: PHPSESSID must hold no secret"),
        ({"body": {"h": "{history}", "user_pass": "Zx9"}}, "body: user_pass must hold no secret"),
        ({"values": {"shop_session": "Zx9"}}, "values: shop_session must hold no secret"),
        ({"query": {"api_key": SECRET}}, "query: api_key must hold no secret"),
        ({"values": {"token": SECRET}}, "values: token must hold no secret"),
        ({"body": {"h": "{history}", "auth": {"password": SECRET}}}, "body: password must hold no secret"),
        ({"body": [{"h": "{history}"}, {"secret": SECRET}]}, "body: secret must hold no secret"),
        ({"url": f"https://shop.example/?access_token={quote(SECRET, '')}"}, "url: access_token must hold no secret"),
        ({"url": "https://me:Zx9@shop.example/"}, "url must hold no secret"),
        ({"url": "{server}/r", "values": {"server": "https://me:Zx9@shop.example"}}, "url must hold no secret"),
        ({"url": "https://shop.example/r#api_key=Zx9"}, "url: api_key must hold no secret"),
        ({"url": "me:Zx9@shop.example/r"}, r"url must be a full address .*, but is '\*\*\*@shop.example/r'"),
        ({"url": "shop.example/r?k=Zx9"}, "url must be a full address .*, but is 'shop.example/r…'"),
        ({"url": "https://shop.example/r#Zx9"}, "url: what follows the # in 'https://shop.example/r…' is not sent"),
        ({"query": {"api_key": ["Zx9"]}}, "query.api_key"),
        ({"query": {"api_key": 912345}}, "query: api_key must hold no secret"),
        ({"body": {"h": "{history}", "api_keys": ["Zx9"]}}, "body: api_keys must hold no secret"),
        ({"item": {"id": "{item}", "api_key": "Zx9"}}, "item: api_key must hold no secret"),
        (
            {
                "body": "{questions}",
                "answers": "a[*]",
                "question": {"h": "{history}", "token": "Zx9"},
            },
            "question: token must hold no secret",
        ),
        ({"signature": OAUTH | {"token_url": "login.example/t?client_secret=Zx9"}}, "but is 'login.example/t…'"),
        ({"signature": {"kind": "hmac", "key": SECRET}}, "signature names an environment variable"),
        ({"signature": OAUTH | {"client_secret": SECRET}}, "signature names an environment variable"),
        ({"signature": OAUTH | {"token_url": "https://me:Zx9@login.example"}}, "token_url must hold no secret"),
        ({"signature": OAUTH | {"token_url": f"{LOGIN}?client_secret=Zx9"}}, "token_url must hold no secret"),
    ],
)
def test_a_secret_in_the_settings_is_refused_without_being_shown(given: dict[str, Any], place: str) -> None:
    with pytest.raises(SettingsError, match=place) as caught:
        HttpConfig.parse({"url": "https://shop.example", **given})
    assert "Zx9" not in str(caught.value)


def test_what_only_sounds_like_a_secret_may_be_sent() -> None:
    names = {"passage": "1", "design": "b", "session_kind": "web"}
    body = {"history": "{history}", "tokens": 3, "sort_key": "{sort}", **names}
    assert HttpConfig.parse({"url": "https://shop.example", "body": body, "values": {"sort": "price"}}).body == body


def test_a_number_that_is_no_key_may_have_a_name_like_one() -> None:
    assert HttpConfig.parse({"url": "https://shop.example", "query": {"max_tokens": 100}}).query == {"max_tokens": 100}


@pytest.mark.parametrize(
    "value", ["${A}", "Bearer ${A}", "Basic ${A}:${B}", 'Token token="${A}"', "session=${A}; id=${B}", "ApiKey ${A}"]
)
def test_beside_a_variable_a_header_may_name_scheme_and_parameters(value: str) -> None:
    assert HttpConfig.parse({"url": "https://shop.example", "headers": {"Authorization": value}}).headers


@pytest.mark.parametrize(
    "given",
    [
        {"url": "https://shop.example/${SHOP_ID}"},
        {"query": {"client": "${SHOP_ID}"}},
        {"values": {"client": "${SHOP_ID}"}},
        {"body": {"history": "{history}", "clients": ["a ${SHOP_ID}"]}},
        {"item": {"item": "{item}", "client": "${SHOP_ID}"}},
        {"signature": OAUTH | {"token_url": f"{LOGIN}/${{SHOP_ID}}/token"}},
    ],
)
def test_a_variable_that_would_not_be_filled_in_is_refused(given: dict[str, Any]) -> None:
    (place,) = given
    with pytest.raises(SettingsError, match=rf"{place}: \$\{{SHOP_ID\}} would be sent as it stands, .* in a header"):
        HttpConfig.parse({"url": "https://shop.example", **given})


@pytest.mark.parametrize("auth", AUTH.values(), ids=AUTH)
def test_a_variable_that_is_not_set_is_named_before_anything_is_booked(
    auth: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name)
    teacher = HttpTeacher(IdMap(["a"], first=1), url="https://shop.example", **auth)
    with pytest.raises(SettingsError, match=r"environment variable \w+ is not set"):
        teacher.answers(lambda n: pytest.fail("a query was booked"), 1)


@pytest.mark.parametrize("value", [f"{SECRET}\n", f"{SECRET}é", f"{SECRET} "])
def test_a_variable_that_no_header_can_hold_is_named_without_being_shown(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The HTTP library's own error would quote it."""
    monkeypatch.setenv("SHOP_KEY", value)
    teacher = HttpTeacher(IdMap(["a"], first=1), url="http://127.0.0.1:9", attempts=1, **AUTH["header"])
    with pytest.raises(TeacherError, match="environment variable SHOP_KEY holds a line break, letters") as caught:
        teacher.rank(Sequences.from_lists([[1]]), 1)
    assert "Zx9" not in str(caught.value)


@pytest.mark.parametrize("auth", AUTH.values(), ids=AUTH)
def test_a_call_holds_no_secret_until_it_is_signed(auth: dict[str, Any]) -> None:
    """What the client says about a call, it says about the unsigned one."""
    shape = DeclaredShape(HttpConfig.parse({"url": "https://shop.example", **auth}))
    call = Call("POST", "https://shop.example", {"Content-Type": "application/json"}, b"{}")
    assert SECRET not in repr(call)
    assert shape.sign(call, TOKEN if shape.tokens else None) != call
    assert (call.url, dict(call.headers)) == ("https://shop.example", {"Content-Type": "application/json"})
