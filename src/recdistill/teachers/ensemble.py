"""Several teachers that answer as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp

from recdistill.arrays import Bools, Ints
from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError
from recdistill.models.scoring import GROUP, best
from recdistill.rankings import Ranking, Scores
from recdistill.teachers.answers import Scorer
from recdistill.teachers.base import Teacher, scorer_of_some

_NUMBERS = 4 << 20
"""Scores held at once while all items are scored."""


class EnsembleTeacher(Teacher):
    r"""Fuses the lists of several teachers into one.

    .. math:: s_i = \sum_m \lambda_m \, p_m(i), \qquad
              p_m = \mathrm{softmax}(\text{scores of } m) \text{, or } \propto 1/\mathrm{rank}_m \text{ without scores}

    An item that a teacher does not list gets nothing from it. Scores, where all teachers give them, are log s. Where
    all score any item, so does the ensemble: the softmax is then taken over all items instead of the list, and all
    items are ranked by that, also those that no teacher would list. Every teacher is asked about every history: an
    answer of the ensemble costs one of each. Where one is told the user alone, the others are asked about whole
    histories only, as its answers hold for no part of one. A teacher whose budget is spent, or that does not know the
    user, is left out, as long as another answers.

    Args:
        teachers: two or more, on the same items.
        weights: λ, one for each teacher; equal if left out.

    Raises:
        SettingsError: when these teachers cannot answer the same question, or the weights make no sense.

    Source: the mean of the members' predictions is that of Hinton et al., "Distilling the Knowledge in a Neural
    Network", 2015; reciprocal ranks in its place, where there are no scores, are ours.
    """

    def __init__(self, teachers: Sequence[Teacher], *, weights: Sequence[float] | None = None) -> None:
        weights = [1.0] * len(teachers) if weights is None else list(weights)
        _check(teachers, weights)
        self._members = tuple(teachers)
        self.weights = [weight / sum(weights) for weight in weights]
        self.gives_scores = all(teacher.gives_scores for teacher in teachers)
        self.scores_items = all(teacher.scores_items for teacher in teachers)
        self.scores_most = not self.scores_items and all(t.scores_items or t.scores_most for t in teachers)
        self.gap = "; ".join(
            f"its teacher {teacher.identity!r}: {teacher.gap or 'gives lists'}"
            for teacher in teachers
            if not teacher.scores_items
        )
        self.free = all(teacher.free for teacher in teachers)
        self.n_items = next((teacher.n_items for teacher in teachers if teacher.n_items is not None), None)
        self.takes = "user" if all(teacher.takes == "user" for teacher in teachers) else "history"
        self.names_user = any(teacher.needs_users for teacher in teachers)
        self.exclude_history = teachers[0].exclude_history
        told = [teacher.max_history for teacher in teachers if teacher.max_history is not None]
        self.max_history = max(told) if len(told) == len(teachers) else None
        self.heard: Bools = np.zeros(len(teachers), np.bool_)
        """Which teachers have answered any question within their budget."""

    @property
    def members(self) -> Sequence[Teacher]:
        """The teachers, in their order."""
        return self._members

    def with_members(self, members: Sequence[Teacher]) -> EnsembleTeacher:
        """Return an ensemble of others, of the same weights."""
        return EnsembleTeacher(members, weights=self.weights)

    @property
    def by_user(self) -> bool:
        """Whether one of the teachers answers for a user as of today."""
        return any(teacher.by_user for teacher in self._members)

    @property
    def identity(self) -> str:
        """A hash of the teachers' own identities and weights."""
        parts = [
            f"{weight:.6g} {teacher.identity}" for weight, teacher in zip(self.weights, self._members, strict=True)
        ]
        return f"ensemble-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:12]}"

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Return the fused top ``k`` for each history, equal ones in the order of the items.

        Raises:
            TeacherError: when one of the teachers gives no sensible answer.
        """
        if self.scores_items:
            return self._rank_all(histories, k, users=users)
        return self._fused([teacher.rank(histories, k, users=users) for teacher in self._members], k)

    def rank_within_budget(
        self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None
    ) -> tuple[Ranking, Bools]:
        """Return what can be had, and ``(B,)`` which rows that is: those that one teacher or more answered."""
        if self.scores_items:
            self.heard[:] = True
            return self._rank_all(histories, k, users=users), np.ones(len(histories), np.bool_)
        pairs = [teacher.rank_within_budget(histories, k, users=users) for teacher in self._members]
        self.heard |= np.array([some.any() for _, some in pairs])
        answered: Bools = np.any([answered for _, answered in pairs], axis=0)
        return self._fused([ranking for ranking, _ in pairs], k), answered

    def _rank_all(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None) -> Ranking:
        """Rank all items by the ensemble's own scores, some rows at a time."""
        assert self.n_items is not None, "a teacher that scores any item knows how many there are"
        scorers, n_columns = self._scorers(histories, users), self.n_items + 1
        items = np.zeros((len(histories), k), np.int32)
        values = np.full(items.shape, -np.inf, np.float32)
        for rows in _blocks(len(histories), self.n_items):
            scores = np.full((len(rows), -(-n_columns // GROUP) * GROUP), -np.inf, np.float32)
            votes = [scorer(rows, None).astype(np.float64) for scorer in scorers]
            shifts = [np.log(weight) - _log_total(vote) for weight, vote in zip(self.weights, votes, strict=True)]
            scores[:, 1:n_columns] = _mix(votes, shifts)
            if self.exclude_history:
                taken, offsets = histories.take(rows).flat()
                scores[np.repeat(np.arange(len(rows)), np.diff(offsets)), taken] = -np.inf
            items[rows], values[rows] = best(torch.from_numpy(scores), k)
        return Ranking(items, values)

    def knows(self, users: npt.NDArray[np.integer]) -> Bools:
        """Return ``(B,)`` which users one of the teachers knows."""
        known: Bools = np.any([teacher.knows(users) for teacher in self._members], axis=0)
        return known

    def scorer(self, histories: Sequences, *, users: npt.NDArray[np.integer] | None = None) -> Scorer:
        """Let every teacher score all items once, and return what gives log s of chosen items.

        Raises:
            TeacherError: when one of the teachers does not score any item.
        """
        scorers = self._scorers(histories, users)
        assert self.n_items is not None, "a teacher that scores any item knows how many there are"
        shifts = [
            np.log(weight) - _log_totals(scorer, len(histories), self.n_items)
            for weight, scorer in zip(self.weights, scorers, strict=True)
        ]

        def scores(rows: Ints, candidates: Ints | None) -> Scores:
            return _mix([scorer(rows, candidates) for scorer in scorers], [shift[rows] for shift in shifts])

        return scores

    def _scorers(self, histories: Sequences, users: npt.NDArray[np.integer] | None) -> list[Scorer]:
        """Have every teacher read the histories, as far as it knows their users."""
        everyone = np.ones(len(histories), np.bool_)
        known = [everyone if users is None else teacher.knows(users) for teacher in self._members]
        return [
            scorer_of_some(teacher, histories, np.flatnonzero(some), users=users)
            for teacher, some in zip(self._members, known, strict=True)
        ]

    def _fused(self, rankings: list[Ranking], k: int) -> Ranking:
        return fuse(rankings, self.weights, k, by_score=self.gives_scores)


def fuse(rankings: Sequence[Ranking], weights: Sequence[float], k: int, *, by_score: bool) -> Ranking:
    """Fuse several lists for the same histories into one, as `EnsembleTeacher` does; a weight may be 0.

    Args:
        rankings: of ``B`` histories each.
        weights: λ, one for each ranking, 1 in all.
        k: length of the fused lists.
        by_score: take the softmax of scores for a list's votes, and give scores; else reciprocal ranks, and none.
    """
    listed = np.concatenate([ranking.items for ranking in rankings], axis=1)
    shares = [weight * _shares(ranking, by_score) for weight, ranking in zip(weights, rankings, strict=True)]
    row, place = np.nonzero(listed)
    width = int(listed.max(initial=0)) + 1
    cells, cell = np.unique(row * width + listed[row, place], return_inverse=True)
    points = np.bincount(cell, np.concatenate(shares, axis=1)[row, place], len(cells))
    order = np.lexsort((cells, -points, cells // width))
    order = order[points[order] > 0]
    owner = cells[order] // width
    rank = np.arange(len(order)) - np.searchsorted(owner, owner)
    order, owner, rank = order[rank < k], owner[rank < k], rank[rank < k]
    items = np.zeros((len(listed), k), np.int32)
    items[owner, rank] = cells[order] % width
    if not by_score:
        return Ranking(items)
    scores = np.full(items.shape, -np.inf, np.float32)
    scores[owner, rank] = np.log(points[order])
    return Ranking(items, scores)


def _log_totals(scorer: Scorer, n_rows: int, n_items: int) -> npt.NDArray[np.float64]:
    """Return ``(B,)`` the log of the sum of exp(score) over all items, some rows at a time; 0 without a score."""
    totals = np.empty(n_rows)
    for rows in _blocks(n_rows, n_items):
        totals[rows] = _log_total(scorer(rows, None).astype(np.float64))
    return totals


def _log_total(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return ``(b,)`` the log of the sum of exp(score) over the columns; 0 without a score."""
    total = logsumexp(scores, axis=1)
    return np.where(total > -np.inf, total, 0.0)


def _mix(votes: Sequence[npt.NDArray[np.floating]], shifts: Sequence[npt.NDArray[np.float64]]) -> Scores:
    """Return ``(b, C)`` the log of the sum over teachers of exp(score + shift)."""
    shifted = [vote + shift[:, None] for vote, shift in zip(votes, shifts, strict=True)]
    mixed: Scores = np.logaddexp.reduce(shifted).astype(np.float32)
    return mixed


def _blocks(n_rows: int, n_items: int) -> Iterator[Ints]:
    """Cut rows into as many as all items are scored for at once."""
    height = max(1, _NUMBERS // n_items)
    for start in range(0, n_rows, height):
        yield np.arange(start, min(start + height, n_rows))


def _shares(ranking: Ranking, by_score: bool) -> npt.NDArray[np.float64]:
    """Return ``(B, K)`` how a teacher's vote is spread over its list; a row without an answer has none."""
    listed = ranking.items > 0
    if by_score and ranking.scores is not None:
        scores: Scores = np.where(listed, ranking.scores, -np.inf)
        worth = np.exp(scores.astype(np.float64) - scores.max(axis=1, initial=np.finfo(np.float32).min, keepdims=True))
        worth = np.maximum(worth, np.finfo(np.float64).tiny)
    else:
        worth = np.broadcast_to(1 / np.arange(1.0, listed.shape[1] + 1), listed.shape)
    worth = np.where(listed, worth, 0.0)
    shares: npt.NDArray[np.float64] = worth / np.maximum(worth.sum(axis=1, keepdims=True), 1e-300)
    return shares


def _check(teachers: Sequence[Teacher], weights: Sequence[float]) -> None:
    if len(teachers) < 2:
        raise SettingsError(f"an ensemble has two teachers or more, and {len(teachers)} was given.")
    if len(weights) != len(teachers) or min(weights) <= 0:
        raise SettingsError(f"{len(teachers)} teachers need as many weights above 0, but they are {list(weights)}.")
    for what, values in (
        ("how many items they know", [teacher.n_items for teacher in teachers]),
        ("whether items of the history are listed", [not teacher.exclude_history for teacher in teachers]),
    ):
        if len({value for value in values if value is not None}) > 1:
            told = ", ".join(f"{t.identity!r}: {value}" for t, value in zip(teachers, values, strict=True))
            raise SettingsError(f"the teachers of an ensemble differ in {what} ({told}), so they cannot answer as one.")
