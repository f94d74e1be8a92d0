"""A model and a method, built and trained: what a run and the two calls from Python share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from recdistill.arrays import Ints
from recdistill.data.dataset import Sequences
from recdistill.data.splits import Split
from recdistill.devices import find_device
from recdistill.errors import ArtefactError, SettingsError
from recdistill.evaluation.full_ranking import evaluate
from recdistill.methods.base import Method, Setting
from recdistill.models.base import Model, build_model
from recdistill.runs.file import Choice, Run
from recdistill.runs.folder import EPOCHS
from recdistill.runs.reports import Quiet, Report
from recdistill.runs.teachers import check_fits
from recdistill.serving.student import Student
from recdistill.teachers.base import Teacher
from recdistill.training.loop import fit
from recdistill.training.progress import Fit
from recdistill.training.settings import TrainerSettings


def learn(
    split: Split,
    student: Choice,
    method: Choice,
    training: TrainerSettings,
    *,
    teacher: Teacher | None = None,
    start: Student | None = None,
    folder: Path | None = None,
    report: Report | None = None,
) -> tuple[Student, Fit]:
    """Build a model, train it by a method, and join it with its items. It stays on the device that it is trained on.

    Args:
        split: what to learn from and to validate on.
        student: which model, with its settings.
        method: which method, with its settings.
        training: settings of the loop; its seed also draws the initial weights.
        teacher: whom to ask.
        start: a trained model of the same kind and shape, whose weights the student begins with.
        folder: for checkpoint and metrics; what was begun there goes on.
        report: who is told how it goes.

    Raises:
        SettingsError: when the method needs a teacher, or scores, that are not there; or uses none; or when the student
            cannot start from that model; or when the device is not there.
    """
    report = report or Quiet()
    if training.keep_epochs and folder is None:
        raise SettingsError("keep_epochs keeps models in the folder of the run, and there is none: give a folder")
    device = find_device(training.device)
    model, learner, setting = set_up(split, student, method, training, teacher=teacher, start=start)
    return train_student(split, model.to(device), learner, setting, training, folder, report, started=start is not None)


def train_student(
    split: Split,
    model: Model,
    method: Method,
    setting: Setting,
    training: TrainerSettings,
    folder: Path | None,
    report: Report,
    *,
    started: bool,
) -> tuple[Student, Fit]:
    """Train what `set_up` has made, and join it with its items."""
    setting = replace(setting, progress=report.preparing)

    def validate(model: Model) -> float:
        return evaluate(model, split.valid, n_items=split.dataset.n_items, ks=(10,)).mean("ndcg", 10)

    def as_student(model: Model) -> Student:
        return Student.of(model, split.dataset, protocol=split.protocol, mask_seen=split.masks_seen, train=split.train)

    def keep(epoch: int, model: Model) -> None:
        assert folder is not None
        as_student(model).save(folder / EPOCHS / str(epoch))

    fitted = fit(
        model,
        method,
        setting,
        training,
        validate=validate,
        started=started,
        keep=keep,
        folder=folder,
        progress=report,
    )
    return as_student(model), fitted


def set_up(
    split: Split,
    student: Choice,
    method: Choice,
    training: TrainerSettings,
    *,
    teacher: Teacher | None,
    start: Student | None = None,
) -> tuple[Model, Method, Setting]:
    """Build a model and a method, and what the method may look at; nobody is asked anything, and nothing is written.

    Args:
        split: what to learn from.
        student: which model, with its settings.
        method: which method, with its settings.
        training: settings of the loop; its seed draws the initial weights.
        teacher: whom the method may ask.
        start: a trained model of the same kind and shape, whose weights the student begins with.

    Raises:
        SettingsError: when these do not fit: see `Method.check`; or when the student cannot start from that model, or
            it was trained on what the split holds out.
    """
    learner = Method.registry[method.name](method.config)
    model = build_model(student.name, split.dataset.n_items, student.config, train=split.train, seed=training.seed)
    learner.check(model, teacher)
    if start is not None:
        check_fits("model to start from", start, split)
        start.hand_on(model)
    train, users = split.train, np.arange(len(split.train))
    if training.long_histories == "windows" and model.max_len is not None:
        whole = learner.reads_last or not model.causal
        train, users = _with_windows(train, model.max_len, teacher, reads_last=whole)
    setting = Setting(
        train=train,
        users=users,
        n_items=split.dataset.n_items,
        teacher=teacher,
        max_len=model.max_len,
        seed=training.seed,
        valid=split.valid,
    )
    return model, learner, setting


def set_up_run(run: Run, split: Split, teacher: Teacher | None) -> tuple[Model, Method, Setting]:
    """Do `set_up` for a run whose method is known, and whose teacher `open_teacher` gives."""
    return set_up(split, run.student, run.method, run.training, teacher=teacher, start=_load_start(run))


def _load_start(run: Run) -> Student | None:
    """Load whose weights a run's student begins with, if anybody's."""
    try:
        return None if run.start is None else Student.load(run.start)
    except ArtefactError as error:
        raise SettingsError(f"[student] start names nothing that a student can start from: {error}") from error


def _with_windows(
    train: Sequences, max_len: int, teacher: Teacher | None, *, reads_last: bool
) -> tuple[Sequences, Ints]:
    """Append what long histories were earlier; return the rows and the user of each.

    Raises:
        SettingsError: when they make no sense.
    """
    if max_len < 2:
        raise SettingsError("long_histories = 'windows' needs a student that reads 2 items or more; raise its max_len")
    if teacher is not None and teacher.by_user:
        raise SettingsError(
            f"teacher {teacher.identity!r} answers for a user as of today, so earlier parts of a history have no "
            "answer of their own; set long_histories to 'newest'."
        )
    return train.with_windows(max_len, reads_last=reads_last)
