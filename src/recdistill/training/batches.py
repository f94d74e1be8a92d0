"""Training users, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from recdistill.arrays import Ints
from recdistill.data.dataset import Sequences
from recdistill.models.base import Batch
from recdistill.training import processes


class Batches:
    """Training users in a fresh order each epoch."""

    def __init__(
        self,
        train: Sequences,
        *,
        batch_size: int,
        max_len: int | None,
        reads_last: bool,
        shorten: float = 0.0,
        rows: Ints | None = None,
    ) -> None:
        self.train, self.batch_size, self.max_len, self.reads_last = train, batch_size, max_len, reads_last
        self.shorten = shorten
        rows = np.arange(len(train)) if rows is None else rows
        self.rows: Ints = rows[train.lengths[rows] >= (1 if reads_last else 2)]

    @property
    def n_users(self) -> int:
        """How many users are learned from."""
        return len(self.rows)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def epoch(self, seed: int, epoch: int) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Yield this process's share of each batch: histories, ``(T,)`` labels, ``(B,)`` rows."""
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(self.rows)
        shown = self._read(order).lengths
        if self.shorten:
            drawn = generator.random(len(order)) < self.shorten
            shown = np.where(drawn, generator.integers(1, shown, endpoint=True), shown)
        for start in range(0, len(order), self.batch_size):
            chosen = np.arange(start, min(start + self.batch_size, len(order)))
            own = chosen[processes.rank() % len(chosen) :: processes.world_size()]  # of a few rows, one each at least
            yield self.of(order[own], shown[own])

    def of(self, rows: Ints, shown: Ints | None = None) -> tuple[Batch, Tensor, Tensor]:
        """Pack ``rows`` with the item that follows each position, 0 where none may be learned.

        Args:
            rows: of the training sequences.
            shown: how many of the newest items that are read of each are packed; all, where left out.
        """
        inputs = self._read(rows)
        if shown is not None:
            inputs = Sequences(inputs.items, inputs.ends - shown, inputs.ends)
        batch = Batch.from_sequences(inputs, users=rows)
        if self.reads_last:
            labels = torch.zeros_like(batch.items)
            labels[:-1] = batch.items[1:]
            labels[batch.last] = 0
        else:
            following, _ = Sequences(inputs.items, inputs.starts + 1, inputs.ends + 1).flat()
            labels = torch.from_numpy(following.astype(np.int64))
        return batch, labels, torch.from_numpy(rows)

    def _read(self, rows: Ints) -> Sequences:
        """Return what is read of some rows: without the last item where nothing is learned after it."""
        sequences = self.train.take(rows)
        if not self.reads_last:
            sequences = sequences.without_newest(1)
        return sequences if self.max_len is None else sequences.newest(self.max_len)
