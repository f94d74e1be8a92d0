"""Lists of items, one a row: what they share, what a student scores them, and draws from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor
from torch.autograd.function import once_differentiable


def places(listed: Tensor, items: Tensor) -> Tensor:
    """Return where each item stands in its row's list, from 0; the length K of the list where it does not.

    Args:
        listed: ``(B, K)`` items, each once a row; 0 is padding.
        items: ``(B, C)`` items looked for; 0 is never found.

    Returns:
        ``(B, C)`` int64.
    """
    ordered, order = listed.contiguous().sort(dim=1)
    at = torch.searchsorted(ordered, items.contiguous()).clamp_max(listed.shape[1] - 1)
    found = (ordered.gather(1, at) == items) & (items > 0)
    return torch.where(found, order.gather(1, at), listed.shape[1])


def contains(listed: Tensor, items: Tensor) -> Tensor:
    """Return ``(B, C)`` which of ``items (B, C)`` are in their row of ``listed (B, K)``; padding (0) is not."""
    return places(listed, items) < listed.shape[1]


def list_logits(queries: Tensor, embeddings: Tensor, items: Tensor) -> Tensor:
    """Return the student's logits ``(B, K)`` of a list a query.

    Args:
        queries: ``(B, D)`` the student's vectors.
        embeddings: ``(N+1, D)`` its item vectors.
        items: ``(B, K)`` item ids; 0, padding, has a logit as well.
    """
    logits: Tensor = _ListLogits.apply(queries, embeddings, items.long())  # type: ignore[no-untyped-call]
    return logits


class _ListLogits(torch.autograd.Function):
    """`list_logits` with a gradient that takes a third of the time of the stock one, most of which is the lookup's."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, embeddings: Tensor, items: Tensor) -> Tensor:
        listed = F.embedding(items, embeddings)
        ctx.save_for_backward(queries, listed, items)
        ctx.n_rows = len(embeddings)
        return (queries[:, None] @ listed.mT)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        queries, listed, items = ctx.saved_tensors
        return (grad[:, None] @ listed)[:, 0], _spread(grad, queries, items, ctx.n_rows), None


def _spread(weights: Tensor, queries: Tensor, items: Tensor, n_rows: int) -> Tensor:
    """Add each row's vector, times a weight an item, to the items of its list.

    Args:
        weights: ``(B, K)``.
        queries: ``(B, D)``.
        items: ``(B, K)`` int64.
        n_rows: of the sum.

    Returns:
        ``(n_rows, D)``; on a CPU by a product with a sparse matrix, which is far quicker than adding vectors.
        NumPy has no bf16, so vectors of half precision are added.
    """
    if queries.device.type != "cpu" or queries.dtype not in (torch.float32, torch.float64):
        each = (weights[:, :, None] * queries[:, None]).flatten(0, 1)
        return queries.new_zeros(n_rows, queries.shape[1]).index_add_(0, items.flatten(), each)
    n_lists, k = items.shape
    starts = np.arange(0, n_lists * k + 1, k) if k else np.zeros(n_lists + 1, dtype=np.int64)
    parts = weights.detach().numpy().ravel(), items.numpy().ravel(), starts
    return torch.from_numpy(sparse.csc_array(parts, shape=(n_rows, n_lists)) @ queries.detach().numpy())


def draw_unlisted(listed: Tensor, n: int, n_items: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw items evenly from the catalogue for each list, and say which of them it does not hold.

    Args:
        listed: ``(B, K)`` items; 0 is padding.
        n: how many for each list; the same item may come twice.
        n_items: N.
        generator: the source of the draws.

    Returns:
        ``(B, n)`` the items, and which of them are in no place of their row's list.
    """
    others = torch.randint(1, n_items + 1, (len(listed), n), generator=generator).to(listed.device)
    return others, ~contains(listed, others)


def draw_places(logits: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw places of each row without replacement, one after the other with chances ``softmax(logits)``.

    The n greatest sums of logit and Gumbel noise are such a draw.

    Args:
        logits: ``(B, M)``; −∞ under padding, which is drawn only where nothing else is left.
        n: how many; all of a row that has fewer.
        generator: the source of the draws.

    Returns:
        ``(B, min(n, M))`` int64 places, the first drawn first.
    """
    exponential = torch.empty(logits.shape).exponential_(generator=generator).clamp_min(1e-30)
    keys = logits - exponential.log().to(logits.device)
    return keys.topk(min(n, logits.shape[1]), dim=1).indices
