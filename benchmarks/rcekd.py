"""Is RCE-KD the best way to use a teacher's scores? The core table, ablations, sensitivity and the side cells.

A row is one student: a data set and how it is cut, a teacher, the student's own model, a method and a seed. All
students of a teacher learn from the same one, that of seed 0. First every method of a cell is tuned on validation cases
with the same number of trials (``--tune``); each trial is a row of ``rcekd_trials.csv`` as soon as it ends, and the
best of them is what a row of the table is trained with. The first trial is always the authors' own setting, as far as
it is known. The test cases are looked at once. What was stopped goes on where it was; ``--compare`` makes the paired
tests of what is there.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from benchmarks.comparisons import begin, keep, kept_of_both, paired
from benchmarks.experiments import (
    Recipe,
    StoppedError,
    Values,
    after_last_epoch,
    by_stratum,
    changed,
    chosen,
    commit,
    figures,
    find_recipe,
    folder_of,
    grid,
    record,
    stages,
    table_parser,
    train,
)
from benchmarks.results import FOLDER, QUALITY, ResultTable

from recdistill.data.benchmark_data import load_benchmark
from recdistill.data.splits import Cases, Split, leave_one_out, random_split
from recdistill.errors import TrainingError
from recdistill.evaluation.fidelity import agreement
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.results import Evaluation
from recdistill.evaluation.scoring import top_k
from recdistill.models.base import Model
from recdistill.run import masks_seen
from recdistill.runfile import Run
from recdistill.teachers.base import Teacher
from recdistill.teachers.local import LocalTeacher
from recdistill.trainer import METRICS, EpochRow

if TYPE_CHECKING:
    import optuna

RESULTS, TRIALS, PAIRED, OVERLAP = (FOLDER / f"rcekd{part}.csv" for part in ("", "_trials", "_paired", "_overlap"))
WORK = Path("runs/rcekd")
"""The rank of every test target by every student, for the paired tests."""
STUDENT_SEED = 100
"""Added to a student's seed, so that it shares neither first weights nor order of users with its teacher."""
CELL = ("dataset", "split", "teacher", "student", "method", "variant")
TRIAL_COLUMNS = (
    *(*CELL, "seed", "sampler", "trial", "state", "settings", "best_epoch"),
    *("metric", "k", "value", "tail", "curve", "minutes", "commit"),
)
"""``state``: complete, pruned, or fail where a loss was not finite; ``value``: on the validation cases of all users,
``tail``: of tail users, both of complete trials alone; ``curve``: the NDCG@10 of each validation of the trainer."""
OVERLAP_COLUMNS = (*CELL, "seed", "epoch", "k", "value", "commit")
"""``value``: share of the top k, seen items among them, that student and teacher have in common, mean over users."""

FILE_ORDER, SHUFFLED, LEAVE_ONE_OUT = "8:1:1 in file order", "8:1:1 shuffled", "leave-one-out"
SPLITS: dict[str, Values] = {
    FILE_ORDER: {"protocol": "random", "file_order": True},
    SHUFFLED: {"protocol": "random"},
    LEAVE_ONE_OUT: {},
}
"""The section ``[split]`` of each."""
KS = {FILE_ORDER: (10, 20), SHUFFLED: (10, 20), LEAVE_ONE_OUT: (5, 10, 20)}
COMPARED = {FILE_ORDER: ("ndcg", 20), SHUFFLED: ("ndcg", 20), LEAVE_ONE_OUT: ("ndcg", 10)}
"""What the paired tests look at."""
STRATA = ("all", "head", "tail", "item-head", "item-tail")
SEEDS = (0, 1, 2)

_BPR: Values = {"batch_size": 128, "epochs": 1000, "validate_every": 3, "patience": 10, "weight_decay": 0.01}
"""128 users have about as many interactions as the authors' batches on CiteULike; they wait for 30 epochs, too."""
_WHOLE_GRAPH: Values = {**_BPR, "batch_size": 1024, "learning_rate": 5e-3}
"""A step of LightGCN costs the same for few users as for many."""
_HSTU: Values = {"batch_size": 128, "epochs": 300, "patience": 10}


def _mf(dataset: str, dim: int) -> Recipe:
    return Recipe(dataset, "mf", "bpr", model={"dim": dim}, training=_BPR)


def _lightgcn(dataset: str, dim: int, n_layers: int, training: Values) -> Recipe:
    return Recipe(dataset, "lightgcn", "bpr", model={"dim": dim, "n_layers": n_layers}, training=training)


def _hstu(n_blocks: int, n_heads: int) -> Recipe:
    size: Values = {"dim": 64, "max_len": 100, "n_blocks": n_blocks, "n_heads": n_heads}
    size |= {"attention_dim": 8, "linear_dim": 16, "temperature": 0.05}
    return Recipe("citeulike-t", "hstu", "sampled_softmax", model=size, method={"n_negatives": 512}, training=_HSTU)


RECIPES: dict[tuple[str, str], Recipe] = {
    ("citeulike-t", "mf-400"): _mf("citeulike-t", 400),
    ("citeulike-t", "mf-20"): _mf("citeulike-t", 20),
    ("citeulike-t", "lightgcn-2000"): _lightgcn("citeulike-t", 2000, 3, _WHOLE_GRAPH),
    ("citeulike-t", "lightgcn-20"): _lightgcn("citeulike-t", 20, 3, _BPR),
    ("citeulike-t", "hstu-8-blocks"): _hstu(8, 4),
    ("citeulike-t", "hstu-1-block"): _hstu(1, 2),
    ("gowalla", "mf-300"): _mf("gowalla", 300),
    ("gowalla", "mf-20"): _mf("gowalla", 20),
    ("gowalla", "lightgcn-2000"): _lightgcn("gowalla", 2000, 4, _WHOLE_GRAPH),
    **{
        (dataset, f"sasrec-{dim}"): find_recipe(dataset, "sasrec").varied({"model.dim": dim})
        for dataset in ("amazon-beauty", "ml-1m")
        for dim in (64, 16, 8)
    },
}
"""Teachers and students by data set and name; sizes are the authors', those of SASRec a quarter and an eighth."""

EVERY = ("ce", "cd", "rrd", "de", "dcd", "hetcomp", "unkd", "htd", "rcekd")
CORE = ("ce", "rrd", "dcd", "hetcomp", "rcekd")
ON_ALL = "on all items"
"""The variant of cross-entropy that is tuned and compared as a method of its own."""

START: dict[str, Values] = {
    "ce": {"weight": 1.0, "top_k": 50, "temperature": 1.0},
    "cd": {"weight": 0.5, "score_scale": 1.0},
    "rrd": {"weight": 200.0, "top_k": 500, "n_interesting": 100, "n_uninteresting": 200, "rank_temperature": 10.0},
    "de": {"weight": 0.05},
    "dcd": {"weight": 1.0, "top_k": 500, "n_corrected": 100, "rank_temperature": 10.0},
    "hetcomp": {"weight": 0.25},
    "unkd": {"weight": 0.5},
    "htd": {"weight": 0.5},
    "rcekd": {"weight": 500.0, "top_k": 50, "n_sampled": 50, "depth": 200, "fusion_rate": 3.0, "temperature": 1.0},
}
"""What tuning begins with: the authors' settings for MF on CiteULike, weights converted as each method's file says.

What is not named here (experts, checkpoints, groups) is each method's default, which is the authors' as well.
"""
_RCEKD: dict[tuple[str, str, str], Values] = {
    ("citeulike-t", "lightgcn-2000", "mf-20"): {"weight": 100.0, "fusion_rate": 5.0, "temperature": 10.0},
    ("citeulike-t", "lightgcn-2000", "lightgcn-20"): {"n_sampled": 100, "fusion_rate": 10.0},
    ("citeulike-t", "hstu-8-blocks", "mf-20"): {
        **{"weight": 50_000.0, "top_k": 100, "n_sampled": 100, "depth": 500, "fusion_rate": 5.0}
    },
    ("citeulike-t", "hstu-8-blocks", "hstu-1-block"): {"weight": 5.0, "top_k": 100, "n_sampled": 100},
    ("gowalla", "mf-300", "mf-20"): {"weight": 10.0, "top_k": 100, "depth": 100, "fusion_rate": 5.0},
    ("gowalla", "lightgcn-2000", "mf-20"): {"weight": 1e4, "top_k": 100, "n_sampled": 100, "fusion_rate": 5.0},
}
"""Where the authors set RCE-KD otherwise."""
_SEQUENCES: Values = {"weight": 1.0}
"""The weight that tuning begins with on sequences, for which no published one is known."""

WEIGHTS, OTHERS = 30.0, 10.0
"""How many times lower and higher than they start weights and the one other setting of a method are tried."""
KNOBS = {
    "ce": "temperature",
    "cd": "score_scale",
    "rrd": "rank_temperature",
    "dcd": "rank_temperature",
    "rcekd": "temperature",
}
"""The one setting of a method that is tuned beside its weight, where it has a scale."""
TUNING_SEED, N_RANDOM = 0, 4
"""Trials, the first among them, that only look around."""
PATIENT = 10
"""Validations before which no trial is pruned."""

ABLATIONS: dict[str, Values] = {
    "without S": {"name": "ce", "on": "teacher"},
    "without T": {"name": "ce", "on": "student"},
    "without separation": {"name": "ce", "on": "union"},
    "constant γ": {"fusion": "constant"},
    "full cross-entropy": {"name": "ce", "on": "all"},
    "the paper's γ": {"fusion": "paper"},
    "the paper's γ and z": {"fusion": "paper", "closure": "paper"},
    "without seen items": {"seen_items": False},
}
"""RCE-KD with one part changed and all else as tuned."""
SENSITIVITY: dict[str, Values] = {
    f"{letter} = {value}": {key: value}
    for letter, key in (("K", "top_k"), ("L", "n_sampled"))
    for value in (10, 20, 100, 200)
}
MARKS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Epochs after which the lists are compared."""
OVERLAP_KS = (10, 50)


@dataclass(frozen=True, slots=True)
class Row:
    """One student, or a teacher itself (``student`` is empty), or a student alone (``teacher`` is empty)."""

    dataset: str
    split: str
    teacher: str
    student: str
    method: str
    variant: str = ""
    seed: int = 0

    @property
    def key(self) -> Values:
        """Its columns in the result file."""
        return {**{name: getattr(self, name) for name in CELL}, "seed": self.seed}

    @property
    def name(self) -> str:
        """For people and folders."""
        parts = (self.dataset, self.split, self.teacher, self.student, self.method, self.variant)
        return "/".join(part.replace(" ", "-") for part in parts if part)

    @property
    def recipe(self) -> Recipe:
        """What is trained, without a teacher."""
        return RECIPES[self.dataset, self.student or self.teacher]

    @property
    def folder_name(self) -> str:
        """Under which the trained model is kept; models without a teacher share theirs with ``quality``."""
        return self.name if self.distilled else self.recipe.name

    @property
    def distilled(self) -> bool:
        """Whether it learns from a teacher."""
        return bool(self.teacher and self.student)

    @property
    def taught_by(self) -> Row:
        """The row of its teacher."""
        return Row(self.dataset, self.split, self.teacher, "", "teacher")

    @property
    def tuned_as(self) -> Row:
        """The row whose trials say how this one is trained."""
        return replace(self, variant=self.variant if self.variant == ON_ALL else "", seed=0)

    @property
    def tuned_before(self) -> bool:
        """Whether its recipe was chosen on validation data in ``quality``."""
        return self.method == "teacher" and self.split == LEAVE_ONE_OUT

    def start(self) -> Values:
        """Return the settings that its first trial has, as ``section.key``; all later ones change these alone."""
        sections = self.run({}).dump()
        names = ["training.weight_decay" if self.recipe.student in ("mf", "lightgcn") else "student.dropout"]
        if self.distilled:
            names += ["method.weight", *(f"method.{knob}" for knob in [KNOBS.get(self.method)] if knob)]
        else:
            names.append("training.learning_rate")
        return {name: sections[name.split(".")[0]][name.split(".")[1]] for name in names}

    def space(self) -> dict[str, tuple[float, float]]:
        """Return the lowest and the highest value of each setting that is tuned; logarithms are drawn evenly."""
        bounds: dict[str, tuple[float, float]] = {}
        for name, value in self.start().items():
            if name == "training.weight_decay":
                bounds[name] = (1e-3, 1.0)
            elif name == "student.dropout":
                bounds[name] = (0.02, 0.6)
            else:
                factor = WEIGHTS if name == "method.weight" else OTHERS
                bounds[name] = (_short(value / factor), _short(value * factor))
        return bounds

    def run(self, settings: Mapping[str, object]) -> Run:
        """Return what it is trained with, some ``section.key`` set."""
        values = self.recipe.run(self.seed + (STUDENT_SEED if self.student else 0)).dump()
        sections: dict[str, Values] = {**values, "split": SPLITS[self.split]}
        if self.distilled:
            sections["method"] = self._method(values["method"])
        sections = changed(sections, settings)
        changes = {**ABLATIONS, **SENSITIVITY}.get(self.variant, {})
        if "name" in changes:  # another method, with what it shares
            shared = {key: sections["method"][key] for key in ("label_loss", "weight", "top_k", "temperature")}
            sections["method"] = {**shared, **changes}
        elif changes:
            sections["method"] = {**sections["method"], **changes}
        return Run.parse(sections)

    def _method(self, labels: Values) -> Values:
        settings: Values = {"name": self.method, **START[self.method]}
        if self.method == "rcekd":
            settings |= _RCEKD.get((self.dataset, self.teacher, self.student), {})
        if self.split == LEAVE_ONE_OUT:
            settings |= _SEQUENCES
        if self.variant == ON_ALL:
            settings["on"] = "all"
        settings["label_loss"] = {key: value for key, value in labels.items() if key != "name"}
        return settings


@dataclass(frozen=True, slots=True)
class Cell:
    """A data set, how it is cut, a teacher and a student: what methods are compared on."""

    dataset: str
    split: str
    teacher: str
    student: str
    methods: tuple[str, ...] = CORE

    def rows(self, seed: int) -> Iterator[Row]:
        """Yield the teacher, the student alone and all methods."""
        if seed == 0:
            yield Row(self.dataset, self.split, self.teacher, "", "teacher")
        yield Row(self.dataset, self.split, "", self.student, "labels", seed=seed)
        for method in self.methods:
            yield Row(self.dataset, self.split, self.teacher, self.student, method, seed=seed)
            if method == "ce":
                yield Row(self.dataset, self.split, self.teacher, self.student, method, ON_ALL, seed)


CITEULIKE = Cell("citeulike-t", SHUFFLED, "mf-400", "mf-20", EVERY)
CELLS = {
    "core": [
        CITEULIKE,
        replace(CITEULIKE, split=FILE_ORDER),
        Cell("amazon-beauty", LEAVE_ONE_OUT, "sasrec-64", "sasrec-16"),
        Cell("ml-1m", LEAVE_ONE_OUT, "sasrec-64", "sasrec-16"),
        *(Cell("citeulike-t", split, "lightgcn-2000", "mf-20") for split in (SHUFFLED, FILE_ORDER)),
        *(Cell("gowalla", split, "mf-300", "mf-20") for split in (SHUFFLED, FILE_ORDER)),
    ],
    "further": [
        Cell("citeulike-t", SHUFFLED, "lightgcn-2000", "lightgcn-20"),
        Cell("citeulike-t", SHUFFLED, "hstu-8-blocks", "hstu-1-block"),
        Cell("citeulike-t", SHUFFLED, "hstu-8-blocks", "mf-20"),
        Cell("gowalla", SHUFFLED, "lightgcn-2000", "mf-20"),
        *(Cell(dataset, LEAVE_ONE_OUT, "sasrec-64", "sasrec-8") for dataset in ("amazon-beauty", "ml-1m")),
    ],
}
"""Cheapest first."""


def core() -> Iterator[Row]:
    """Yield the core table: one seed through the table before the others."""
    yield from _distinct(row for seed in SEEDS for cell in CELLS["core"] for row in cell.rows(seed))


def further() -> Iterator[Row]:
    """Yield other students, teachers and data, as compute allows."""
    yield from _distinct(row for seed in SEEDS for cell in CELLS["further"] for row in cell.rows(seed))


def ablation() -> Iterator[Row]:
    """Yield RCE-KD for MF on CiteULike with one part changed at a time."""
    yield from _changed(ABLATIONS)


def sensitivity() -> Iterator[Row]:
    """Yield it with other lengths of the lists."""
    yield from _changed(SENSITIVITY)


def overlap() -> Iterator[Row]:
    """Yield the rows whose lists are followed over training."""
    cell = CITEULIKE
    for method in ("rcekd", "ce"):
        yield Row(cell.dataset, cell.split, cell.teacher, cell.student, method)


def _changed(variants: Mapping[str, Values]) -> Iterator[Row]:
    cell = CITEULIKE
    for seed, variant in itertools.product(SEEDS, variants):
        yield Row(cell.dataset, cell.split, cell.teacher, cell.student, "rcekd", variant, seed)


def _distinct(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield each row once; cells share teachers and students without one."""
    yield from dict.fromkeys(rows)


TABLES = {"core": core, "ablation": ablation, "sensitivity": sensitivity, "overlap": overlap, "further": further}


def main() -> None:
    """Run the rows of a table whose name contains ``--only``, tune or search, or compare what is there."""
    parser = table_parser(__doc__, TABLES, seeds=SEEDS, example="citeulike-t/8:1:1-shuffled/mf-400")
    parser.add_argument("--tune", action="store_true", help="look for the best settings of each row of seed 0")
    parser.add_argument("--trials", type=int, default=8, help="how many --tune makes of each, earlier ones included")
    arguments = parser.parse_args()
    rows = chosen(TABLES, arguments)
    if arguments.compare:
        compare()
    elif arguments.tune:
        for row in dict.fromkeys(row.tuned_as for row in rows if not row.tuned_before):
            tune(row, arguments.trials)
    elif arguments.search is not None:
        for row, changes in itertools.product(rows, grid(arguments.search)):
            search(row, changes)
    else:
        run = follow if arguments.table == "overlap" else measure
        for row in rows:
            run(row)


def measure(row: Row) -> None:
    """Train one student as tuned and write its figures on the test cases, if they are not written yet."""
    results = ResultTable(RESULTS, QUALITY)
    if results.already_done(**row.key):
        return
    split = cut(row.dataset, row.split)
    run = row.run(best_settings(row))
    print(f"== {row.name}, seed {row.seed}", flush=True)
    student, fitted = train(split, run, row.folder_name, teacher=teacher_of(row))
    found = _evaluate(student.model, split, split.test, row)
    keep(found, WORK, row, row.seed)
    record(results, row.key, figures(found, split), minutes=fitted.seconds / 60)
    print(f"== {row.name}: test NDCG@20 {found.mean('ndcg', 20):.4f}", flush=True)


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
    return LocalTeacher(student.model, exclude_history=masks_seen(split), earlier=earlier)


def _evaluate(model: Model, split: Split, cases: Cases, row: Row) -> Evaluation:
    return evaluate(model, cases, n_items=split.dataset.n_items, ks=KS[row.split], protocol=split.protocol)


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
        settings = {name: _short(value) for name, value in trial.params.items()}
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
    if not earlier:
        study.enqueue_trial(row.start())
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
        found = _evaluate(student.model, split, split.valid, row)
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


def follow(row: Row) -> None:
    """Train as tuned, and write after some epochs how much of the teacher's lists the student's share."""
    split, run, teacher = cut(row.dataset, row.split), row.run(best_settings(row)), teacher_of(row)
    assert isinstance(teacher, LocalTeacher)
    results = ResultTable(OVERLAP, OVERLAP_COLUMNS)
    name = f"{row.folder_name}/followed"
    folder = folder_of(run, name, teacher)
    users = np.flatnonzero(split.train.lengths)
    histories = split.train.take(users)
    theirs = top_k(teacher.model, histories, max(OVERLAP_KS), None, users=users).items

    def watch(epoch: EpochRow) -> None:
        key = {**row.key, "epoch": epoch.epoch}
        if epoch.epoch in MARKS and not results.already_done(**key):
            ours = top_k(after_last_epoch(split, run, folder), histories, max(OVERLAP_KS), None, users=users).items
            shares = ((k, float(agreement(ours, theirs, k).mean())) for k in OVERLAP_KS)
            results.append(*({**key, "k": k, "value": share, "commit": commit()} for k, share in shares))
        if epoch.epoch >= max(MARKS):
            raise StoppedError

    print(f"== {row.name}, followed", flush=True)
    with suppress(StoppedError):
        train(split, run, name, teacher=teacher, watch=watch)


def compare() -> None:
    """Test RCE-KD against every other row of its cell, user by user, means over the seeds that both have."""
    results = begin(PAIRED)
    for cell in [*CELLS["core"], *CELLS["further"]]:
        ours = Row(cell.dataset, cell.split, cell.teacher, cell.student, "rcekd")
        metric, k = COMPARED[cell.split]
        for other in cell.rows(0):
            if other != ours and (both := kept_of_both(WORK, ours, other, SEEDS)):
                split = cut(cell.dataset, cell.split)
                results.append(*paired(ours, other, both, split, strata=STRATA, metric=metric, k=k))


def _short(value: float) -> float:
    """Round to three digits, so that what is written is what was tried."""
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main()
