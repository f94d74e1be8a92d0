"""Settings in, a run folder out: a trained student, what it reached, and all that is needed to say how."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from recdistill.data.groups import Groups
from recdistill.data.splits import Split
from recdistill.devices import find_device
from recdistill.errors import SettingsError
from recdistill.evaluation.beside import Answered, ask_about, beside
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.results import Evaluation, strata, table
from recdistill.methods.base import default_method, warn_of_gap
from recdistill.runs.data import load_same_split
from recdistill.runs.file import Choice, Run
from recdistill.runs.folder import (
    EVALUATION,
    RESULTS,
    alone,
    answers_elsewhere,
    check_not_lost,
    claim,
    finite,
    load_groups,
    note,
    read_finished,
    save_results,
)
from recdistill.runs.learning import set_up_run, train_student
from recdistill.runs.reports import Quiet, Report
from recdistill.runs.teachers import keep_answers, open_teacher, side_by_side
from recdistill.serving.artefact import FOLDER as STUDENT
from recdistill.serving.artefact import size_of
from recdistill.serving.student import Student
from recdistill.teachers.base import Teacher
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.training import processes
from recdistill.training.checkpoints import CHECKPOINT

_MANY_MASKED = 0.05
"""Share of test targets that cannot be found, from which on a run says so before it begins."""


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
    """Do what is not done yet: a run that was stopped goes on, a finished one is only read.

    Where ``torchrun`` has started several processes, all train; the first alone writes, evaluates and tells of it.
    """
    with processes.joined(run.training.device):
        return _run_joined(run, folder, report if processes.rank() == 0 else Quiet())


def _run_joined(run: Run, folder: Path, report: Report) -> Result:
    claim(folder, run)
    if (folder / RESULTS).is_file():
        report.say(f"{folder}: finished before; to run it anew, choose another folder{answers_elsewhere(run, folder)}")
        return Result.load(folder)
    check_not_lost(folder)
    device = find_device(run.training.device)
    split = load_same_split(run, folder, report)
    teacher = None if run.teacher is None else open_teacher(run.teacher, split, device)
    if not isinstance(run.chosen, Choice):
        warn_of_gap(teacher)
    run = run.by_default(default_method(teacher))
    claim(folder, run)
    model, method, setting = set_up_run(run, split, teacher)
    first = processes.rank() == 0
    processes.wait()  # all have looked into the folder
    with alone(folder):
        if first:
            note(folder, run, split.dataset)
        processes.wait()
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
            heard = ask_about_test(run, split, teacher) if first else None
            started = run.start is not None
            student, fitted = train_student(
                split, model.to(device), method, setting, run.training, folder, report, started=started
            )
            if not first:
                processes.wait()
                return Result.load(folder)
            asked = () if teacher is None else teacher.members
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
            "computed_with": fitted.computed_with,
            "queries": queries,
            "side_by_side": compared,
        }
        result = _evaluate(run, folder, split, student, facts, heard)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        processes.wait()
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
        "student_bytes": size_of(folder / STUDENT),
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
