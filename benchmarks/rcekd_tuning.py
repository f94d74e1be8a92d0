"""How the rows of RCE-KD's tables are tuned: by optuna, on validation cases, with the same number of trials each.

Each trial is a row of ``rcekd_trials.csv`` as soon as it ends, and all that later ones know. The first is always the
authors' own setting, as far as it is known, and of students that read histories the second a third of its weight.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.experiments import StoppedError, Values, by_stratum, commit, folder_of, stages, train
from benchmarks.rcekd_rows import CELL, FILE_ORDER, LEAVE_ONE_OUT, SHUFFLED, Row, short
from benchmarks.results import FOLDER, ResultTable

from recdistill.data.benchmark_data import load_benchmark
from recdistill.data.splits import Cases, Split, leave_one_out, random_split
from recdistill.errors import TrainingError
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.results import Evaluation
from recdistill.models.base import Model
from recdistill.teachers.base import Teacher
from recdistill.teachers.local import LocalTeacher
from recdistill.training.checkpoints import METRICS
from recdistill.training.progress import EpochRow

if TYPE_CHECKING:
    import optuna

TRIALS = FOLDER / "rcekd_trials.csv"
TRIAL_COLUMNS = (
    *(*CELL, "seed", "sampler", "trial", "state", "settings", "best_epoch"),
    *("metric", "k", "value", "tail", "curve", "minutes", "commit"),
)
"""``state``: complete, pruned, or fail where a loss was not finite; ``value``: on the validation cases of all users,
``tail``: of tail users, both of complete trials alone; ``curve``: the NDCG@10 of each validation of the trainer."""
KS = {FILE_ORDER: (10, 20), SHUFFLED: (10, 20), LEAVE_ONE_OUT: (5, 10, 20)}
TUNING_SEED, N_RANDOM = 0, 4
"""Trials, the first among them, that only look around."""
PATIENT = 10
"""Validations before which no trial is pruned."""


@functools.lru_cache(maxsize=2)
def cut(dataset: str, split: str) -> Split:
    """Read a data set and cut it."""
    whole = load_benchmark(dataset)
    return (
        leave_one_out(whole)
        if split == LEAVE_ONE_OUT
        else published(random_split(whole, file_order=split == FILE_ORDER))
    )


def published(split: Split) -> Split:
    """Return a split with the test cases of the paper, where validation items are neither known nor masked."""
    shown = split.train.take(split.test.users)
    return replace(
        split,
        protocol=f"{split.protocol}; at test time, too, only training items are known and masked",
        test=replace(split.test, histories=shown, masked=shown),
    )


def teacher_of(row: Row) -> Teacher | None:
    """Return the teacher of a row as tuned, trained where it is not yet; ``None`` for a row that has none."""
    if not row.distilled:
        return None
    return _teacher(row.taught_by, with_stages=row.method == "hetcomp")


@functools.lru_cache(maxsize=1)
def _teacher(row: Row, *, with_stages: bool) -> Teacher:
    split, run = cut(row.dataset, row.split), row.run(best_settings(row))
    student, fitted = train(split, run, row.folder_name)
    earlier: list[Model] = []
    if with_stages:
        epochs = {math.ceil(fitted.best_epoch * share) for share in (1 / 3, 2 / 3)} - {fitted.best_epoch}
        earlier = stages(split, run, row.folder_name, sorted(epochs))
    return LocalTeacher(student.model, exclude_history=split.masks_seen, earlier=earlier)


def evaluate_row(source: Model | Teacher, split: Split, cases: Cases, row: Row) -> Evaluation:
    """Rank all items for some cases, with the list lengths of the row's split."""
    return evaluate(source, cases, n_items=split.dataset.n_items, ks=KS[row.split], protocol=split.protocol)


def best_settings(row: Row) -> Values:
    """Return what the best of a row's trials has.

    Raises:
        SystemExit: when there is none.
    """
    if row.tuned_before:
        return {}
    done = [trial for trial in _trials(row.tuned_as, sampler="tpe") if trial["state"] == "complete"]
    if not done:
        raise SystemExit(
            f"{row.tuned_as.name} has no trials in {TRIALS}; run --tune --only {row.tuned_as.name} first "
            "(with --trials 1 it takes the authors' settings as they are)"
        )
    settings: Values = json.loads(max(done, key=lambda trial: float(trial["value"]))["settings"])
    return settings


def _trials(row: Row, **more: object) -> list[dict[str, str]]:
    return ResultTable(TRIALS, TRIAL_COLUMNS).find(**row.key, **more)


def tune(row: Row, n_trials: int) -> None:
    """Make trials until there are ``n_trials``.

    The rows of the earlier ones are all that the choice of the next settings knows, and its seed is its number: a trial
    that was stopped is begun again with the same settings, and goes on where it was.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    while (number := len(earlier := _trials(row, sampler="tpe"))) < n_trials:
        study = study_of(row, earlier)
        trial = study.ask(_distributions(row))
        settings = {name: short(value) for name, value in trial.params.items()}
        make_trial(row, settings, "tpe", number, trial)


def search(row: Row, settings: Values) -> None:
    """Train with given settings, if there is no such trial yet; these do not count among the tuned ones."""
    earlier = _trials(row, sampler="grid")
    if json.dumps(settings, sort_keys=True) not in [trial["settings"] for trial in earlier]:
        make_trial(row, settings, "grid", len(earlier))


def study_of(row: Row, earlier: list[dict[str, str]]) -> optuna.Study:
    """Return the study of a row's settings as its trials have left it."""
    import optuna

    sampler = optuna.samplers.TPESampler(seed=TUNING_SEED + len(earlier), n_startup_trials=N_RANDOM)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=PATIENT)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    states = optuna.trial.TrialState
    for trial in earlier:
        known = optuna.trial.create_trial(
            params=json.loads(trial["settings"]),
            distributions=_distributions(row),
            state=states[trial["state"].upper()],
            value=float(trial["value"]) if trial["value"] else None,
            intermediate_values=dict(enumerate(json.loads(trial["curve"]), 1)),
        )
        study.add_trial(known)
    if len(earlier) < len(row.first):
        study.enqueue_trial(row.first[len(earlier)])
    return study


def _distributions(row: Row) -> dict[str, optuna.distributions.BaseDistribution]:
    import optuna

    return {
        name: optuna.distributions.FloatDistribution(low, high, log=True) for name, (low, high) in row.space().items()
    }


def make_trial(row: Row, settings: Values, sampler: str, number: int, trial: optuna.trial.Trial | None = None) -> None:
    """Train with some settings and write what came of it; a trial that falls behind the median of others is pruned."""
    print(f"== {row.name}, {sampler} trial {number}: {settings}", flush=True)
    split, run, teacher = cut(row.dataset, row.split), row.run(settings), teacher_of(row)
    folder = folder_of(run, row.folder_name, teacher)
    for step, value in enumerate(_curve(folder), 1):
        if trial is not None:
            trial.report(value, step)

    def watch(epoch: EpochRow) -> None:
        if trial is not None and epoch.validation is not None:
            trial.report(epoch.validation, len(_curve(folder)))
            if trial.should_prune():
                raise StoppedError

    try:
        student, fitted = train(split, run, row.folder_name, teacher=teacher, watch=watch)
    except StoppedError:
        outcome: Values = {"state": "pruned"}
    except TrainingError as error:
        if error.__cause__ is not None:  # a full disk, say; settings that diverge have no other cause
            raise
        print(f"== {row.name}: {error}", flush=True)
        outcome = {"state": "fail"}
    else:
        found = evaluate_row(student.model, split, split.valid, row)
        tail = by_stratum(found, split).get("tail")
        outcome = {
            "state": "complete",
            "best_epoch": fitted.best_epoch,
            "metric": "ndcg",
            "k": 20,
            "value": found.mean("ndcg", 20),
            "tail": None if tail is None else tail.mean("ndcg", 20),
        }
    ResultTable(TRIALS, TRIAL_COLUMNS).append(
        {
            **row.key,
            "sampler": sampler,
            "trial": number,
            "settings": json.dumps(settings, sort_keys=True),
            "curve": json.dumps([round(value, 5) for value in _curve(folder)]),
            "minutes": sum(epoch["seconds"] for epoch in _epochs(folder)) / 60,
            "commit": commit(),
            **outcome,
        }
    )
    print(f"== {row.name}, {sampler} trial {number}: {outcome}", flush=True)


def _epochs(folder: Path) -> list[Values]:
    path = folder / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _curve(folder: Path) -> list[float]:
    return [epoch["validation"] for epoch in _epochs(folder) if epoch["validation"] is not None]
