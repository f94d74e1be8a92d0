"""The one question that every teacher answers: the top K for some histories."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt

from recdistill.arrays import Bools, Ints
from recdistill.data.dataset import IdMap, RawId, Sequences
from recdistill.errors import TeacherError
from recdistill.rankings import Ranking, Scores
from recdistill.teachers.answers import Answer, Failure, Outcome, Request, Scorer, Take, Vectors

_log = logging.getLogger("recdistill.teachers")

STRANGE = 0.01
"""Share of strange ids from which on it is asked whether the others are what they seem."""


class Teacher(ABC):
    """A recommender that is asked; only a trained model of our own can be looked into.

    Dense ids go in and out; a teacher that speaks raw ids to the outside translates at its own edge.
    """

    gives_scores: bool = False
    """Whether rankings come with scores."""
    scores_items: bool = False
    """Whether it scores any item that it is asked about, listed or not."""
    gives_vectors: bool = False
    """Whether it gives the vectors behind its scores."""
    checkpoints: Sequence[Teacher] = ()
    """The teacher at stages of its training, the earliest first and itself last; empty where only the last is known."""
    takes: Literal["history", "user"] = "history"
    """What a query consists of."""
    names_user: bool = False
    """Whether a query that consists of a history names its user as well."""
    ids: IdMap | None = None
    """The items in the raw ids that the teacher speaks; ``None`` where it speaks dense ids."""
    user_ids: IdMap | None = None
    """The users in the raw ids that the teacher speaks; ``None`` where it takes dense numbers, or no users at all."""
    max_history: int | None = None
    """Newest items of a history that it is told; ``None`` for all, 1 for a teacher that answers for a single item."""
    exclude_history: bool = True
    """Whether items of the history are left out of its ranking."""
    batch_size: int = 1024
    """How many requests are asked at once."""
    gap: str = ""
    """Which scores are missing where it has those of some items and not of any; empty where that is not known."""
    scores_most: bool = False
    """Whether it scores more than half of its users' items though not all, so that it is hardly meant to be a list."""
    n_items: int | None = None
    """N, where it is known; it is to teachers that score any item."""
    free: bool = False
    """Whether its answers cost nothing and are always the same, so that no ledger need keep them."""

    @property
    def needs_users(self) -> bool:
        """Whether it must be given the user of each history."""
        return self.names_user or self.takes == "user"

    @property
    @abstractmethod
    def identity(self) -> str:
        """A name that stays the same over runs and differs between teachers; the ledger files answers under it.

        A teacher that speaks dense ids must have another identity wherever these mean other items.
        """

    @abstractmethod
    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Return the top ``k`` for each history (or user), without the items of that history.

        Args:
            histories: B rows of dense item ids, oldest first.
            k: length of the lists.
            users: ``(B,)`` dense users, for teachers that need them.

        Raises:
            TeacherError: when no sensible answer could be had.
        """

    @property
    def members(self) -> Sequence[Teacher]:
        """The teachers whose answers it fuses; itself, where it fuses none."""
        return (self,)

    def with_members(self, members: Sequence[Teacher]) -> Teacher:
        """Return what fuses others, as many, as it does its members; where it fuses none, the other itself."""
        (member,) = members
        return member

    @property
    def by_user(self) -> bool:
        """Whether its answer is for a user as of today, so that earlier parts of a history have none of their own."""
        return self.takes == "user"

    @property
    def hears_parts(self) -> bool:
        """Whether it can be asked about a part of a history, and may answer otherwise than to the whole."""
        return not self.by_user and self.max_history != 1

    def rank_within_budget(
        self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None
    ) -> tuple[Ranking, Bools]:
        """Return what can be had, and ``(B,)`` which rows that is; a row that is not answered lists nothing."""
        return self.rank(histories, k, users=users), np.ones(len(histories), np.bool_)

    @property
    def silent(self) -> bool:
        """Whether all its answers so far were its adviser's, where it has one."""
        return False

    def scores(self, histories: Sequences, candidates: Ints, *, users: npt.NDArray[np.integer] | None = None) -> Scores:
        """Return the scores ``(B, C)`` of chosen items.

        Args:
            histories: B rows of dense item ids, oldest first.
            candidates: ``(B, C)`` dense item ids in 1…N, for each history its own; may be items of the history.
            users: ``(B,)`` dense users, for teachers that take the user.

        Raises:
            TeacherError: for an item outside 1…N, or a teacher that gives no such scores.
        """
        return self.scorer(histories, users=users)(np.arange(len(histories)), candidates)

    def scorer(self, histories: Sequences, *, users: npt.NDArray[np.integer] | None = None) -> Scorer:
        """Return what scores chosen items for some of B histories, to be asked again and again.

        What does not depend on the items is computed once.

        Raises:
            TeacherError: for a teacher that gives no such scores.
        """
        raise TeacherError(
            f"teacher {self.identity!r} gives lists, not the scores of chosen items; take a trained model as teacher, "
            "or a method that learns from lists alone, such as 'kd' or 'rrd'."
        )

    def knows(self, users: npt.NDArray[np.integer]) -> Bools:
        """Return ``(B,)`` of which users it has something to say; all, unless it can tell."""
        return np.ones(len(users), np.bool_)

    def vectors(self, histories: Sequences, *, users: npt.NDArray[np.integer] | None = None) -> Vectors:
        """Return the vectors of B histories (or users) and of all items.

        Raises:
            TeacherError: for a teacher that cannot be looked into.
        """
        raise TeacherError(
            f"teacher {self.identity!r} does not give the vectors behind its scores; take a trained model as teacher, "
            "or a method that learns from scores, such as 'rcekd'."
        )

    def _check_candidates(self, candidates: Ints) -> None:
        if candidates.size and (candidates.min() < 1 or candidates.max() > (self.n_items or 0)):
            raise TeacherError(f"a candidate is outside 1…{self.n_items}, the items of teacher {self.identity!r}.")

    def _check_users(self, users: npt.NDArray[np.integer] | None) -> Ints:
        """Return the users that a teacher that takes users was given."""
        if users is None:
            raise TeacherError(f"teacher {self.identity!r} answers for users; pass the user of each history.")
        return np.asarray(users, np.int64)

    def requests(self, histories: Sequences, users: npt.NDArray[np.integer] | None = None) -> list[Request]:
        """Put B histories, and their users where given, into the ids that the teacher speaks.

        Raises:
            TeacherError: when the teacher needs users and none are given.
        """
        if self.needs_users:
            users = self._check_users(users)
        told = histories if self.max_history is None else histories.newest(self.max_history)
        flat, offsets = told.flat()
        raw: list[RawId] = flat.tolist() if self.ids is None else self.ids.decode(flat)
        who: list[RawId] | list[None] = [None] * len(histories)
        if users is not None:
            who = np.asarray(users).tolist() if self.user_ids is None else self.user_ids.decode(users)
        bounds = offsets.tolist()
        return [Request(row, raw[bounds[row] : bounds[row + 1]], user) for row, user in enumerate(who)]

    def answers(self, take: Take, k: int) -> Iterator[list[Outcome]]:
        """Ask whatever ``take`` hands out, and yield outcomes as soon as they are there, in any order.

        A request is taken only when it is about to be asked, so that whoever keeps the budget knows what was sent.

        Raises:
            TeacherError: when asking on makes no sense; what was answered until then has been yielded.
        """
        while requests := take(self.batch_size):
            histories = Sequences.from_lists([int(item) for item in request.history] for request in requests)
            users = None if requests[0].user is None else np.array([request.user for request in requests], np.int64)
            ranking = self.rank(histories, k, users=users)
            yield [
                (
                    request,
                    Answer(
                        ranking.items[row, :length].tolist(),
                        None if ranking.scores is None else ranking.scores[row, :length].tolist(),
                    ),
                )
                for row, (request, length) in enumerate(zip(requests, ranking.lengths.tolist(), strict=True))
            ]

    def ranking(self, answers: Mapping[int, Answer], histories: Sequences, k: int) -> Ranking:
        """Translate answers to dense ids, the row of each history mapped to its answer.

        Items that are not in the id map, that a list names twice, or that are in the history are dropped, counted in
        ``dropped``, and reported once. A row without an answer lists nothing.

        Raises:
            TeacherError: when the teacher should give scores and an answer has none.
        """
        rows = sorted(answers)
        given = [answers[row] for row in rows]
        row = np.repeat(np.array(rows, np.int64), [len(answer.items) for answer in given])
        raw = [item for answer in given for item in answer.items]
        dense = self._dense(raw)
        last = int(max(dense.max(initial=0), histories.flat()[0].max(initial=0)))

        cell = row * (last + 1) + np.maximum(dense, 0)
        first = np.zeros(len(cell), np.bool_)
        first[np.unique(cell, return_index=True)[1]] = True
        known = dense > 0
        seen = np.isin(cell, histories.pairs(last)) if self.exclude_history else np.zeros_like(known)
        self._report(
            "" if known.all() or self.ids is None else self._doubt(raw[int(known.argmin())], (~known).mean()),
            unknown=int((dense < 0).sum()),
            repeated=int((known & ~first).sum()),
            seen=int((known & first & seen).sum()),
        )

        kept = np.flatnonzero(known & first & ~seen)
        place = np.arange(len(kept)) - np.searchsorted(row[kept], row[kept])
        kept, place = kept[place < k], place[place < k]
        items = np.zeros((len(histories), k), np.int32)
        items[row[kept], place] = dense[kept]
        if not self.gives_scores:
            return Ranking(items)
        if any(answer.scores is None for answer in given):
            raise TeacherError(
                f"teacher {self.identity!r} should give scores, but an answer has none; set gives_scores to false, or, "
                "where answers without scores are in the ledger, another identity, to ask anew."
            )
        flat = np.array([score for answer in given for score in answer.scores or ()], np.float32)
        scores = np.full(items.shape, -np.inf, np.float32)
        scores[row[kept], place] = flat[kept]
        return Ranking(items, scores)

    def names_known(self, answer: Answer) -> bool:
        """Return whether an answer lists an item that is in the id map."""
        return bool((self._dense(answer.items) > 0).any())

    @property
    def dropped(self) -> Counter[str]:
        """How many listed items were dropped so far: ``unknown``, ``repeated``, ``seen`` (in the history)."""
        counter: Counter[str] = self.__dict__.setdefault("_dropped", Counter())
        return counter

    def _dense(self, raw: list[RawId]) -> Ints:
        """Return ``(n,)`` dense ids, −1 for unknown ones."""
        if self.ids is None:
            return np.array(raw, np.int64)
        return self.ids.find(raw)

    def _doubt(self, strange: RawId, share: float) -> str:
        """Ask whether ids are the data's own where a good share of them is strange: others may be found by chance."""
        assert self.ids is not None
        if share < STRANGE:
            return ""
        return f"; it lists {strange!r}, say: are its ids the data's own, such as {self.ids.raw[0]!r}?"

    def _report(self, question: str, **dropped: int) -> None:
        """Count dropped items, and say so the first time, with what is to be asked of them."""
        if sum(dropped.values()) and not self.dropped.total():
            _log.warning(
                "teacher %r lists items that were dropped: %d unknown to the data, %d listed twice, %d of the history "
                "itself; later ones are only counted, in `dropped`%s",
                self.identity,
                *dropped.values(),
                question,
            )
        self.dropped.update(dropped)


def scorer_of_some(
    teacher: Teacher, histories: Sequences, rows: Ints, *, users: npt.NDArray[np.integer] | None
) -> Scorer:
    """Return what scores chosen items for B histories, of which the teacher is asked about some.

    Args:
        teacher: one that scores any item.
        histories: B rows of dense item ids, oldest first.
        rows: ``(r,)`` which of them it is asked about; scores of the others are −∞.
        users: ``(B,)`` dense users, for a teacher that takes the user.

    Raises:
        TeacherError: for a teacher that gives no such scores.
    """
    place = np.full(len(histories), -1)
    place[rows] = np.arange(len(rows))
    ask = teacher.scorer(histories.take(rows), users=None if users is None else users[rows])

    def scores(wanted: Ints, candidates: Ints | None) -> Scores:
        at = place[wanted]
        asked = at >= 0
        if asked.all():
            return ask(at, candidates)
        n_columns = teacher.n_items if candidates is None else candidates.shape[1]
        assert n_columns is not None, "a teacher that scores any item knows how many there are"
        found = np.full((len(wanted), n_columns), -np.inf, np.float32)
        found[asked] = ask(at[asked], None if candidates is None else candidates[asked])
        return found

    return scores


class Deputy(Teacher):
    """Gives lists in the name of another teacher; scores of chosen items, vectors and stages stay behind it."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self.gives_scores = teacher.gives_scores
        self.takes = teacher.takes
        self.names_user = teacher.names_user
        self.max_history = teacher.max_history
        self.ids = teacher.ids
        self.exclude_history = teacher.exclude_history
        self.batch_size = teacher.batch_size

    @property
    def identity(self) -> str:
        """That of the teacher itself."""
        return self.teacher.identity

    @property
    def by_user(self) -> bool:
        """As the teacher itself."""
        return self.teacher.by_user

    def knows(self, users: npt.NDArray[np.integer]) -> Bools:
        """Return ``(B,)`` which users the teacher itself knows."""
        return self.teacher.knows(users)


class OutsideTeacher(Teacher):
    """A teacher whose answers come from code that is not ours, one by one: a function, an API."""

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Ask about every history and return the top ``k`` of each.

        Raises:
            TeacherError: when a request failed; says how many did, and why the first.
        """
        waiting = iter(self.requests(histories, users))
        answers: dict[int, Answer] = {}
        failures: list[Failure] = []
        for block in self.answers(lambda n: list(islice(waiting, n)), k):
            for request, outcome in block:
                if isinstance(outcome, Answer):
                    answers[request.row] = outcome
                else:
                    failures.append(outcome)
        if failures:
            raise TeacherError(
                f"{len(failures):,} of {len(histories):,} requests failed; the first: {failures[0].reason}"
            )
        return self.ranking(answers, histories, k)
