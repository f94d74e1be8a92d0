"""The teachers that a run names: opened, their answers kept, and what they cost beside their student."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from recdistill.data.dataset import IdMap
from recdistill.data.splits import Cases, Split
from recdistill.devices import on_device
from recdistill.errors import SettingsError
from recdistill.evaluation.footprint import footprint
from recdistill.models.base import Model
from recdistill.runs.folder import kept_models, ledger_file
from recdistill.runs.sections import (
    EnsembleTeacherSettings,
    FileTeacherSettings,
    HttpTeacherSettings,
    MatrixTeacherSettings,
    RulesTeacherSettings,
    RunTeacherSettings,
    TeacherSettings,
)
from recdistill.serving.artefact import Origin
from recdistill.serving.student import Student
from recdistill.teachers.base import Teacher
from recdistill.teachers.ensemble import EnsembleTeacher
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.teachers.local import LocalTeacher
from recdistill.teachers.matrix import MatrixTeacher
from recdistill.teachers.rules import RulesTeacher
from recdistill.teachers.stored import StoredTeacher

_log = logging.getLogger("recdistill.teachers")


def open_teacher(settings: TeacherSettings, split: Split, device: torch.device | str = "cpu") -> Teacher:
    """Give the teacher that a run names; what an API answers is not kept before `keep_answers`.

    Args:
        settings: which name it.
        split: the data that it is asked about.
        device: where a model of one's own scores.
    """
    if isinstance(settings, RunTeacherSettings):
        return local_teacher(
            Student.load(settings.folder),
            split,
            gives_scores=settings.gives_scores,
            earlier=kept_models(Path(settings.folder), settings.earlier),
            device=device,
        )
    if isinstance(settings, FileTeacherSettings):
        return stored_teacher(settings, split)
    if isinstance(settings, MatrixTeacherSettings):
        return matrix_teacher(settings, split)
    if isinstance(settings, RulesTeacherSettings):
        return rules_teacher(settings, split)
    if isinstance(settings, EnsembleTeacherSettings):
        members = [open_teacher(member, split, device) for member in settings.members]
        return EnsembleTeacher(members, weights=settings.weights)
    return HttpTeacher(split.dataset.items, settings, users=split.dataset.users)


def keep_answers(
    settings: TeacherSettings, teacher: Teacher, folder: Path, ledgers: ExitStack, *, instead: Path | None = None
) -> Teacher:
    """Give the teacher, what its APIs answer, and have answered, kept in ledgers that stay open as long as the stack.

    Args:
        settings: which name it.
        teacher: as `open_teacher` gives it.
        folder: of the run, where the ledger is unless the settings name another place.
        ledgers: is given the ledgers to close.
        instead: where an empty ledger lies in the place of each that is not there yet, so that none is made, and where
            nothing is to be asked: ledgers that are there stay as they are.
    """
    if isinstance(settings, HttpTeacherSettings):
        path = ledger_file(settings, folder)
        looked_at = path if instead is None or path.exists() else instead / path.name
        ledger = ledgers.enter_context(Ledger(looked_at, noting=instead is None))
        return LedgerTeacher(teacher, ledger, budget=settings.budget, round=settings.round)
    if isinstance(settings, EnsembleTeacherSettings):
        pairs = zip(settings.members, teacher.members, strict=True)
        return teacher.with_members(
            [keep_answers(named, member, folder, ledgers, instead=instead) for named, member in pairs]
        )
    return teacher


def local_teacher(
    student: Student,
    split: Split,
    *,
    gives_scores: bool = True,
    earlier: Iterable[Model] = (),
    device: torch.device | str = "cpu",
) -> LocalTeacher:
    """Let a saved student teach on data with the same items, and the same users if it reads them.

    One that was trained on another part of the same interactions is refused: it has seen what the split holds out, and
    would hand that on. Of one that was trained on other interactions that cannot be told, and a warning says so.
    Whoever knows better makes a ``LocalTeacher(student.model)``, which looks at nothing.

    Args:
        student: the model and its ids.
        split: the data.
        gives_scores: whether it shows its scores.
        earlier: the model at earlier stages of its training, the earliest first.
        device: where it scores; a model that is elsewhere is copied.

    Raises:
        SettingsError: when it was trained on others.
    """
    check_fits("teacher", student, split)
    return LocalTeacher(
        on_device(student.model, device),
        gives_scores=gives_scores,
        exclude_history=split.masks_seen,
        earlier=[on_device(model, device) for model in earlier],
    )


def stored_teacher(settings: FileTeacherSettings, split: Split) -> StoredTeacher:
    """Return the scores that a run names as a teacher."""
    return StoredTeacher(
        settings.path,
        ids=split.dataset.items,
        users=split.dataset.users,
        user=settings.user,
        item=settings.item,
        score=settings.score,
        separator=settings.separator,
        exclude_history=split.masks_seen,
    )


def matrix_teacher(settings: MatrixTeacherSettings, split: Split) -> MatrixTeacher:
    """Return the matrix of scores that a run names as a teacher."""
    return MatrixTeacher(
        settings.path,
        row_users=settings.row_users,
        column_items=settings.column_items,
        ids=split.dataset.items,
        users=split.dataset.users,
        exclude_history=split.masks_seen,
    )


def rules_teacher(settings: RulesTeacherSettings, split: Split) -> RulesTeacher:
    """Return what the training histories of a split say by themselves."""
    return RulesTeacher(
        split.train,
        split.dataset.n_items,
        ordered=settings.ordered,
        window=settings.window,
        fade=settings.fade,
        decay=settings.decay,
        popularity=settings.popularity,
        prior=settings.prior,
        exclude_history=split.masks_seen,
    )


def check_fits(who: str, student: Student, split: Split) -> None:
    """Make sure that a trained model knows the items of a split, and its users if it reads them, but not its targets.

    Raises:
        SettingsError: when it was trained on other items or users, or on another part of the same interactions.
    """
    _check_same(who, "items", student.items, split.dataset.items)
    if student.users is not None:
        _check_same(who, "users", student.users.ids, split.dataset.users)
    origin, here = student.origin, Origin.of(split.dataset, split.train)
    if (student.protocol == split.protocol) if origin is None else (origin.train == here.train):
        return
    splits = f"{student.protocol or 'not said how'!r} there, {split.protocol!r} here"
    if origin is not None and origin.data == here.data:
        raise SettingsError(
            f"the {who} was trained on another part of the same interactions ({splits}), so it may have seen what "
            "this run validates and tests on, and the student's figures would be too high. Train it with the [split] "
            "of this run, or give this run its [split]."
        )
    known = "on interactions that its folder does not name" if origin is None else "on other interactions than these"
    _log.warning(
        "the %s was trained %s (%s); if what this run validates and tests on was among them, which cannot be told "
        "here, the student's figures are too high",
        who,
        known,
        splits,
    )


def _check_same(who: str, what: str, known: IdMap, wanted: IdMap) -> None:
    if known.raw.dtype != wanted.raw.dtype or not known.raw.equals(wanted.raw):
        common = int((wanted.find(known.raw) >= wanted.first).sum())
        remedy = "train it on the same data" + (", or serve it and ask it as an API" if who == "teacher" else "")
        raise SettingsError(
            f"the {who} was trained on other {what} than these data hold: {len(known):,} there, {len(wanted):,} "
            f"here, {common:,} in both; {remedy}."
        )


def side_by_side(teachers: Iterable[Teacher], student: Model, cases: Cases) -> list[dict[str, Any]]:
    """Return size and speed of teachers and student; nothing without a teacher.

    Args:
        teachers: a model of one's own is measured on the cases like the student, an API is as fast as its ledger says,
            and a file is as large as it is.
        student: as trained.
        cases: to be answered.

    Returns:
        A row for each teacher of whom something is known, then the student's: ``model``, and the figures of a
        `Footprint`, or ``seconds_an_answer``, or ``file_bytes``.
    """
    rows: list[dict[str, Any]] = []
    asked = list(teachers)
    for teacher in asked:
        name = f"teacher {teacher.identity}"
        if isinstance(teacher, LocalTeacher):
            rows.append({"model": name, **asdict(footprint(teacher.model, cases))})
        elif isinstance(teacher, LedgerTeacher) and (seconds := teacher.ledger.seconds_each(teacher.identity)):
            rows.append({"model": name, "seconds_an_answer": seconds})
        elif isinstance(teacher, StoredTeacher | MatrixTeacher) and teacher.file_bytes is not None:
            rows.append({"model": name, "file_bytes": teacher.file_bytes})
    return [*rows, {"model": "student", **asdict(footprint(student, cases))}] if asked else []
