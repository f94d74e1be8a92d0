"""How hard an API may be asked, when a call has failed, and which errors pass."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from recdistill.errors import TeacherError
from recdistill.settings import Settings
from recdistill.teachers.meter import Charge
from recdistill.teachers.paths import OnePath, Path


class Throttling(Settings):
    """By what a reply says that too much is asked where its status does not: Amazon's is 400, that of others 200."""

    codes: tuple[str, ...]
    """What it is called then, as a word of what lies at either place below."""
    header: str | None = None
    """The header that names the error."""
    member: OnePath | None = None
    """Where the body names it."""

    def is_told(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Say whether a reply is such an error."""
        named = [headers.get(self.header, "")] if self.header else []
        if self.member:
            with suppress(ValueError, RecursionError, TeacherError):
                named += map(str, Path.parse(self.member).all(json.loads(body)))
        return any(code in re.split(r"\W+", name) for name in named for code in self.codes)


class TransportSettings(Settings):
    """How hard an API may be asked, and when a call has failed."""

    charge: Charge = "queries"
    """What the budget counts: ``queries``, ``calls`` (retries and pages too), or ``rows``, requests in calls."""
    concurrency: PositiveInt = 8
    """Most requests in flight at once; fewer while the API says that it is too much."""
    rate: PositiveFloat | None = None
    """Most calls a second, retries included; no limit where not given."""
    timeout: PositiveFloat = 30.0
    """Seconds for one call, from connecting to the last byte; at most half of them for connecting."""
    attempts: PositiveInt = 5
    """Most sendings of one call, the first included, and most replays of a session; one more where a token that was
    fetched is refused. Those that were too much for the API while it answered others, or still had them, do not count,
    for ``dead_after`` seconds."""
    permanent: tuple[Annotated[int, Field(ge=400, le=599)], ...] = ()
    """Statuses that lie in the question, though they usually pass or end the asking: 500 where that means a user whom
    it does not know, 403 one who has opted out."""
    throttling: Throttling | None = None
    """What a reply of any status says where it is an error like 429: sent again, more slowly."""
    first_wait: Annotated[float, Field(ge=0)] = 0.5
    """Seconds before the first retry; doubles each time, plus a random part as long, up to ``longest_wait``."""
    longest_wait: PositiveFloat = 60.0
    """Most seconds between two calls for one request; where the API's Retry-After asks for more, asking ends."""
    give_up_after: PositiveInt = 10
    """Failed requests in a row after which no more are sent; ten times as many where an API that has answered others
    refuses each for what it is, though not by what is no JSON, and of those that failed in an earlier run. Also so many
    calls in a row each of which brought failures for most of its questions. The first call about several questions
    carries no more than these, unless calls are charged, and none goes with it."""
    dead_after: PositiveFloat = 120.0
    """Seconds of nothing but calls that did not get through, from the end of the first of them, after which no more are
    sent; waits that the API asked for do not count, and neither does what it refuses for good."""
    largest_reply: PositiveInt = 16 * 1024 * 1024
    """Bytes of a reply, unpacked, beyond which it is not read on and the request fails."""
