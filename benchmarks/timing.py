"""What the benchmarks of training time share: whole epochs, quiet measurements in processes of their own, and rows."""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import mean
from typing import Any, Protocol, TypeVar

import numpy as np
from benchmarks.experiments import Values
from benchmarks.peers.machine import CpuTimes, Load, is_noisy
from benchmarks.results import FOLDER, SPEED, ResultTable

from recdistill import __version__
from recdistill.data.benchmark_data import load_benchmark
from recdistill.data.dataset import Sequences
from recdistill.data.splits import leave_one_out
from recdistill.errors import RecDistillError
from recdistill.methods.base import Method, Setting
from recdistill.models.base import Model
from recdistill.training.loop import fit
from recdistill.training.progress import EpochRow, Silent
from recdistill.training.settings import TrainerSettings

MIN_EPOCHS = 3
"""Epochs that are measured at least, after the first, which warms up."""
TRIES = 3
"""Attempts at a quiet measurement before a noisy one is written down as such."""
NOISY = "/noisy"
"""Ends the setting of a measurement that stayed disturbed."""


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


def time_epochs(
    student: Model, method: Method, setting: Setting, training: TrainerSettings, *, seconds: float, round_of: int = 1
) -> tuple[float, Load]:
    """Return the seconds of an epoch, validation not counted, and who used the processor.

    Args:
        student: untrained.
        method: not prepared yet.
        setting: what it learns from.
        training: settings of the loop, but for its end.
        seconds: measured at least.
        round_of: epochs that are averaged as a whole, where not all are alike.
    """
    epochs = Epochs(seconds, round_of)
    endless = training.model_copy(update={"epochs": 10**6, "patience": 10**6})
    with suppress(EnoughError):
        fit(student, method, setting, endless, validate=lambda _: 0.0, progress=epochs)
    return mean(epochs.measured), epochs.load


def quietest(measure: Callable[..., Values], *arguments: Any, tries: int, **options: Any) -> Values:
    """Measure in processes of their own until one is `undisturbed`."""

    def apart() -> Values:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            return process.submit(measure, *arguments, **options).result()

    return undisturbed(apart, tries=tries)


def undisturbed(measure: Callable[[], Values], *, tries: int) -> Values:
    """Measure until nobody else used the processor, at most ``tries`` times; return the quietest result."""
    results: list[Values] = []
    while not results or (len(results) < tries and is_noisy(results[-1]["foreign_cores"], results[-1]["stolen_cores"])):
        results.append(measure())
    return min(results, key=lambda result: float(result["foreign_cores"]) + float(result["stolen_cores"]))


class Job(Protocol):
    """One cell of a table of times."""

    @property
    def where(self) -> Values:
        """Its columns ``system``, ``dataset`` and ``repeat``."""

    @property
    def setting(self) -> str:
        """Its setting, to which `NOISY` may be added."""

    @property
    def over(self) -> tuple[Values, str]:
        """``where`` and ``setting`` of the job whose seconds its own are divided by."""


AnyJob = TypeVar("AnyJob", bound=Job)


def measure_all(jobs: Iterable[AnyJob], table: ResultTable, measured: Callable[[AnyJob], Values]) -> None:
    """Measure what is not in the table yet; a row is on disk as soon as it is known."""
    for job in jobs:
        if find(table, job.where, job.setting):
            continue
        result = measured(job)
        base = find(table, *job.over)
        row = {
            **job.where,
            "version": __version__,
            "setting": f"{job.setting}{noise(result)}",
            "seconds": result["seconds"],
            "peak_mb": round(result["peak_mb"]),
            "ratio": result["seconds"] / float(base["seconds"]) if base else 1.0,
        }
        table.append(row)
        print(row, flush=True)


def find(table: ResultTable, where: Values, setting: str) -> dict[str, str] | None:
    """Return the row of what was measured before, noisy or not."""
    rows = [row for end in ("", NOISY) for row in table.find(**where, setting=f"{setting}{end}")]
    return rows[0] if rows else None


def noise(result: Values) -> str:
    """Return what is added to the setting of a result."""
    return NOISY if is_noisy(result["foreign_cores"], result["stolen_cores"]) else ""


def speed_parser(doc: str | None, *, seconds: float) -> argparse.ArgumentParser:
    """Return what the commands of these benchmarks understand; ``seconds`` by default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="least time of one measurement, after warming up"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="made-up data, one short repeat, results thrown away")
    return parser


def speed_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line, and add how many ``tries`` a measurement has; a smoke test is cut short."""
    options = parser.parse_args()
    options.tries = TRIES
    if options.smoke:
        options.repeats, options.seconds, options.tries = 1, 0.1, 1
    return options


@contextmanager
def speed_table(name: str, *, smoke: bool) -> Iterator[ResultTable]:
    """Give the table to fill, in a smoke test one that is thrown away.

    Raises:
        SystemExit: for an error of ours, in one line.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield ResultTable((Path(folder) if smoke else FOLDER) / f"{name}.csv", SPEED)
        except RecDistillError as error:
            raise SystemExit(f"error: {error}") from error


def sequences(dataset: str) -> tuple[Sequences, int]:
    """Return the training sequences of leave-one-out, made flat for sending, and the number of items."""
    split = leave_one_out(load_benchmark(dataset))
    return Sequences.from_offsets(*split.train.flat()), split.dataset.n_items


def made_up() -> tuple[Sequences, int]:
    """Return a small data set that takes no reading."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(5, 20, size=300))])
    return Sequences.from_offsets(rng.integers(1, 401, size=offsets[-1]).astype(np.int32), offsets), 400
