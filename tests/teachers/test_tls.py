"""An API is told nothing before it has proved over TLS who it is."""

import ipaddress
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pytest_httpserver import HTTPServer

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import TeacherError
from recdistill.teachers.http import HttpTeacher

LOCAL = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
ELSEWHERE = x509.DNSName("shop.example")


def certificate(path: Path, *names: x509.GeneralName) -> Path:
    """Write down a certificate that signs itself, and its key; it lasts an hour."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shop")])
    signed = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(*form) + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def served(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[HTTPServer, Path]]:
    """A server, and the certificate that it shows."""
    shown = certificate(tmp_path / "shown.pem", request.param)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown)
    with HTTPServer(host="127.0.0.1", ssl_context=context, threaded=True) as server:
        server.expect_request("/recommend").respond_with_json({"items": ["b"]})
        yield server, shown


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "s3cret")


def ask(server: HTTPServer) -> list[list[int]]:
    url, headers = server.url_for("/recommend"), {"X-Api-Key": "${SHOP_KEY}"}
    teacher = HttpTeacher(IdMap(["a", "b"], first=1), url=url, headers=headers, attempts=1)
    listed: list[list[int]] = teacher.rank(Sequences.from_lists([[1]]), 1).items.tolist()
    return listed


@pytest.mark.parametrize("served", [LOCAL], indirect=True)
def test_an_api_that_nobody_vouches_for_is_told_nothing(
    served: tuple[HTTPServer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(TeacherError, match=r"cannot be reached: .*certificate verify failed: self-signed"):
        ask(served[0])
    assert served[0].log == []


@pytest.mark.parametrize("served", [ELSEWHERE], indirect=True)
def test_an_api_with_the_certificate_of_another_is_told_nothing(
    served: tuple[HTTPServer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, shown = served
    monkeypatch.setenv("SSL_CERT_FILE", str(shown))
    with pytest.raises(TeacherError, match=r"cannot be reached: .*certificate verify failed: IP address mismatch"):
        ask(server)
    assert server.log == []


@pytest.mark.parametrize("served", [LOCAL], indirect=True)
def test_whom_ssl_cert_file_names_is_trusted(served: tuple[HTTPServer, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    server, shown = served
    monkeypatch.setenv("SSL_CERT_FILE", str(shown))
    assert ask(server) == [[2]]
    ((asked, _),) = server.log
    assert asked.headers["X-Api-Key"] == "s3cret"
