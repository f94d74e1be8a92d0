"""What becomes of the requests of one ranking, between a ledger that knows and a teacher that is asked."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from recdistill.errors import TeacherError
from recdistill.teachers.answers import Answer, Failure, Outcome, Request
from recdistill.teachers.ledger_records import Digest, Question
from recdistill.teachers.liveness import LEASE, STALE
from recdistill.teachers.meter import Unsent

if TYPE_CHECKING:
    from recdistill.teachers.ledger_teacher import LedgerTeacher

_POLL = 0.05
"""Seconds between two looks at what another process is asking."""
_RENEWED = LEASE / 4
"""Seconds after which what is in flight is renewed."""
_LOOKED_AT = 100
"""Lists, none of them empty, after which one of them must have named an item that we know."""


class LedgerSession:
    """The requests of one ranking: which are answered, waiting, asked by us, or asked by others; and our meter."""

    def __init__(self, keeper: LedgerTeacher, k: int) -> None:
        self.keeper = keeper
        self.ledger = keeper.ledger
        self.k = k
        """How many items are wanted."""
        self.page = keeper.page(k)
        self.answers: dict[Digest, Answer] = {}
        self.failures: list[Failure] = []
        self.exhausted = False
        self.shortage = ""
        """Why what is left of the budget buys nothing."""
        self.waiting: deque[tuple[Request, Question]] = deque()
        self.busy: list[tuple[Request, Question]] = []
        self.asked: dict[int, Question] = {}
        self.settled = 0
        """Outcomes that were written down."""
        self.refused: deque[tuple[int, Digest]] = deque()
        """Refused for good since the question of the last answer was handed out, and how many were settled before."""
        self.settled_before: dict[int, int] = {}
        """How many outcomes there were when a row was handed out."""
        self.active_at = time.monotonic()
        """When a request was last taken, sent or settled."""
        self.strange: TeacherError | None = None
        """Why nothing more is asked, where the lists mean nothing to us."""
        self.due: dict[int, int] = {}
        """Calls that a row which is asked is still to take, where the budget does not count queries."""

    def start(self, asked: Sequence[tuple[Request, Question]]) -> None:
        """Answer from disk; what is not there waits to be asked, the same question only once."""
        self.answers = self.ledger.find(self.page, [question.digest for _, question in asked], self.k)
        self._look_at(answer for answer in self.answers.values() if answer.items)
        seen = set(self.answers)
        missing: list[tuple[Request, Question]] = []
        for request, question in asked:
            if question.digest not in seen:
                seen.add(question.digest)
                missing.append((request, question))
        self._wait(missing)

    def _wait(self, missing: Sequence[tuple[Request, Question]]) -> None:
        """Have requests asked, but for those that were refused for good."""
        failed = self.ledger.failed(self.page, [question.digest for _, question in missing])
        for request, question in missing:
            failure = failed.get(question.digest)
            if failure is None:
                self.waiting.append((request, question))
            elif failure.final:
                self.failures.append(failure)
            else:
                self.waiting.append((replace(request, failed_before=True), question))

    def take(self, n: int) -> list[Request]:
        """Book up to ``n`` requests and hand them out."""
        self.active_at = time.monotonic()
        taken: list[Request] = []
        while self.waiting and not taken and not self.exhausted and self.strange is None:
            candidates = self._affordable(min(n, len(self.waiting)))
            if not candidates:
                break
            digests = [question.digest for _, question in candidates]
            booking = self.ledger.book(self.page, digests, self.keeper.terms, wanted=self.k)
            self.answers |= booking.answers
            left: list[tuple[Request, Question]] = []
            for request, question in candidates:
                if question.digest in booking.granted:
                    self.asked[request.row] = question
                    self.settled_before[request.row] = self.settled
                    taken.append(request)
                elif question.digest in booking.busy:
                    self.busy.append((request, question))
                elif question.digest not in booking.answers:
                    left.append((request, question))
            self.waiting.extendleft(reversed(left))
            self.exhausted = bool(left)
        return taken

    def _affordable(self, n: int) -> list[tuple[Request, Question]]:
        """Take the first ``n`` of those waiting, or as many as the budget lasts for, beside what is being asked."""
        keeper = self.keeper
        if keeper.budget is None or keeper.charge == "queries":  # queries are counted when they are booked
            return [self.waiting.popleft() for _ in range(n)]
        left = keeper.budget - self.ledger.spent(keeper.identity)
        free = left * keeper.in_one_charge - sum(self.due[row] for row in self.asked)
        chosen: list[tuple[Request, Question]] = []
        while len(chosen) < n and (calls := keeper.calls(self.waiting[0][0], self.k)) <= free:
            chosen.append(self.waiting.popleft())
            self.due[chosen[-1][0].row] = calls
            free -= calls
        if not chosen and not self.asked:
            self.exhausted = True
            takes = math.ceil(calls / keeper.in_one_charge)
            self.shortage = f"has {left:,} left while the next request takes {takes:,}" if left > 0 else ""
        return chosen

    @property
    def has_answered(self) -> bool:
        """Whether the teacher has answered any such question before."""
        return bool(self.answers) or self.ledger.has_answers(self.page)

    def charge(self, requests: Sequence[Request]) -> None:
        """Charge a call about some of what is asked, unless queries are charged, which was done when they were booked.

        Raises:
            BudgetExhausted: when it costs more than is left.
        """
        self.active_at = time.monotonic()
        if self.keeper.charge != "queries":
            digests = [self.asked[request.row].digest for request in requests]
            self.ledger.charge(self.page, digests, self.keeper.terms)
            for request in requests:
                self.due[request.row] = max(0, self.due.get(request.row, 0) - 1)

    def turn(self, gap: float) -> float:
        """Return the seconds until a call may be sent, among all processes; as `Meter.turn`."""
        return self.ledger.turn(self.page, gap)

    def hold(self, seconds: float) -> None:
        """Let no process ask the teacher for so long."""
        self.ledger.hold(self.page, seconds)

    def held(self) -> float:
        """Return for how many seconds no process may ask the teacher."""
        return self.ledger.held(self.page)

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Keep others from taking what is asked for lost, until the end of the block; but not where we are hung."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(_RENEWED):
                asked = list(self.asked.values())
                if asked and time.monotonic() - self.active_at < STALE:
                    with suppress(TeacherError):  # whoever asks meets the same fault, and says so
                        self.ledger.renew(self.page, [question.digest for question in asked])

        thread = threading.Thread(target=renew, name="renewal", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def settle(self, block: list[Outcome]) -> None:
        """Write down what came back; only then is it an answer."""
        self.active_at = time.monotonic()
        outcomes = [(self.asked[request.row], outcome) for request, outcome in block]
        self.ledger.settle(self.page, outcomes)
        for (request, outcome), (question, _) in zip(block, outcomes, strict=True):
            begun = self.settled_before.pop(request.row)
            if isinstance(outcome, Answer):
                self.answers[question.digest] = outcome
                while self.refused and self.refused[0][0] < begun:
                    self.refused.popleft()
            elif isinstance(outcome, Unsent):
                self.waiting.append((request, question))
            else:
                self.failures.append(outcome)
                self.exhausted &= outcome.paid
                if outcome.final:
                    self.refused.append((self.settled, question.digest))
            self.settled += 1
            del self.asked[request.row]
        self.keeper.watch(block)
        self._look_at(outcome for _, outcome in block if isinstance(outcome, Answer) and outcome.items)

    def _look_at(self, answers: Iterable[Answer]) -> None:
        """Ask nothing more where lists are bought that mean nothing to us."""
        keeper = self.keeper
        for answer in answers:
            if keeper.strange_lists is None or keeper.teacher.names_known(answer):
                keeper.strange_lists = None
                return
            keeper.strange_lists += 1
            if keeper.strange_lists >= _LOOKED_AT:
                self.strange = TeacherError(
                    f"teacher {keeper.identity!r} has named no item of the data in {keeper.strange_lists:,} lists, one "
                    f"of which begins with {answer.items[:3]}; see item_format and item_file, or the ids that it was "
                    f"given. Nothing more is asked; what was bought is in {self.ledger.path}"
                )

    def doubt(self) -> None:
        """Let what was refused lately be asked again: it may be the teacher that was at fault."""
        self.ledger.forget_refusals(self.page, [request for _, request in self.refused])

    def fail(self, reason: str) -> None:
        """Write down why the teacher gave up on what it was asked; it may have been paid for."""
        self.ledger.settle(self.page, [(question, Failure(reason)) for question in self.asked.values()])
        self.asked.clear()

    def lose(self) -> None:
        """Write down that what was asked never came back."""
        if self.asked:
            self.ledger.lose(self.page, [question.digest for question in self.asked.values()])
            self.asked.clear()

    def drop(self) -> None:
        """Ask no more; of what is left, keep what others have asked or are asking."""
        digests = [question.digest for _, question in self.waiting]
        busy = self.ledger.in_flight(self.page, digests)
        self.answers |= self.ledger.find(self.page, digests, self.k)
        self.busy += [pair for pair in self.waiting if pair[1].digest in busy - self.answers.keys()]
        self.waiting.clear()

    def wait_for_others(self) -> None:
        """Wait until others are done with what we want as well; what they did not get, we ask."""
        while self.busy and not self.waiting:
            digests = [question.digest for _, question in self.busy]
            busy = self.ledger.in_flight(self.page, digests)
            if len(busy) == len(digests):
                time.sleep(_POLL)
                continue
            found = self.ledger.find(self.page, [digest for digest in digests if digest not in busy], self.k)
            self.answers |= found
            self._wait([pair for pair in self.busy if pair[1].digest not in busy | found.keys()])
            self.busy = [pair for pair in self.busy if pair[1].digest in busy]
            self.exhausted = False
