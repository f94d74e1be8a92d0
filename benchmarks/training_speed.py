"""How long does an epoch of SASRec take, here and in RecTools and RecBole?

Same data, same size, same threads; every measurement is a process of its own, and the systems take turns, so that a
slow minute of the machine hits them alike. See ``benchmarks/README.md`` for the command, the time it takes and how to
read the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.peers.driver import Arguments, Histories
from benchmarks.peers.environment import run_driver
from benchmarks.peers.machine import is_noisy
from benchmarks.results import FOLDER, SPEED, ResultTable

from recdistill.data.benchmark_data import load_benchmark
from recdistill.errors import RecDistillError

FULL, SAMPLED = "full-softmax", "sampled-softmax"
OURS = "recdistill"
FLOOR = "arithmetic-floor"
TRIES = 3
"""Attempts at a quiet measurement before a noisy one is written down as such."""


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

MAX_LEN = {"amazon-beauty": 50, "ml-1m": 200, "made-up": 20}


@dataclass(frozen=True, slots=True)
class Job:
    """One cell of the table."""

    system: str
    dataset: str
    loss: str
    allocator: str
    repeat: int

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


def find(table: ResultTable, job: Job) -> dict[str, str] | None:
    """Return the row of a job that was measured before, noisy or not."""
    for setting in (job.setting, f"{job.setting}/noisy"):
        rows = table.find(system=job.system, dataset=job.dataset, setting=setting, repeat=job.repeat)
        if rows:
            return rows[0]
    return None


def measure(job: Job, arguments: Arguments, *, tries: int) -> dict[str, Any]:
    """Run the driver until it was undisturbed, at most ``tries`` times; return the quietest result.

    Raises:
        RuntimeError: when the driver fails.
    """
    system = SYSTEMS[job.system]
    results: list[dict[str, Any]] = []
    while not results or (len(results) < tries and is_noisy(results[-1]["foreign_cores"], results[-1]["stolen_cores"])):
        results.append(run_driver(system.driver, arguments, peer=system.peer, tuned=job.allocator == "tuned"))
    return min(results, key=lambda result: float(result["foreign_cores"]) + float(result["stolen_cores"]))


def to_rows(job: Job, result: dict[str, Any], *, ours: float) -> list[dict[str, object]]:
    """Return the rows of one measurement: the epoch and, for ours, each phase of it.

    Args:
        job: what was measured.
        result: what the driver printed.
        ours: our seconds in the same repeat.
    """
    noise = ["noisy"] if is_noisy(result["foreign_cores"], result["stolen_cores"]) else []
    parts: list[tuple[list[str], float]] = [([], result["seconds"])]
    parts += [([f"phase-{phase}"], seconds) for phase, seconds in result.get("phases", {}).items()]
    return [
        {
            "system": job.system,
            "version": result["version"],
            "dataset": job.dataset,
            "setting": "/".join([job.setting, *name, *noise]),
            "repeat": job.repeat,
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
        if (row := find(table, job)) is not None:
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
    if dataset == "made-up":
        rng = np.random.default_rng(0)
        offsets = np.concatenate([[0], np.cumsum(rng.integers(5, 30, size=400))])
        Histories(rng.integers(1, 301, size=offsets[-1]), offsets).write(path)
        return
    items, offsets = load_benchmark(dataset).sequences.flat()
    Histories(items.astype(np.int64), offsets).write(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--datasets", nargs="+", choices=list(MAX_LEN), default=["amazon-beauty", "ml-1m"])
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="ours is always in")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="least time of one measurement, after warming up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="made-up data, one short repeat, results thrown away")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.smoke:
            options.datasets, options.repeats, options.seconds = ["made-up"], 1, 0.5
        files = {dataset: folder / f"{dataset}.npz" for dataset in options.datasets}
        try:
            table = ResultTable((folder if options.smoke else FOLDER) / "training_speed.csv", SPEED)
            for dataset, path in files.items():
                write_histories(dataset, path)
        except RecDistillError as error:
            raise SystemExit(f"error: {error}") from error
        jobs = list(plan(options.datasets, options.systems, options.repeats))
        tries = 1 if options.smoke else TRIES
        failed = run(jobs, table, files, seconds=options.seconds, threads=options.threads, tries=tries)
    if failed:
        raise SystemExit(f"{failed} of {len(jobs)} measurements failed; the same command tries them again")


if __name__ == "__main__":
    main()
