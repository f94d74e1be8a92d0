"""Our `top_k` with SASRec: twenty items for every user, seen ones left out; prints the seconds for all users.

The model is untrained: speed does not depend on what it has learned. Also timed: full-ranking evaluation of the newest
item of every user, which only counts what scores above it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from benchmarks.peers.driver import DIM, N_BLOCKS, N_HEADS, Arguments, Histories, report
from benchmarks.peers.machine import CpuTimes, Load

from recdistill.data.dataset import Sequences
from recdistill.data.splits import Cases
from recdistill.evaluation.full_ranking import evaluate
from recdistill.models.base import build_model
from recdistill.models.scoring import top_k

TOP_K = 20


def median_seconds(call: Callable[[], object], at_least: float) -> float:
    """Time calls until ``at_least`` seconds are full, after one that warms up."""
    call()
    seconds: list[float] = []
    while sum(seconds) < at_least or not seconds:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    arguments = Arguments.parse(__doc__ or "")
    torch.set_num_threads(arguments.threads)
    histories = Histories.read(arguments.sequences)
    n_items = int(histories.items.max())
    whole = Sequences.from_offsets(histories.items.astype(np.int32), histories.offsets)
    shown = whole.without_newest(1)
    cases = Cases(np.arange(len(whole)), shown, whole.newest(1), shown)
    size = {"dim": DIM, "n_blocks": N_BLOCKS, "n_heads": N_HEADS, "inner_dim": arguments.inner_dim}
    model = build_model("sasrec", n_items, {**size, "max_len": arguments.max_len})
    start = CpuTimes.now()
    seconds = median_seconds(lambda: top_k(model, shown, TOP_K, shown), arguments.seconds)
    evaluating = median_seconds(lambda: evaluate(model, cases, n_items=n_items), arguments.seconds)
    load = Load.between(start, CpuTimes.now())
    report("recdistill", seconds=seconds, load=load, users=len(whole), evaluate=evaluating)


if __name__ == "__main__":
    main()
