"""A second opinion on a teacher's answers: that of the training histories themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import Field

from recdistill.methods.base import Setting
from recdistill.settings import Settings
from recdistill.teachers.base import Teacher
from recdistill.teachers.ensemble import EnsembleTeacher
from recdistill.teachers.rules import RulesTeacher


class SecondOpinionConfig(Settings):
    """What methods share that may ask for a second opinion."""

    second_opinion: float = Field(default=0.0, ge=0, lt=1)
    """How much what went with what in the training histories counts in every answer, against 1 minus that for the
    teacher: see `RulesTeacher`, which reads their order where the teacher reads histories. 0 leaves the teacher alone.

    Counting costs no queries and errs otherwise than a trained model does, so the two together can be better than
    either; on some data they are not (``benchmarks/bahsd.md``).
    """


class AdvisedTeacher(EnsembleTeacher):
    """A teacher and its adviser, who answers what the budget does not buy; where that is all, probing refuses it."""

    @property
    def silent(self) -> bool:
        """Whether the teacher itself has answered nothing."""
        return not self.heard[0]


def advised(setting: Setting, share: float) -> Setting:
    """Return a setting whose teacher is advised by rules made of the training histories, to this ``share``.

    Raises:
        SettingsError: for histories that no rule can be made of.
    """
    teacher = setting.teacher
    if not share or teacher is None:
        return setting
    both = AdvisedTeacher([teacher, rules_beside(teacher, setting)], weights=[1 - share, share])
    both.max_history = teacher.max_history  # by which histories are cut for probing
    return replace(setting, teacher=both)


def rules_beside(teacher: Teacher, setting: Setting) -> RulesTeacher:
    """Return rules of the training histories that answer what a teacher is asked.

    Raises:
        SettingsError: for histories that no rule can be made of.
    """
    whole = np.unique(setting.users, return_index=True)[1]  # windows of a history follow it
    return RulesTeacher(
        setting.train.take(whole),
        setting.n_items,
        ordered=teacher.takes == "history",
        exclude_history=teacher.exclude_history,
        takes=teacher.takes,
    )
