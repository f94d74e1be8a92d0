"""A second opinion on a teacher's answers: that of the training histories themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recdistill.arrays import Bools
from recdistill.data.dataset import Sequences
from recdistill.data.splits import Cases
from recdistill.errors import SettingsError
from recdistill.methods.base import Setting
from recdistill.methods.believing import DEPTH, Belief, weigh, weigh_lists
from recdistill.methods.probing import probe
from recdistill.rankings import Ranking
from recdistill.settings import Settings
from recdistill.teachers.base import Deputy, Teacher
from recdistill.teachers.ensemble import EnsembleTeacher
from recdistill.teachers.rules import RulesTeacher

Share: TypeAlias = Literal["auto"] | Annotated[float, Field(ge=0, lt=1)]

HALF = 0.5
"""The share that "auto" stands for where too few validation cases say which is best, and beside labels the least."""
FEWEST_CASES = 100
"""Validation cases by which a share is chosen."""
_MOST_SCORED = 4096
"""Validation cases for which all items are scored, at every share."""


class SecondOpinionConfig(Settings):
    """What methods share that may ask for a second opinion."""

    second_opinion: Share = 0.0
    """How much what went with what in the training histories counts in every answer, against 1 minus that for the
    teacher: see `RulesTeacher`, which reads their order where the teacher reads histories. 0 leaves the teacher alone.
    ``auto`` is the share by which both together rank validation cases best (`weigh`): 0 where rules add nothing, and
    0.5 where fewer than a hundred cases were answered. Methods that learn lists have 0.5 at least beside labels, unless
    it is 0: students that hear labels, too, take up a part only of what rules say.

    Counting costs no queries, nor does choosing, and rules err otherwise than a trained model does. So the two together
    can be better than either; on some data they are not (``benchmarks/bahsd.md``).
    """

    @property
    def least_share(self) -> float:
        """What ``auto`` stands for at least, where rules add anything."""
        return 0.0


class AdvisedTeacher(EnsembleTeacher):
    """A teacher and its adviser, who answers what the budget does not buy; where that is all, probing refuses it."""

    @property
    def silent(self) -> bool:
        """Whether the teacher itself has answered nothing."""
        return not self.heard[0]


def advised(setting: Setting, share: Share, *, k: int, least: float = 0.0) -> Setting:
    """Return a setting whose teacher is advised by rules made of the training histories, to this ``share``.

    To choose one, the teacher is asked for its top ``k`` about the whole histories, as `probe` does; the teacher that
    is returned remembers them. What is chosen, and why, is ``found``. ``least`` it is, unless it is 0.

    Raises:
        SettingsError: for histories that no rule can be made of; they leave the teacher alone where a share is chosen.
        TeacherError: see `probe`.
    """
    teacher = setting.teacher
    if not share or teacher is None:
        return setting
    try:
        rules = rules_beside(teacher, setting)
    except SettingsError:
        if share == "auto":
            return setting
        raise
    if share == "auto":
        teacher, share = _choose(teacher, rules, setting, k, least)
        if not share:
            return replace(setting, teacher=teacher)
    both = AdvisedTeacher([teacher, rules], weights=[1 - share, share])
    both.max_history = teacher.max_history  # by which histories are cut for probing
    return replace(setting, teacher=both)


def rules_beside(teacher: Teacher, setting: Setting) -> RulesTeacher:
    """Return rules of the training histories that answer what a teacher is asked.

    Raises:
        SettingsError: for histories that no rule can be made of.
    """
    return RulesTeacher(
        setting.whole,
        setting.n_items,
        ordered=teacher.takes == "history",
        exclude_history=teacher.exclude_history,
        takes=teacher.takes,
    )


class _Remembering(Deputy):
    """A teacher that is not asked again about whole training histories, also where it said nothing of one."""

    def __init__(self, teacher: Teacher, train: Sequences, said: Ranking) -> None:
        super().__init__(teacher)
        self.items, self.said = train.items, said
        self.row = {(start, end): row for row, (start, end) in enumerate(zip(train.starts, train.ends, strict=True))}

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Ask the teacher."""
        return self.teacher.rank(histories, k, users=users)

    def rank_within_budget(
        self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None
    ) -> tuple[Ranking, Bools]:
        """Return what is remembered, if all that is asked was asked before; else what the teacher says."""
        if histories.items is self.items and k == self.said.items.shape[1]:
            rows = np.array(
                [self.row.get(place, -1) for place in zip(histories.starts, histories.ends, strict=True)], np.int64
            )
            if (rows >= 0).all():
                scores = None if self.said.scores is None else self.said.scores[rows]
                return Ranking(self.said.items[rows], scores), self.said.items[rows, 0] > 0
        return self.teacher.rank_within_budget(histories, k, users=users)


def _choose(teacher: Teacher, rules: RulesTeacher, setting: Setting, k: int, least: float) -> tuple[Teacher, float]:
    """Return a teacher that is not asked twice, and the share of rules beside it: 0, or ``least`` and more."""
    if teacher.scores_items:
        belief = _weigh_scores(teacher, rules, setting)
    else:
        said = probe(setting, k=k).full
        teacher = _Remembering(teacher, setting.train, said)
        belief = _weigh_probed(said, rules, setting)
    if belief is None:
        return teacher, HALF
    share = belief.share(least)
    setting.found("second_opinion", {"share": share, **belief.figures()})
    return teacher, share


def _weigh_probed(said: Ranking, rules: RulesTeacher, setting: Setting) -> Belief | None:
    """Weigh what a teacher said of whole training histories, which are what validation cases are asked about."""
    users, whole = setting.whole_rows
    cases = setting.valid
    if cases is None:
        return None
    rows = whole[np.searchsorted(users, cases.users)]
    scores = None if said.scores is None else said.scores[rows]
    return weigh_answers(Ranking(said.items[rows], scores), rules, cases, n_items=setting.n_items)


def weigh_answers(said: Ranking, rules: RulesTeacher, cases: Cases, *, n_items: int) -> Belief | None:
    """Do `weigh_lists` for the cases about which a teacher said anything; ``None`` where they are fewer than a hundred.

    Args:
        said: its list for each case, empty for one that it was not asked about.
        rules: of the training histories.
        cases: held out from both.
        n_items: number of items N.
    """
    answered = np.flatnonzero(said.items[:, 0])
    if len(answered) < FEWEST_CASES:
        return None
    cases = cases.take(answered)
    answers = Ranking(said.items[answered], None if said.scores is None else said.scores[answered])
    logs = rules.rank(cases.histories, said.items.shape[1], users=cases.users)
    return weigh_lists(answers, logs, cases, n_items=n_items)


def _weigh_scores(teacher: Teacher, rules: RulesTeacher, setting: Setting) -> Belief | None:
    """Weigh a teacher that scores any item, whose scores are mixed with those of rules over the whole catalogue."""
    cases = setting.valid
    if cases is None or len(cases) < FEWEST_CASES:
        return None
    cases = cases.take(np.sort(np.random.default_rng(0).permutation(len(cases))[:_MOST_SCORED]))

    def rank(share: float) -> Ranking:
        both = {0.0: teacher, 1.0: rules}.get(share) or EnsembleTeacher([teacher, rules], weights=[1 - share, share])
        return both.rank(cases.histories, DEPTH, users=cases.users)

    return weigh(rank, cases, n_items=setting.n_items)
