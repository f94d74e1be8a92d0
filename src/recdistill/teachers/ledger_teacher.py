"""A teacher whose answers are kept in a ledger, so that nothing is asked, or paid for, twice."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recdistill.arrays import Bools
from recdistill.data.dataset import Sequences
from recdistill.errors import BudgetExhausted, SettingsError, TeacherError
from recdistill.rankings import Ranking
from recdistill.teachers.answers import Failure, Outcome, Request
from recdistill.teachers.base import Deputy, Teacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_records import Digest, Page, Question, Stats, Terms, digest
from recdistill.teachers.ledger_session import LedgerSession
from recdistill.teachers.meter import Charge, MeteredTeacher

_log = logging.getLogger("recdistill.teachers")


class LookUp(NamedTuple):
    """What a ledger knows of the questions about some histories."""

    asked: set[Digest]
    """All of them."""
    refused: set[Digest]
    """Those that the teacher refused for good."""
    missing: dict[Digest, Request]
    """Those still to be asked, in their order."""


class LedgerTeacher(Deputy):
    """A teacher whose answers are kept: known requests are answered from disk, the rest is asked within a budget.

    Args:
        teacher: whom to ask.
        ledger: where answers are.
        budget: most that may ever be spent on this teacher, over all runs that share the ledger, those before included;
            no limit where not given. What it counts is the teacher's ``charge``: queries, calls or rows. A request that
            takes several calls is asked only where the budget lasts to its end, beside those that this ranking asks;
            retries, and what other processes ask meanwhile, are not foreseen.
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
        self.terms = Terms(budget, self.charge)
        ledger.set_terms(teacher.identity, self.terms)
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
        ranking, answered, session = self._collect(histories, k, users)
        if answered.all():
            return ranking
        missing = f"{len(answered) - answered.sum():,} of {len(answered):,} requests"
        kept = f"all answers are in {self.ledger.path}"
        if session.failures:
            raise TeacherError(
                f"teacher {self.identity!r} left {missing} unanswered; {len(session.failures):,} failed, the first: "
                f"{session.failures[0].reason}. {kept}"
                f"{'' if all(each.final for each in session.failures) else '; run again to ask only for the rest'}"
                f"{self._refused(session.failures)}."
            )
        raise BudgetExhausted(
            f"the budget of {self.budget:,} {self.charge} for teacher {self.identity!r} "
            f"{session.shortage or 'is spent'}, and {missing} are not answered; {kept}. Raise the budget or ask for "
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
        ranking, answered, session = self._collect(histories, k, users)
        if session.failures:
            _log.warning(
                "teacher %r failed on %d of %d requests, which stay unanswered; the first: %s%s",
                self.identity,
                len(session.failures),
                len(histories),
                session.failures[0].reason,
                self._refused(session.failures),
            )
        if session.shortage and not answered.all():
            _log.warning(
                "the budget of %d %s for teacher %r %s, and %d of %d requests are not answered",
                self.budget,
                self.charge,
                self.identity,
                session.shortage,
                len(histories) - answered.sum(),
                len(histories),
            )
        return ranking, answered

    def look_up(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> LookUp:
        """Return which questions about these histories are answered. Nothing is asked."""
        asked = {question.digest: request for request, question in self._questions(histories, users)}
        page = self.page(k)
        found = self.ledger.find(page, list(asked), k).keys()
        failed = self.ledger.failed(page, list(asked))
        refused = {digest for digest, failure in failed.items() if failure.final} - found
        done = found | refused
        return LookUp(set(asked), refused, {digest: asked[digest] for digest in asked if digest not in done})

    def has(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Bools:
        """Return ``(B,)`` which histories have an answer in the ledger. Nothing is asked."""
        asked = self._questions(histories, users)
        found = self.ledger.find(self.page(k), [question.digest for _, question in asked], k)
        there = np.zeros(len(histories), np.bool_)
        there[[request.row for request, question in asked if question.digest in found]] = True
        return there

    def depth(self, k: int) -> int:
        """Return how long a list is really asked for where ``k`` items are wanted: the same depth, the same calls."""
        return self.teacher.shape.depth(k) if isinstance(self.teacher, MeteredTeacher) else k

    def page(self, k: int) -> Page:
        """Return where answers are filed that are asked for where ``k`` items are wanted."""
        return self.ledger.page(self.identity, self.depth(k), self.round)

    def calls(self, request: Request, k: int) -> int:
        """Return how many calls a request takes, retries aside; most, where pages may end early."""
        return self.teacher.shape.calls(request, k) if isinstance(self.teacher, MeteredTeacher) else 1

    def shares_budget(self, other: LedgerTeacher) -> bool:
        """Whether what the other one is asked is paid from the same budget, as where each is a round of one API."""
        return (self.identity, self.ledger.path) == (other.identity, other.ledger.path)

    @property
    def in_one_charge(self) -> int:
        """Most requests that are charged once."""
        if self.charge != "calls" or not isinstance(self.teacher, MeteredTeacher):
            return 1
        return self.teacher.shape.batch_size

    def _collect(
        self, histories: Sequences, k: int, users: npt.NDArray[np.integer] | None
    ) -> tuple[Ranking, Bools, LedgerSession]:
        """Answer from disk what is there, ask for the rest, and translate."""
        asked = self._questions(histories, users)
        session = LedgerSession(self, k)
        session.start(asked)
        while session.waiting or session.busy:
            try:
                with session.renewed():
                    for block in self._ask(session):
                        session.settle(block)
                if session.strange is not None:
                    raise session.strange
                if session.asked:
                    raise TeacherError(
                        f"teacher {self.identity!r} left {len(session.asked)} requests without an outcome."
                    )
            except TeacherError as error:
                session.fail(str(error))
                session.doubt()
                raise
            finally:
                session.lose()
            if session.exhausted:
                session.drop()
            session.wait_for_others()
        answers = {
            request.row: session.answers[question.digest]
            for request, question in asked
            if question.digest in session.answers
        }
        answered = np.zeros(len(histories), np.bool_)
        answered[list(answers)] = True
        return self.teacher.ranking(answers, histories, k), answered, session

    def _ask(self, session: LedgerSession) -> Iterator[list[Outcome]]:
        if isinstance(self.teacher, MeteredTeacher):
            return self.teacher.answers(session.take, session.page.k, meter=session)
        return self.teacher.answers(session.take, session.page.k)

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
        return f"; {final:,} {'was' if final == 1 else 'were'} refused for good, {remedy}"

    def _questions(self, histories: Sequences, users: npt.NDArray[np.integer] | None) -> list[tuple[Request, Question]]:
        """Return what the teacher would be asked about histories, and as what it is filed."""
        return [(request, self._question(request)) for request in self.teacher.requests(histories, users)]

    def _question(self, request: Request) -> Question:
        user = {"user": request.user} if self.needs_users else {}
        asked = user | ({"history": request.history} if self.takes == "history" else {})
        text = json.dumps(asked, separators=(",", ":"), ensure_ascii=False)
        return Question(digest(text), text)
