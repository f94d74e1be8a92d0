"""How much longer does an epoch take with a teacher than without one?

MF students of 20 dimensions at the authors' settings, on data of theirs, and a SASRec of 16; every measurement is a
process of its own, and methods take turns, so that a slow minute of the machine hits them alike. An epoch is what
`recdistill.training.loop.fit` does in one, looking at the student's lists included, validation not. Where a method
looks at a part of the users each epoch (``/refresh-10``), whole rounds of them are averaged. What a teacher says costs
the same whether it is trained or not, so it is not. The setting ``refresh`` is one look at the lists of all users, and
nothing else after the teacher was asked.

``ratio``: seconds over those of the bare student (``labels``) in the same repeat; RCE-KD's must not pass 1.3, and the
refresh on Gowalla 3 GiB. Run ``python -m benchmarks.distillation_speed``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from benchmarks.experiments import Values
from benchmarks.peers.machine import CpuTimes, Load, peak_mb
from benchmarks.rcekd_rows import CITEULIKE, EVERY, LEAVE_ONE_OUT, SHUFFLED, Cell, Row
from benchmarks.rcekd_tuning import cut
from benchmarks.results import ResultTable
from benchmarks.timing import made_up, measure_all, quietest, speed_options, speed_parser, speed_table, time_epochs

from recdistill.data.dataset import Sequences
from recdistill.methods.base import Method, Setting
from recdistill.models.base import Model, build_model
from recdistill.runs.file import Run
from recdistill.teachers.local import LocalTeacher

BARE, REFRESH = "labels", "refresh"
RARELY = 10
"""Epochs between two looks at the list of the same user, where they are to be few."""
RARE = f"refresh-{RARELY}"
CELLS = {
    "citeulike-t": CITEULIKE,
    "gowalla": Cell("gowalla", SHUFFLED, "mf-300", "mf-20", EVERY),
    "amazon-beauty": Cell("amazon-beauty", LEAVE_ONE_OUT, "sasrec-64", "sasrec-16"),
}
MOST_RATIO, MOST_MB = 1.3, 3 * 1024**3 / 1e6
"""The bars of RCE-KD: of its epoch, and of the memory of a refresh on Gowalla."""


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

    @property
    def over(self) -> tuple[Values, str]:
        """The bare student's epoch in the same repeat."""
        return {**self.where, "system": BARE}, "epoch"

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
            for method in filter(CELLS[dataset].methods.__contains__, methods):
                yield Job(dataset, method, "epoch", repeat)
                if method == "rcekd":
                    yield Job(dataset, method, f"epoch/{RARE}", repeat)
                    yield Job(dataset, method, REFRESH, repeat)


def measure(job: Job, train: Sequences, n_items: int, *, seconds: float, threads: int) -> Values:
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
        round_of = RARELY if job.setting.endswith(RARE) else 1
        spent, load = time_epochs(student, method, setting, run.training, seconds=seconds, round_of=round_of)
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
    split = cut(dataset, CELLS[dataset].split)
    return Sequences.from_offsets(*split.train.flat()), split.dataset.n_items


def main() -> None:
    parser = speed_parser(__doc__, seconds=5.0)
    parser.add_argument("--datasets", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--methods", nargs="+", choices=EVERY, default=EVERY, help="the bare student is always in")
    options = speed_options(parser)
    with speed_table("distillation_speed", smoke=options.smoke) as table:
        data = {dataset: made_up() if options.smoke else read(dataset) for dataset in options.datasets}
        limits = {"seconds": options.seconds, "threads": options.threads, "tries": options.tries}
        jobs = plan(options.datasets, options.methods, options.repeats)
        measure_all(jobs, table, lambda job: quietest(measure, job, *data[job.dataset], **limits))
        print("\n".join(["bars that were missed:", *missed(table)]))


if __name__ == "__main__":
    main()
