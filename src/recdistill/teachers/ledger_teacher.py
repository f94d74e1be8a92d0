"""A teacher whose answers are kept in a ledger, so that nothing is asked, or paid for, twice."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from recdistill.data.dataset import Sequences
from recdistill.errors import BudgetExhausted, SettingsError, TeacherError
from recdistill.teachers.base import Answer, Bools, Deputy, Failure, Outcome, Ranking, Request, Teacher
from recdistill.teachers.ledger import STALE, Digest, Ledger, Page, Question, Stats, digest
from recdistill.teachers.meter import Charge, MeteredTeacher, Unsent

_log = logging.getLogger("recdistill.teachers")

_POLL = 0.05
"""Seconds between two looks at what another process is asking."""
_RENEWED = STALE / 15
"""Seconds after which what is in flight is renewed."""
_LOOKED_AT = 100
"""Lists, none of them empty, after which one of them must have named an item that we know."""


class LedgerTeacher(Deputy):
    """A teacher whose answers are kept: known requests are answered from disk, the rest is asked within a budget.

    Args:
        teacher: whom to ask.
        ledger: where answers are.
        budget: most that may ever be spent on this teacher, over all runs that share the ledger, those before included;
            no limit where not given. What it counts is the teacher's ``charge``: queries, calls or rows. A request that
            takes several calls is asked only where the budget lasts to its end, beside those that are being asked.
        round: another round asks everything anew, for teachers whose answers vary.
    """

    def __init__(self, teacher: Teacher, ledger: Ledger, *, budget: int | None = None, round: int = 0) -> None:
        if budget is not None and budget < 0:
            raise SettingsError(f"a budget of {budget} makes no sense; give 0 or more, or none at all.")
        super().__init__(teacher)
        self.ledger = ledger
        self.budget = budget
        self.round = round
        self.watch: Callable[[Sequence[Outcome]], None] = lambda outcomes: None
        """Told what came back, once it is written down."""
        self.strange_lists: int | None = 0
        """How many lists came that name items, but none that we know; ``None`` once one named one."""
        self.charge: Charge = teacher.charge if isinstance(teacher, MeteredTeacher) else "queries"
        ledger.set_terms(teacher.identity, budget, self.charge)
        if budget is not None:
            self._warn_of_others()

    def stats(self) -> Stats:
        """Return what this teacher's answers have cost."""
        return self.ledger.stats(self.identity)

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Return the top ``k`` for each history; every answer is on disk before it is returned.

        Raises:
            BudgetExhausted: when the budget is too small; what buys answers of it has been spent, and the error carries
                these.
            TeacherError: when requests failed; all others have been asked and their answers kept.
        """
        ranking, answered, errand = self._collect(histories, k, users)
        if answered.all():
            return ranking
        missing = f"{len(answered) - answered.sum():,} of {len(answered):,} requests"
        kept = f"all answers are in {self.ledger.path}"
        if errand.failures:
            raise TeacherError(
                f"teacher {self.identity!r} left {missing} unanswered; {len(errand.failures):,} failed, the first: "
                f"{errand.failures[0].reason}. {kept}; run again to ask only for the rest"
                f"{self._refused(errand.failures)}."
            )
        raise BudgetExhausted(
            f"the budget of {self.budget:,} {self.charge} for teacher {self.identity!r} "
            f"{errand.shortage or 'is spent'}, and {missing} are not answered; {kept}. Raise the budget or ask for "
            "fewer.",
            ranking=ranking,
            answered=answered,
        )

    def rank_within_budget(
        self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None
    ) -> tuple[Ranking, Bools]:
        """Return what is answered within the budget, and ``(B,)`` which rows that is; the others list nothing.

        Rows are asked in their order, so the first ones are answered where the budget is short. A request that failed
        is not answered either, and is reported; it is asked again the next time, unless it was refused for good.

        Raises:
            TeacherError: when the teacher gave up.
        """
        ranking, answered, errand = self._collect(histories, k, users)
        if errand.failures:
            _log.warning(
                "teacher %r failed on %d of %d requests, which stay unanswered; the first: %s%s",
                self.identity,
                len(errand.failures),
                len(histories),
                errand.failures[0].reason,
                self._refused(errand.failures),
            )
        if errand.shortage and not answered.all():
            _log.warning(
                "the budget of %d %s for teacher %r %s, and %d of %d requests are not answered",
                self.budget,
                self.charge,
                self.identity,
                errand.shortage,
                len(histories) - answered.sum(),
                len(histories),
            )
        return ranking, answered

    def look_up(
        self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None
    ) -> tuple[set[Digest], dict[Digest, Request]]:
        """Return the different questions about these histories, and those still to be asked, in their order.

        Nothing is asked.
        """
        requests = self.teacher.requests(histories, users)
        asked = {self._question(request).digest: request for request in requests}
        page = self.ledger.page(self.identity, k, self.round)
        done = set(self.ledger.find(page, list(asked)))
        done |= {question for question, failure in self.ledger.failed(page, list(asked)).items() if failure.final}
        return set(asked), {question: request for question, request in asked.items() if question not in done}

    def calls(self, request: Request, k: int) -> int:
        """Return how many calls a request takes, retries aside; most, where pages may end early."""
        return self.teacher.shape.calls(request, k) if isinstance(self.teacher, MeteredTeacher) else 1

    @property
    def in_one_charge(self) -> int:
        """Most requests that are charged once."""
        if self.charge != "calls" or not isinstance(self.teacher, MeteredTeacher):
            return 1
        return self.teacher.shape.batch_size

    def _collect(
        self, histories: Sequences, k: int, users: npt.NDArray[np.integer] | None
    ) -> tuple[Ranking, Bools, _Errand]:
        """Answer from disk what is there, ask for the rest, and translate."""
        requests = self.teacher.requests(histories, users)
        questions = [self._question(request) for request in requests]
        errand = _Errand(self, self.ledger.page(self.identity, k, self.round))
        errand.start(requests, questions)
        while errand.waiting or errand.busy:
            try:
                for block in self._ask(errand, k):
                    errand.settle(block)
                if errand.strange is not None:
                    raise errand.strange
                if errand.asked:
                    raise TeacherError(
                        f"teacher {self.identity!r} left {len(errand.asked)} requests without an outcome."
                    )
            except TeacherError as error:
                errand.fail(str(error))
                errand.doubt()
                raise
            finally:
                errand.lose()
            if errand.exhausted:
                errand.drop()
            errand.wait_for_others()
        answers = {
            request.row: errand.answers[question.digest]
            for request, question in zip(requests, questions, strict=True)
            if question.digest in errand.answers
        }
        answered = np.zeros(len(histories), np.bool_)
        answered[list(answers)] = True
        return self.teacher.ranking(answers, histories, k), answered, errand

    def _ask(self, errand: _Errand, k: int) -> Iterator[list[Outcome]]:
        if isinstance(self.teacher, MeteredTeacher):
            return self.teacher.answers(errand.take, k, meter=errand)
        return self.teacher.answers(errand.take, k)

    def _warn_of_others(self) -> None:
        """Say so where what has been spent before was spent in another name."""
        others = [name for name in self.ledger.teachers() if name != self.identity and self.ledger.spent(name)]
        if others and not self.ledger.spent(self.identity):
            _log.warning(
                "ledger %s has nothing of teacher %r, whose budget begins anew, but of %s; if they are the same, give "
                "it that identity",
                self.ledger.path,
                self.identity,
                ", ".join(repr(name) for name in others),
            )

    def _refused(self, failures: Sequence[Failure]) -> str:
        """Say of failures how many no later run repeats, and what can be done about it."""
        final = sum(failure.final for failure in failures)
        if not final:
            return ""
        remedy = f"'recdistill ledger forget {self.ledger.path}' lets them be asked again"
        return f"; {final:,} were refused for good, {remedy}"

    def _question(self, request: Request) -> Question:
        user = {"user": request.user} if self.needs_users else {}
        asked = user | ({"history": request.history} if self.takes == "history" else {})
        text = json.dumps(asked, separators=(",", ":"), ensure_ascii=False)
        return Question(digest(text), text)


class _Errand:
    """The requests of one ranking: which are answered, waiting, asked by us, or asked by others; and our meter."""

    def __init__(self, keeper: LedgerTeacher, page: Page) -> None:
        self.keeper = keeper
        self.ledger = keeper.ledger
        self.page = page
        self.answers: dict[Digest, Answer] = {}
        self.failures: list[Failure] = []
        self.exhausted = False
        self.shortage = ""
        """Why what is left of the budget buys nothing."""
        self.waiting: deque[tuple[Request, Question]] = deque()
        self.busy: list[tuple[Request, Question]] = []
        self.asked: dict[int, Question] = {}
        self.refused: list[Digest] = []
        """Refused for good since the last answer."""
        self.renewed_at = time.monotonic()
        self.strange: TeacherError | None = None
        """Why nothing more is asked, where the lists mean nothing to us."""
        self.due: dict[int, int] = {}
        """Calls that a row which is asked is still to take, where the budget does not count queries."""

    def start(self, requests: list[Request], questions: list[Question]) -> None:
        """Answer from disk; what is not there waits to be asked, the same question only once."""
        self.answers = self.ledger.find(self.page, [question.digest for question in questions])
        seen = set(self.answers)
        missing: list[tuple[Request, Question]] = []
        for request, question in zip(requests, questions, strict=True):
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
        taken: list[Request] = []
        while self.waiting and not taken and not self.exhausted and self.strange is None:
            candidates = self._affordable(min(n, len(self.waiting)))
            if not candidates:
                break
            booking = self.ledger.book(self.page, [question.digest for _, question in candidates], self.keeper.budget)
            self.answers |= booking.answers
            left: list[tuple[Request, Question]] = []
            for request, question in candidates:
                if question.digest in booking.granted:
                    self.asked[request.row] = question
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
        while len(chosen) < n and (calls := keeper.calls(self.waiting[0][0], self.page.k)) <= free:
            chosen.append(self.waiting.popleft())
            self.due[chosen[-1][0].row] = calls
            free -= calls
        if not chosen and not self.asked:
            self.exhausted = True
            takes = math.ceil(calls / keeper.in_one_charge)
            self.shortage = f"has {left:,} left while the next request takes {takes:,}" if left > 0 else ""
        return chosen

    def charge(self, requests: Sequence[Request]) -> None:
        """Charge a call about some of what is asked, unless queries are charged, which was done when they were booked.

        Raises:
            BudgetExhausted: when it costs more than is left.
        """
        self._renew()
        if self.keeper.charge != "queries":
            digests = [self.asked[request.row].digest for request in requests]
            self.ledger.charge(self.page, digests, self.keeper.budget)
            for request in requests:
                self.due[request.row] = max(0, self.due.get(request.row, 0) - 1)

    def turn(self, gap: float) -> float:
        """Return the seconds until a call may be sent, among all processes."""
        return self.ledger.turn(self.page, gap)

    def hold(self, seconds: float) -> None:
        """Let no process ask the teacher for so long."""
        self.ledger.hold(self.page, seconds)

    def held(self) -> float:
        """Return for how many seconds no process may ask the teacher."""
        return self.ledger.held(self.page)

    def _renew(self) -> None:
        """Keep others from taking what waits for its turn for lost; done as others of our calls have theirs."""
        now = time.monotonic()
        if now - self.renewed_at > _RENEWED:
            self.renewed_at = now
            self.ledger.renew(self.page, [question.digest for question in self.asked.values()])

    def settle(self, block: list[Outcome]) -> None:
        """Write down what came back; only then is it an answer."""
        outcomes = [(self.asked[request.row], outcome) for request, outcome in block]
        self.ledger.settle(self.page, outcomes)
        for (request, outcome), (question, _) in zip(block, outcomes, strict=True):
            del self.asked[request.row]
            if isinstance(outcome, Answer):
                self.answers[question.digest] = outcome
                self.refused.clear()
            elif isinstance(outcome, Unsent):
                self.waiting.append((request, question))
            else:
                self.failures.append(outcome)
                self.exhausted &= outcome.paid
                if outcome.final:
                    self.refused.append(question.digest)
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
        """Let what was refused since the last answer be asked again: it may be the teacher that was at fault."""
        self.ledger.forget_refusals(self.page, self.refused)

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
        self.answers |= self.ledger.find(self.page, digests)
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
            found = self.ledger.find(self.page, [digest for digest in digests if digest not in busy])
            self.answers |= found
            self._wait([pair for pair in self.busy if pair[1].digest not in busy | found.keys()])
            self.busy = [pair for pair in self.busy if pair[1].digest in busy]
            self.exhausted = False
