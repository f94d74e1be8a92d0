"""How much longer does an epoch take with a teacher than without one?

MF students of 20 dimensions at the authors' settings, on data of theirs; every measurement is a process of its own, and
methods take turns, so that a slow minute of the machine hits them alike. An epoch is what `recdistill.trainer.fit`
does in one, looking at the student's lists included, validation not. Where a method looks only every few epochs
(``/refresh-10``), whole such rounds are averaged. What a teacher says costs the same whether it is trained or not, so
it is not. The setting ``refresh`` is one look at the student's lists, and nothing else after the teacher was asked.

``ratio``: seconds over those of the bare student (``labels``) in the same repeat; RCE-KD's must not pass 1.3, and the
refresh on Gowalla 3 GiB. Run ``python -m benchmarks.distillation_speed``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from benchmarks.experiments import Values
from benchmarks.peers.machine import CpuTimes, Load, is_noisy, peak_mb
from benchmarks.rcekd import EVERY, SHUFFLED, Cell, Row
from benchmarks.results import FOLDER, SPEED, ResultTable

from recdistill import __version__
from recdistill.data.benchmark_data import load_benchmark
from recdistill.data.dataset import Sequences
from recdistill.data.splits import random_split
from recdistill.errors import RecDistillError
from recdistill.methods.base import Method, Setting
from recdistill.models.base import Model, build_model
from recdistill.runfile import Run
from recdistill.teachers.local import LocalTeacher
from recdistill.trainer import EpochRow, Silent, TrainerSettings, fit

BARE, REFRESH = "labels", "refresh"
RARELY = 10
"""Epochs between two looks at the student's lists, where they are to be few."""
RARE = f"refresh-{RARELY}"
CELLS = {
    "citeulike-t": Cell("citeulike-t", SHUFFLED, "mf-400", "mf-20"),
    "gowalla": Cell("gowalla", SHUFFLED, "mf-300", "mf-20"),
}
MOST_RATIO, MOST_MB = 1.3, 3 * 1024**3 / 1e6
"""The bars of RCE-KD: of its epoch, and of the memory of a refresh on Gowalla."""
MIN_EPOCHS = 3
"""Epochs that are measured at least, after the first, which warms up."""
TRIES = 3
"""Attempts at a quiet measurement before a noisy one is written down as such."""


@dataclass(frozen=True, slots=True)
class Job:
    """One cell of the table."""

    dataset: str
    method: str
    setting: str
    """``epoch``, ``epoch/refresh-10`` or ``refresh``."""
    repeat: int

    @property
    def where(self) -> Values:
        """Its columns in the table, but for the setting, which may be marked as noisy."""
        return {"system": self.method, "dataset": self.dataset, "repeat": self.repeat}

    def run(self) -> Run:
        """Return the settings of the student and the method."""
        cell = CELLS[self.dataset]
        bare = self.method == BARE
        row = Row(cell.dataset, cell.split, "" if bare else cell.teacher, cell.student, self.method)
        return row.run({"method.refresh_every": RARELY} if self.setting.endswith(RARE) else {})


def plan(datasets: Sequence[str], methods: Sequence[str], repeats: int) -> Iterator[Job]:
    """Yield what to measure, in turns: within a repeat, all methods on the same data follow each other."""
    for repeat in range(1, repeats + 1):
        for dataset in datasets:
            yield Job(dataset, BARE, "epoch", repeat)
            for method in methods:
                yield Job(dataset, method, "epoch", repeat)
                if method == "rcekd":
                    yield Job(dataset, method, f"epoch/{RARE}", repeat)
                    yield Job(dataset, method, REFRESH, repeat)


class EnoughError(Exception):
    """Ends the training once enough was measured."""


class Epochs(Silent):
    """Notes how long epochs take, the first, which warms up, left out."""

    def __init__(self, seconds: float, round_of: int) -> None:
        self.seconds, self.round_of = seconds, round_of
        self.measured: list[float] = []
        self.load = Load(0.0, 0.0, 0.0)
        self._first: CpuTimes | None = None

    def epoch(self, row: EpochRow, settings: TrainerSettings) -> None:
        """Note an epoch; raise `EnoughError` after the last."""
        now = CpuTimes.now()
        if self._first is None:
            self._first = now
            return
        self.measured.append(row.seconds)
        whole = len(self.measured) % self.round_of == 0
        if whole and len(self.measured) >= MIN_EPOCHS and sum(self.measured) >= self.seconds:
            self.load = Load.between(self._first, now)
            raise EnoughError


def measure(job: Job, train: Sequences, n_items: int, *, seconds: float, threads: int) -> dict[str, Any]:
    """Measure a job in this process."""
    torch.set_num_threads(threads)
    run = job.run()
    student = build_model(run.student.name, n_items, run.student.config, train=train)
    method = Method.registry[run.method.name](run.method.config)
    teacher = None if job.method == BARE else _teacher(job, train, n_items)
    setting = Setting(train=train, users=np.arange(len(train)), n_items=n_items, teacher=teacher)
    if job.setting == REFRESH:
        spent, load = _refresh(student, method, setting)
    else:
        spent, load = _epochs(student, method, setting, run, seconds, RARELY if job.setting.endswith(RARE) else 1)
    return {"seconds": spent, "peak_mb": peak_mb(), "foreign_cores": load.foreign, "stolen_cores": load.stolen}


def _teacher(job: Job, train: Sequences, n_items: int) -> LocalTeacher:
    """Return an untrained teacher, with earlier stages that are others of its kind."""
    cell = CELLS[job.dataset]
    run = Row(cell.dataset, cell.split, cell.teacher, "", "teacher").run({})
    stages = [
        build_model(run.student.name, n_items, run.student.config, train=train, seed=seed)
        for seed in (range(3) if job.method == "hetcomp" else (2,))
    ]
    return LocalTeacher(stages[-1], earlier=stages[:-1])


def _refresh(student: Model, method: Method, setting: Setting) -> tuple[float, Load]:
    method.prepare(setting)
    method.fit_to(student)
    begin = CpuTimes.now()
    method.start_epoch(student, 0, torch.Generator().manual_seed(0))
    end = CpuTimes.now()
    return end.wall - begin.wall, Load.between(begin, end)


def _epochs(
    student: Model, method: Method, setting: Setting, run: Run, seconds: float, round_of: int
) -> tuple[float, Load]:
    epochs = Epochs(seconds, round_of)
    settings = run.training.model_copy(update={"epochs": 10**6, "patience": 10**6})
    with suppress(EnoughError):
        fit(student, method, setting, settings, validate=lambda _: 0.0, progress=epochs)
    return mean(epochs.measured), epochs.load


def measure_apart(
    job: Job, train: Sequences, n_items: int, *, seconds: float, threads: int, tries: int
) -> dict[str, Any]:
    """Measure in processes of their own until one is undisturbed, at most ``tries``; return the quietest result."""
    results: list[dict[str, Any]] = []
    while not results or (len(results) < tries and is_noisy(results[-1]["foreign_cores"], results[-1]["stolen_cores"])):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
            results.append(apart.submit(measure, job, train, n_items, seconds=seconds, threads=threads).result())
    return min(results, key=lambda result: float(result["foreign_cores"]) + float(result["stolen_cores"]))


def to_row(job: Job, result: dict[str, Any], *, bare: float) -> Values:
    """Return the row of one measurement; ``bare`` is the bare student's seconds in the same repeat."""
    noise = "/noisy" if is_noisy(result["foreign_cores"], result["stolen_cores"]) else ""
    return {
        **job.where,
        "version": __version__,
        "setting": f"{job.setting}{noise}",
        "seconds": result["seconds"],
        "peak_mb": round(result["peak_mb"]),
        "ratio": result["seconds"] / bare,
    }


def find(table: ResultTable, job: Job) -> dict[str, str] | None:
    """Return the row of a job that was measured before, noisy or not."""
    rows = [row for end in ("", "/noisy") for row in table.find(**job.where, setting=f"{job.setting}{end}")]
    return rows[0] if rows else None


def run(
    jobs: Sequence[Job],
    table: ResultTable,
    data: dict[str, tuple[Sequences, int]],
    *,
    seconds: float,
    threads: int,
    tries: int,
) -> None:
    """Measure what is not in the table yet; a row is on disk as soon as it is known."""
    for number, job in enumerate(jobs, 1):
        if find(table, job):
            continue
        train, n_items = data[job.dataset]
        result = measure_apart(job, train, n_items, seconds=seconds, threads=threads, tries=tries)
        bare = find(table, Job(job.dataset, BARE, "epoch", job.repeat))
        row = to_row(job, result, bare=float(bare["seconds"]) if bare else result["seconds"])
        table.append(row)
        print(f"[{number}/{len(jobs)}] {row}", flush=True)


def missed(table: ResultTable) -> Iterator[str]:
    """Say which rows pass a bar."""
    for row in table.rows():
        name = f"{row['dataset']} {row['system']} {row['setting']} repeat {row['repeat']}"
        if row["system"] == "rcekd" and row["setting"].startswith("epoch") and float(row["ratio"]) > MOST_RATIO:
            yield f"{name}: {row['ratio']} times the bare student's epoch, {MOST_RATIO} allowed"
        if row["setting"].startswith(REFRESH) and float(row["peak_mb"]) > MOST_MB:
            yield f"{name}: {row['peak_mb']} MB, {MOST_MB:.0f} allowed"


def read(dataset: str) -> tuple[Sequences, int]:
    """Return the training sequences, made flat for sending, and the number of items."""
    split = random_split(load_benchmark(dataset))
    return Sequences.from_offsets(*split.train.flat()), split.dataset.n_items


def made_up() -> tuple[Sequences, int]:
    """Return a small data set that takes no reading."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(5, 20, size=300))])
    return Sequences.from_offsets(rng.integers(1, 401, size=offsets[-1]).astype(np.int32), offsets), 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--methods", nargs="+", choices=EVERY, default=EVERY, help="the bare student is always in")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="least time of one measurement, after warming up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="made-up data, one short repeat, results thrown away")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.smoke:
            options.repeats, options.seconds = 1, 0.1
        try:
            table = ResultTable((Path(name) if options.smoke else FOLDER) / "distillation_speed.csv", SPEED)
            data = {dataset: made_up() if options.smoke else read(dataset) for dataset in options.datasets}
            jobs = list(plan(options.datasets, options.methods, options.repeats))
            tries = 1 if options.smoke else TRIES
            run(jobs, table, data, seconds=options.seconds, threads=options.threads, tries=tries)
            print("\n".join(["bars that were missed:", *missed(table)]))
        except RecDistillError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from error


if __name__ == "__main__":
    main()
