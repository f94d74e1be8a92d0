"""Losses over the whole catalogue.

The softmax runs over all N items, for thousands of positions: as one matrix that is gigabytes. Here it is made in
chunks of rows that stay in the processor's cache, and each chunk's gradient is formed at once, in the forward pass, so
that no chunk is ever needed again.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recdistill.losses.precision import Precision, compute_dtype

_CHUNK_ELEMENTS = 2 << 20
"""Logits held at once: 4 MB in bf16, which stay in the cache (found by measuring)."""
_ROUND = 32
"""Rows come in multiples of this, see `_rounded`."""


def softmax_cross_entropy(
    states: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    precision: Precision = "auto",
) -> Tensor:
    r"""Cross-entropy of the softmax over all items against one true item each.

    .. math:: \sum_t w_t \Bigl(\log\sum_{i=1}^{N} e^{h_t \cdot v_i} - h_t \cdot v_{y_t}\Bigr)

    Args:
        states: ``(T, D)`` query vectors h.
        embeddings: ``(N+1, D)`` item vectors v; row 0 is padding and takes no part.
        labels: ``(T,)`` int64 true items y, in 1…N.
        weights: ``(T,)`` w, used as given; the mean (1/T each) if left out. No gradient flows into them.
        precision: of the matrix products; ``auto`` is bf16 where the processor multiplies it natively.

    Returns:
        Scalar, in nats.
    """
    return list_cross_entropy(
        states, embeddings, labels[:, None], states.new_ones(len(labels), 1), weights=weights, precision=precision
    )


def list_cross_entropy(
    states: Tensor,
    embeddings: Tensor,
    items: Tensor,
    probs: Tensor,
    *,
    weights: Tensor | None = None,
    temperature: Tensor | float = 1.0,
    precision: Precision = "auto",
) -> Tensor:
    r"""Cross-entropy of the softmax over all items against a soft target that lives on a short list.

    .. math:: \sum_t w_t \sum_k p_{tk}
              \Bigl(\log\sum_{i=1}^{N} e^{h_t \cdot v_i / \tau_t} - h_t \cdot v_{i_{tk}} / \tau_t\Bigr)

    Items outside the list have probability 0 in the target, so that they are pushed down: without this, a student that
    learns from lists alone collapses. It differs from the KL divergence by the entropy of the target, a constant.

    Args:
        states: ``(T, D)`` query vectors h.
        embeddings: ``(N+1, D)`` item vectors v; row 0 is padding and takes no part.
        items: ``(T, K)`` int64 listed items; 0 is padding.
        probs: ``(T, K)`` target probabilities p, ignored under padding. No gradient flows into them.
        weights: ``(T,)`` w, used as given; the mean (1/T each) if left out. No gradient flows into them.
        temperature: tau, one or ``(T,)``, positive; higher is softer.
        precision: of the matrix products; ``auto`` is bf16 where the processor multiplies it natively.

    Returns:
        Scalar, in nats.
    """
    if weights is None:
        weights = states.new_full((len(states),), 1 / max(len(states), 1))
    if isinstance(temperature, Tensor):
        states = states / temperature[:, None]
    elif temperature != 1.0:
        states = states / temperature
    dtype = compute_dtype(states, precision)
    loss: Tensor = _ListCrossEntropy.apply(states, embeddings, items, probs, weights, dtype)  # type: ignore[no-untyped-call]
    return loss


class _ListCrossEntropy(torch.autograd.Function):
    """`list_cross_entropy` with its gradient formed chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, embeddings: Tensor, items: Tensor, probs: Tensor, weights: Tensor, dtype: torch.dtype
    ) -> Tensor:
        n_states, n_items = len(states), len(embeddings) - 1
        needs_gradient = states.requires_grad or embeddings.requires_grad
        states, items, probs, weights = (_rounded(x) for x in (states.detach(), items, probs, weights))
        n_rows = len(states)
        listed = items > 0
        probs = torch.where(listed, probs, 0.0).to(torch.float32)
        mass = probs.sum(1)
        # Padding repeats the row's first entry, so that writing it again changes nothing.
        columns = (torch.where(listed, items, items[:, :1]) - 1).clamp_min(0)

        h, v = states.to(dtype), embeddings.detach()[1:].to(dtype)
        d_states = torch.empty_like(h) if needs_gradient else None
        d_embeddings = torch.zeros_like(embeddings, dtype=torch.float32) if needs_gradient else None
        loss = states.new_zeros((), dtype=torch.float32)

        size = _chunk_rows(n_rows, n_items)
        logits = _workspace(size, n_items, dtype, states.device)
        for start in range(0, n_rows, size):
            rows = slice(start, min(start + size, n_rows))
            n, w = rows.stop - start, weights[rows]
            chunk = torch.mm(h[rows], v.T, out=logits[:n])
            at = columns[rows]
            listed_logits = chunk.gather(1, at).to(torch.float32)
            p = torch.softmax(chunk, 1, out=chunk)
            log_norm = _log_norm(h[rows], v, p, listed_logits, at)
            loss += w @ (mass[rows] * log_norm - (probs[rows] * listed_logits).sum(1))
            if d_states is None or d_embeddings is None:
                continue
            # d loss / d logits = w (mass · softmax − probs). The row factors go to the small matrices, so that the
            # large one is written only where items are listed.
            share = mass[rows].clamp_min(1e-30)
            wanted = torch.where(listed[rows], probs[rows], probs[rows, :1]) / share[:, None]
            p[torch.arange(n, device=p.device)[:, None], at] -= wanted.to(dtype)
            scale = (w * share).to(torch.float32)[:, None]
            d_states[rows] = torch.mm(p, v) * scale
            d_embeddings[1:] += torch.mm(p.T, (h[rows] * scale).to(dtype))
        if d_states is not None and d_embeddings is not None:
            ctx.save_for_backward(d_states[:n_states], d_embeddings)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        d_states, d_embeddings = ctx.saved_tensors
        return _scaled(d_states.to(torch.float32), grad), _scaled(d_embeddings, grad), None, None, None, None


def _log_norm(h: Tensor, v: Tensor, softmax: Tensor, listed_logits: Tensor, at: Tensor) -> Tensor:
    """Return log Σ exp(logits) of each row, ``(n,)``, read off one listed item: logit − log softmax."""
    best = listed_logits.argmax(1, keepdim=True)
    share = softmax.gather(1, at.gather(1, best)).to(torch.float32)
    log_norm = (listed_logits.gather(1, best) - share.log()).squeeze(1)
    lost = (share <= torch.finfo(torch.float32).tiny).squeeze(1)
    if lost.any():  # the listed items are so unlikely that their softmax is 0
        log_norm[lost] = torch.mm(h[lost], v.T).to(torch.float32).logsumexp(1)
    return log_norm


_kept = threading.local()


def _workspace(n_rows: int, n_columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a matrix to write a chunk of logits to; its content is arbitrary.

    On a CPU it is one piece of memory that is kept, and in huge pages where the system has them: fresh memory in small
    pages made the loss a fifth slower, and the process larger.
    """
    if device.type != "cpu":
        return torch.empty(n_rows, n_columns, dtype=dtype, device=device)
    n_bytes = n_rows * n_columns * dtype.itemsize
    buffer: Tensor | None = getattr(_kept, "buffer", None)
    if buffer is None or len(buffer) < n_bytes:
        memory = mmap.mmap(-1, max(n_bytes, _CHUNK_ELEMENTS * dtype.itemsize))
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages
                memory.madvise(mmap.MADV_HUGEPAGE)
        buffer = _kept.buffer = torch.frombuffer(memory, dtype=torch.uint8)
    return buffer[:n_bytes].view(dtype).view(n_rows, n_columns)


def sampled_softmax_loss(
    states: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    negatives: Tensor,
    log_weights: Tensor,
    *,
    precision: Precision = "auto",
) -> Tensor:
    r"""Cross-entropy of a softmax whose denominator is estimated from negatives that all positions share.

    .. math:: \frac1T \sum_t \Bigl(\log\bigl(e^{h_t \cdot v_{y_t}}
              + \sum_{j \ne y_t} e^{h_t \cdot v_j + b_j}\bigr) - h_t \cdot v_{y_t}\Bigr)

    With ``b_j = −log π_j``, where π is how often item j is expected among the negatives, the sum is an unbiased
    estimate of that over the whole catalogue: the logQ correction.

    Args:
        states: ``(T, D)`` query vectors h.
        embeddings: ``(N+1, D)`` item vectors v.
        labels: ``(T,)`` int64 true items y.
        negatives: ``(S,)`` int64 items j, each once. Where a negative is the position's true item it is left out.
        log_weights: ``(S,)`` b.
        precision: of the matrix products; ``auto`` is bf16 where the processor multiplies it natively.

    Returns:
        Scalar, in nats; 0 without positions.

    Source: Bengio and Senécal, "Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language
    Model", 2008; Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", 2019.
    """
    dtype = compute_dtype(states, precision)
    loss: Tensor = _SampledSoftmax.apply(states, embeddings, labels, negatives, log_weights, dtype)  # type: ignore[no-untyped-call]
    return loss


class _SampledSoftmax(torch.autograd.Function):
    """`sampled_softmax_loss` with its gradient formed chunk by chunk in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        embeddings: Tensor,
        labels: Tensor,
        negatives: Tensor,
        log_weights: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        n_states = len(states)
        h, v = _rounded(states.detach()), embeddings.detach()
        labels, negatives = _rounded(labels), _rounded(negatives)
        log_weights = _rounded(log_weights, fill=-torch.inf)
        n_rows, n_negatives = len(h), len(negatives)
        positive_vectors = v[labels]
        positive_logits = (h * positive_vectors).sum(1)
        # The last column stands for the position's own item: its vector differs by row, so it is filled in afterwards.
        table = torch.cat([v[negatives], v.new_zeros(1, v.shape[1])]).to(dtype)
        bias = torch.cat([log_weights, log_weights.new_zeros(1)]).to(dtype)
        column_of = torch.full((len(v),), -1, dtype=torch.int64, device=v.device)
        column_of[negatives] = torch.arange(n_negatives, device=v.device)
        own = column_of[labels]

        h_low = h.to(dtype)
        d_states, d_table = torch.empty_like(h), torch.zeros_like(table, dtype=torch.float32)
        share = torch.empty_like(positive_logits)
        loss = h.new_zeros((), dtype=torch.float32)
        size = _chunk_rows(n_rows, n_negatives + 1)
        logits = _workspace(size, n_negatives + 1, dtype, h.device)
        for start in range(0, n_rows, size):
            rows = slice(start, min(start + size, n_rows))
            chunk = torch.addmm(bias, h_low[rows], table.T, out=logits[: rows.stop - start])
            hit = (own[rows] >= 0).nonzero().squeeze(1)
            chunk[hit, own[rows][hit]] = -torch.inf
            chunk[:, -1] = positive_logits[rows].to(dtype)
            softmax = torch.softmax(chunk, 1, out=chunk)
            share[rows] = softmax[:, -1].to(torch.float32)
            d_states[rows] = torch.mm(softmax, table).to(h.dtype)
            d_table += torch.mm(softmax.T, h_low[rows])
        # The share of a hopeless positive is 0 in bf16; its loss is cut off there, its gradient is exact.
        count = max(n_states, 1)
        loss = -share[:n_states].clamp_min(torch.finfo(torch.float32).tiny).log().sum() / count
        pull = (share - 1)[:, None] / count
        d_states.div_(count).addcmul_(pull, positive_vectors)
        d_embeddings = torch.zeros_like(v)
        d_embeddings.index_add_(0, negatives, d_table[:-1].to(v.dtype), alpha=1 / count)
        d_embeddings.index_add_(0, labels, pull * h)
        ctx.save_for_backward(d_states[:n_states], d_embeddings)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        d_states, d_embeddings = ctx.saved_tensors
        return _scaled(d_states, grad), _scaled(d_embeddings, grad), None, None, None, None


def _chunk_rows(n_rows: int, n_columns: int) -> int:
    """Return how many rows to take at once, so that all chunks are about alike."""
    n_chunks = math.ceil(n_rows * n_columns / _CHUNK_ELEMENTS)
    return max(1, math.ceil(n_rows / max(1, n_chunks) / _ROUND)) * _ROUND


def _rounded(x: Tensor, fill: float = 0) -> Tensor:
    """Lengthen ``x (n, …)`` to a multiple of `_ROUND` rows.

    The library behind the matrix products compiles and keeps a kernel for every shape that it meets: with a number of
    positions that differs from batch to batch, that is a fifth of the time and a gigabyte of memory. What is added is
    zero, and so is what it adds to a loss or gradient.
    """
    missing = -len(x) % _ROUND
    return x if missing == 0 else torch.cat([x, x.new_full((missing, *x.shape[1:]), fill)])


def _scaled(gradient: Tensor, grad: Tensor) -> Tensor:
    """Apply the chain rule; a loss that is minimised as it is has a factor of 1, which is not worth a copy."""
    return gradient if grad.device.type == "cpu" and float(grad) == 1 else gradient * grad
