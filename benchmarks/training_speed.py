"""How long does an epoch of SASRec take, here and in RecTools and RecBole?

Same data, same size, same threads; every measurement is a process of its own, and the systems take turns, so that a
slow minute of the machine hits them alike. See ``benchmarks/speed.md`` for the command, the time it takes and how to
read the figures.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.experiments import Values
from benchmarks.peers.driver import Arguments, Histories
from benchmarks.peers.environment import run_driver
from benchmarks.results import ResultTable
from benchmarks.timing import find, noise, speed_options, speed_parser, speed_table, undisturbed

from recdistill.data.benchmark_data import load_benchmark

FULL, SAMPLED = "full-softmax", "sampled-softmax"
OURS = "recdistill"
FLOOR = "arithmetic-floor"


@dataclass(frozen=True, slots=True)
class System:
    """Something that trains SASRec."""

    driver: str
    """Module in ``benchmarks.peers``."""
    losses: tuple[str, ...] = (FULL,)
    peer: str | None = None
    """Whose environment it runs in (`benchmarks.peers.environment.PEERS`); our own if left out."""
    inner_dim: int = 64
    compiled: bool = False
    allocators: tuple[str, ...] = ("stock", "tuned")


SYSTEMS = {
    OURS: System("ours_sasrec", (FULL, SAMPLED)),
    "recdistill-compiled": System("ours_sasrec", (FULL, SAMPLED), compiled=True, allocators=("stock",)),
    "recdistill-inner-256": System("ours_sasrec", inner_dim=256, allocators=("stock",)),
    "rectools": System("rectools_sasrec", (FULL, SAMPLED), "rectools"),
    "rectools-fast": System("rectools_fast", peer="rectools"),
    "recbole": System("recbole_sasrec", peer="recbole"),
    FLOOR: System("arithmetic_floor", allocators=("stock",)),
}
"""Ours first: every ratio needs it."""

MADE_UP = "made-up"
MAX_LEN = {"amazon-beauty": 50, "ml-1m": 200, MADE_UP: 20}
DATASETS = ["amazon-beauty", "ml-1m"]


@dataclass(frozen=True, slots=True)
class Job:
    """One cell of the table."""

    system: str
    dataset: str
    loss: str
    allocator: str
    repeat: int

    @property
    def where(self) -> Values:
        """Its columns in the table, but for the setting, which may be marked as noisy."""
        return {"system": self.system, "dataset": self.dataset, "repeat": self.repeat}

    @property
    def setting(self) -> str:
        """Its name in the table."""
        return f"{self.loss}/{self.allocator}"


def plan(datasets: Sequence[str], systems: Sequence[str], repeats: int) -> Iterator[Job]:
    """Yield what to measure, in turns: within a repeat, all systems on the same data follow each other."""
    chosen = [name for name in SYSTEMS if name == OURS or name in systems]
    for repeat in range(1, repeats + 1):
        for allocator in ("stock", "tuned"):
            for dataset in datasets:
                for loss in (FULL, SAMPLED):
                    for name in chosen:
                        if loss in SYSTEMS[name].losses and allocator in SYSTEMS[name].allocators:
                            yield Job(name, dataset, loss, allocator, repeat)


def measure(job: Job, arguments: Arguments, *, tries: int) -> Values:
    """Run the driver until it was undisturbed.

    Raises:
        RuntimeError: when the driver fails.
    """
    system, tuned = SYSTEMS[job.system], job.allocator == "tuned"
    return undisturbed(lambda: run_driver(system.driver, arguments, peer=system.peer, tuned=tuned), tries=tries)


def to_rows(job: Job, result: dict[str, Any], *, ours: float) -> list[dict[str, object]]:
    """Return the rows of one measurement: the epoch and, for ours, each phase of it.

    Args:
        job: what was measured.
        result: what the driver printed.
        ours: our seconds in the same repeat.
    """
    parts: list[tuple[list[str], float]] = [([], result["seconds"])]
    parts += [([f"phase-{phase}"], seconds) for phase, seconds in result.get("phases", {}).items()]
    return [
        {
            **job.where,
            "version": result["version"],
            "setting": "/".join([job.setting, *name]) + noise(result),
            "seconds": seconds,
            "peak_mb": None if name else round(result["peak_mb"]),
            "ratio": seconds / ours,
        }
        for name, seconds in parts
    ]


def run(
    jobs: Sequence[Job], table: ResultTable, files: dict[str, Path], *, seconds: float, threads: int, tries: int
) -> int:
    """Measure what is not in the table yet; return how many measurements failed."""
    failed = 0
    ours: dict[tuple[str, str, int], float] = {}  # by dataset, setting, repeat
    for number, job in enumerate(jobs, 1):
        cell = (job.dataset, job.setting, job.repeat)
        label = f"[{number}/{len(jobs)}] {job.dataset} {job.setting} repeat {job.repeat}: {job.system}"
        if (row := find(table, job.where, job.setting)) is not None:
            if job.system == OURS:
                ours[cell] = float(row["seconds"])
            print(f"{label}: in the table", flush=True)
            continue
        arguments = Arguments(
            files[job.dataset],
            MAX_LEN[job.dataset],
            job.loss,
            seconds,
            threads,
            inner_dim=SYSTEMS[job.system].inner_dim,
            compiled=SYSTEMS[job.system].compiled,
        )
        try:
            result = measure(job, arguments, tries=tries)
            if job.system == OURS:
                ours[cell] = result["seconds"]
            if cell not in ours:
                raise RuntimeError("ours failed in this repeat, so there is nothing to compare with")
        except RuntimeError as error:
            failed += 1
            print(f"{label}: {error}", file=sys.stderr, flush=True)
            continue
        table.append(*to_rows(job, result, ours=ours[cell]))
        print(f"{label}: {json.dumps(result)}", flush=True)
    return failed


def write_histories(dataset: str, path: Path) -> None:
    """Write the interactions of a benchmark data set, or made-up ones, for the drivers."""
    if dataset == MADE_UP:
        rng = np.random.default_rng(0)
        offsets = np.concatenate([[0], np.cumsum(rng.integers(5, 30, size=400))])
        Histories(rng.integers(1, 301, size=offsets[-1]), offsets).write(path)
        return
    items, offsets = load_benchmark(dataset).sequences.flat()
    Histories(items.astype(np.int64), offsets).write(path)


@contextmanager
def written(datasets: Sequence[str], *, smoke: bool) -> Iterator[dict[str, Path]]:
    """Give files of the histories for the drivers, in a smoke test made-up ones; they are gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        files = {dataset: Path(folder) / f"{dataset}.npz" for dataset in ([MADE_UP] if smoke else datasets)}
        for dataset, path in files.items():
            write_histories(dataset, path)
        yield files


def main() -> None:
    parser = speed_parser(__doc__, seconds=8.0)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="ours is always in")
    options = speed_options(parser)
    with (
        speed_table("training_speed", smoke=options.smoke) as table,
        written(options.datasets, smoke=options.smoke) as files,
    ):
        jobs = list(plan(list(files), options.systems, options.repeats))
        failed = run(jobs, table, files, seconds=options.seconds, threads=options.threads, tries=options.tries)
    if failed:
        raise SystemExit(f"{failed} of {len(jobs)} measurements failed; the same command tries them again")


if __name__ == "__main__":
    main()
