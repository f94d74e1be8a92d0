"""Our SASRec, trained by `recdistill.training.loop.fit`; prints the seconds of an epoch and where they go.

Whole epochs are timed, batches included, from the end of one validation to the start of the next.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmarks.peers.driver import DIM, LEARNING_RATE, N_BLOCKS, N_HEADS, Arguments, Histories, check_finite, report
from benchmarks.peers.machine import CpuTimes, Load
from torch.optim.optimizer import register_optimizer_step_post_hook

from recdistill.data.dataset import Sequences
from recdistill.methods.base import Method, Setting, build_method
from recdistill.models.base import Model, build_model
from recdistill.training.loop import fit
from recdistill.training.settings import TrainerSettings

LOSSES: dict[str, dict[str, Any]] = {
    "full-softmax": {"loss": "softmax"},
    "sampled-softmax": {"loss": "sampled_softmax", "n_negatives": 1024},
}
MIN_EPOCHS = 2
"""Epochs that are measured at least, after the first, which warms up."""


class EnoughError(Exception):
    """Ends the training once enough was measured."""


class Phases:
    """Shares out the time: whatever passed since the last mark belongs to the phase named now."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """Book the time since the last mark."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def restart(self) -> None:
        """Forget the time since the last mark."""
        self._last = time.perf_counter()

    def around(self, function: Callable[..., Any], *, before: str, after: str) -> Callable[..., Any]:
        """Wrap ``function`` so that time before the call is booked as ``before``, time in it as ``after``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.mark(before)
            result = function(*args, **kwargs)
            self.mark(after)
            return result

        return timed


def watch(phases: Phases, student: Model, method: Method) -> None:
    """Mark the phases of every training step, from outside the library."""
    student.encode_positions = phases.around(student.encode_positions, before="loss", after="forward")  # type: ignore[method-assign]
    method.loss = phases.around(method.loss, before="batch", after="loss")  # type: ignore[method-assign]
    torch.Tensor.backward = phases.around(torch.Tensor.backward, before="loss", after="backward")  # type: ignore[method-assign]
    register_optimizer_step_post_hook(lambda *_: phases.mark("optimiser"))


class Epochs:
    """A stand-in for validation that notes when each epoch began and ended."""

    def __init__(self, seconds: float, phases: Phases) -> None:
        self.seconds = seconds
        self.phases = phases
        self.measured: list[float] = []
        self.load = Load(0.0, 0.0, 0.0)
        self._first: CpuTimes | None = None
        self._began = 0.0

    def __call__(self, student: Model) -> float:
        """Note the end of an epoch; the value grows, so that training never stops early."""
        now = CpuTimes.now()
        if self._first is None:
            self._first = now
            self.phases.seconds.clear()
        else:
            self.phases.mark("batch")
            self.measured.append(now.wall - self._began)
            if len(self.measured) >= MIN_EPOCHS and sum(self.measured) >= self.seconds:
                self.load = Load.between(self._first, now)
                check_finite(float(student.item_embeddings().detach().sum()), "recdistill")
                raise EnoughError
        self.phases.restart()
        self._began = time.perf_counter()
        return float(len(self.measured))


def main() -> None:
    arguments = Arguments.parse(__doc__ or "")
    torch.set_num_threads(arguments.threads)
    histories = Histories.read(arguments.sequences)
    n_items = int(histories.items.max())
    train = histories.without_newest(2)
    setting = Setting(
        train=Sequences.from_offsets(train.items.astype(np.int32), train.offsets),
        users=np.arange(train.n_users),
        n_items=n_items,
    )
    size = {"dim": DIM, "n_blocks": N_BLOCKS, "n_heads": N_HEADS, "max_len": arguments.max_len}
    student = build_model("sasrec", n_items, {**size, "inner_dim": arguments.inner_dim})
    method = build_method("supervised", LOSSES[arguments.loss])
    phases = Phases()
    watch(phases, student, method)
    epochs = Epochs(arguments.seconds, phases)
    settings = TrainerSettings(epochs=10**6, learning_rate=LEARNING_RATE, compile=arguments.compiled)
    with contextlib.suppress(EnoughError):
        fit(student, method, setting, settings, validate=epochs)
    n_epochs = len(epochs.measured)
    report(
        "recdistill",
        seconds=statistics.median(epochs.measured),
        load=epochs.load,
        epochs_measured=n_epochs,
        phases={phase: total / n_epochs for phase, total in phases.seconds.items()},
    )


if __name__ == "__main__":
    main()
