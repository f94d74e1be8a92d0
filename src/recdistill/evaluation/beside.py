"""A teacher beside its student, on test cases that it is asked about: what each reaches, and how alike they list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recdistill.data.groups import Groups
from recdistill.data.splits import Cases
from recdistill.evaluation.fidelity import agreement
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.results import Evaluation, compare, strata
from recdistill.models.base import Model
from recdistill.rankings import Ranking
from recdistill.teachers.base import Teacher

_COMPARED = ("ndcg", "hr")


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """What a teacher said about some cases."""

    cases: Cases
    """Those that it answered."""
    ranking: Ranking
    """Its list for each."""
    n_asked: int
    """How many it was asked about."""


def ask_about(teacher: Teacher, cases: Cases, n: int, k: int) -> Answered:
    """Ask a teacher for its lists for some of many cases.

    They are drawn at random, but always the same ones, and the first of them again where more are wanted: runs that
    share a ledger pay for them once. Cases that it does not answer, or that its budget does not buy, are left out.

    Args:
        teacher: whom to ask.
        cases: to choose from.
        n: how many, at most.
        k: length of the lists.

    Raises:
        TeacherError: when the teacher gave up.
    """
    chosen = cases.take(np.random.default_rng(0).permutation(len(cases))[:n])
    ranking, answered = teacher.rank_within_budget(chosen.histories, k, users=chosen.users)
    rows = np.flatnonzero(answered)
    scores = None if ranking.scores is None else ranking.scores[rows]
    return Answered(chosen.take(rows), Ranking(ranking.items[rows], scores), len(chosen))


def beside(answered: Answered, student: Model, groups: Groups, *, ks: Sequence[int], protocol: str) -> dict[str, Any]:
    """Compare a student with what its teacher said, case by case.

    Args:
        answered: the teacher's lists, as long as the greatest k.
        student: as trained.
        groups: head and tail.
        ks: the depths to report.
        protocol: how the cases were cut, in words.

    Returns:
        ``asked`` and ``answered``, numbers of cases, and ``rows``, one for each stratum, metric and k: means of
        ``teacher`` and ``student``, their ``difference`` with the ends of its 95 % interval over users (``low``,
        ``high``) and ``p`` of the paired test by user, ``users``, and ``agreement``: the mean share of the teacher's k
        best that are the student's as well. No rows where nothing was answered.
    """
    rows: list[dict[str, Any]] = []
    if len(answered.cases):
        n_items = len(groups.head_items) - 1
        source: list[Model | Ranking] = [student, answered.ranking]
        ours, theirs = (
            evaluate(each, answered.cases, n_items=n_items, ks=ks, protocol=protocol, keep_lists=True)
            for each in source
        )
        sides = [strata(side, head_users=groups.head_users) for side in (ours, theirs)]
        for stratum in sides[0]:
            rows += _rows(stratum, sides[0][stratum], sides[1][stratum])
    return {"asked": answered.n_asked, "answered": len(answered.cases), "rows": rows}


def _rows(stratum: str, student: Evaluation, teacher: Evaluation) -> list[dict[str, Any]]:
    rows = []
    for k in student.ks:
        assert student.lists is not None
        assert teacher.lists is not None
        alike = float(agreement(teacher.lists, student.lists, k).mean())
        for metric in _COMPARED:
            found = compare(student, teacher, metric, k)
            rows.append(
                {
                    "stratum": stratum,
                    "metric": metric,
                    "k": k,
                    "teacher": found.second,
                    "student": found.first,
                    "difference": found.difference,
                    "low": found.low,
                    "high": found.high,
                    "p": found.p_value,
                    "users": found.users,
                    "agreement": alike,
                }
            )
    return rows
