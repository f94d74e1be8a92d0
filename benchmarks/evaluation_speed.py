"""How long does it take to score every item for every user and list the best 20, here and in RecTools?

Both have a SASRec of the same size (width 64, 2 blocks, 2 heads), leave seen items out, and run in a process of their
own with the same threads; systems take turns. Ours is `top_k`, dense ids in and out. RecTools' is
``recommend(k=20, filter_viewed=True)``, the call that its users make: it also builds its sessions and a frame of raw
ids. Users per second are those of the data set over ``seconds``. The setting ``evaluate`` is our full-ranking pass over
one held-out item a user, metrics not included, which RecTools has no counterpart for.

``python -m benchmarks.evaluation_speed`` takes about ten minutes; with ``--smoke`` two, on made-up data.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.experiments import Values
from benchmarks.peers.driver import Arguments
from benchmarks.peers.environment import run_driver
from benchmarks.results import ResultTable
from benchmarks.timing import find, noise, speed_options, speed_parser, speed_table, undisturbed
from benchmarks.training_speed import DATASETS, MAX_LEN, written

OURS = "recdistill"
SYSTEMS: dict[str, tuple[str, str | None]] = {
    OURS: ("ours_recommend", None),
    "rectools": ("rectools_recommend", "rectools"),
}
"""Driver and environment of each system; ours first, because every ratio needs it."""


def measure(system: str, arguments: Arguments, *, allocator: str, tries: int) -> Values:
    """Run a driver until it was undisturbed.

    Raises:
        RuntimeError: when the driver fails.
    """
    (driver, peer), tuned = SYSTEMS[system], allocator == "tuned"
    return undisturbed(lambda: run_driver(driver, arguments, peer=peer, tuned=tuned), tries=tries)


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
                    where: Values = {"system": system, "dataset": dataset, "repeat": repeat}
                    if find(table, where, f"top-20/{allocator}"):
                        continue
                    result = measure(system, arguments, allocator=allocator, tries=tries)
                    ours = {**where, "system": OURS}
                    of_ours = result if system == OURS else find(table, ours, f"top-20/{allocator}")
                    assert of_ours is not None, "ours comes first"
                    table.append(*to_rows(where, result, allocator=allocator, ours=float(of_ours["seconds"])))
                    print(f"{dataset} {allocator} repeat {repeat}: {system}: {json.dumps(result)}", flush=True)


def to_rows(where: Values, result: Values, *, allocator: str, ours: float) -> list[Values]:
    """Return the rows of one measurement; ``ours`` is our seconds for the same lists."""
    common = {**where, "version": result["version"], "peak_mb": round(result["peak_mb"])}
    seconds = result["seconds"]
    lists = {**common, "setting": f"top-20/{allocator}{noise(result)}", "seconds": seconds, "ratio": seconds / ours}
    if "evaluate" not in result:
        return [lists]
    return [
        lists,
        {**common, "setting": f"evaluate/{allocator}{noise(result)}", "seconds": result["evaluate"], "ratio": None},
    ]


def main() -> None:
    parser = speed_parser(__doc__, seconds=5.0)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    options = speed_options(parser)
    limits = {"seconds": options.seconds, "threads": options.threads, "tries": options.tries}
    with (
        speed_table("evaluation_speed", smoke=options.smoke) as table,
        written(options.datasets, smoke=options.smoke) as files,
    ):
        try:
            run(table, files, repeats=options.repeats, **limits)
        except RuntimeError as error:
            raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
