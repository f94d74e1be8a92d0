"""How long does it take, and how much memory, from a CSV file to a ``Dataset``?

The rows are made up: 25 million of them in random order, with users, skewed items and times, in a temporary folder.
Each measurement is a process of its own. Run ``python -m benchmarks.data_size``; figures go to
``benchmarks/results/data_size.csv``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from benchmarks.results import FOLDER, SPEED, ResultTable

from recdistill import __version__
from recdistill.data.interactions import read_interactions

N_USERS, N_ITEMS = 200_000, 50_000
BOUNDS = {1_000_000: (2.0, float("inf")), 25_000_000: (float("inf"), 6 * 1024.0)}
"""By number of rows: the seconds and MiB that must not be passed."""
SETTING = "csv-to-dataset"


def write_rows(path: Path, n_rows: int) -> None:
    """Write made-up interactions: users at random, few items with many interactions, times over three years."""
    generator = np.random.default_rng(0)
    items = np.minimum(500 * generator.pareto(1.0, n_rows), N_ITEMS - 1).astype(np.int32)
    pl.DataFrame(
        {
            "user_id": generator.integers(N_USERS, size=n_rows, dtype=np.int32),
            "item_id": items,
            "timestamp": generator.integers(1_500_000_000, 1_600_000_000, n_rows),
        }
    ).write_csv(path)


def measure(path: Path) -> None:
    """Read the file in this process, and print seconds, peak memory in MiB and the number of interactions."""
    begin = time.perf_counter()
    dataset = read_interactions(path).dataset()
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "interactions": dataset.n_interactions}))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=list(BOUNDS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=FOLDER / "data_size.csv")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        measure(options.measure)
        return
    table = ResultTable(options.out, SPEED)
    for n_rows in options.rows:
        key = {"system": "recdistill", "version": __version__, "dataset": f"made-up-{n_rows}", "setting": SETTING}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "interactions.csv"
            for repeat in range(options.repeats):
                if table.already_done(**key, repeat=repeat):
                    continue
                if not path.exists():
                    write_rows(path, n_rows)
                command = [sys.executable, "-m", "benchmarks.data_size", "--measure", str(path)]
                child = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(child.stdout)
                if found["interactions"] != n_rows:
                    raise SystemExit(f"{n_rows:,} rows were written but {found['interactions']:,} read")
                table.append({**key, "repeat": repeat, "seconds": found["seconds"], "peak_mb": found["peak_mb"]})
        seconds = [float(row["seconds"]) for row in table.find(**key)]
        peak = max(float(row["peak_mb"]) for row in table.find(**key))
        max_seconds, max_peak = BOUNDS.get(n_rows, (float("inf"), float("inf")))
        verdict = "within" if min(seconds) <= max_seconds and peak <= max_peak else "BEYOND"
        print(f"{n_rows:>12,} rows: fastest {min(seconds):.2f} s, peak {peak:,.0f} MiB; {verdict} the bounds")


if __name__ == "__main__":
    main()
