"""How much longer does an epoch take with what S4Rec and its rivals add to the labels?

SASRec with the settings of ``s4rec``; every measurement is a process of its own, and methods take turns, so that a slow
minute of the machine hits them alike. An epoch is what `recdistill.training.loop.fit` does in one, K-means at its
beginning included, validation not. ``s4rec-kmeans`` is S4Rec with K-means instead of online clustering, and nothing
else changed.

``ratio``: seconds over those of labels alone (``labels``) on the same base loss in the same repeat. S4Rec's must not
pass 3.2; the paper says that K-means takes 1.5 times as long as online clustering, or longer. And S4Rec's training on
Beauty, in ``s4rec.csv``, must not take longer than 20 minutes. Run ``python -m benchmarks.s4rec_speed``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from benchmarks.experiments import Values
from benchmarks.peers.machine import peak_mb
from benchmarks.results import QUALITY, ResultTable
from benchmarks.s4rec import RESULTS
from benchmarks.s4rec_rows import DATASETS, KMEANS, METHODS, OURS, STUDIED, Row
from benchmarks.timing import (
    NOISY,
    find,
    made_up,
    measure_all,
    quietest,
    sequences,
    speed_options,
    speed_parser,
    speed_table,
    time_epochs,
)

from recdistill.data.dataset import Sequences
from recdistill.methods.base import Method, Setting
from recdistill.models.base import build_model

LOSSES = ("softmax", "bce")
"""The base losses that are timed; smoothed labels are a softmax, too."""
BARE, BY_KMEANS = "labels", f"{OURS}-kmeans"
MOST_RATIO, LEAST_KMEANS_RATIO, MOST_MINUTES = 3.2, 1.5, 20.0
"""The bars: S4Rec over labels, K-means over online clustering, and training until it stops by itself."""


@dataclass(frozen=True, slots=True)
class Job:
    """One cell of the table."""

    dataset: str
    loss: str
    system: str
    repeat: int

    @property
    def where(self) -> Values:
        """Its columns in the table, but for the setting, which may be marked as noisy."""
        return {"system": self.system, "dataset": self.dataset, "repeat": self.repeat}

    @property
    def setting(self) -> str:
        """What is measured."""
        return f"{self.loss}/epoch"

    @property
    def over(self) -> tuple[Values, str]:
        """Labels alone, in the same repeat."""
        return {**self.where, "system": BARE}, self.setting

    @property
    def row(self) -> Row:
        """What is trained."""
        by_kmeans = self.system == BY_KMEANS
        return Row(self.dataset, OURS if by_kmeans else self.system, self.loss, KMEANS if by_kmeans else "")


def plan(datasets: Sequence[str], repeats: int) -> Iterator[Job]:
    """Yield what to measure, in turns: within a repeat, all methods on the same data follow each other."""
    for repeat in range(1, repeats + 1):
        for dataset in datasets:
            for loss in LOSSES:
                for system in (*METHODS[loss], BY_KMEANS):
                    yield Job(dataset, loss, system, repeat)


def measure(job: Job, train: Sequences, n_items: int, *, seconds: float, threads: int) -> Values:
    """Measure a job in this process."""
    torch.set_num_threads(threads)
    run = job.row.run()
    student = build_model(run.student.name, n_items, run.student.config)
    users, method = np.arange(len(train)), Method.registry[run.method.name](run.method.config)
    if run.training.long_histories == "windows":
        assert student.max_len is not None
        train, users = train.with_windows(student.max_len, reads_last=method.reads_last or not student.causal)
    setting = Setting(train, users, n_items, max_len=student.max_len)
    spent, load = time_epochs(student, method, setting, run.training, seconds=seconds)
    return {"seconds": spent, "peak_mb": peak_mb(), "foreign_cores": load.foreign, "stolen_cores": load.stolen}


def missed(table: ResultTable) -> Iterator[str]:
    """Say which epochs pass a bar."""
    for row in table.rows():
        name = f"{row['dataset']} {row['system']} {row['setting']} repeat {row['repeat']}"
        if row["system"] == OURS and float(row["ratio"]) > MOST_RATIO:
            yield f"{name}: {row['ratio']} times the epoch of labels alone, {MOST_RATIO} allowed"
        if row["system"] == BY_KMEANS:
            where = {"system": OURS, "dataset": row["dataset"], "repeat": row["repeat"]}
            online = find(table, where, row["setting"].removesuffix(NOISY))
            if online and (times := float(row["seconds"]) / float(online["seconds"])) < LEAST_KMEANS_RATIO:
                yield f"{name}: {times:.2f} times the epoch of online clustering, {LEAST_KMEANS_RATIO} expected"


def trained_for_long(results: ResultTable) -> Iterator[str]:
    """Say which trainings of the core table took longer than the bar."""
    for row in results.find(dataset=STUDIED, method=OURS, stratum="all", metric="ndcg", k=10):
        if row["variant"] in METHODS and float(row["minutes"]) > MOST_MINUTES:
            name = f"{row['dataset']} {OURS} {row['variant']} seed {row['seed']}"
            yield f"{name}: trained for {row['minutes']} minutes, {MOST_MINUTES:.0f} allowed"


def main() -> None:
    parser = speed_parser(__doc__, seconds=10.0)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=[STUDIED])
    options = speed_options(parser)
    with speed_table("s4rec_speed", smoke=options.smoke) as table:
        data = {dataset: made_up() if options.smoke else sequences(dataset) for dataset in options.datasets}
        limits = {"seconds": options.seconds, "threads": options.threads, "tries": options.tries}
        jobs = plan(options.datasets, options.repeats)
        measure_all(jobs, table, lambda job: quietest(measure, job, *data[job.dataset], **limits))
        print("\n".join(["bars that were missed:", *missed(table)]))
        if RESULTS.is_file():
            print("\n".join(trained_for_long(ResultTable(RESULTS, QUALITY))))


if __name__ == "__main__":
    main()
