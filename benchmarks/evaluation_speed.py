"""How long does it take to score every item for every user and list the best 20, here and in RecTools?

Both have a SASRec of the same size (width 64, 2 blocks, 2 heads), leave seen items out, and run in a process of their
own with the same threads; systems take turns. Ours is `top_k`, dense ids in and out. RecTools' is
``recommend(k=20, filter_viewed=True)``, the call that its users make: it also builds its sessions and a frame of raw
ids. Users per second are those of the data set over ``seconds``. The setting ``evaluate`` is our full-ranking pass over
one held-out item a user, metrics not included, which RecTools has no counterpart for.

``python -m benchmarks.evaluation_speed`` takes about ten minutes; with ``--smoke`` two, on made-up data.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.driver import Arguments
from benchmarks.peers.environment import run_driver
from benchmarks.peers.machine import is_noisy
from benchmarks.results import FOLDER, SPEED, ResultTable
from benchmarks.training_speed import MAX_LEN, TRIES, write_histories

from recdistill.errors import RecDistillError

OURS = "recdistill"
SYSTEMS: dict[str, tuple[str, str | None]] = {
    OURS: ("ours_recommend", None),
    "rectools": ("rectools_recommend", "rectools"),
}
"""Driver and environment of each system; ours first, because every ratio needs it."""


def measure(system: str, arguments: Arguments, *, allocator: str, tries: int) -> dict[str, Any]:
    """Run a driver until it was undisturbed, at most ``tries`` times; return the quietest result.

    Raises:
        RuntimeError: when the driver fails.
    """
    driver, peer = SYSTEMS[system]
    results: list[dict[str, Any]] = []
    while not results or (len(results) < tries and is_noisy(results[-1]["foreign_cores"], results[-1]["stolen_cores"])):
        results.append(run_driver(driver, arguments, peer=peer, tuned=allocator == "tuned"))
    return min(results, key=lambda result: float(result["foreign_cores"]) + float(result["stolen_cores"]))


def run(table: ResultTable, files: dict[str, Path], *, seconds: float, threads: int, repeats: int, tries: int) -> None:
    """Measure what is not in the table yet; a row is on disk as soon as it is known.

    Raises:
        RuntimeError: when a driver fails.
    """
    for repeat in range(1, repeats + 1):
        for allocator in ("stock", "tuned"):
            for dataset, path in files.items():
                arguments = Arguments(path, MAX_LEN[dataset], "full-softmax", seconds, threads, inner_dim=64)
                for system in SYSTEMS:
                    where: dict[str, object] = {"system": system, "dataset": dataset, "repeat": repeat}
                    if _find(table, where, allocator):
                        continue
                    result = measure(system, arguments, allocator=allocator, tries=tries)
                    ours = {**where, "system": OURS}
                    of_ours = result if system == OURS else _find(table, ours, allocator)[0]
                    table.append(*to_rows(where, result, allocator=allocator, ours=float(of_ours["seconds"])))
                    print(f"{dataset} {allocator} repeat {repeat}: {system}: {json.dumps(result)}", flush=True)


def to_rows(
    where: dict[str, object], result: dict[str, Any], *, allocator: str, ours: float
) -> Sequence[dict[str, object]]:
    """Return the rows of one measurement; ``ours`` is our seconds for the same lists."""
    noise = "/noisy" if is_noisy(result["foreign_cores"], result["stolen_cores"]) else ""
    common = {**where, "version": result["version"], "peak_mb": round(result["peak_mb"])}
    seconds = result["seconds"]
    lists = {**common, "setting": f"top-20/{allocator}{noise}", "seconds": seconds, "ratio": seconds / ours}
    if "evaluate" not in result:
        return [lists]
    return [lists, {**common, "setting": f"evaluate/{allocator}{noise}", "seconds": result["evaluate"], "ratio": None}]


def _find(table: ResultTable, where: dict[str, object], allocator: str) -> list[dict[str, str]]:
    settings = (f"top-20/{allocator}", f"top-20/{allocator}/noisy")
    return [row for setting in settings for row in table.find(**where, setting=setting)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--datasets", nargs="+", choices=list(MAX_LEN), default=["amazon-beauty", "ml-1m"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="least time of one of our measurements")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="made-up data, one short repeat, results thrown away")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.smoke:
            options.datasets, options.repeats, options.seconds = ["made-up"], 1, 0.1
        files = {dataset: folder / f"{dataset}.npz" for dataset in options.datasets}
        try:
            table = ResultTable((folder if options.smoke else FOLDER) / "evaluation_speed.csv", SPEED)
            for dataset, path in files.items():
                write_histories(dataset, path)
            run(
                table,
                files,
                seconds=options.seconds,
                threads=options.threads,
                repeats=options.repeats,
                tries=1 if options.smoke else TRIES,
            )
        except (RecDistillError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from error
        if options.smoke:
            print(table.path.read_text(), end="")


if __name__ == "__main__":
    main()
