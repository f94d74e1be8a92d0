"""Parts that the sequence models share: packed rows, attention blocks, dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recdistill.models.base import Batch


@dataclass(frozen=True, slots=True)
class Rows:
    """Histories packed side by side into rows of equal length, so that hardly any slot is padding.

    On data where most histories are short, one history a row would make nine slots of ten padding.
    """

    slots: Tensor
    """``(T,)`` int64, where each item of the batch stands in the flattened ``R × L`` grid."""
    items: Tensor
    """``(R, L)`` int64 items, 0 in slots that are empty."""
    positions: Tensor
    """``(R, L)`` int64 position of each item in its history."""
    attends: Tensor
    """``(R, 1, L, L)`` bool: which key (last axis) each query sees: items of its own history only."""


def pack_rows(batch: Batch, *, min_len: int, causal: bool, newest_first: bool = False) -> Rows:
    """Lay out a batch in rows.

    Args:
        batch: B histories.
        min_len: the least row length; the longest history makes rows longer where need be.
        causal: whether an item sees only itself and what came before it.
        newest_first: whether positions count from the newest item (0) back, or from the oldest (0) on.
    """
    offsets = batch.offsets.cpu().numpy()
    lengths = np.diff(offsets)
    row_len = max(min_len, int(lengths.max(initial=1)))
    starts = _place(lengths, row_len)
    n_rows = int(starts.max(initial=-1)) // row_len + 1
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    slots = torch.from_numpy(np.repeat(starts, lengths) + within)
    place = np.repeat(lengths - 1, lengths) - within if newest_first else within
    segment = torch.from_numpy(np.repeat(np.arange(1, len(lengths) + 1), lengths))

    def grid(values: Tensor) -> Tensor:
        return torch.zeros(n_rows * row_len, dtype=torch.int64).index_copy_(0, slots, values).view(n_rows, row_len)

    segments = grid(segment)
    attends = segments[:, :, None] == segments[:, None, :]
    if causal:
        attends &= torch.ones(row_len, row_len, dtype=torch.bool).tril()
    device = batch.items.device
    items = grid(batch.items.cpu())
    positions = grid(torch.from_numpy(place))
    return Rows(slots.to(device), items.to(device), positions.to(device), attends[:, None].to(device))


def _place(lengths: npt.NDArray[np.int64], row_len: int) -> npt.NDArray[np.int64]:
    """Return the slot at which each history starts: best fit, longest first."""
    starts = np.empty(len(lengths), np.int64)
    open_rows: list[list[int]] = [[] for _ in range(row_len + 1)]  # start of the free part, by how much is free
    n_rows = 0
    for history in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[history])
        free = next((f for f in range(length, row_len + 1) if open_rows[f]), None)
        if free is None:
            start, free = n_rows * row_len, row_len
            n_rows += 1
        else:
            start = open_rows[free].pop()
        starts[history] = start
        if free > length:
            open_rows[free - length].append(start + length)
    return starts


class Dropout(nn.Module):
    """Dropout that draws one byte a value, eight at a time, from the model's own generator.

    The stock dropout on a CPU draws number by number, which costs more than the layer that it follows. The rate is
    rounded to 1/256, and survivors are scaled by the rounded rate, so that the expectation is exact.
    """

    generator: torch.Generator | None = None
    """Set by `seed_dropout`; torch's global generator is used without it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.threshold = round(rate * 256)

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of ``x`` (any shape) in training mode."""
        if not self.training or self.threshold == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.threshold / 256, training=True)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64)
        words.random_(-(2**63), None, generator=self.generator)
        noise = words.view(torch.uint8)[: x.numel()].view(x.shape)
        dropped: Tensor = _Drop.apply(x, noise, self.threshold)  # type: ignore[no-untyped-call]
        return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Tensor, threshold: int) -> Tensor:
        ctx.save_for_backward(noise)
        ctx.threshold = threshold
        return _keep(x, noise, threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (noise,) = ctx.saved_tensors
        return _keep(grad, noise, ctx.threshold), None, None


def _keep(x: Tensor, noise: Tensor, threshold: int) -> Tensor:
    kept = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(noise, threshold, out=kept)
    return kept.mul_(x).mul_(256 / (256 - threshold))


def seed_dropout(module: nn.Module, generator: torch.Generator) -> None:
    """Make every dropout inside ``module`` draw from ``generator``."""
    for part in module.modules():
        if isinstance(part, Dropout):
            part.generator = generator


class Block(nn.Module):
    """One transformer block: self-attention and a feed-forward net, each with a residual connection."""

    def __init__(self, dim: int, *, n_heads: int, inner_dim: int, dropout: float, norm: Literal["pre", "post"]) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = norm
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.inner_norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, inner_dim)
        self.inner_out = nn.Linear(inner_dim, dim)
        self.attention_dropout = Dropout(dropout)
        self.inner_dropout = Dropout(dropout)
        self.out_dropout = Dropout(dropout)

    def forward(self, x: Tensor, attends: Tensor) -> Tensor:
        """Map ``x (R, L, D)`` to ``(R, L, D)``; ``attends (R, 1, L, L)`` says which key each query sees."""
        if self.norm == "pre":
            x = x + self._attend(self.attention_norm(x), attends)
            return x + self._transform(self.inner_norm(x))
        x = self.attention_norm(x + self._attend(x, attends))
        out: Tensor = self.inner_norm(x + self._transform(x))
        return out

    def _attend(self, x: Tensor, attends: Tensor) -> Tensor:
        n_rows, row_len, dim = x.shape
        qkv = self.qkv(x).view(n_rows, row_len, 3, self.n_heads, dim // self.n_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attends)
        out: Tensor = self.attention_dropout(self.attention_out(mixed.transpose(1, 2).reshape(x.shape)))
        return out

    def _transform(self, x: Tensor) -> Tensor:
        out: Tensor = self.out_dropout(self.inner_out(self.inner_dropout(F.gelu(self.inner(x)))))
        return out


def init_weights(module: nn.Module, *, std: float, generator: torch.Generator | None = None) -> None:
    """Draw every matrix from N(0, std²); vectors (biases, norms) keep torch's constants, biases are 0."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std, generator=generator)
        elif name.endswith("bias") or "bias_" in name:
            nn.init.zeros_(parameter)
