"""What the contrastive methods share: settings, losses that tell histories apart, and how two views are encoded."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from recdistill.data.dataset import Sequences
from recdistill.methods.base import TrainingBatch
from recdistill.methods.labels import LabelLoss, LabelLossConfig
from recdistill.models.base import Batch, Model
from recdistill.settings import Settings

_READ_AT_ONCE = 1024
"""Histories in a pass before K-means."""
Pooling = Literal["last", "mean"]
Similarity = Literal["dot", "cosine"]


class ContrastConfig(Settings):
    """Learning from labels, and telling histories apart."""

    label_loss: LabelLossConfig = LabelLossConfig()
    """How true items are learned."""
    contrast_weight: NonNegativeFloat = 0.1
    """Of the contrastive loss, against 1 for the labels; 0 leaves it out (λ in the papers)."""
    temperature: PositiveFloat = 1.0
    """By which similarities are divided (τ in the papers)."""
    similarity: Similarity = "dot"
    """Of two vectors: their product, as in the papers, or their cosine.

    Cosines want a ``temperature`` below 1. They are the better choice for HSTU, whose states are long by construction.
    """


def label_and_vectors(
    label_loss: LabelLoss, student: Model, batch: TrainingBatch, how: Pooling
) -> tuple[Tensor, Tensor]:
    """Return the loss on labels and ``(B, D)`` the histories' vectors; for causal models, from one pass."""
    if how == "last":
        label, vectors, _ = label_loss.with_queries(student, batch)
        return label, vectors
    label, states, _ = label_loss.with_states(student, batch)
    return label, pool(states, batch.batch, how)


def as_learned(student: Model, train: Sequences, *, reads_last: bool) -> Sequences:
    """Return what the student reads of each training history in an epoch; nothing of those that are too short.

    Args:
        student: models that see both sides read all of it.
        train: the training histories.
        reads_last: whether the method reads the state after the last training item.
    """
    return train if reads_last or not student.causal else train.without_newest(1)


@torch.no_grad()
def encode_all(student: Model, train: Sequences, how: Pooling, *, reads_last: bool = False) -> Tensor:
    """Encode all training histories as they are learned from, but without dropout.

    Args:
        student: as it is; its mode is put back.
        train: the training histories; those that are too short to be learned from are left out.
        how: ``last`` for the vector that next items are scored by, ``mean`` for the mean of the states.
        reads_last: whether the method reads the state after the last training item.

    Returns:
        ``(n, D)`` vectors, in the order of the histories.
    """
    histories = as_learned(student, train, reads_last=reads_last)
    rows = np.flatnonzero(histories.lengths)
    device = student.item_embeddings().device
    was_training = student.training
    student.eval()
    vectors = []
    for start in range(0, len(rows), _READ_AT_ONCE):
        some = histories.take(rows[start : start + _READ_AT_ONCE])
        batch = Batch.from_sequences(some, max_len=student.max_len).to(device)
        vectors.append(student.encode(batch) if how == "last" else pool(student.encode_positions(batch), batch, how))
    student.train(was_training)
    return torch.cat(vectors)


def encode_views(student: Model, views: Batch, how: Pooling) -> tuple[Tensor, Tensor]:
    """Encode two views of each history in one pass.

    Args:
        student: as it is; hidden items can be read in training mode only.
        views: 2B histories, the first view of each, then the second; of `two_views` or `join`.
        how: ``last`` for the vector that next items are scored by, ``mean`` for the mean of the states.

    Returns:
        The vectors of the first views and of the second ones, both ``(B, D)``.
    """
    vectors = student.encode(views) if how == "last" else pool(student.encode_positions(views), views, how)
    first, second = vectors.chunk(2)
    return first, second


def pool(states: Tensor, batch: Batch, how: Pooling) -> Tensor:
    """Make one vector of each history: its last state, or the mean of its states.

    Args:
        states: ``(T, D)`` a state at each item of the batch.
        batch: B histories.
        how: which.

    Returns:
        ``(B, D)``.
    """
    if how == "last":
        return states[batch.last]
    history = torch.repeat_interleave(batch.lengths)
    sums = states.new_zeros(len(batch), states.shape[1]).index_add(0, history, states)
    return sums / batch.lengths[:, None]


def nt_xent(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float,
    similarity: Similarity = "dot",
    same: Tensor | None = None,
) -> Tensor:
    r"""Tell among all views of a batch which one belongs to the same history.

    .. math:: -\frac{1}{2B} \sum_{i=1}^{2B}
              \log \frac{\exp(z_i \cdot z_{p(i)} / \tau)}{\sum_{j \ne i} \exp(z_i \cdot z_j / \tau)}

    where p(i) is the other view of i's history. It stands in the denominator too, among 2B−1 candidates.

    Args:
        first: ``(B, D)`` vectors z of one view of each history.
        second: ``(B, D)`` vectors z of the other view.
        temperature: tau, positive.
        similarity: the product of two vectors, or ``cosine`` for that of vectors cut to length 1.
        same: ``(B,)`` equal for histories that are not each other's negatives; none are without it.

    Returns:
        Scalar, in nats; 0 for one history alone.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, Eq. 1.
    """
    views = torch.cat([first, second])
    if similarity == "cosine":
        views = F.normalize(views, dim=1)
    place = torch.arange(len(views), device=views.device)
    other = place.roll(len(first))
    excluded = place[:, None] == place
    if same is not None:
        same = torch.cat([same, same])
        excluded |= (same[:, None] == same) & (other[:, None] != place)
    logits = (views @ views.T / temperature).masked_fill(excluded, -torch.inf)
    return F.cross_entropy(logits, other)


def info_nce(queries: Tensor, views: Tensor, same: Tensor, *, weights: Tensor, temperature: float) -> Tensor:
    r"""Tell which shortened history belongs to which whole one.

    .. math:: -\sum_u w_u \log \frac{\exp(z_u \cdot z_u^+ / \tau)}{\sum_v \exp(z_u \cdot z_v^+ / \tau)}, \quad
              z = h / |h|

    Args:
        queries: ``(B, D)`` vectors h of the whole histories.
        views: ``(B, D)`` vectors of the shortened ones; those of other users are the negatives.
        same: ``(B,)`` equal for users with the same history, who are not each other's negatives.
        weights: ``(B,)`` w, used as given.
        temperature: tau, positive.

    Returns:
        Scalar, in nats.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, Eq. 4.
    """
    logits = F.normalize(queries, dim=1) @ F.normalize(views, dim=1).T / temperature
    twins = (same[:, None] == same) & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    own = torch.arange(len(same), device=same.device)
    return weights @ F.cross_entropy(logits.masked_fill(twins, -torch.inf), own, reduction="none")
