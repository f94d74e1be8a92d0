"""What a method is: settings, what it needs, and a loss."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from recdistill.arrays import Ints
from recdistill.data.dataset import Sequences
from recdistill.data.splits import Cases
from recdistill.errors import SettingsError
from recdistill.models.base import Batch, Model
from recdistill.registry import import_all
from recdistill.settings import Settings, nearest
from recdistill.teachers.base import Deputy, Teacher
from recdistill.teachers.local import LocalTeacher
from recdistill.teachers.rules import RulesTeacher

_log = logging.getLogger("recdistill.methods")

Need = Literal["rankings", "listed_scores", "scores", "vectors", "checkpoints"]
"""Lists, scores of what they list, or of any item, the vectors behind them, or the teacher as it was earlier in its
training."""


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """B users' training histories and the item that comes after each position."""

    batch: Batch
    """Whole training histories, cut to the student's ``max_len``; T items in all."""
    labels: Tensor
    """``(T,)`` int64, the item that the user took next; 0 where none may be learned: after the last training item."""
    rows: Tensor
    """``(B,)`` int64, the row of each history in the training sequences; teachers' answers are filed under it."""
    generator: torch.Generator
    """The source of every random draw in the loss."""


@dataclass(frozen=True, slots=True)
class Setting:
    """All that a method may look at before training."""

    train: Sequences
    """One row a user, some of which may be empty; earlier states of long histories may follow as further rows."""
    users: Ints
    """``(R,)`` dense user of each row."""
    n_items: int
    teacher: Teacher | None = None
    max_len: int | None = None
    """How many of a history's newest items the student reads; ``None`` for all."""
    seed: int = 0
    progress: Callable[[str, int, int], None] = field(default=lambda what, done, total: None)
    """Called as ``progress("probing", done, total)`` during long preparation."""
    valid: Cases | None = None
    """Validation cases, by which a method may choose a setting; nothing is learned from them."""
    found: Callable[[str, dict[str, object]], None] = field(default=lambda name, finding: None)
    """Called with what a method found out, and its name; a run keeps that among its facts."""

    @property
    def whole_rows(self) -> tuple[Ints, Ints]:
        """The users, rising, and the row of each one's whole history."""
        users, rows = np.unique(self.users, return_index=True)
        return users, rows

    @property
    def whole(self) -> Sequences:
        """The whole histories, one a user: each interaction once."""
        return self.train.take(self.whole_rows[1])


class Method(ABC, nn.Module):
    """A way to train a student.

    A subclass names itself on its class line, ``class KD(Method, name="kd")``, which registers it. It is a module, so
    that parameters of its own (a projection, prototypes) are trained and saved with the student's.
    """

    registry: ClassVar[dict[str, type[Method]]] = {}
    name: ClassVar[str]
    Config: ClassVar[type[Settings]]
    needs: frozenset[Need] = frozenset()
    """What the teacher must give; empty for methods without a teacher."""
    reads_last: ClassVar[bool] = True
    """Whether the loss reads the state after the last training item, which has no label.

    Where it does not, that item is not fed to the student: on short histories it is a large part of the work.
    """

    parts_of_histories: ClassVar[bool] = False
    """Whether the student is shown parts of histories, or made-up ones: one that reads the user sees no difference."""
    taught: Ints | None = None
    """Rows of the training sequences that there is something to learn from, known after `prepare`; ``None`` for all.

    Others are not read: where a small budget bought few answers and labels are not learned, they are nearly all.
    """

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.name = name
            Method.registry[name] = cls

    def __init__(self, config: Settings | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = config if config is not None else self.Config.parse(settings, where=f"method {self.name}")

    @property
    def follows_answers(self) -> bool:
        """Whether what it asks next depends on what was answered."""
        return False

    def check(self, student: Model, teacher: Teacher | None) -> None:
        """Refuse a student and a teacher that do not fit, before anything is asked, or paid for.

        Raises:
            SettingsError: saying what is missing, and what to do.
        """
        if self.needs:
            self.check_teacher(teacher)
        elif teacher is not None:
            raise SettingsError(
                f"method {self.name!r} asks no teacher: remove [teacher], or use {default_method(teacher)!r}"
            )
        self.check_student(student)

    def check_teacher(self, teacher: Teacher | None) -> Teacher:
        """Return the teacher if it gives what is needed.

        Raises:
            SettingsError: when there is none, or it lacks something.
        """
        if teacher is None:
            raise SettingsError(f"method {self.name!r} learns from a teacher: add a [teacher], or use 'supervised'")
        for need, what in _GIVEN.items():
            if need in self.needs and _lacks(teacher, need):
                gap = f" ({teacher.gap})" if need == "scores" and teacher.gap else ""
                if _is_behind(teacher, need):
                    gap = " through a ledger, which counts and keeps lists alone"
                raise SettingsError(
                    f"method {self.name!r} needs {what}, which teacher {teacher.identity!r} does not give{gap}: "
                    f"{_remedy(teacher, need)}"
                )
        return teacher

    def check_student(self, student: Model) -> None:
        """Refuse a student that cannot learn this way.

        Raises:
            SettingsError: saying why.
        """
        if self.parts_of_histories and student.reads == "user":
            plain = "kd" if self.needs else "supervised"
            raise SettingsError(
                f"method {self.name!r} shows the student histories other than the users' own, and model "
                f"{student.name!r} reads the user instead: use method {plain!r}, or a student such as 'sasrec'"
            )

    def prepare(self, setting: Setting) -> None:
        """Do what is done once, before the first epoch: probe the teacher, count items.

        Must be repeatable: a run that is resumed calls it again, and answers come from the ledger.
        """

    def fit_to(self, student: Model) -> None:
        """Make what depends on the student's shape, such as projections. Called once, after `prepare`."""

    def start_epoch(self, student: Model, epoch: int, generator: torch.Generator) -> None:
        """Do what is done before each epoch (from 0): grow a curriculum, refresh lists."""

    @abstractmethod
    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the parts of the loss, already weighted, by name; their sum is minimised.

        Each part is a scalar, a mean over positions or users, so that it does not grow with the batch.
        """


_GIVEN: dict[Need, str] = {
    "listed_scores": "lists with scores",
    "scores": "scores of any item that it asks about",
    "vectors": "the vectors of queries and items",
    "checkpoints": "the teacher at two or more stages of its training",
}


def _lacks(teacher: Teacher, need: Need) -> bool:
    if need == "scores":
        return not teacher.scores_items
    if need == "listed_scores":
        return not teacher.gives_scores
    return not teacher.gives_vectors if need == "vectors" else len(teacher.checkpoints) < 2


def _is_behind(teacher: Teacher, need: Need) -> bool:
    return isinstance(teacher, Deputy) and not _lacks(teacher.teacher, need)


def _remedy(teacher: Teacher, need: Need) -> str:
    """Say what to do about a teacher that lacks something, as it is."""
    lists = "'bahsd', 'kd' or 'rrd'" if teacher.hears_parts else "'kd' or 'rrd'"
    by_lists = f"{lists}, which learn from lists"
    if _is_behind(teacher, need):
        return f"ask it without a budget and a ledger, or use {by_lists}"
    if need == "listed_scores":
        return f"use {by_lists} alone"
    if need == "scores":
        return f"take a trained model or a file with all scores as teacher, or {by_lists}"
    if need == "vectors":
        instead = "a method that learns from its scores, such as 'rcekd'" if teacher.scores_items else by_lists
        return f"take a trained model as teacher, or {instead}"
    kept = "training.keep_epochs = [10, 20], say, and name these epochs as teacher.earlier"
    train = (
        f"train it with {kept}"
        if isinstance(teacher, LocalTeacher)
        else f"take a model of your own, trained with {kept}"
    )
    return f"{train} (in Python, LocalTeacher(..., earlier=[...])), or use 'rrd' or 'dcd', which learn from lists"


def default_method(teacher: Teacher | None) -> str:
    """Return the name of the method by which students learn where none is named.

    By ``ckd`` from a teacher that scores any item, else by ``bahsd`` from one that can be asked about parts of
    histories, else by ``kd``; and by ``kd`` from `RulesTeacher`, since to probe what was counted tells nothing new, nor
    does it as a second opinion. Within a budget every teacher gives lists. Without a teacher it is ``supervised``.
    """
    if teacher is None:
        return "supervised"
    if isinstance(teacher, RulesTeacher):
        return "kd"
    if teacher.scores_items:
        return "ckd"
    return "bahsd" if teacher.hears_parts else "kd"


def warn_of_gap(teacher: Teacher | None) -> None:
    """Warn where the default method is another than it would be if a few scores were not missing.

    That is where more than half of the scores are there: the best items of each user alone are hardly so many.
    """
    if teacher is not None and teacher.scores_most:
        _log.warning(
            "teacher %r has most scores, but not all: %s. So the default method is %r, which learns from lists, "
            "instead of 'ckd': add the scores that are missing, or name a method if that is what you want",
            teacher.identity,
            teacher.gap,
            default_method(teacher),
        )


def build_method(name: str, settings: dict[str, Any] | None = None) -> Method:
    """Make a method by its registered name.

    Raises:
        SettingsError: for an unknown name or setting.
    """
    import_all("recdistill.methods")
    if name not in Method.registry:
        raise SettingsError(f"unknown method {name!r}{nearest(name, list(Method.registry))}")
    return Method.registry[name](**(settings or {}))
