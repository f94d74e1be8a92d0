"""RecTools' ``recommend``: twenty items for every user, seen ones left out; prints the seconds for all users.

The model is trained for one step only: speed does not depend on what it has learned.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from benchmarks.peers.driver import Arguments, Histories, report
from benchmarks.peers.machine import CpuTimes, Load, StepClock
from benchmarks.peers.rectools_sasrec import Timing, dataset, model, quieten


def main() -> None:
    arguments = Arguments.parse(__doc__)
    torch.set_num_threads(arguments.threads)
    quieten()
    histories = Histories.read(arguments.sequences)
    one_step = Timing(StepClock(0.0, min_steps=1, warm_up=0))
    recommender = model(arguments, one_step)
    recommender.fit(dataset(histories.without_newest(2)))
    shown = dataset(histories.without_newest(1))
    users = np.arange(histories.n_users)
    for _ in range(2):  # the first call warms up
        start = CpuTimes.now()
        recommender.recommend(users=users, dataset=shown, k=20, filter_viewed=True)
        seconds = time.perf_counter() - start.wall
    report("rectools", seconds=seconds, load=Load.between(start, CpuTimes.now()), users=len(users))


if __name__ == "__main__":
    main()
