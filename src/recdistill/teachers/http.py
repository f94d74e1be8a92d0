"""A recommender behind an API as a teacher.

One shape: ``POST {"history": [ids], "k": 10}`` is answered by ``{"items": [ids]}``, with ``"scores": [numbers]`` where
the API gives them. Ids are the caller's own, integers or strings.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import time
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit

import httpx2
import stamina
from aiolimiter import AsyncLimiter
from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from recdistill import __version__
from recdistill.data.dataset import IdMap, RawId
from recdistill.errors import SettingsError, TeacherError
from recdistill.settings import Settings
from recdistill.teachers.base import (
    Answer,
    Failure,
    Outcome,
    OutsideTeacher,
    Request,
    Take,
    check_items,
    check_scores,
)

# stamina logs each retry; without a handler of the application's, Python would print them between the progress lines.
logging.getLogger("stamina").addHandler(logging.NullHandler())

T = TypeVar("T")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SECRET = re.compile(r"auth|cookie|key|token|secret|passw|signature|credential", re.IGNORECASE)
_RETRIED = {408, 425, 429, *range(500, 600)}
_EXCERPT = 200
"""Characters of an answer that an error message quotes."""


class HttpConfig(Settings):
    """Where the API is and how hard it may be asked."""

    url: str
    """Where requests are posted to; http or https, without secrets in it."""
    identity: str | None = None
    """Name under which answers are kept; change it when the model behind the API changes. By default the url."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of each request; ``${NAME}`` stands for the environment variable NAME, the only place for a secret."""
    gives_scores: bool = False
    """Whether to read ``scores``; an answer without them is then a failure."""
    exclude_history: bool = True
    """Whether items of the history are dropped from the lists."""
    concurrency: PositiveInt = 8
    """Requests in flight at once."""
    rate: PositiveFloat | None = None
    """Most calls a second, retries included; no limit where not given."""
    timeout: PositiveFloat = 30.0
    """Seconds for one call, from connecting to the last byte."""
    attempts: PositiveInt = 5
    """Calls for one request, the first included."""
    first_wait: Annotated[float, Field(ge=0)] = 0.5
    """Seconds before the first retry; doubles each time, plus a random part as long, up to ``longest_wait``."""
    longest_wait: PositiveFloat = 60.0
    """Most seconds between two calls for one request; where the API's Retry-After asks for more, the request fails."""
    give_up_after: PositiveInt = 10
    """Failed requests in a row after which no more are sent."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a full address like https://shop.example/recommend")
        if parts.username is not None or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query)):
            raise ValueError("must hold no secret, it is written to results; send it in a header from the environment")
        return url

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if _SECRET.search(name) and not _VARIABLE.search(value):
                raise ValueError(
                    f"header {name} carries a secret, which settings must not hold; write ${{NAME}} and put it "
                    "into the environment variable NAME"
                )
        return headers


class HttpTeacher(OutsideTeacher):
    """A recommender API, asked by several requests at once, within a rate, and again after passing errors.

    Status 408, 425, 429 and 5xx, a timeout and a broken connection are passing: the request is sent again after a
    growing wait, or after the wait that the API names in ``Retry-After``. Everything else is permanent. After 401 or
    403, or ``give_up_after`` failed requests in a row, nothing more is sent. Redirects are not followed. A list longer
    than asked for is cut.

    Args:
        ids: the items in the ids that the API speaks.
        config: the settings, or give them by name.
    """

    def __init__(self, ids: IdMap, config: HttpConfig | None = None, **settings: Any) -> None:
        self.config = config if config is not None else HttpConfig.parse(settings, where="http teacher")
        self.ids = ids
        self.gives_scores = self.config.gives_scores
        self.exclude_history = self.config.exclude_history
        self.next_call = 0.0
        """When, by `time.monotonic`, the rate allows the next call."""

    @property
    def identity(self) -> str:
        """The name that was given, or the url."""
        return self.config.identity or self.config.url

    def answers(self, take: Take, k: int) -> Iterator[list[Outcome]]:
        """Ask the API; on Ctrl-C what is in flight is still waited for and yielded, a second one stops at once.

        Raises:
            TeacherError: when the API refuses the key, or fails too often in a row.
            SettingsError: when an environment variable that a header names is not set.
        """
        headers, secrets = _fill_in(self.config.headers)
        first = take(self.config.concurrency)
        if not first:
            return
        with _private_loop() as run:
            asking = _Asking(self, headers, secrets, take, k, first)
            try:
                while run(asking.step()):
                    yield asking.collect()
            except KeyboardInterrupt:
                run(asking.finish())
                yield asking.collect()
                raise
            finally:
                run(asking.close())


class _Refused(Exception):
    """A call that brought no answer.

    Args:
        reason: what was asked and what came back.
        paid: whether the API may have served it.
        again: whether another try may do better.
        wait: seconds that the API asks to wait before.
        fatal: whether other requests will fare no better.
    """

    def __init__(
        self, reason: str, *, paid: bool = False, again: bool = False, wait: float | None = None, fatal: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.paid = paid
        self.again = again
        self.wait = wait
        self.fatal = fatal


class _Asking:
    """One walk through the requests that ``take`` hands out, on one event loop."""

    def __init__(
        self,
        teacher: HttpTeacher,
        headers: dict[str, str],
        secrets: list[str],
        take: Take,
        k: int,
        first: list[Request],
    ) -> None:
        self.teacher = teacher
        self.config = config = teacher.config
        self.secrets = secrets
        self.take = take
        self.k = k
        self.waiting = first
        self.tasks: set[asyncio.Task[Outcome]] = set()
        self.finished: list[Outcome] = []
        self.failed_in_a_row = 0
        self.stopped: str | None = None
        self.client = httpx2.AsyncClient(
            headers={"User-Agent": f"recdistill/{__version__}", **headers},
            timeout=config.timeout,
            limits=httpx2.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
        )
        # AsyncLimiter(rate, 1) would let twice the rate through in the first second.
        self.limiter = None if config.rate is None else AsyncLimiter(1, 1 / config.rate)
        self.retry = stamina.AsyncRetryingCaller(
            attempts=config.attempts,
            timeout=None,
            wait_initial=config.first_wait,
            wait_max=config.longest_wait,
            wait_jitter=config.first_wait,
        )

    async def step(self) -> bool:
        """Keep as many requests in flight as allowed until some have finished; false when all are done."""
        free = self.config.concurrency - len(self.tasks)
        if free and self.stopped is None and not self.waiting:
            self.waiting = self.take(free)
        self.tasks |= {asyncio.create_task(self._ask(request)) for request in self.waiting}
        self.waiting = []
        if not self.tasks:
            if self.stopped is not None:
                raise TeacherError(self.stopped)
            return False
        await self._wait(asyncio.FIRST_COMPLETED)
        return True

    async def finish(self) -> None:
        """Take nothing new, and wait for what is in flight."""
        if self.tasks:
            await self._wait(asyncio.ALL_COMPLETED)

    def collect(self) -> list[Outcome]:
        """Hand over what has finished."""
        finished, self.finished = self.finished, []
        return finished

    async def close(self) -> None:
        """Drop what is in flight and close all connections."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.client.aclose()

    async def _wait(self, until: str) -> None:
        done, self.tasks = await asyncio.wait(self.tasks, return_when=until)
        self.finished += [task.result() for task in done]

    async def _ask(self, request: Request) -> Outcome:
        """Ask until there is an answer, or no hope of one."""
        refusals: list[_Refused] = []

        async def call() -> Answer:
            await self._wait_for_turn()
            try:
                items, scores = await self._call(request)
            except _Refused as refused:
                refusals.append(refused)
                raise
            return Answer(items, scores, len(refusals) + 1)

        try:
            answer = await self.retry(self._wait_before_retry, call)
        except _Refused as refused:
            self._count(refused)
            return request, Failure(refused.reason, len(refusals), any(refusal.paid for refusal in refusals))
        self.failed_in_a_row = 0
        return request, answer

    def _wait_before_retry(self, error: Exception) -> bool | float:
        """Return whether to ask again, or the seconds after which to."""
        if not isinstance(error, _Refused) or not error.again:
            return False
        if error.wait is None:
            return True
        return error.wait if error.wait <= self.config.longest_wait else False

    def _count(self, refused: _Refused) -> None:
        """Stop asking where it makes no sense any more."""
        self.failed_in_a_row += 1
        if refused.fatal:
            self.stopped = refused.reason
        elif self.failed_in_a_row >= self.config.give_up_after and self.stopped is None:
            self.stopped = (
                f"gave up after {self.failed_in_a_row} failed requests in a row (give_up_after); "
                f"the last: {refused.reason}"
            )

    async def _wait_for_turn(self) -> None:
        """Keep to the rate, also from one walk to the next."""
        if self.config.rate is None or self.limiter is None:
            return
        await self.limiter.acquire()
        turn = max(time.monotonic(), self.teacher.next_call)
        self.teacher.next_call = turn + 1 / self.config.rate
        await asyncio.sleep(turn - time.monotonic())

    async def _call(self, request: Request) -> tuple[list[RawId], list[float] | None]:
        """Call the API once."""
        url = self.config.url
        try:
            async with asyncio.timeout(self.config.timeout):
                response = await self.client.post(url, json={"history": request.history, "k": self.k})
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise _Refused(f"{url} cannot be reached: {_name(error)}", again=True) from error
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise _Refused(
                f"{url} did not answer within {self.config.timeout:g} s (timeout)", paid=True, again=True
            ) from error
        except httpx2.TransportError as error:
            raise _Refused(f"{url} broke the connection: {_name(error)}", paid=True, again=True) from error
        except httpx2.RequestError as error:
            raise _Refused(f"{url} sent what cannot be read: {_name(error)}", paid=True) from error
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            return self._read(json.loads(response.content))
        except (ValueError, RecursionError, TeacherError) as error:
            raise _Refused(f"{url} answered 200 with {error}: {self._excerpt(response)}", paid=True) from error

    def _read(self, answer: Any) -> tuple[list[RawId], list[float] | None]:
        """Check an answer; a list longer than asked for is cut."""
        if not isinstance(answer, dict) or not isinstance(answer.get("items"), list):
            raise TeacherError('something else than an object with a list "items"')
        items = check_items(answer["items"])
        if not self.config.gives_scores:
            return items[: self.k], None
        if not isinstance(answer.get("scores"), list):
            raise TeacherError('no list "scores", though gives_scores is set')
        return items[: self.k], check_scores(answer["scores"], len(items))[: self.k]

    def _refusal(self, response: httpx2.Response) -> _Refused:
        """Say what an answer that is not 200 means."""
        status = response.status_code
        reason = f"{self.config.url} answered {status} {response.reason_phrase}: {self._excerpt(response)}"
        if status in (401, 403):
            return _Refused(f"{reason}; check the headers and the environment variables they name", fatal=True)
        if status not in _RETRIED:
            return _Refused(reason)
        wait = retry_after(response.headers.get("Retry-After"))
        if wait is not None and wait > self.config.longest_wait:
            reason += f"; it asks to wait {wait:,.0f} s, more than longest_wait ({self.config.longest_wait:g} s)"
        return _Refused(reason, again=True, wait=wait)

    def _excerpt(self, response: httpx2.Response) -> str:
        """Return the beginning of the body in one line, without our secrets, should the API repeat them."""
        text = response.text
        for secret in self.secrets:
            text = text.replace(secret, "***")
        text = " ".join(text.split())
        return repr(text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…")


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks to wait, given as seconds or as a date; ``None`` if unreadable.

    >>> retry_after("120"), retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), retry_after("soon")
    (120.0, 0.0, None)
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _fill_in(headers: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Put environment variables into headers; returns also what they held.

    Raises:
        SettingsError: for a variable that is not set.
    """
    secrets: list[str] = []

    def held(match: re.Match[str]) -> str:
        value = os.environ.get(match[1], "")
        if not value:
            raise SettingsError(f"environment variable {match[1]} is not set; it belongs into a header of the API.")
        secrets.append(value)
        return value

    return {name: _VARIABLE.sub(held, value) for name, value in headers.items()}, secrets


class _Run(Protocol):
    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


@contextmanager
def _private_loop() -> Iterator[_Run]:
    """Give a function that runs coroutines on a loop of our own; in a notebook, whose loop is running, in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner() as runner:
            yield runner.run
        return
    runner = asyncio.Runner()
    with ThreadPoolExecutor(1) as pool:

        def run(coroutine: Coroutine[Any, Any, T], /) -> T:
            return pool.submit(runner.run, coroutine).result()

        try:
            yield run
        finally:
            pool.submit(runner.close).result()


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
