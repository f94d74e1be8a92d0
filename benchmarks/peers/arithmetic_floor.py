"""The least time in which this processor can do the arithmetic of one epoch of SASRec with full softmax.

Every multiplication at the rate of a large matrix product, every exponential at the rate of a vector in cache, nothing
else: no memory traffic, no dropout, no norms, no optimiser. Nothing can reach it; the share that is reached says how
much there is left to gain.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from benchmarks.peers.driver import DIM, N_BLOCKS, Arguments, Histories, report
from benchmarks.peers.machine import CpuTimes, Load


@dataclass(frozen=True, slots=True)
class Work:
    """The arithmetic of one epoch."""

    flops: float
    """Floating-point operations in matrix products, forward and backward."""
    exps: float
    """Exponentials in the softmax over all items."""


def epoch_work(histories: Histories, *, n_items: int, max_len: int, inner_dim: int) -> Work:
    """Count the operations of one epoch over training ``histories``; each position but the last has a target.

    The backward pass of a matrix product costs two such products. Attention is counted causal, half of its square, and
    3.5 times its forward pass, because the backward pass forms the weights again.
    """
    lengths = np.minimum(np.maximum(np.diff(histories.offsets) - 1, 0), max_len)
    targets = int(lengths.sum())
    pairs = int((lengths**2).sum())
    projections = 3 * DIM * DIM + DIM * DIM + 2 * DIM * inner_dim  # query, key, value; output; feed-forward
    body = 3 * 2 * projections * N_BLOCKS * targets
    attention = 3.5 * 2 * DIM * N_BLOCKS * pairs
    softmax = 3 * 2 * DIM * n_items * targets
    return Work(flops=body + attention + softmax, exps=n_items * targets)


def fastest_product() -> float:
    """Return the best rate of a 2048³ matrix product, in operations a second, over the types that training may use."""
    size = 2048

    def rate(dtype: torch.dtype) -> float:
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        out = torch.empty_like(a)
        return 2 * size**3 / _median_seconds(lambda: torch.matmul(a, b, out=out), repeats=15)

    return max(rate(torch.float32), rate(torch.bfloat16))


def exp_rate() -> float:
    """Return exponentials a second, on a vector that stays in cache."""
    x = torch.randn(1 << 18)
    out = torch.empty_like(x)
    return x.numel() / _median_seconds(lambda: torch.exp(x, out=out), repeats=200)


def _median_seconds(work: Callable[[], object], *, repeats: int) -> float:
    seconds = []
    for _ in range(3 + repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def main() -> None:
    arguments = Arguments.parse(__doc__ or "")
    torch.set_num_threads(arguments.threads)
    histories = Histories.read(arguments.sequences)
    work = epoch_work(
        histories.without_newest(2),
        n_items=int(histories.items.max()),
        max_len=arguments.max_len,
        inner_dim=arguments.inner_dim,
    )
    start = CpuTimes.now()
    product, exp = fastest_product(), exp_rate()
    report(
        "torch",
        seconds=work.flops / product + work.exps / exp,
        load=Load.between(start, CpuTimes.now()),
        gflop_per_second=round(product / 1e9, 1),
        gexp_per_second=round(exp / 1e9, 2),
    )


if __name__ == "__main__":
    main()
