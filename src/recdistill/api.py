"""The two calls that do it all from Python: `train` a model, `distill` a student."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from recdistill.data.dataset import Dataset
from recdistill.data.files import Source
from recdistill.data.interactions import Interactions, read_interactions
from recdistill.data.splits import Split, leave_one_out
from recdistill.devices import find_device
from recdistill.errors import SettingsError
from recdistill.methods.base import Method, build_method, default_method, warn_of_gap
from recdistill.methods.supervised import Supervised
from recdistill.models.base import Model
from recdistill.models.sasrec import SASRecConfig
from recdistill.registry import import_all
from recdistill.runs.file import Choice
from recdistill.runs.folder import LEDGER
from recdistill.runs.learning import learn
from recdistill.runs.reports import Report
from recdistill.runs.teachers import local_teacher
from recdistill.serving.student import Student
from recdistill.settings import Settings
from recdistill.teachers.base import Teacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.training import processes
from recdistill.training.settings import TrainerSettings

Data: TypeAlias = Split | Dataset | Interactions | Source
"""Interactions in any form; what is not split yet is split leave-one-out."""


def train(
    data: Data,
    model: Settings | None = None,
    *,
    method: Method | None = None,
    training: TrainerSettings | None = None,
    start: Student | None = None,
    folder: Path | str | None = None,
    report: Report | None = None,
) -> Student:
    """Train a model on interactions alone.

    Args:
        data: a split, a data set, or a file or frame of interactions with the default column names.
        model: what to train, such as ``SASRec(dim=64)``; that with its defaults if left out.
        method: how; ``Supervised()`` if left out. Only its settings are used, so it can be given again.
        training: settings of the loop.
        start: a model of the same kind and shape, whose weights it begins with; it stays as it is.
        folder: for the checkpoint; the same call goes on from there.
        report: who is told how it goes.

    Where ``torchrun`` has started several processes, each trains on its share of every batch, and all return the same.
    """
    training = training or TrainerSettings()
    with processes.joined(training.device):
        return _learn(as_split(data), model, method or Supervised(), training, None, start, folder, report)


def distill(
    teacher: Teacher | Student,
    data: Data,
    *,
    method: Method | None = None,
    student: Settings | None = None,
    training: TrainerSettings | None = None,
    start: Student | None = None,
    budget: int | None = None,
    folder: Path | str | None = None,
    report: Report | None = None,
) -> Student:
    """Train a student from a teacher.

    Args:
        teacher: a saved model of one's own, which scores on the device of the training, or any `Teacher`:
            ``HttpTeacher`` for an API, ``CallableTeacher`` for a function, ``StoredTeacher`` for a table of scores,
            ``MatrixTeacher`` for an array of them.
        data: the user's own interactions: a split, a data set, or a file or frame with the default column names.
        method: how; if left out, ``CKD()`` where the teacher scores any item, else ``BAHSD()`` where it can be asked
            about parts of histories, else ``KD()``, as it is from ``RulesTeacher``. Only its settings are used, so it
            can be given again.
        student: what to train, such as ``SASRec(dim=32)``; that with its defaults if left out.
        training: settings of the loop.
        start: a trained student of the same kind and shape, whose weights it begins with; where there are labels, to
            learn those first ends higher (``benchmarks/bahsd.md``).
        budget: most queries ever spent on this teacher; needs ``folder``, where the answers are kept. What is asked,
            and counted, is lists: methods that ask for the score of any item are refused.
        folder: for the checkpoint and the ledger of paid answers; the same call goes on from there.
        report: who is told how it goes.

    Several processes share the work as in `train`.

    Raises:
        SettingsError: when method and teacher do not fit, a budget has no ledger to be kept in, or the device that the
            training names is not there.
    """
    split, training = as_split(data), training or TrainerSettings()
    with processes.joined(training.device):
        device = find_device(training.device)
        asked = local_teacher(teacher, split, device=device) if isinstance(teacher, Student) else teacher
        with _kept(asked, folder, budget) as kept:
            if method is None:
                warn_of_gap(kept)
            learner = method or build_method(default_method(kept))
            return _learn(split, student, learner, training, kept, start, folder, report)


def as_split(data: Data) -> Split:
    """Return the split that ``data`` is, or split it leave-one-out."""
    if isinstance(data, Split):
        return data
    if isinstance(data, Dataset):
        return leave_one_out(data)
    return leave_one_out((data if isinstance(data, Interactions) else read_interactions(data)).dataset())


def _learn(
    split: Split,
    config: Settings | None,
    method: Method,
    training: TrainerSettings,
    teacher: Teacher | None,
    start: Student | None,
    folder: Path | str | None,
    report: Report | None,
) -> Student:
    student, _ = learn(
        split,
        _model_choice(config or SASRecConfig()),
        Choice(method.name, method.config),
        training,
        teacher=teacher,
        start=start,
        folder=None if folder is None else Path(folder),
        report=report if processes.rank() == 0 else None,
    )
    return student


def _model_choice(config: Settings) -> Choice:
    """Find the model that a config describes."""
    import_all("recdistill.models")
    for name, model in Model.registry.items():
        if model.Config is type(config):
            return Choice(name, config)
    raise SettingsError(f"{config!r} describes no model; give one like recdistill.SASRec(dim=32)")


@contextmanager
def _kept(teacher: Teacher, folder: Path | str | None, budget: int | None) -> Iterator[Teacher]:
    """Keep a teacher's answers in a ledger where there is a folder for it, unless they cost nothing."""
    if budget is not None and folder is None:
        raise SettingsError("a budget is kept in a ledger on disk: give a folder as well")
    if folder is None or isinstance(teacher, LedgerTeacher) or (teacher.free and budget is None):
        yield teacher
        return
    with Ledger(Path(folder) / LEDGER) as ledger:
        yield LedgerTeacher(teacher, ledger, budget=budget)
