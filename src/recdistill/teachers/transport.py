"""One HTTP call, and what its fault means."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from recdistill import __version__
from recdistill.errors import SettingsError, TeacherError
from recdistill.teachers.exchange import Call, Reply, Shape
from recdistill.teachers.loop import PrivateLoop
from recdistill.teachers.transport_settings import TransportSettings

_KEY_REFUSED = {401, 403}
_UNPAID = 402
_PROXY_REFUSES = ("403", "407", "Invalid username/password")
"""How what a proxy says begins that lets nobody through, or nobody without a password."""
_RETRIED = {408, 425, 429, *range(500, 600)}
_TOO_MUCH = {429, 503}
_NOT_HEARD = {408, 425, *_TOO_MUCH}
"""Passing errors of an API that took no note of the call."""
_HEADER = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
"""A header's name (RFC 9110, section 5.1)."""
_EXCERPT = 200
"""Characters of a reply that an error message quotes."""
_ERROR_BYTES = 64 * 1024
"""Bytes that are read of a reply that is an error."""
_ERROR_SECONDS = 2.0
"""How long it is read at most: its status says what it means."""
_LOGS = ["httpx2", *[f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")]]
"""Where the HTTP library writes down addresses, and with them signatures, and the headers of replies."""
_sending = ContextVar("sending", default=False)
"""Whether what runs is a call of ours."""


def _is_not_ours(record: logging.LogRecord) -> bool:
    return not _sending.get()


for _log in _LOGS:
    logging.getLogger(_log).addFilter(_is_not_ours)


class Refused(Exception):
    """A call that brought no reply.

    Args:
        kind: the class of fault, in a word or two.
        reason: what was asked and what came back.
        paid: whether the API may have served it.
        heard: whether the API may have taken note of it, as it has where it may have served it.
        again: whether another try may do better.
        wait: seconds that the API asks to wait before.
        too_much: whether the API says that it is asked too hard.
        fatal: whether other requests will fare no better.
        status: of a reply that was an error; 0 without one.
    """

    def __init__(
        self,
        kind: str,
        reason: str,
        *,
        paid: bool = False,
        heard: bool = False,
        again: bool = False,
        wait: float | None = None,
        too_much: bool = False,
        fatal: bool = False,
        status: int = 0,
    ) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.paid = paid
        self.heard = heard or paid
        self.again = again
        self.wait = wait
        self.too_much = too_much
        self.fatal = fatal
        self.status = status

    @property
    def final(self) -> bool:
        """Whether it lies in the question, so that it would fare no better another time."""
        return not self.again and not self.fatal


class Transport:
    """Sends calls of one shape, each over a connection of its own.

    Args:
        settings: limits of time and size.
        shape: signs each call.
        hide: takes secrets out of a text.
        certificates: whom to trust over TLS.
    """

    def __init__(
        self, settings: TransportSettings, shape: Shape, hide: Callable[[str], str], certificates: ssl.SSLContext
    ) -> None:
        self.settings = settings
        self.shape = shape
        self.hide = hide
        self.certificates = certificates
        self.lines = _Lines(settings.timeout, certificates)

    async def close(self) -> None:
        """Close every connection."""
        await self.lines.close()

    async def token(self, call: Call) -> str | None:
        """Return the token that a call is to carry, if any; where it must be fetched first, nobody is charged for that.

        Raises:
            Refused: where it cannot be had.
        """
        if self.shape.tokens is None:
            return None
        try:
            return await self.shape.tokens.current(self._send_apart)
        except Refused as refused:
            reason = self._not_signed(call, refused.reason)
            fatal = not refused.again
            raise Refused("no token", reason, again=refused.again, wait=refused.wait, fatal=fatal) from refused
        except (SettingsError, TeacherError) as error:
            raise Refused("no token", self._not_signed(call, str(error)), fatal=True) from error

    def sign(self, call: Call, token: str | None) -> Call:
        """Add what proves who is asking; what comes back can be sent.

        Raises:
            Refused: where that cannot be had, or HTTP knows no such header or address.
        """
        try:
            signed = self.shape.sign(replace(call, url=str(_address(call.url))), token)  # as it will be sent
            _check_headers(signed.headers)
            _address(signed.url)
        except (SettingsError, TeacherError) as error:
            raise Refused("not signed", self._not_signed(call, str(error)), fatal=True) from error
        except httpx2.InvalidURL as error:
            shown = call.url if len(call.url) <= _EXCERPT else f"{call.url[:_EXCERPT]}…"
            reason = f"{shown} was not asked, as that is no address: {error}; see url, query, and the ids in them"
            raise Refused("not asked", reason) from error
        return signed

    def _not_signed(self, call: Call, why: str) -> str:
        return f"{call.url} was not asked, as the call cannot be signed: {self.hide(why)}"

    def _send_apart(self, call: Call) -> Reply:
        """Send a call from a thread that has no event loop, and over a connection of its own."""
        transport = Transport(self.settings, self.shape, self.hide, self.certificates)
        with closing(PrivateLoop()) as loop:
            try:
                return loop.run(transport.send(call, call.url))
            finally:
                loop.run(transport.close())

    async def send(self, signed: Call, url: str) -> Reply:
        """Send a call once, and return the reply; errors name the ``url``, which tells nothing of a signature.

        Raises:
            Refused: for anything but a whole reply of success.
        """
        try:
            async with asyncio.timeout(self.settings.timeout):
                with self.lines.free() as line, _unlogged():
                    return await self._exchange(line, url, signed)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            by = f" by the proxy of {_proxies()}" if _proxied(url) else ""
            raise Refused("unreachable", f"{url} cannot be reached{by}: {_name(error)}", again=True) from error
        except httpx2.ProxyError as error:
            reason = f"{url} cannot be reached, as the proxy of {_proxies()} refused: {self.hide(str(error))}"
            fatal = str(error).startswith(_PROXY_REFUSES)
            raise Refused("unreachable", reason, again=not fatal, fatal=fatal) from error
        except TimeoutError as error:
            reason = f"{url} did not answer within {self.settings.timeout:g} s (timeout)"
            raise Refused("timeout", reason, paid=True, again=True) from error
        except httpx2.TransportError as error:
            reason = f"{url} broke the connection: {_name(error)}"
            raise Refused("cut", reason, paid=True, again=True) from error
        except httpx2.RequestError as error:
            raise Refused("unreadable", f"{url} sent what cannot be read: {_name(error)}", paid=True) from error

    async def _exchange(self, line: httpx2.AsyncClient, url: str, signed: Call) -> Reply:
        """Send a call and read what comes back, as far as it may be read."""
        request = (signed.method, _address(signed.url))
        async with line.stream(*request, headers=signed.headers, content=signed.body) as response:
            if not response.is_success:
                raise self._refusal(url, response, await _read_error(response))
            if _announced(response) > self.settings.largest_reply:
                raise self._too_large(url, "none of which were read")
            body = await _read(response, self.settings.largest_reply + 1)
        if len(body) > self.settings.largest_reply:
            raise self._too_large(url, "which were not read on")
        if self._is_throttled(response, body):
            raise self._refusal(url, response, body)
        return Reply(response.status_code, response.headers, body)

    def _is_throttled(self, response: httpx2.Response, body: bytes) -> bool:
        """Say whether a reply says that too much is asked, where its status does not."""
        throttling = self.settings.throttling
        return throttling is not None and throttling.is_told(response.headers, body)

    def _too_large(self, url: str, read: str) -> Refused:
        reason = f"{url} answered with more than {self.settings.largest_reply:,} bytes, {read}"
        return Refused(
            "too large", f"{reason}; raise largest_reply if that is right, or ask for shorter lists", paid=True
        )

    def _refusal(self, url: str, response: httpx2.Response, body: bytes) -> Refused:
        """Say what a reply that is no success means, or is one by its status alone."""
        status = response.status_code
        reason = f"{url} answered {status} {response.reason_phrase}: {self.excerpt(body)}"
        if response.is_redirect:
            target = self.hide(response.headers.get("Location", "nowhere"))
            reason += f"; it redirects to {target!r}, which is not followed: give the final address"
            return Refused("redirect", reason)
        permanent = status in self.settings.permanent
        throttled = self._is_throttled(response, body)
        if status == 407:
            reason = f"{url} was not asked, as the proxy of {_proxies()} wants to know who is asking: {status}"
            return Refused(str(status), reason, fatal=True)
        if status in _KEY_REFUSED and not throttled and not permanent:
            reason += "; check the headers, the signature, and the environment variables they name"
            return Refused(str(status), reason, fatal=True)
        if status == _UNPAID and not throttled and not permanent:
            reason += "; the account has nothing left to pay with, as it seems"
            return Refused(str(status), reason, fatal=True)
        if not throttled and (status not in _RETRIED or permanent):
            return Refused(str(status), reason, status=status)
        wait = retry_after(response.headers.get("Retry-After"))
        if wait is not None and wait > self.settings.longest_wait:
            reason += f"; it asks to wait {wait:,.0f} s, more than longest_wait ({self.settings.longest_wait:g} s)"
        kind, too_much = ("throttled", True) if throttled else (str(status), status in _TOO_MUCH)
        heard = not too_much and status not in _NOT_HEARD
        return Refused(kind, reason, heard=heard, again=True, wait=wait, too_much=too_much)

    def excerpt(self, body: bytes) -> str:
        """Return the beginning of a body in one line, without secrets."""
        text = " ".join(self.hide(body.decode("utf-8", "replace")).split())
        return repr(text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…")


class _Lines:
    """HTTP clients of one connection each: a pool of many looks at all of them for each call.

    Cookies are not kept, so that no answer depends on an earlier one.
    """

    def __init__(self, timeout: float, certificates: ssl.SSLContext) -> None:
        self.timeout = httpx2.Timeout(None, connect=timeout / 2)  # the whole call is timed around it
        self.certificates = certificates
        self.all: list[httpx2.AsyncClient] = []
        self.idle = [self._open()]  # at once, so that a proxy that cannot be used is missed before anything is booked

    @contextmanager
    def free(self) -> Iterator[httpx2.AsyncClient]:
        """Give a line that nobody uses."""
        line = self.idle.pop() if self.idle else self._open()
        try:
            yield line
        finally:
            self.idle.append(line)

    async def close(self) -> None:
        """Close every connection."""
        for line in self.all:
            await line.aclose()

    def _open(self) -> httpx2.AsyncClient:
        try:
            line = httpx2.AsyncClient(
                headers={"User-Agent": f"recdistill/{__version__}", "Accept-Encoding": "gzip, deflate"},
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                timeout=self.timeout,
                verify=self.certificates,
                limits=httpx2.Limits(max_connections=1),
            )
        except ImportError as error:
            raise SettingsError(
                f"{_proxies()} names a SOCKS proxy, which needs a package: pip install socksio"
            ) from error
        except (ValueError, httpx2.InvalidURL):  # whose text may quote a password
            raise SettingsError(
                f"{_proxies()} does not name a proxy that can be used; give one like http://proxy.example:3128"
            ) from None
        self.all.append(line)
        return line


def trusted() -> ssl.SSLContext:
    """Return whom to trust over TLS: the system's authorities, or those of the file or folder that a variable names.

    Raises:
        SettingsError: where it holds none.
    """
    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        named = _set_variables("SSL_CERT_FILE", "SSL_CERT_DIR")
        raise SettingsError(f"{named} names no file or folder of certificates: {error}") from error


def _proxies() -> str:
    """Name the environment variables that choose a proxy; empty where there are none."""
    return _set_variables("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def _set_variables(*names: str) -> str:
    found = [name for known in names for name in (known, known.lower()) if os.environ.get(name)]
    return f"environment variable {' or '.join(found)}" if found else ""


@contextmanager
def _unlogged() -> Iterator[None]:
    """Let the HTTP library write nothing down."""
    before = _sending.set(True)
    try:
        yield
    finally:
        _sending.reset(before)


def _check_headers(headers: Mapping[str, str]) -> None:
    """Refuse what the HTTP library would, whose own error shows it."""
    for name, value in headers.items():
        if not (_HEADER.fullmatch(name) and value.isascii() and value.isprintable() and value == value.strip()):
            raise TeacherError(
                f"header {name!r} has a name that HTTP does not allow, or holds a line break, letters outside ASCII, "
                "or a space at an end; see headers, and the environment variables that they and the signature name"
            )


def _proxied(url: str) -> bool:
    """Say whether calls to an address go through a proxy."""
    address, proxies = urlsplit(url), getproxies()
    return bool(proxies.get(address.scheme) or proxies.get("all")) and not proxy_bypass(address.hostname or "")


@lru_cache(maxsize=64)
def _address(url: str) -> httpx2.URL:
    """Return an address taken apart; most APIs have one for all calls."""
    return httpx2.URL(url)


def _announced(response: httpx2.Response) -> int:
    """Return how many bytes a reply says that it has, packed if it is; 0 where it does not say."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and length.isascii() else 0


async def _read(response: httpx2.Response, most: int) -> bytes:
    """Read a body, unpacked piece by piece, and stop at ``most`` bytes."""
    body = bytearray()
    async with aclosing(response.aiter_bytes()) as pieces:
        async for piece in pieces:
            body += piece[: most - len(body)]
            if len(body) == most:
                break
    return bytes(body)


async def _read_error(response: httpx2.Response) -> bytes:
    """Read the beginning of an error's body, or nothing where it cannot be read in a while."""
    with suppress(httpx2.RequestError, TimeoutError):
        async with asyncio.timeout(_ERROR_SECONDS):
            return await _read(response, _ERROR_BYTES)
    return b""


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks to wait, given as seconds or as a date.

    ``None`` if it is unreadable, or over already, as where clocks differ: we then wait as long as we do without one.

    >>> retry_after("120"), retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), retry_after("soon")
    (120.0, None, None)
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return seconds if 0 < seconds < math.inf else None


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
