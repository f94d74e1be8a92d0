"""How long does it take, and how much memory, from a CSV file to a ``Dataset``?

The rows are made up: 25 million of them in random order, with users, skewed items and times, in a temporary folder.
Each measurement is a process of its own, repeated while other programs disturb it; one that stays disturbed is marked
``/noisy``. Run ``python -m benchmarks.data_size``; figures go to ``benchmarks/results/data_size.csv``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from benchmarks.peers.machine import CpuTimes, Load, is_noisy, peak_mb
from benchmarks.results import FOLDER, SPEED, ResultTable

from recdistill import __version__
from recdistill.data.interactions import read_interactions

N_USERS, N_ITEMS = 200_000, 50_000
BOUNDS = {1_000_000: (2.0, float("inf")), 25_000_000: (float("inf"), 6 * 1024**3 / 1e6)}
"""By number of rows: the seconds and MB that must not be passed."""
SETTING = "csv-to-dataset"
TRIES = 3
"""Attempts at a quiet measurement before a noisy one is written down as such."""


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
    """Read the file in this process; print seconds, peak memory, number of interactions, and whether it was noisy."""
    begin = CpuTimes.now()
    dataset = read_interactions(path).dataset()
    end = CpuTimes.now()
    load = Load.between(begin, end)
    found = {
        "seconds": end.wall - begin.wall,
        "peak_mb": peak_mb(),
        "interactions": dataset.n_interactions,
        "noisy": is_noisy(load.foreign, load.stolen),
    }
    print(json.dumps(found))


def measure_apart(path: Path, n_rows: int) -> dict[str, Any]:
    """Read the file in processes of their own until one is quiet; return the fastest of those tried."""
    found: list[dict[str, Any]] = []
    while not found or (found[-1]["noisy"] and len(found) < TRIES):
        command = [sys.executable, "-m", "benchmarks.data_size", "--measure", str(path)]
        child = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(child.stdout))
        if found[-1]["interactions"] != n_rows:
            raise SystemExit(f"{n_rows:,} rows were written but {found[-1]['interactions']:,} read")
    return found[-1] if not found[-1]["noisy"] else min(found, key=lambda one: float(one["seconds"]))


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
        key = {"system": "recdistill", "version": __version__, "dataset": f"made-up-{n_rows}"}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "interactions.csv"
            for repeat in range(options.repeats):
                if table.already_done(**key, repeat=repeat):
                    continue
                if not path.exists():
                    write_rows(path, n_rows)
                found = measure_apart(path, n_rows)
                setting = f"{SETTING}/noisy" if found["noisy"] else SETTING
                figures = {"seconds": found["seconds"], "peak_mb": found["peak_mb"]}
                table.append({**key, "setting": setting, "repeat": repeat, **figures})
        seconds = min(float(row["seconds"]) for row in table.find(**key))
        peak = max(float(row["peak_mb"]) for row in table.find(**key))
        max_seconds, max_peak = BOUNDS.get(n_rows, (float("inf"), float("inf")))
        verdict = "within" if seconds <= max_seconds and peak <= max_peak else "BEYOND"
        print(f"{n_rows:>12,} rows: fastest {seconds:.2f} s, peak {peak:,.0f} MB; {verdict} the bounds")


if __name__ == "__main__":
    main()
