"""Bearer tokens by OAuth 2.0: fetched once for all threads, and kept in memory alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from recdistill.errors import TeacherError
from recdistill.teachers.exchange import Call, Reply
from recdistill.teachers.signing import Google, OAuth

_MARGIN = 60.0
"""Seconds before its end from which a token is renewed; a tenth of its time, where that is less."""
_REMEMBERED = 16
"""Tokens that are still hidden in what is shown: an API may repeat one that has been renewed since."""


class Grant(BaseModel):
    """What a token endpoint answers, as far as it matters (RFC 6749, section 5.1)."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    access_token: Annotated[str, Field(pattern=r"^[\x20-\x7e]+$")]
    token_type: Annotated[str, Field(pattern="^(?i:bearer)$")] = "Bearer"
    expires_in: Annotated[PositiveFloat, Field(allow_inf_nan=False)] | None = None
    """Seconds; where not given, the token lasts until it is refused."""


class Tokens:
    """The token of an API's calls, for any number of threads: whoever needs one first has it fetched for all.

    Args:
        settings: where it is fetched, and who asks for it.
    """

    def __init__(self, settings: OAuth | Google) -> None:
        self.settings = settings
        self.issued: tuple[str, ...] = ()
        """The latest tokens, none of which may ever be shown."""
        self._lock = threading.Lock()
        self._token: str | None = None
        self._renew_at = 0.0
        self._coming: Future[str] | None = None

    async def current(self, send: Callable[[Call], Reply]) -> str:
        """Return a token that lasts, which is fetched first where there is none.

        Args:
            send: makes a call and waits for its reply; it is called in a thread of its own. What it raises, everybody
                gets who waits for this token; whoever asks later tries again.

        Raises:
            SettingsError: without an environment variable that the settings name.
            TeacherError: for a reply that holds no token.
        """
        with self._lock:
            if self._token is not None and time.monotonic() < self._renew_at:
                return self._token
            coming = self._coming or self._have_it_fetched(send)
        return await asyncio.wrap_future(coming)

    def drop(self, token: str) -> None:
        """Take note that a token was refused; one that has been renewed since is not meant."""
        with self._lock:
            if self._token == token:
                self._token = None

    def _have_it_fetched(self, send: Callable[[Call], Reply]) -> Future[str]:
        coming: Future[str] = Future()
        coming.set_running_or_notify_cancel()  # so that one who waits no more does not cancel it for the others
        threading.Thread(target=self._fetch, args=(send, coming), name="token", daemon=True).start()
        self._coming = coming
        return coming

    def _fetch(self, send: Callable[[Call], Reply], coming: Future[str]) -> None:
        asked_at = time.monotonic()
        try:
            grant = _read(self.settings.token_url, send(self.settings.token_call()))
        except Exception as error:
            with self._lock:
                self._coming = None
            coming.set_exception(error)
            return
        with self._lock:
            self._token = grant.access_token
            self._renew_at = asked_at + _lasts(grant)
            self.issued = (*self.issued, grant.access_token)[-_REMEMBERED:]
            self._coming = None
        coming.set_result(grant.access_token)


def _read(url: str, reply: Reply) -> Grant:
    try:
        return Grant.model_validate_json(reply.body)
    except ValidationError as error:  # the body is not quoted: it may well hold a token, at another place
        wrong = "; ".join(": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors())
        raise TeacherError(f"{url} answered {reply.status} with something that is no bearer token: {wrong}") from None


def _lasts(grant: Grant) -> float:
    """Return for how many seconds a token is used."""
    return float("inf") if grant.expires_in is None else grant.expires_in - min(_MARGIN, grant.expires_in / 10)
