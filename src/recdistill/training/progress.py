"""What is known of a training: each epoch, all of it, and who is told meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from recdistill.training.settings import TrainerSettings


@dataclass(frozen=True, slots=True)
class EpochRow:
    """What is known after an epoch."""

    epoch: int
    """From 1."""
    parts: dict[str, float]
    """Mean of each part of the loss."""
    validation: float | None
    """NDCG@10 on the validation cases, where this epoch was validated."""
    learning_rate: float
    seconds: float
    """Of training, validation not counted."""
    sequences_per_second: float


@dataclass(slots=True)
class Fit:
    """How training went; the student holds the best weights."""

    rows: list[EpochRow] = field(default_factory=list)
    best_epoch: int = 0
    """From 1; 0 where no epoch came up to what the student began with, which is kept then."""
    best_value: float = -math.inf
    stopped_early: bool = False
    start_value: float | None = None
    """What a student that begins with trained weights reached on the validation cases before; ``None`` for others."""
    computed_with: list[dict[str, str | int]] = field(default_factory=list)
    """What computed the epochs, in stretches: ``from_epoch``, and what all of the stretch have in common, the precision
    among it that ``auto`` stood for. A training that was never stopped, or went on alike, is one stretch."""

    @property
    def epochs(self) -> int:
        """How many epochs were run."""
        return len(self.rows)

    @property
    def seconds(self) -> float:
        """Of training in all, validation not counted."""
        return sum(row.seconds for row in self.rows)


class Progress(Protocol):
    """Who is told how training goes; a terminal, for example."""

    def step(self, epoch: int, step: int, n_steps: int, parts: dict[str, float], sequences_per_second: float) -> None:
        """Take note of a step; ``epoch`` and ``step`` count from 1."""

    def epoch(self, row: EpochRow, settings: TrainerSettings) -> None:
        """Take note of an epoch."""


class Silent:
    """Tells nobody."""

    def step(self, epoch: int, step: int, n_steps: int, parts: dict[str, float], sequences_per_second: float) -> None:
        """Do nothing."""

    def epoch(self, row: EpochRow, settings: TrainerSettings) -> None:
        """Do nothing."""
