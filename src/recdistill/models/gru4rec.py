"""GRU4Rec: a recurrent net over the items of a history.

Source: Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016.
Differs from the paper: item vectors are read and scored by the same table by default, as in its later versions
(constrained embedding), and whole histories are unrolled instead of session-parallel mini-batches.
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recdistill.models.base import Batch, Model
from recdistill.models.layers import Dropout, init_weights
from recdistill.settings import Settings


class GRU4RecConfig(Settings):
    """The size and shape of the recurrent net."""

    dim: PositiveInt = 64
    """Width of item vectors and of the states that are scored (D)."""
    hidden_dim: PositiveInt | None = None
    """Width of the recurrent state; ``dim`` if left out. Where it differs, a linear layer maps it back."""
    max_len: PositiveInt = 50
    """How many of a history's newest items are read (L)."""
    n_layers: PositiveInt = 1
    """Recurrent layers."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of values dropped in training, before and after the recurrent layers."""
    tied_embeddings: bool = True
    """Whether items are scored by the vectors that they are read with."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial item vectors; the recurrent weights keep torch's initial values."""


class GRU4Rec(Model, name="gru4rec"):
    """A recurrent net: the state after an item says what comes next."""

    Config = GRU4RecConfig
    config: GRU4RecConfig

    def __init__(self, config: GRU4RecConfig, n_items: int) -> None:
        super().__init__(config, n_items)
        hidden_dim = config.hidden_dim or config.dim
        self.embedding = nn.Embedding(n_items + 1, config.dim, padding_idx=0)
        self.output = None if config.tied_embeddings else nn.Embedding(n_items + 1, config.dim, padding_idx=0)
        init_weights(self, std=config.init_std)
        with torch.no_grad():
            self.embedding.weight[0] = 0
        self.gru = nn.GRU(config.dim, hidden_dim, num_layers=config.n_layers)
        self.project = nn.Linear(hidden_dim, config.dim) if hidden_dim != config.dim else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.state_dropout = Dropout(config.dropout)

    def item_embeddings(self) -> Tensor:
        """Return ``(N+1, D)`` item vectors."""
        return (self.embedding if self.output is None else self.output).weight

    def encode(self, batch: Batch) -> Tensor:
        """Return the state after each history's newest item, ``(B, D)``."""
        batch = batch.newest(self.config.max_len)
        return self.encode_positions(batch)[batch.last]

    def encode_positions(self, batch: Batch) -> Tensor:
        """Return the state after each item, ``(T, D)``."""
        self._check(batch)
        time_major, batch_sizes = _time_major(batch)
        steps = self.dropout(self.embedding(batch.items[time_major]))
        states = self.gru(PackedSequence(steps, batch_sizes))[0].data
        states = self.state_dropout(self.project(states))
        back = torch.empty_like(time_major)
        back[time_major] = torch.arange(len(back), device=back.device)
        return torch.index_select(states, 0, back)


def _time_major(batch: Batch) -> tuple[Tensor, Tensor]:
    """Order items by position, longest history first, as torch's packed recurrent nets read them.

    Returns:
        ``(T,)`` index into ``batch.items``, and ``(L,)`` how many histories are still going on at each step.
    """
    lengths = batch.lengths
    order = torch.argsort(lengths, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    history = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    position = torch.arange(len(batch.items), device=lengths.device) - batch.offsets[:-1][history]
    index = torch.argsort(position * len(lengths) + rank[history])
    return index, torch.bincount(position).cpu()
