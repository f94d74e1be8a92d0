"""What a ledger files: questions and answers as text, where they stand, and what they have cost."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from recdistill.errors import TeacherError
from recdistill.teachers.answers import Answer, check_items, check_scores
from recdistill.teachers.ledger_file import UnreadableAnswer
from recdistill.teachers.meter import Charge

Digest: TypeAlias = bytes


class Page(NamedTuple):
    """Where answers are filed, next to the request itself."""

    teacher: int
    k: int
    """How many items are asked for: no more than the API gives at once."""
    round: int


class Question(NamedTuple):
    """A request, and the digest under which its answer is filed."""

    digest: Digest
    text: str


class Terms(NamedTuple):
    """What a teacher may cost, as one of those who ask it has been told."""

    budget: int | None = None
    """Most that may ever be spent; ``None`` for no limit."""
    charge: Charge = "queries"
    """What is counted as spent."""


class Booking(NamedTuple):
    """What became of requests that were to be asked; the rest is over the budget."""

    granted: set[Digest]
    """Booked: to be asked now."""
    busy: set[Digest]
    """Just being asked by somebody else."""
    answers: dict[Digest, Answer]
    """Answered in the meantime."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What one teacher's answers have cost."""

    teacher: str
    answers: int = 0
    """Answers on disk."""
    spent: int = 0
    """What counts against the budget: the sum of what all attempts were charged."""
    budget: int | None = None
    """The ceiling last given; ``None`` for none."""
    failures: int = 0
    """Attempts that ended without an answer; one request may fail several times."""
    refused: int = 0
    """Those of them that no later run repeats."""
    lost: int = 0
    """Attempts whose process ended before the answer came."""
    calls: int = 0
    """Calls to the teacher, retries included, as far as their attempts ended."""
    charge: Charge = "queries"
    """What is counted as spent."""
    open: int = 0
    """Attempts that are in flight, or were when their process was killed."""

    @property
    def left(self) -> int | None:
        """What the budget still allows; ``None`` where there is none."""
        return None if self.budget is None else max(0, self.budget - self.spent)

    def figures(self) -> dict[str, str]:
        """Return every figure by its name, as text."""
        ceiling = "no budget" if self.left is None else f"{self.left:,} left of {self.budget:,}"
        failures = f"{self.failures:,}" + (f", {self.refused:,} of them for good" if self.refused else "")
        return {
            "answers": f"{self.answers:,}",
            "spent": f"{self.spent:,} {self.charge}, {ceiling}",
            "calls": f"{self.calls:,}",
            "failures": failures,
            "lost": f"{self.lost:,}",
            "open": f"{self.open:,}",
        }


def digest(question: str) -> Digest:
    """Return under what the answer to a question is filed."""
    return hashlib.blake2b(question.encode(), digest_size=16).digest()


def read_question(text: str) -> dict[str, Any]:
    """Return a question as it was filed.

    Raises:
        UnreadableAnswer: when that is none.
    """
    asked = _load(text)
    if not isinstance(asked, dict) or not asked.keys() <= {"history", "user"}:
        raise UnreadableAnswer(f"its question is {text}")
    return asked


def read_answer(items: str, scores: str | None) -> Answer:
    """Return an answer as it was filed.

    Raises:
        UnreadableAnswer: when that is no list of ids, or not one finite score for each, the best first.
    """
    try:
        listed = check_items(_load_list("items", items))
        return Answer(listed, None if scores is None else check_scores(_load_list("scores", scores), len(listed)))
    except TeacherError as error:
        raise UnreadableAnswer(str(error)) from error


def _load_list(what: str, text: str) -> list[object]:
    listed = _load(text)
    if not isinstance(listed, list):
        raise UnreadableAnswer(f"its {what} are {text}")
    return listed


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableAnswer(str(error)) from error
