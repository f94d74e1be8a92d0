"""Parts that the sequence models share: packed rows, attention blocks, dropout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recdistill.losses.precision import Precision, compute_dtype
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

    def newest(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Find the newest item of each history of the batch that was packed.

        Returns:
            ``(R, Q)`` int64, where they stand in each row, filled up with 0; and ``(B,)`` int64, where in the flattened
            ``R × Q`` grid each history's is.
        """
        n_rows, row_len = self.items.shape
        row, place = self.slots[batch.last] // row_len, self.slots[batch.last] % row_len
        order = row.argsort(stable=True)
        first = torch.searchsorted(row[order], row[order])
        rank = torch.empty_like(row)
        rank[order] = torch.arange(len(row), device=row.device) - first
        width = int(rank.max()) + 1
        where = row * width + rank
        places = place.new_zeros(n_rows * width).index_copy_(0, where, place)
        return places.view(n_rows, width), where


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
    n_rows += -n_rows % max(1, n_rows // 16)  # few different shapes, see `losses.softmax._rounded`
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
    """Dropout from the model's own generator; on a CPU it draws one byte a value, eight at a time.

    The stock dropout on a CPU draws number by number, which costs more than the layer that it follows. The rate is
    rounded to 1/256, at most 255/256, and survivors are scaled by the rounded rate, so that the expectation is exact.
    """

    generator: torch.Generator | None = None
    """On the device of what is dropped. Set by `seed_dropout`; torch's global generator is used without it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.threshold = min(round(rate * 256), 255)

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of ``x`` (any shape) in training mode."""
        if not self.training or self.threshold == 0:
            return x
        if x.device.type != "cpu":
            kept = torch.empty_like(x).bernoulli_(1 - self.threshold / 256, generator=self.generator)
            return x * kept.mul_(256 / (256 - self.threshold))
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


class Attention(torch.autograd.Function):
    """Self-attention over packed rows in low precision, which does not compute what a causal mask would erase.

    Queries are taken in blocks; in a causal model a block meets only the keys up to its own end. On a CPU this is
    faster than torch's fused attention with the same mask, most of all backward and on long rows.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, attends: Tensor, causal: bool) -> Tensor:
        """Mix values by attention.

        Args:
            ctx: keeps what the gradient needs.
            qkv: ``(R, L, 3, H, D/H)`` queries, keys and values, in the precision of the products; sums inside them and
                the softmax are in fp32.
            attends: ``(R, 1, L, L)`` bool: which key each query sees; at least one.
            causal: whether no query sees a key after itself.

        Returns:
            ``(R, L, H, D/H)``.
        """
        n_rows, row_len, _, n_heads, dim = qkv.shape
        query, key, value = (x.reshape(n_rows * n_heads, row_len, dim) for x in qkv.permute(2, 0, 3, 1, 4))
        hidden = ~attends
        out, shares = torch.empty_like(query), []
        for block, seen in _query_blocks(row_len, causal):
            logits = _scaled_bmm(query[:, block], key[:, seen].transpose(1, 2), dim**-0.5)
            shape = (n_rows, n_heads, *logits.shape[1:])
            logits.view(shape).masked_fill_(hidden[:, :, block, seen], -torch.inf)
            share = torch.softmax(logits, -1, out=logits)
            out[:, block] = torch.bmm(share, value[:, seen])
            shares.append(share)
        ctx.save_for_backward(query, key, value, out, *shares)
        ctx.shape, ctx.causal = qkv.shape, causal
        return out.view(n_rows, n_heads, row_len, dim).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of ``qkv``."""
        query, key, value, out, *shares = ctx.saved_tensors
        n_rows, row_len, _, n_heads, dim = ctx.shape
        grad_out = grad.transpose(1, 2).reshape(out.shape)
        mean = (grad_out * out).sum(-1, keepdim=True)
        grads = torch.zeros(3, *query.shape, dtype=query.dtype, device=query.device)
        d_query, d_key, d_value = grads
        for (block, seen), share in zip(_query_blocks(row_len, ctx.causal), shares, strict=True):
            d_value[:, seen].baddbmm_(share.transpose(1, 2), grad_out[:, block])
            d_logits = torch.bmm(grad_out[:, block], value[:, seen].transpose(1, 2))
            d_logits.sub_(mean[:, block]).mul_(share)
            d_query[:, block] = _scaled_bmm(d_logits, key[:, seen], dim**-0.5)
            d_key[:, seen].baddbmm_(d_logits.transpose(1, 2), query[:, block], alpha=dim**-0.5)
        return grads.view(3, n_rows, n_heads, row_len, dim).permute(1, 3, 0, 2, 4), None, None


def _scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


def _query_blocks(row_len: int, causal: bool) -> list[tuple[slice, slice]]:
    """Cut a row into blocks of about 40 queries, each with the keys that any of them may see."""
    size = math.ceil(row_len / max(1, round(row_len / 40)))
    starts = range(0, row_len, size)
    ends = [min(start + size, row_len) for start in starts]
    return [(slice(start, end), slice(end if causal else row_len)) for start, end in zip(starts, ends, strict=True)]


class Block(nn.Module):
    """One transformer block: self-attention and a feed-forward net, each with a residual connection."""

    def __init__(
        self,
        dim: int,
        *,
        n_heads: int,
        inner_dim: int,
        dropout: float,
        norm: Literal["pre", "post"],
        causal: bool,
        precision: Precision,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = norm
        self.causal = causal
        self.precision: Precision = precision
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.inner_norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, inner_dim)
        self.inner_out = nn.Linear(inner_dim, dim)
        self.attention_dropout = Dropout(dropout)
        self.inner_dropout = Dropout(dropout)
        self.out_dropout = Dropout(dropout)

    def forward(self, x: Tensor, attends: Tensor, asked: Tensor | None = None) -> Tensor:
        """Map ``x (R, L, D)`` to ``(R, L, D)``, or to ``(R, Q, D)`` at the places that are asked for.

        Args:
            x: states.
            attends: ``(R, 1, L, L)`` bool: which key each query sees.
            asked: ``(R, Q)`` int64 places in each row; the work of the others is saved.
        """
        kept = x if asked is None else at_places(x, asked)
        if self.norm == "pre":
            kept = kept + self._attend(self.attention_norm(x), attends, asked)
            return kept + self._transform(self.inner_norm(kept))
        kept = self.attention_norm(kept + self._attend(x, attends, asked))
        out: Tensor = self.inner_norm(kept + self._transform(kept))
        return out

    def _attend(self, x: Tensor, attends: Tensor, asked: Tensor | None) -> Tensor:
        whole, x = x.dtype, x.to(self._dtype(x))
        if asked is None and x.dtype != whole and x.device.type == "cpu":
            qkv = _linear(x, self.qkv).view(*x.shape[:2], 3, self.n_heads, -1)
            mixed: Tensor = Attention.apply(qkv, attends, self.causal)  # type: ignore[no-untyped-call]
        else:
            if asked is None:
                query, key, value = _linear(x, self.qkv).chunk(3, -1)
            else:
                query = _linear(at_places(x, asked), self.qkv, slice(x.shape[2]))
                key, value = _linear(x, self.qkv, slice(x.shape[2], None)).chunk(2, -1)
                attends = at_places(attends[:, 0], asked)[:, None]
            query, key, value = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (query, key, value))
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attends).transpose(1, 2)
        out: Tensor = self.attention_dropout(_linear(mixed.flatten(2), self.attention_out))
        return out.to(whole)

    def _transform(self, x: Tensor) -> Tensor:
        inner = self.inner_dropout(F.gelu(_linear(x.to(self._dtype(x)), self.inner)))
        out: Tensor = self.out_dropout(_linear(inner, self.inner_out))
        return out.to(x.dtype)

    def _dtype(self, x: Tensor) -> torch.dtype:
        """Return the type of the products: low precision is for training alone."""
        low = self.training and compute_dtype(x, self.precision) == torch.bfloat16
        return torch.bfloat16 if low else x.dtype


def _linear(x: Tensor, layer: nn.Linear, rows: slice = slice(None)) -> Tensor:
    """Apply some outputs of a linear layer in the precision of ``x``."""
    return F.linear(x, layer.weight[rows].to(x.dtype), layer.bias[rows].to(x.dtype))


def at_places(x: Tensor, places: Tensor) -> Tensor:
    """Take ``places (R, Q)`` of the second axis of ``x (R, L, …)``, which gives ``(R, Q, …)``."""
    return x[torch.arange(len(x), device=x.device)[:, None], places]


def init_weights(module: nn.Module, *, std: float, generator: torch.Generator | None = None) -> None:
    """Draw every matrix from N(0, std²); vectors (biases, norms) keep torch's constants, biases are 0."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std, generator=generator)
        elif name.endswith("bias") or "bias_" in name:
            nn.init.zeros_(parameter)
