"""HSTU: attention without a softmax, whose sum is gated by the item that asks.

Source: Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
Recommendations", ICML 2024, and the authors' code for public data sets. Differs from both: the relative bias knows
positions only, not times, which no batch holds; plain PyTorch instead of their kernels; the loss is the method's
business.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from recdistill.models.base import Batch
from recdistill.models.layers import Dropout, Rows, at_places, init_weights, pack_rows
from recdistill.models.packed import ROW_LEN, PackedModel
from recdistill.settings import Settings

_EPS = 1e-6
"""Of the norms; what attention sums up is small at first, and torch's default would swallow it."""


class HSTUConfig(Settings):
    """The size and shape of HSTU."""

    dim: PositiveInt = 64
    """Width of item vectors and states (D)."""
    max_len: PositiveInt = 50
    """How many of a history's newest items are read (L)."""
    n_blocks: PositiveInt = 2
    """Layers."""
    n_heads: PositiveInt = 2
    """Attention heads."""
    attention_dim: PositiveInt | None = None
    """Width of a head's queries and keys; ``dim / n_heads`` if left out."""
    linear_dim: PositiveInt | None = None
    """Width of a head's values and gates; ``dim / n_heads`` if left out."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of values dropped in training, after the embedding and before each layer's output."""
    temperature: PositiveFloat | None = 0.05
    """Scores are cosines divided by this; ``None`` for plain products."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights."""


class HSTU(PackedModel, name="hstu"):
    """A causal stack of gated attention: the state at an item says what comes after it."""

    Config = HSTUConfig
    config: HSTUConfig

    def __init__(self, config: HSTUConfig, n_items: int) -> None:
        super().__init__(config, n_items)
        self.embedding = nn.Embedding(n_items + 1, config.dim, padding_idx=0)
        self.position = nn.Embedding(config.max_len, config.dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_blocks))
        self.norm = nn.LayerNorm(config.dim) if config.temperature is None else nn.Identity()
        init_weights(self, std=config.init_std)
        with torch.no_grad():
            self.embedding.weight[0] = 0

    def item_embeddings(self) -> Tensor:
        """Return ``(N+1, D)`` item vectors, of length 1 where scores are cosines."""
        weight: Tensor = self.embedding.weight
        return weight if self.config.temperature is None else F.normalize(weight, dim=1)

    def encode(self, batch: Batch) -> Tensor:
        """Return the state at each history's newest item, ``(B, D)``."""
        return self._encode_newest(batch.newest(self.config.max_len))

    def _pack(self, batch: Batch) -> Rows:
        self._check(batch)
        return pack_rows(batch, min_len=ROW_LEN, causal=True)

    def _states(self, items: Tensor, positions: Tensor, attends: Tensor, asked: Tensor | None = None) -> Tensor:
        x = self.dropout(self.embedding(items) * self.config.dim**0.5 + self.position(positions))
        *others, last = self.layers
        for layer in others:
            x = layer(x, attends)
        states: Tensor = self.norm(last(x, attends, asked))
        return states if self.config.temperature is None else F.normalize(states, dim=-1) / self.config.temperature


class Layer(nn.Module):
    r"""Attention by SiLU of each product, summed, normed and gated, with a residual connection.

    .. math:: U, V, Q, K = \mathrm{SiLU}(f_1(\mathrm{norm}(X))), \quad
              Y = X + f_2\bigl(\mathrm{norm}(A V) \odot U\bigr), \quad
              A = \tfrac1L \mathrm{SiLU}(Q K^\top + b)

    where b holds a number for each distance between two positions. L is ``max_len`` and not the length of the history,
    as in the authors' code: without a softmax, how much there is to attend to is kept.
    """

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        self.n_heads, self.max_len = config.n_heads, config.max_len
        width = max(1, config.dim // config.n_heads)
        self.attention_dim = config.n_heads * (config.attention_dim or width)
        self.linear_dim = config.n_heads * (config.linear_dim or width)
        self.norm = nn.LayerNorm(config.dim, eps=_EPS, elementwise_affine=False)
        self.gate_and_query = nn.Linear(config.dim, self.linear_dim + self.attention_dim, bias=False)
        self.value_and_key = nn.Linear(config.dim, self.linear_dim + self.attention_dim, bias=False)
        self.distance_bias = nn.Parameter(torch.zeros(config.max_len))
        self.sum_norm = nn.LayerNorm(self.linear_dim, eps=_EPS, elementwise_affine=False)
        self.dropout = Dropout(config.dropout)
        self.out = nn.Linear(self.linear_dim, config.dim)

    def forward(self, x: Tensor, attends: Tensor, asked: Tensor | None = None) -> Tensor:
        """Map ``x (R, L, D)`` to ``(R, L, D)``, or to ``(R, Q, D)`` at the places that are asked for.

        Args:
            x: states.
            attends: ``(R, 1, L, L)`` bool: which key each query sees, none after itself.
            asked: ``(R, Q)`` int64 places in each row; the work of the others is saved.
        """
        sizes = [self.linear_dim, self.attention_dim]
        normed, bias = self.norm(x), self._bias(x.shape[1])
        value, key = F.silu(self.value_and_key(normed)).split(sizes, -1)
        if asked is not None:
            x, normed, bias = at_places(x, asked), at_places(normed, asked), bias[asked][:, None]
            attends = at_places(attends[:, 0], asked)[:, None]
        gate, query = F.silu(self.gate_and_query(normed)).split(sizes, -1)
        query, key, value = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (query, key, value))
        shares = F.silu(query @ key.transpose(2, 3) + bias).masked_fill(~attends, 0.0)
        sums = (shares @ value / self.max_len).transpose(1, 2).flatten(2)
        out: Tensor = x + self.out(self.dropout(self.sum_norm(sums) * gate))
        return out

    def _bias(self, row_len: int) -> Tensor:
        """Return b of every two places of a row, ``(L, L)``; it is read only where both are of one history."""
        places = torch.arange(row_len, device=self.distance_bias.device)
        return self.distance_bias[(places[:, None] - places).clamp(0, self.max_len - 1)]
