"""What do two augmented views of a batch cost, made and encoded, against one encoding of the plain histories?

A SASRec (width 64, 2 blocks, 2 heads, 50 items) reads training histories as the contrastive methods do. Every batch is
timed in all ways in turn, so that a slow minute of the machine hits them alike; ``seconds`` are those of a batch, the
median. The setting ``forward`` is encoding in training mode, ``training`` adds the way back, ``views`` is making two
views and nothing else. ``encoding`` is the pass over the plain histories, the other systems are two views by the
operators and shares of that method, and one pass over both.

``ratio``: seconds over those of ``encoding`` in the same repeat, forward alone for ``views``; two views must not pass
2.2. ``python -m benchmarks.augmentation_speed`` takes about two minutes; with ``--smoke`` some seconds, on made-up
data, results thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from statistics import median

import torch
from benchmarks.experiments import Values
from benchmarks.peers.machine import CpuTimes, Load, peak_mb
from benchmarks.results import ResultTable
from benchmarks.timing import find, made_up, noise, quietest, sequences, speed_options, speed_parser, speed_table
from torch import Tensor

from recdistill import __version__
from recdistill.augmentations import AugmentationConfig, two_views
from recdistill.data.dataset import Sequences
from recdistill.methods.cl4srec import CL4SRecAugmentation
from recdistill.methods.contrast import encode_views, pool
from recdistill.models.base import Batch, Model, build_model
from recdistill.training.batches import Batches
from recdistill.training.loop import tune_allocator

DATASET, MAX_LEN = "amazon-beauty", 50
BATCH_SIZES = (256, 512)
ENCODING = "encoding"
VIEWS: dict[str, AugmentationConfig] = {"s4rec": AugmentationConfig(), "cl4srec": CL4SRecAugmentation()}
MOST_RATIO = 2.2
"""The bar: two views, made and encoded, over one encoding."""
WARM_UP = 3
"""Batches that are not counted."""

Times = dict[tuple[str, str], float]
"""Seconds of a batch, by system and setting."""


class Stopwatch:
    """Times one batch in every way."""

    def __init__(self, student: Model, generator: torch.Generator) -> None:
        self.student, self.generator = student, generator

    def __call__(self, batch: Batch) -> Times:
        """Return the seconds of every way."""
        times: Times = {}
        for system in (ENCODING, *VIEWS):
            if system != ENCODING:
                times[system, "views"] = timed(self.views, batch, system)
            times[system, "forward"] = timed(self.encode, batch, system)
            times[system, "training"] = timed(self.train, batch, system)
        return times

    def views(self, batch: Batch, system: str) -> Batch:
        """Make two views as a method does."""
        return two_views(batch, VIEWS[system], self.generator, max_len=MAX_LEN)

    def encode(self, batch: Batch, system: str) -> Tensor:
        """Encode the plain histories, or two views that are made here."""
        if system == ENCODING:
            return pool(self.student.encode_positions(batch), batch, "mean")
        return torch.cat(encode_views(self.student, self.views(batch, system), "mean"))

    def train(self, batch: Batch, system: str) -> None:
        """Encode, and take the gradient back."""
        self.student.zero_grad(set_to_none=True)
        self.encode(batch, system).sum().backward()


def timed(way: Callable[[Batch, str], object], batch: Batch, system: str) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    way(batch, system)
    return time.perf_counter() - begin


def measure(train: Sequences, n_items: int, batch_size: int, *, seconds: float, threads: int) -> Values:
    """Time batches in this process until ``seconds`` are over; also peak memory, and who disturbed."""
    tune_allocator()
    torch.set_num_threads(threads)
    stopwatch = Stopwatch(build_model("sasrec", n_items, {"max_len": MAX_LEN}), torch.Generator().manual_seed(0))
    batches = endless(Batches(train, batch_size=batch_size, max_len=MAX_LEN, reads_last=False))
    for _ in range(WARM_UP):
        stopwatch(next(batches))
    found: list[Times] = []
    begin = CpuTimes.now()
    while not found or time.perf_counter() - begin.wall < seconds:
        found.append(stopwatch(next(batches)))
    load = Load.between(begin, CpuTimes.now())
    times = {way: median(times[way] for times in found) for way in found[0]}
    return {"times": times, "peak_mb": peak_mb(), "foreign_cores": load.foreign, "stolen_cores": load.stolen}


def endless(batches: Batches) -> Iterator[Batch]:
    """Yield the histories of epoch after epoch, without the short batch at the end of each."""
    for epoch in count():
        for batch, _, _ in islice(batches.epoch(0, epoch), max(1, batches.n_users // batches.batch_size)):
            yield batch


def to_rows(dataset: str, batch_size: int, repeat: int, result: Values) -> Iterator[Values]:
    """Yield a row for every way that was timed."""
    times: Times = result["times"]
    for (system, setting), seconds in times.items():
        plain = times[ENCODING, "forward" if setting == "views" else setting]
        yield {
            "system": system,
            "version": __version__,
            "dataset": dataset,
            "setting": f"batch-{batch_size}/{setting}{noise(result)}",
            "repeat": repeat,
            "seconds": seconds,
            "peak_mb": round(result["peak_mb"]),
            "ratio": seconds / plain,
        }


def run(
    table: ResultTable,
    dataset: str,
    train: Sequences,
    n_items: int,
    *,
    seconds: float,
    threads: int,
    repeats: int,
    tries: int,
) -> None:
    """Measure what is not in the table yet; the rows of a measurement are on disk as soon as they are known."""
    for repeat in range(1, repeats + 1):
        for batch_size in BATCH_SIZES:
            where = {"system": ENCODING, "dataset": dataset, "repeat": repeat}
            if find(table, where, f"batch-{batch_size}/forward"):
                continue
            result = quietest(measure, train, n_items, batch_size, seconds=seconds, threads=threads, tries=tries)
            rows = list(to_rows(dataset, batch_size, repeat, result))
            table.append(*rows)
            for row in rows:
                print(
                    f"repeat {repeat}: {row['system']} {row['setting']}: {row['seconds']:.4f} s, × {row['ratio']:.2f}"
                )


def missed(table: ResultTable) -> Iterator[str]:
    """Say which rows pass the bar."""
    for row in table.rows():
        if float(row["ratio"]) > MOST_RATIO:
            name = f"{row['dataset']} {row['system']} {row['setting']} repeat {row['repeat']}"
            yield f"{name}: {row['ratio']} times one encoding, {MOST_RATIO} allowed"


def main() -> None:
    options = speed_options(speed_parser(__doc__, seconds=10.0))
    with speed_table("augmentation_speed", smoke=options.smoke) as table:
        train, n_items = made_up() if options.smoke else sequences(DATASET)
        run(
            table,
            "made-up" if options.smoke else DATASET,
            train,
            n_items,
            seconds=options.seconds,
            threads=options.threads,
            repeats=options.repeats,
            tries=options.tries,
        )
        print("\n".join(["bars that were missed:", *missed(table)]))


if __name__ == "__main__":
    main()
