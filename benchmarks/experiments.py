"""What the benchmarks of quality share: recipes, trained models that are kept on disk, and figures as rows."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from benchmarks.results import ResultTable

from recdistill.cli.progress import Reporter
from recdistill.data.dataset import Dataset
from recdistill.data.groups import Groups
from recdistill.data.splits import Split, leave_one_out
from recdistill.evaluation.results import Evaluation, strata, table
from recdistill.models.base import Model, build_model
from recdistill.runs.file import Run
from recdistill.runs.learning import learn
from recdistill.serving.student import Student
from recdistill.teachers.base import Teacher
from recdistill.teachers.local import LocalTeacher
from recdistill.training.checkpoints import CHECKPOINT
from recdistill.training.progress import EpochRow, Fit
from recdistill.training.settings import TrainerSettings

WORK = Path("runs/quality")
"""Checkpoints, also of what is finished, so that nothing is trained twice."""
Values = dict[str, Any]
SMOOTHED = "smoothed"
"""A softmax whose labels are shared with what followed the same items in other histories."""
SMOOTHING = 0.4
"""How much of every label that gets there."""


class Row(Protocol):
    """What a benchmark has one result of."""

    @property
    def key(self) -> Values:
        """Its columns in the result file."""

    @property
    def name(self) -> str:
        """For people and folders; the same for all seeds."""

    @property
    def seed(self) -> int:
        """Of its training."""


AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model trained on a data set, with everything that is not a default."""

    dataset: str
    student: str
    loss: str = "softmax"
    seeds: tuple[int, ...] = (0,)
    model: Values = field(default_factory=dict)
    method: Values = field(default_factory=dict)
    training: Values = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique among the recipes."""
        return f"{self.dataset}/{self.student}/{self.loss}"

    def run(self, seed: int) -> Run:
        """Fill in every default."""
        loss: Values = {"loss": "softmax", "smoothing": SMOOTHING} if self.loss == SMOOTHED else {"loss": self.loss}
        return Run.parse(
            {
                "data": {"path": self.dataset},
                "student": {"name": self.student, **self.model},
                "method": {"name": "supervised", **loss, **self.method},
                "training": {"seed": seed, **self.training},
            }
        )

    def varied(self, changes: Values) -> Recipe:
        """Return the recipe with some ``section.key`` changed."""
        recipe = self
        for name, value in changes.items():
            section, key = name.split(".")
            values: Values = {**getattr(recipe, section), key: value}
            recipe = {
                "model": replace(recipe, model=values),
                "method": replace(recipe, method=values),
                "training": replace(recipe, training=values),
            }[section]
        return recipe


_BEAUTY: Values = {"model": {"max_len": 50, "dropout": 0.5}, "training": {"batch_size": 256, "epochs": 200}}
_BEAUTY_SLOW: Values = {**_BEAUTY, "training": {**_BEAUTY["training"], "patience": 30}}
"""For losses that compare few items at a time, which at first stand still on validation data."""
_ML_SCHEDULE: Values = {"batch_size": 32, "long_histories": "windows", "schedule": "cosine", "patience": 45}
"""A falling rate is followed to its end: no run has more epochs than its patience."""
_ML: Values = {"model": {"max_len": 200, "dropout": 0.05}, "training": {**_ML_SCHEDULE, "epochs": 30}}

RECIPES = [
    Recipe("amazon-beauty", "sasrec", seeds=(0, 1, 2), **_BEAUTY),
    Recipe("ml-1m", "sasrec", seeds=(0, 1, 2), **_ML),
    Recipe(
        "amazon-beauty",
        "gru4rec",
        model={"max_len": 50, "dropout": 0.35, "hidden_dim": 128},
        training={"batch_size": 128, "epochs": 200, "patience": 5},
    ),
    Recipe(
        "amazon-beauty",
        "bert4rec",
        model={"max_len": 50, "dropout": 0.1},
        training={"batch_size": 128, "epochs": 200, "patience": 4, "validate_every": 2},
    ),
    Recipe("amazon-beauty", "sasrec", SMOOTHED, seeds=(0, 1, 2), **_BEAUTY),
    Recipe("amazon-beauty", "sasrec", "sampled_softmax", **_BEAUTY),
    Recipe("amazon-beauty", "sasrec", "gbce", **_BEAUTY_SLOW),
    Recipe(
        "amazon-beauty",
        "sasrec",
        "bce",
        model={"max_len": 50, "dropout": 0.2, "norm": "post"},
        training=_BEAUTY_SLOW["training"],
    ),
    Recipe("ml-1m", "gru4rec", model={"max_len": 200, "dropout": 0.2, "hidden_dim": 128}, training=_ML["training"]),
    Recipe("ml-1m", "sasrec", SMOOTHED, **_ML),
    Recipe("ml-1m", "sasrec", "sampled_softmax", **_ML),
    Recipe("ml-1m", "sasrec", "gbce", **_ML),
    Recipe("ml-1m", "sasrec", "bce", **_ML),
    Recipe(
        "ml-1m",
        "bert4rec",
        model={"max_len": 200, "dropout": 0.05},
        training={**_ML_SCHEDULE, "epochs": 45, "validate_every": 3, "learning_rate": 4e-3},
    ),
]


def find_recipe(dataset: str, student: str, loss: str = "softmax") -> Recipe:
    """Return the recipe with this name."""
    return next(recipe for recipe in RECIPES if recipe.name == f"{dataset}/{student}/{loss}")


class StoppedError(Exception):
    """Ends a training from outside after a whole epoch; its folder keeps the state."""


class _Watched(Reporter):
    """Shows how a training goes, and tells a function of every epoch."""

    def __init__(self, watch: Callable[[EpochRow], None]) -> None:
        super().__init__()
        self.watch = watch

    def epoch(self, row: EpochRow, settings: TrainerSettings) -> None:
        """Take note of an epoch, which is on disk by now."""
        super().epoch(row, settings)
        self.watch(row)


def train(
    split: Split,
    run: Run,
    name: str,
    *,
    teacher: Teacher | None = None,
    start: Student | None = None,
    watch: Callable[[EpochRow], None] = lambda row: None,
) -> tuple[Student, Fit]:
    """Train by a run's settings, or take what an earlier try with the same settings has trained.

    Args:
        split: what to learn from and to validate on.
        run: the settings. Those that are defaults do not count in finding what was trained before, so that a new
            setting leaves that where it is. A change of the code is not noticed: delete what it makes wrong.
        name: of the folder, together with seed and settings.
        teacher: whom to ask.
        start: whose weights to begin with.
        watch: called after every new epoch; may raise `StoppedError`, which is passed on.
    """
    folder = folder_of(run, name, teacher, start)
    with _Watched(watch) as report:
        return learn(
            split, run.student, run.method, run.training, teacher=teacher, start=start, folder=folder, report=report
        )


EARLIER = "the last item of every user left out"


def one_earlier(dataset: Dataset) -> Split:
    """Return leave-one-out as it was one item ago, whose test targets are the validation items of today.

    A student that learns from answers about the training histories has been told, of a black box, about the very
    histories that validation cases show; test cases show one item more. What learns those answers by heart does well
    on the former alone. Here targets are ranked after histories that nobody was asked about, and test items play no
    part, so that settings can be chosen on it.
    """
    shorter = replace(dataset, sequences=dataset.sequences.without_newest(1))
    split = leave_one_out(shorter)
    return replace(split, protocol=f"{split.protocol}, {EARLIER}")


def folder_of(run: Run, name: str, teacher: Teacher | None = None, start: Student | None = None) -> Path:
    """Return where `train` keeps checkpoint and metrics."""
    sections = {key: value for key, value in run.dump(defaults=False).items() if key != "data"}
    if teacher is not None:
        sections["teacher"] = teacher.identity
    if start is not None:
        sections["start"] = LocalTeacher(start.model).identity
    digest = hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:12]
    return WORK / f"{name.replace('/', '_')}_{run.training.seed}_{digest}"


def after_last_epoch(split: Split, run: Run, folder: Path) -> Model:
    """Return the model of an unfinished training as it is now, not as it was at its best."""
    model = build_model(run.student.name, split.dataset.n_items, run.student.config, train=split.train)
    model.load_state_dict(torch.load(folder / CHECKPOINT, weights_only=True)["student"])
    return model.eval()


def stages(split: Split, run: Run, name: str, epochs: Sequence[int]) -> list[Model]:
    """Return a model as it was after some epochs of a training without a teacher, which is repeated for that."""
    return [_stage(split, run, name, epoch) for epoch in epochs]


def _stage(split: Split, run: Run, name: str, epoch: int) -> Model:
    def watch(row: EpochRow) -> None:
        if row.epoch == epoch:
            raise StoppedError

    name = f"{name}/epoch-{epoch}"
    folder = folder_of(run, name)
    if _epochs(folder) < epoch:
        with suppress(StoppedError):
            train(split, run, name, watch=watch)
    return after_last_epoch(split, run, folder)


def _epochs(folder: Path) -> int:
    """Count the epochs of which the weights are kept."""
    path = folder / CHECKPOINT
    return len(torch.load(path, weights_only=True)["rows"]) if path.is_file() else 0


def by_stratum(found: Evaluation, split: Split) -> dict[str, Evaluation]:
    """Cut an evaluation into all, head, tail, five bands of length, and items head and tail."""
    groups = Groups.from_train(split.train, split.dataset.n_items)
    return strata(found, head_users=groups.head_users, length_bands=groups.bands, head_items=groups.head_items)


def figures(found: Evaluation, split: Split) -> list[Values]:
    """Return the metrics of all strata as rows."""
    return table(by_stratum(found, split))


def search_figures(found: Evaluation, split: Split) -> list[Values]:
    """Return what the choice of settings looks at."""
    return [
        row
        for row in figures(found, split)
        if row["stratum"] in ("all", "head", "tail") and row["metric"] in ("hr", "ndcg")
    ]


def record(results: ResultTable, key: Values, rows: Iterable[Values], *, minutes: float) -> None:
    """Write the figures of one student, with the minutes of its training and the commit."""
    about = {"minutes": minutes, "commit": commit()}
    results.append(*({**key, **row, **about} for row in rows))


def table_parser(
    doc: str | None, tables: Iterable[str], *, seeds: Sequence[int], example: str
) -> argparse.ArgumentParser:
    """Return what the command of every benchmark with several tables understands; ``example``: part of a row's name."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=list(tables), default="core")
    parser.add_argument("--only", default="", help=f"part of a row's name, such as {example}; or a pattern")
    parser.add_argument("--seeds", type=int, nargs="*", default=seeds)
    parser.add_argument("--compare", action="store_true", help="make the paired tests of the rows that are there")
    parser.add_argument(
        "--search",
        nargs="*",
        metavar="SECTION.KEY=[V, V]",
        help="try every combination of these values on validation data, e.g. method.weight=[5,10,20]",
    )
    return parser


def path_of(*parts: str) -> str:
    """Return a row's name, for people and folders: its parts that are not empty, without spaces."""
    return "/".join(part.replace(" ", "-") for part in parts if part)


def chosen(tables: Mapping[str, Callable[[], Iterator[AnyRow]]], arguments: argparse.Namespace) -> list[AnyRow]:
    """Return the rows of the table that arguments of `table_parser` name."""
    rows = tables[arguments.table]()
    return [row for row in rows if re.search(arguments.only, row.name) and row.seed in arguments.seeds]


def search_key(key: Values, changes: Values, *, cases: str = "valid") -> Values:
    """Return the columns under which a try with some ``section.key`` changed stands; ``cases`` are what it ranked."""
    variant = " ".join(filter(None, (key["variant"], json.dumps(changes, sort_keys=True))))
    return {**key, "split": f"{key['split']}/{cases}", "variant": variant}


def changed(sections: Values, changes: Mapping[str, object]) -> Values:
    """Return the sections of a run with some ``section.key``, or ``section.key.key``, changed."""
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        sections = {**sections, first: changed(sections.get(first, {}), {rest: value}) if rest else value}
    return sections


def grid(assignments: list[str]) -> Iterator[Values]:
    """Yield every combination of ``name=[value, …]``."""
    names, values = [], []
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        names.append(name)
        values.append(json.loads(text))
    for combination in itertools.product(*values):
        yield dict(zip(names, combination, strict=True))


def commit() -> str:
    """Return the commit that is measured."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
