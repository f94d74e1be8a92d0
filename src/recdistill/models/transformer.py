"""What SASRec and BERT4Rec share: item vectors, positions and transformer blocks over packed rows."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from recdistill.losses.precision import Precision
from recdistill.models.base import Batch
from recdistill.models.layers import Block, Dropout, Rows, init_weights, pack_rows
from recdistill.models.packed import ROW_LEN, PackedModel
from recdistill.settings import Settings


class TransformerConfig(Settings):
    """The size and shape of a transformer over histories."""

    dim: PositiveInt = 64
    """Width of item vectors and states (D)."""
    max_len: PositiveInt = 50
    """How many of a history's newest items are read (L)."""
    n_blocks: PositiveInt = 2
    """Transformer blocks."""
    n_heads: PositiveInt = 2
    """Attention heads; must divide ``dim``."""
    inner_dim: PositiveInt | None = None
    """Width of the feed-forward layers; four times ``dim`` if left out."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of values dropped in training, after the embedding and inside each block."""
    norm: Literal["pre", "post"] = "pre"
    """Where the layer norms stand: before each part of a block, or after its residual connection.

    With one negative a label (``bce``) SASRec is far better with ``post``; with a full softmax it depends on the data,
    and BERT4Rec is better with ``pre`` (``benchmarks/quality.md``).
    """
    positions: Literal["oldest_first", "newest_first", "none"] = "oldest_first"
    """Learned position vectors, counted from the oldest or from the newest item, or none.

    From the oldest, a state never depends on what comes later. On validation data the two are level.
    """
    tied_embeddings: bool = True
    """Whether items are scored by the vectors that they are read with."""
    precision: Precision = "auto"
    """Of what the blocks compute in training; ``auto`` is bf16 where the processor multiplies it natively.

    States between the blocks, norms and weights are in fp32, and so is everything outside training.
    """
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the initial weights."""

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> TransformerConfig:
        if self.dim % self.n_heads:
            raise ValueError(f"n_heads = {self.n_heads} must divide dim = {self.dim}")
        return self


class Transformer(PackedModel):
    """Embedding, positions and blocks; a subclass says who sees whom."""

    Config = TransformerConfig
    config: TransformerConfig
    n_special = 0
    """Items beyond the catalogue that the model reads but never scores."""

    def __init__(self, config: TransformerConfig, n_items: int) -> None:
        super().__init__(config, n_items)
        inner_dim = config.inner_dim or 4 * config.dim
        self.embedding = nn.Embedding(n_items + 1 + self.n_special, config.dim, padding_idx=0)
        self.output = None if config.tied_embeddings else nn.Embedding(n_items + 1, config.dim, padding_idx=0)
        self.position = None if config.positions == "none" else nn.Embedding(config.max_len, config.dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(
                config.dim,
                n_heads=config.n_heads,
                inner_dim=inner_dim,
                dropout=config.dropout,
                norm=config.norm,
                causal=self.causal,
                precision=config.precision,
            )
            for _ in range(config.n_blocks)
        )
        self.norm = nn.LayerNorm(config.dim) if config.norm == "pre" else nn.Identity()
        init_weights(self, std=config.init_std)
        with torch.no_grad():
            self.embedding.weight[0] = 0

    def item_embeddings(self) -> Tensor:
        """Return ``(N+1, D)`` item vectors."""
        table = self.embedding if self.output is None else self.output
        weight: Tensor = table.weight
        return weight if len(weight) == self.n_items + 1 else weight[: self.n_items + 1]

    def _pack(self, batch: Batch) -> Rows:
        self._check(batch, n_special=self.n_special)
        newest_first = self.config.positions == "newest_first"
        return pack_rows(batch, min_len=ROW_LEN, causal=self.causal, newest_first=newest_first)

    def _states(self, items: Tensor, positions: Tensor, attends: Tensor, asked: Tensor | None = None) -> Tensor:
        x = self.embedding(items)
        if self.position is not None:
            x = x + self.position(positions)
        x = self.dropout(x)
        *others, last = self.blocks
        for block in others:
            x = block(x, attends)
        states: Tensor = self.norm(last(x, attends, asked))
        return states
