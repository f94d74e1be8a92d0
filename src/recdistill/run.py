"""Settings in, a run folder out: a trained student, what it reached, and all that is needed to say how."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import polars as pl

from recdistill.data.dataset import Dataset, Ints, Sequences
from recdistill.data.embedded import load_shop
from recdistill.data.groups import Groups
from recdistill.data.interactions import Interactions, name_bad_row, read_interactions
from recdistill.data.splits import Split, last_basket, leave_one_out, random_split, time_cut
from recdistill.devices import find_device
from recdistill.errors import ArtefactError, SettingsError
from recdistill.evaluation.beside import Answered, ask_about, beside
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.results import Evaluation, strata, table
from recdistill.methods.base import Method, Setting, default_method
from recdistill.models.base import Model, build_model
from recdistill.runfile import Choice, Run
from recdistill.runfolder import (
    EPOCHS,
    EVALUATION,
    RESULTS,
    alone,
    answers_elsewhere,
    check_data,
    check_not_lost,
    claim,
    finite,
    load_groups,
    note,
    read_finished,
    save_results,
)
from recdistill.runsections import SHOP, DataSettings
from recdistill.runteachers import check_fits, keep_answers, open_teacher, side_by_side
from recdistill.serving.artefact import FOLDER as STUDENT
from recdistill.serving.artefact import Student
from recdistill.teachers.base import Teacher
from recdistill.teachers.ensemble import EnsembleTeacher
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.training.checkpoints import CHECKPOINT
from recdistill.training.loop import fit
from recdistill.training.progress import Fit, Progress, Silent
from recdistill.training.settings import TrainerSettings

_N_SHOWN = 5
"""Bad rows that are told of."""
_MANY_MASKED = 0.05
"""Share of test targets that cannot be found, from which on a run says so before it begins."""


class Report(Progress, Protocol):
    """Who is told how a run goes; a terminal, for example."""

    def say(self, text: str) -> None:
        """Take note of a sentence."""

    def preparing(self, what: str, done: int, total: int, note: str = "") -> None:
        """Take note of a preparation, such as probing a teacher."""


class Quiet(Silent):
    """Tells nobody."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def preparing(self, what: str, done: int, total: int, note: str = "") -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A finished run, read from its folder."""

    folder: Path
    run: Run
    evaluation: Evaluation
    """Of the student, on the test cases."""
    groups: Groups
    facts: dict[str, Any]
    """What else is known: epochs, seconds, parameters, queries spent, …"""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a finished run.

        Raises:
            ArtefactError: when the folder holds no run, or one that is not finished.
        """
        run, facts = read_finished(folder)
        return cls(folder, run, Evaluation.load(folder / EVALUATION), load_groups(folder), facts)

    def strata(self) -> dict[str, Evaluation]:
        """Return the evaluation by stratum: all, head, tail, length-1…5, item-head, item-tail."""
        return _by_stratum(self.evaluation, self.groups)


def run_training(run: Run, folder: Path, report: Report | None = None) -> Result:
    """Train a model on interactions alone.

    Raises:
        SettingsError: when the run has a teacher.
    """
    if run.teacher is not None:
        raise SettingsError("this run has a [teacher]: use `recdistill distill`, or remove the section")
    return _run(run, folder, report or Quiet())


def run_distillation(run: Run, folder: Path, report: Report | None = None) -> Result:
    """Train a student from a teacher.

    Raises:
        SettingsError: when the run has no teacher.
    """
    if run.teacher is None:
        raise SettingsError("this run has no [teacher]: add the section, or use `recdistill train`")
    return _run(run, folder, report or Quiet())


def _run(run: Run, folder: Path, report: Report) -> Result:
    """Do what is not done yet: a run that was stopped goes on, a finished one is only read."""
    claim(folder, run)
    if (folder / RESULTS).is_file():
        report.say(f"{folder}: finished before; to run it anew, choose another folder{answers_elsewhere(run, folder)}")
        return Result.load(folder)
    check_not_lost(folder)
    device = find_device(run.training.device)
    split = load_same_split(run, folder, report)
    teacher = None if run.teacher is None else open_teacher(run.teacher, split, device)
    run = run.by_default(default_method(teacher))
    claim(folder, run)
    model, method, setting = set_up_run(run, split, teacher)
    with alone(folder):
        note(folder, run, split.dataset)
        dataset = split.dataset
        report.say(
            f"{folder}: {run.method.name} for {run.student.name}; {dataset.n_users:,} users, {dataset.n_items:,} "
            f"items, {len(split.train.flat()[0]):,} training interactions; {split.protocol}"
        )
        if (masked := _masked_targets(split)) >= _MANY_MASKED * (targets := int(split.test.targets.lengths.sum())):
            report.say(
                f"{masked:,} of {targets:,} test targets are in their own history, which is masked, so that no model "
                "finds them; for data with repeats set split.mask_seen = false"
            )
        with ExitStack() as ledgers:
            if run.teacher is not None and teacher is not None:
                teacher = keep_answers(run.teacher, teacher, folder, ledgers)
            found: dict[str, Any] = {}
            setting = replace(setting, teacher=teacher, found=found.__setitem__)
            if teacher is not None and run.evaluation.ask_teacher:
                report.say(f"asking the teacher about {run.evaluation.ask_teacher:,} test cases")
            heard = ask_about_test(run, split, teacher)
            started = run.start is not None
            student, fitted = _train(
                split, model.to(device), method, setting, run.training, folder, report, started=started
            )
            asked = teacher.teachers if isinstance(teacher, EnsembleTeacher) else [teacher] if teacher else []
            queries = [asdict(member.stats()) for member in asked if isinstance(member, LedgerTeacher)]
            compared = side_by_side(asked, student.model, split.test)
        student.save(folder / STUDENT)
        facts = {
            **found,
            "epochs": fitted.epochs,
            "best_epoch": fitted.best_epoch,
            "best_validation_ndcg_10": fitted.best_value,
            "start_validation_ndcg_10": fitted.start_value,
            "training_seconds": fitted.seconds,
            "queries": queries,
            "side_by_side": compared,
        }
        result = _evaluate(run, folder, split, student, facts, heard)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return result


def ask_about_test(run: Run, split: Split, teacher: Teacher | None) -> Answered | None:
    """Ask a run's teacher about as many test cases as the run wants; before training, which may spend its budget."""
    if teacher is None or not run.evaluation.ask_teacher:
        return None
    return ask_about(teacher, split.test, run.evaluation.ask_teacher, max(run.evaluation.ks))


def evaluate_run(folder: Path) -> Result:
    """Evaluate the saved student of a run anew, on the run's own test cases.

    Raises:
        ArtefactError: when there is no finished run, or its data have changed.
    """
    run, facts = read_finished(folder)
    split = load_same_split(run, folder)
    return _evaluate(run, folder, split, Student.load(folder), facts)


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
    return _train(split, model.to(device), learner, setting, training, folder, report, started=start is not None)


def _train(
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


def load_dataset(run: Run, report: Report | None = None) -> Dataset:
    """Read the interactions that a run names, and report what was left out of them.

    Raises:
        SettingsError: when the data that ship are to be read otherwise than they are.
    """
    data = run.data
    if data.path == SHOP:
        return _shop(data)
    interactions = read_interactions(
        data.path,
        user=data.user,
        item=data.item,
        time=data.time or None,
        separator=data.separator,
        text_ids=data.text_ids,
        skip_bad_rows=data.skip_bad_rows,
    )
    if n := len(interactions.skipped):
        first = [f"{row['file']} {name_bad_row(row)}" for row in interactions.skipped.head(_N_SHOWN).to_dicts()]
        more = f"; and {n - _N_SHOWN:,} more" if n > _N_SHOWN else ""
        (report or Quiet()).say(f"{n:,} rows that cannot be used are left out: {'; '.join(first)}{more}")
    kept = interactions.deduplicate(data.duplicates).k_core(users=data.min_user, items=data.min_item)
    return kept.dataset(data.titles, item=data.titles_item, title=data.titles_title)


def _shop(data: DataSettings) -> Dataset:
    """Keep of the data that ship what the settings say; they have titles and columns of their own."""
    of_files = set(DataSettings.model_fields) - {"path", "duplicates", "min_user", "min_item"}
    if odd := sorted(name for name in of_files if getattr(data, name) != DataSettings.model_fields[name].default):
        raise SettingsError(
            f'[data]: path = "{SHOP}" names the data that ship, and {", ".join(odd)} only say how a file is read; '
            "leave them out, or give a file as path"
        )
    shop = load_shop()
    frame = {
        "user": shop.users.raw.gather(np.repeat(np.arange(shop.n_users), shop.sequences.lengths)),
        "item": shop.items.raw.gather(shop.sequences.items - 1),
        "time": pl.Series(shop.times),
    }
    kept = Interactions(pl.DataFrame(frame)).deduplicate(data.duplicates)
    kept = kept.k_core(users=data.min_user, items=data.min_item)
    return kept.dataset(pl.DataFrame({"item_id": shop.items.raw, "title": shop.titles}))


def load_split(run: Run, report: Report | None = None) -> Split:
    """Read the interactions that a run names, and cut them as it says; see `load_dataset`."""
    dataset, settings = load_dataset(run, report), run.split
    cuts: dict[str, Callable[[], Split]] = {
        "leave-one-out": lambda: leave_one_out(dataset, mask_seen=settings.mask_seen),
        "last-basket": lambda: last_basket(dataset, mask_seen=settings.mask_seen),
        "time-cut": lambda: time_cut(dataset, at=settings.at, valid_at=settings.valid_at, mask_seen=settings.mask_seen),
        "random": lambda: random_split(
            dataset, seed=settings.seed, file_order=settings.file_order, mask_seen=settings.mask_seen
        ),
    }
    return cuts[settings.protocol]()


def load_same_split(run: Run, folder: Path, report: Report | None = None) -> Split:
    """Do `load_split`, and make sure that the data are those of what was begun in the folder, if anything was.

    Raises:
        ArtefactError: when they are not.
    """
    split = load_split(run, report)
    check_data(folder, split.dataset)
    return split


def _evaluate(
    run: Run, folder: Path, split: Split, student: Student, facts: dict[str, Any], heard: Answered | None = None
) -> Result:
    """Evaluate on the test cases, beside what the teacher said of some, and write what a finished run has."""
    n_items = split.dataset.n_items
    found = evaluate(
        student.model, split.test, n_items=n_items, ks=run.evaluation.ks, protocol=split.protocol, keep_lists=True
    )
    groups = Groups.from_train(split.train, n_items)
    k = max(run.evaluation.ks)
    if heard is not None:
        told = beside(heard, student.model, groups, ks=run.evaluation.ks, protocol=split.protocol)
        facts = {**facts, "beside_teacher": told}
    facts = {
        **finite(facts),
        "protocol": split.protocol,
        "skipped_rows": split.dataset.skipped_rows,
        "strata": groups.labels(),
        "targets": len(found.targets),
        "masked_targets": _masked_targets(split),
        "unknown_users": int((~student.model.knows(np.unique(split.test.users))).sum()),
        "parameters": student.n_parameters,
        "student_bytes": sum(file.stat().st_size for file in (folder / STUDENT).iterdir()),
        f"coverage@{k}": found.coverage(k),
        f"gini@{k}": finite(found.gini(k)),
        "table": finite(table(_by_stratum(found, groups), intervals=True)),
    }
    save_results(folder, found, groups, facts)
    return Result(folder, run, found, groups, facts)


def _masked_targets(split: Split) -> int:
    """Count the test targets that are masked, as their own history holds them."""
    return int(split.test.seen_targets(split.dataset.n_items).sum()) if split.masks_seen else 0


def _by_stratum(evaluation: Evaluation, groups: Groups) -> dict[str, Evaluation]:
    return strata(evaluation, head_users=groups.head_users, length_bands=groups.bands, head_items=groups.head_items)
