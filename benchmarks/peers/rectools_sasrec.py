"""RecTools' SASRec, trained by RecTools' own loop; prints the seconds of an epoch."""

from __future__ import annotations

import logging
import warnings

import pandas as pd
import pytorch_lightning as pl
import torch
from benchmarks.peers.driver import DIM, LEARNING_RATE, N_BLOCKS, N_HEADS, Arguments, Histories, check_finite, report
from benchmarks.peers.machine import StepClock
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

N_NEGATIVES = 256
"""Sampled negatives a position; RecTools' default of one is no sampled softmax worth the name."""


class Timing(pl.Callback):  # type: ignore[misc]
    """Notes the end of every step and stops once enough was measured."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock
        self.steps_per_epoch = 0
        self.loss = 0.0

    def __deepcopy__(self, memo: object) -> Timing:
        """Stay one object: RecTools copies the trainer before it trains."""
        return self

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock before the first batch is made."""
        self.steps_per_epoch = trainer.num_training_batches
        self.clock.tick()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: dict[str, torch.Tensor], *args: object
    ) -> None:
        """Count a step."""
        if self.clock.tick():
            trainer.should_stop = True
            self.loss = float(outputs["loss"])


def dataset(histories: Histories) -> Dataset:
    """Give RecTools the interactions, one minute apart."""
    users, items, positions = histories.flat()
    times = pd.Timestamp("2020-01-01") + pd.to_timedelta(positions, unit="min")
    frame = pd.DataFrame({Columns.User: users, Columns.Item: items, Columns.Weight: 1.0, Columns.Datetime: times})
    return Dataset.construct(frame)


def model(arguments: Arguments, timing: Timing) -> SASRecModel:
    """Make RecTools' SASRec of the common size, with a Lightning trainer that does nothing but train."""

    def trainer() -> pl.Trainer:
        return pl.Trainer(
            max_epochs=1000,
            min_epochs=0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[timing],
        )

    sampled = {"loss": "sampled_softmax", "n_negatives": N_NEGATIVES}
    return SASRecModel(
        n_blocks=N_BLOCKS,
        n_heads=N_HEADS,
        n_factors=DIM,
        session_max_len=arguments.max_len,
        lr=LEARNING_RATE,
        train_min_user_interactions=2,
        get_trainer_func=trainer,
        **(sampled if arguments.loss == "sampled-softmax" else {"loss": "softmax"}),
    )


def quieten() -> None:
    """Keep Lightning's advice out of the output."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def main() -> None:
    arguments = Arguments.parse(__doc__)
    torch.set_num_threads(arguments.threads)
    quieten()
    timing = Timing(StepClock(arguments.seconds))
    model(arguments, timing).fit(dataset(Histories.read(arguments.sequences).without_newest(2)))
    check_finite(timing.loss, "RecTools")
    clock = timing.clock
    report(
        "rectools",
        seconds=clock.step_seconds * timing.steps_per_epoch,
        load=clock.load,
        steps_per_epoch=timing.steps_per_epoch,
        steps_measured=len(clock.steps),
    )


if __name__ == "__main__":
    main()
