"""What models share whose layers read short histories side by side, packed into rows."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from recdistill.models.base import Batch, Model
from recdistill.models.layers import Rows

ROW_LEN = 64
"""Short histories are packed into rows at least this long."""


class PackedModel(Model):
    """A model with a state at each item of each row; a subclass packs the rows and computes the states."""

    def compile_body(self) -> None:
        """Let ``torch.compile`` fuse the layers; packing stays outside."""
        self._states = torch.compile(self._states, dynamic=True)  # type: ignore[method-assign]

    def encode_positions(self, batch: Batch) -> Tensor:
        """Return the state at each item, ``(T, D)``."""
        rows = self._pack(batch)
        return self._states(rows.items, rows.positions, rows.attends).flatten(0, 1)[rows.slots]

    def _encode_newest(self, batch: Batch) -> Tensor:
        """Return the state at each history's newest item, ``(B, D)``; the last layer works for these alone."""
        rows = self._pack(batch)
        places, where = rows.newest(batch)
        return self._states(rows.items, rows.positions, rows.attends, places).flatten(0, 1)[where]

    @abstractmethod
    def _pack(self, batch: Batch) -> Rows:
        """Check histories and pack them."""

    @abstractmethod
    def _states(self, items: Tensor, positions: Tensor, attends: Tensor, asked: Tensor | None = None) -> Tensor:
        """Return ``(R, L, D)`` states of all places, or ``(R, Q, D)`` those of the places that are asked for.

        Args:
            items: ``(R, L)`` int64; 0 is padding.
            positions: ``(R, L)`` int64 place of each item in its history.
            attends: ``(R, 1, L, L)`` bool: which place each sees.
            asked: ``(R, Q)`` int64 places in each row.
        """
