"""The client that makes the calls of a teacher behind an API, and meets every fault of a network.

It knows nothing of what is in the calls: a `Shape` turns questions into calls and replies into answers. Whatever comes
back, a request ends as an answer or as a failure with its reason; both are handed on at once, so that a ledger keeps
what was bought. "Paid" is whether the API may have served the request; what that costs stands in the ledger.

=====================================================  =================================================  ==========
what comes back                                        what becomes of it                                 paid
=====================================================  =================================================  ==========
nobody: no connection, also to a proxy                 sent again, after a wait that doubles              no
a proxy that lets nobody through: 403, 407             a failure, and nothing more is sent                no
nothing within ``timeout``, not even slowly            sent again, after a wait that doubles              perhaps
a connection cut before or within the reply            sent again, after a wait that doubles              perhaps
408, 425, 500, 502, 504, …: a passing error            sent again, after a wait that doubles              no
429, 503, what ``throttling`` names: too much           nobody sends anything until the wait is over, then no
                                                       half as many at once; sent again, and no attempt while
                                                       others get through or are still out
``Retry-After``, as seconds or as a date to come       that wait instead of ours                          no
the same, longer than ``longest_wait``                 a failure; after 429 and 503 nothing more is sent  no
a step of a session: cut, late, 500, 502, 504, …       the session is replayed under a new name, after   as above
                                                       the same wait
401, 403: the key is refused, unless ``permanent``     a failure, and nothing more is sent                no
401 to a token that was fetched                        sent again at once, once, with a new token         no
a call that cannot be signed: no token, no package     a failure, and nothing more is sent                no
a header that HTTP does not allow                      a failure, and nothing more is sent                no
an address that is too long, or none                   a failure; nothing is sent                         no
a passing error where the token is fetched             tried again, after a wait that doubles             no
3xx, to this or another host                           a failure: no redirect is followed                 no
400, 404, 422, … and those named in ``permanent``      a failure; no later run asks that again            no
the same, to a call about several questions            each half is asked apart, down to the one at fault no
400, 404, 410, 416, 422 to a page after the first      the end of the list, which is an answer            yes
more than ``largest_reply`` bytes, packed or unpacked  not read on; a failure                             yes
a body that cannot be unpacked                         a failure                                          yes
no JSON, HTML, another shape, something at ``error``   a failure, with the beginning of the body; not     yes
under 200, ids or scores of a wrong type, half         sent again by any run, as it would be paid for
characters, scores NaN or infinite                     again
no list, null for it, or no body, as 204 has none      the same, or an answer, as ``missing_items`` says  yes
a list too long                                        cut by the shape                                   yes
a short or empty list                                  an answer                                          yes
items twice, unknown or of the history; any Unicode    an answer, kept as it is; such items are dropped,  yes
                                                       and counted, each time that it is read
``give_up_after`` failures in a row, ten times as      what is in flight is finished, nothing more is
many of questions refused each for what it is by an    sent, and a `TeacherError` says so
API that has answered; so many calls in a row that
fail on most of their questions; or nothing but calls
that did not get through for ``dead_after`` seconds
=====================================================  =================================================  ==========
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import cached_property

from recdistill.errors import BudgetExhausted, TeacherError
from recdistill.teachers.answers import Answer, Failure, Outcome, Request, Take
from recdistill.teachers.dispatcher import Dispatcher, Streak
from recdistill.teachers.exchange import Call, Conversation, Garbled, PastTheEnd, Reply, Shape
from recdistill.teachers.loop import PrivateLoop
from recdistill.teachers.meter import SOON, Meter, Pace, Unsent
from recdistill.teachers.transport import Refused, Transport, trusted
from recdistill.teachers.transport_settings import TransportSettings
from recdistill.teachers.window import Window

_log = logging.getLogger("recdistill.teachers")

_POLL = 0.02
"""Seconds between two looks at whether another thread's call has landed."""
_PUNCTUAL = 0.01
"""Seconds by which a wait may seem not to be over when it is."""
_LONG = 10.0
"""Seconds of a wait for a turn from which on it is told."""
_OF_A_QUESTION = {400, 404, 413, 414, 422}
"""Statuses by which an API may refuse all questions of a call for the sake of one."""
_PAST_THE_END = {400, 404, 410, 416, 422}
"""Statuses with which APIs answer for a page past the last."""


class Client:
    """Makes the calls of one teacher, from any number of threads; remembers between them how much the API bears.

    Args:
        settings: how hard the API may be asked.
    """

    def __init__(self, settings: TransportSettings) -> None:
        self.settings = settings
        self.pace = Pace()
        self.window = Window(settings.concurrency)
        self.has_answered = False
        self.calls: Counter[str] = Counter()
        """How the calls so far ended: ``answered``, or a class of fault such as ``429``, ``timeout`` or ``cut``."""

    @cached_property
    def certificates(self) -> ssl.SSLContext:
        """Whom to trust over TLS: the system's, or the file ``SSL_CERT_FILE``; read once, as that takes a while."""
        return trusted()

    def answers(
        self, shape: Shape, take: Take, k: int, *, meter: Meter | None = None, hide: Callable[[str], str] = str
    ) -> Iterator[list[Outcome]]:
        """Ask what ``take`` hands out; on Ctrl-C or an error what is in flight is still waited for and yielded.

        Args:
            shape: how the API is asked.
            take: hands out requests that are to be asked right now.
            k: length of the lists.
            meter: gives turns and charges calls; without one, turns are kept among the threads that share this client.
            hide: takes secrets out of a text, should the API repeat them.

        Raises:
            TeacherError: when the API refuses the key, or seems dead, or calls cannot be signed.
            SettingsError: where the environment names a proxy or certificates that cannot be used; nothing was taken.
        """
        dispatcher = _Dispatcher(self, shape, take, k, meter or self.pace, hide)
        with closing(PrivateLoop()) as loop:
            try:
                yield from dispatcher.outcomes(loop)
            finally:
                loop.run(dispatcher.transport.close())
        if dispatcher.gave_up is not None:
            raise dispatcher.gave_up


class _Stopped(Exception):
    """A call that was not sent, because asking was stopped."""

    def __init__(self, what: str = "nothing was sent") -> None:
        super().__init__(f"{what}, because asking was stopped")


class _Tally:
    """What the calls of one conversation came to."""

    def __init__(self) -> None:
        self.calls = 0
        self.paid = False
        self.begun_anew = 0


class _Dispatcher(Dispatcher):
    """Asks about the requests that ``take`` hands out."""

    def __init__(
        self,
        client: Client,
        shape: Shape,
        take: Take,
        k: int,
        meter: Meter,
        hide: Callable[[str], str],
    ) -> None:
        self.client = client
        self.settings = settings = client.settings
        self.trying = shape.batch_size > 1 and not (client.has_answered or meter.has_answered)
        """Whether nobody knows yet that a reply to several questions can be read."""
        small = self.trying and settings.charge != "calls"
        super().__init__(take, min(shape.batch_size, settings.give_up_after) if small else shape.batch_size)
        self.window = client.window
        self.calls = client.calls
        self.shape = shape
        self.k = k
        self.meter = meter
        self.hide = hide
        self.landed = asyncio.Event()
        self.turns = asyncio.Lock()
        """Of whoever is the next to have a turn."""
        self.streak = Streak(settings.give_up_after)
        self.poor_in_a_row = 0
        """Calls about several questions most of which failed."""
        self.too_much_in_a_row = 0
        self.failing_since: float | None = None
        self.replied_at = -math.inf
        self.transport = Transport(settings, shape, hide, client.certificates)

    def room(self, in_flight: int) -> int:
        """Return how many more conversations may begin; the first about several questions is alone."""
        free = self.window.free(in_flight)
        return min(free, 1 - in_flight) if self.trying else free

    async def ask(self, requests: list[Request]) -> list[Outcome]:
        """Ask about some requests, call after call, until there are outcomes or no hope of any."""
        tally = _Tally()
        try:
            if self.stopped.is_set():
                raise _Stopped
            outcomes: Sequence[Answer | Failure] = [
                replace(outcome, final=True) if isinstance(outcome, Failure) else outcome
                for outcome in await self._talk(requests, tally)
            ]
            self._note_outcomes(outcomes)
        except Refused as refused:
            if len(requests) > 1 and self._may_lie_in_one(refused):
                return await self._ask_by_halves(requests, tally.calls)
            self._count_failure(refused, requests)
            outcomes = [Failure(refused.reason, paid=tally.paid, final=refused.final)] * len(requests)
        except (BudgetExhausted, _Stopped) as why:  # what else is in flight may still be within the budget
            outcomes = [Unsent(str(why), paid=tally.paid)] * len(requests)
        calls = [tally.calls] + [0] * (len(requests) - 1)  # so that they add up
        return [
            (request, self._discreet(replace(outcome, calls=n)))
            for request, outcome, n in zip(requests, outcomes, calls, strict=True)
        ]

    async def _ask_by_halves(self, requests: list[Request], calls: int) -> list[Outcome]:
        """Ask each half apart, so that one question takes no other with it; ``calls`` were made about all."""
        half = len(requests) // 2
        (request, outcome), *others = [*await self.ask(requests[:half]), *await self.ask(requests[half:])]
        return [(request, replace(outcome, calls=outcome.calls + calls)), *others]

    def _may_lie_in_one(self, refused: Refused) -> bool:
        """Say whether a call about several questions may have been refused for the sake of one."""
        of_a_question = refused.status in _OF_A_QUESTION or refused.status in self.settings.permanent
        return refused.final and (of_a_question or refused.kind == "not asked")

    def _discreet(self, outcome: Answer | Failure) -> Answer | Failure:
        """Take secrets out of what a shape quotes."""
        return replace(outcome, reason=self.hide(outcome.reason)) if isinstance(outcome, Failure) else outcome

    async def _talk(self, requests: list[Request], tally: _Tally) -> list[Answer | Failure]:
        """Make the calls of a conversation, from its beginning where one was lost that may not be repeated.

        Returns what its shape made of the replies.
        """
        while True:
            conversation = self.shape.converse(requests, self.k)
            said = self._advance(conversation, None, None)
            while isinstance(said, Call):
                try:
                    reply = await self._fetch(said, requests, tally)
                except Refused as refused:
                    return self._end(conversation, refused)
                if reply is None:
                    break
                tally.paid = True
                said = self._advance(conversation, said, reply)
            if not isinstance(said, Call):
                return said
            tally.begun_anew += 1

    def _advance(
        self, conversation: Conversation, call: Call | None, reply: Reply | None
    ) -> Call | list[Answer | Failure]:
        """Hand a reply to the shape, which says what to call next, or what came of it all."""
        try:
            following: Call = next(conversation) if reply is None else conversation.send(reply)
            return following
        except StopIteration as end:
            outcomes: list[Answer | Failure] = end.value
            return outcomes
        except TeacherError as error:
            if call is None or reply is None:
                raise Refused("not asked", f"the question cannot be asked: {error}") from error
            self.calls["answered"] -= 1
            kind = "garbled" if isinstance(error, Garbled) else "senseless"
            self.calls[kind] += 1
            reason = (
                f"{call.url} answered {reply.status} with {self.hide(str(error))}: {self.transport.excerpt(reply.body)}"
            )
            raise Refused(kind, reason) from error

    def _end(self, conversation: Conversation, refused: Refused) -> list[Answer | Failure]:
        """Return what came of a conversation whose last call was refused, where that call was for a page too many."""
        if refused.status in _PAST_THE_END:
            try:
                conversation.throw(PastTheEnd())
            except StopIteration as end:
                outcomes: list[Answer | Failure] = end.value
                return outcomes
            except PastTheEnd:
                pass
        raise refused

    async def _fetch(self, call: Call, requests: list[Request], tally: _Tally) -> Reply | None:
        """Send a call until there is a reply, or no hope of one; ``None`` where it must not be sent again."""
        attempt, renewed, tried_at = 1 + tally.begun_anew, False, time.monotonic()
        bears_until = tried_at + self.settings.dead_after
        while True:
            await self._wait_for_place()
            token, sent_at = None, time.monotonic()
            try:
                token = await self._wait_for_turn(call, tally)
                sent_at = time.monotonic()
                signed = self.transport.sign(call, token)
                self.meter.charge(requests)
                tally.calls += 1
                reply = await self.transport.send(signed, call.url)
            except Refused as refused:
                self.calls[refused.kind] += 1
                tally.paid |= refused.paid
                renewing = not renewed and self._drops(token, refused)
                heard = tried_at < self.replied_at or self.window.in_flight > 1  # of those still out nobody knows yet
                in_vain = not (refused.too_much and heard and time.monotonic() < bears_until)
                tried_at = time.monotonic()
                last = in_vain and attempt == self.settings.attempts
                wait = 0.0 if renewing else self._note_refusal(refused, attempt, sent_at, last=last)
                if wait is None:
                    raise
                lost = refused.heard and not call.repeatable
                renewed |= renewing
                attempt += in_vain and not renewing
            else:
                self._note_reply()
                return reply
            finally:
                self.window.leave()
                self.landed.set()
            if not await self._rest(wait):
                raise _Stopped(f"{call.url} was not asked again")
            if lost:
                return None

    def _drops(self, token: str | None, refused: Refused) -> bool:
        """Drop a token that was refused, and say whether there was one."""
        if token is None or self.shape.tokens is None or refused.kind != "401":
            return False
        self.shape.tokens.drop(token)
        return True

    async def _wait_for_place(self) -> None:
        """Keep no more calls in flight than the API bears just now."""
        while not self.window.enter():
            self.landed.clear()
            with suppress(TimeoutError):  # other threads' calls land without a word
                async with asyncio.timeout(_POLL):
                    await self.landed.wait()

    async def _wait_for_turn(self, call: Call, tally: _Tally) -> str | None:
        """Keep to the rate, and to the waits that the API asks for; who has paid waits though asking is stopped.

        Returns the token that the call is to carry, which is of the last moment: a turn may be far away.
        """
        rate = self.settings.rate
        gap = 0.0 if rate is None else 1 / rate
        token, wait = await self._take_turn(call, gap, tally)
        while wait > 0:
            await self._sit_out(wait, tally)
            wait = self.meter.held()
            if wait > _PUNCTUAL:  # the turn came while nobody may send
                token, wait = await self._take_turn(call, gap, tally)
        return token

    async def _take_turn(self, call: Call, gap: float, tally: _Tally) -> tuple[str | None, float]:
        """Wait until a turn is near, after those of us who came before; return a token and the seconds that are left.

        The token is had before the turn is taken, so that those who waited for one do not send all at once.
        """
        async with self.turns:
            if self.stopped.is_set() and not tally.paid:
                raise _Stopped
            token = await self.transport.token(call)
            while (wait := self.meter.turn(gap)) > SOON:
                if wait > _LONG:
                    _log.warning("the next call waits %.0f s for its turn, by the rate or as the API asks for it", wait)
                await self._sit_out(wait - SOON / 2, tally)
                token = await self.transport.token(call)
        return token, wait

    async def _sit_out(self, wait: float, tally: _Tally) -> None:
        """Wait so long, unless asking is stopped; who has paid waits on."""
        if tally.paid:
            await asyncio.sleep(wait)
        elif not await self._rest(wait):
            raise _Stopped

    async def _rest(self, seconds: float) -> bool:
        """Wait so long; false, at once, when asking is stopped."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopped.wait()
        except TimeoutError:
            return True
        return False

    def _note_reply(self) -> None:
        """Take note that the API lives, and bears what it is asked."""
        self.calls["answered"] += 1
        self.window.grow()
        self.too_much_in_a_row = 0
        self.failing_since = None
        self.replied_at = time.monotonic()

    def _note_refusal(self, refused: Refused, attempt: int, sent_at: float, *, last: bool) -> float | None:
        """Slow everybody down where that is asked for; return the seconds before another try, ``None`` for no more."""
        now = time.monotonic()
        if refused.final:
            self.failing_since = None
            return None
        if self.failing_since is None or refused.wait is not None:
            self.failing_since = max(self.failing_since or now, now + (refused.wait or 0.0))
        wait = self._back_off(attempt) if refused.wait is None else refused.wait
        if now - self.failing_since > self.settings.dead_after:
            self._give_up(f"gave up after {self.settings.dead_after:g} s of failed calls only (dead_after)", refused)
        if refused.too_much and wait > self.settings.longest_wait:
            self._give_up("gave up, as it asks for a longer silence than longest_wait", refused)
        elif refused.too_much:
            self._slow_down(refused.wait, sent_at)
            wait = 0.0
        last = last or self.stopped.is_set()
        return None if last or not refused.again or wait > self.settings.longest_wait else wait

    def _slow_down(self, wait: float | None, sent_at: float) -> None:
        """Let nobody send anything for a while, and then fewer at once."""
        first_of_its_wave = self.window.shrink(sent_at)
        if wait is not None:
            self.meter.hold(wait)
        elif first_of_its_wave:
            self.too_much_in_a_row += 1
            self.meter.hold(self._back_off(self.too_much_in_a_row))

    def _back_off(self, attempt: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        first, longest = self.settings.first_wait, self.settings.longest_wait
        return min(longest, first * 2.0 ** min(attempt - 1, 30) + random.uniform(0, first))

    def _note_outcomes(self, outcomes: Sequence[Answer | Failure]) -> None:
        """Take note of what a reply brought, and stop asking where replies hold failures for the most part."""
        asked = [outcome for outcome in outcomes if outcome.calls]
        failed = [outcome for outcome in asked if isinstance(outcome, Failure)]
        if len(failed) < len(asked):
            self.streak.end()
            self.client.has_answered = True
            self.trying, self.batch_size = False, self.shape.batch_size
        self.poor_in_a_row = self.poor_in_a_row + 1 if 2 * len(failed) > len(asked) > 1 else 0
        if self.poor_in_a_row >= self.settings.give_up_after:
            why = f"gave up after {self.poor_in_a_row} calls in a row most of whose questions failed (give_up_after)"
            self._give_up(why, failed[-1])

    def _count_failure(self, refused: Refused, requests: list[Request]) -> None:
        """Stop asking where it makes no sense any more."""
        if refused.fatal:
            self._give_up("gave up, as other requests will fare no better", refused)
        answers = self.client.has_answered or self.meter.has_answered
        little = (refused.final and refused.kind != "garbled" and answers) or all(
            request.failed_before for request in requests
        )
        if n := self.streak.add(len(requests), little=little):
            self._give_up(f"gave up after {n} failed requests in a row (give_up_after)", refused)

    def _give_up(self, why: str, last: Refused | Failure) -> None:
        self.give_up(TeacherError(self.hide(f"{why}; the last: {last.reason}")))
