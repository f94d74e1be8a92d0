"""What methods share that learn a teacher's lists as soft targets over the whole catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from recdistill.losses.precision import Precision
from recdistill.losses.softmax import list_cross_entropy
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.intents import IntentParts
from recdistill.methods.labels import LabelLoss, LabelLossConfig
from recdistill.methods.opinion import HALF, SecondOpinionConfig, advised
from recdistill.methods.with_intents import learn_logs
from recdistill.models.base import Model
from recdistill.rankings import Ranking

Values: TypeAlias = Literal["auto", "scores", "ranks"]


class ListConfig(SecondOpinionConfig):
    """What all methods that learn from a teacher's lists share."""

    labels: bool = True
    """Whether the users' real next items are learned too (assisted); without them (pure) only the answers are."""
    label_loss: LabelLossConfig = LabelLossConfig()
    """How they are learned; its ``precision`` holds for the answers as well."""
    weight: NonNegativeFloat = 3.0
    """How many labels one answer counts as; with ten, labels are hardly learned. Pure distillation has nothing to weigh
    it against."""
    top_k: PositiveInt = 100
    """Length of the lists asked for."""

    @property
    def least_share(self) -> float:
        """Half beside labels: students that hear these, too, take up a part only of what rules say."""
        return HALF if self.labels else 0.0

    def unread(self) -> dict[str, str]:
        """Without labels there is nothing to weigh answers against, nor to learn but in what precision answers are."""
        if self.labels:
            return super().unread()
        unread = super().unread() | {"weight": "labels = true"}
        if self.label_loss != LabelLossConfig(precision=self.label_loss.precision):
            unread["label_loss"] = "labels = true, but for its precision"
        return unread

    def advised(self, setting: Setting) -> Setting:
        """Return a setting whose teacher is advised as is set here."""
        return advised(setting, self.second_opinion, k=self.top_k, least=self.least_share)


def label_and_queries(
    student: Model,
    batch: TrainingBatch,
    label_loss: LabelLoss | None,
    weight: float,
    intents: IntentParts | None = None,
    earlier: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor, float]:
    """Learn labels and intents, if there are any, and say where and how much answers are learned.

    Args:
        student: as it is.
        batch: B histories.
        label_loss: of assisted distillation; ``None`` in the pure one.
        weight: how many labels one answer counts as.
        intents: where they are learned as well.
        earlier: ``(E,)`` places of the batch's items whose states are read as well, of a causal student.

    Returns:
        The part ``label``, if labels are learned, and those of the intents; ``(B + E, D)`` the student's state after
        each history and at each place; and what one answer adds to the loss: as much as ``weight`` labels do, or at
        most weight/B, where histories have fewer labels than one each, and 1/B without labels.
    """
    parts, states, n_labels = learn_logs(student, batch, label_loss, intents, earlier)
    n_rows = len(batch.rows)
    return parts, states, 1 / n_rows if label_loss is None else weight / max(n_labels, n_rows)


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """A teacher's lists as soft targets, filed under the rows of the training sequences."""

    items: Tensor
    """``(R, K)`` int32 listed items, best first; 0 is padding, a row of nothing else a user without an answer."""
    logits: Tensor
    """``(R, K)`` what each place is worth, g; −∞ under padding."""

    @classmethod
    def read(cls, ranking: Ranking, values: Values, rank_decay: float) -> Answers:
        """Take the values from the scores, or from the ranks alone."""
        items = torch.from_numpy(ranking.items)
        if values == "ranks" or ranking.scores is None:
            return cls(items, rank_logits(items, rank_decay))
        return cls(items, torch.from_numpy(ranking.scores))

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return items (int64) and logits of some ``rows (B,)``, both ``(B, K)``, on the rows' device."""
        at = rows.to(self.items.device)
        return self.items[at].to(rows.device, torch.int64), self.logits[at].to(rows.device)


def rank_logits(items: Tensor, decay: float) -> Tensor:
    """Return logits of ``p_r ∝ (1 + r)^-decay``, r = 1, 2, …, for ``items (B, K)``; −∞ under padding."""
    ranks = torch.arange(1, items.shape[1] + 1, dtype=torch.float32, device=items.device)
    return torch.where(items > 0, -decay * torch.log1p(ranks), -torch.inf)


def soft_targets(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Return ``softmax(logits / temperature)`` of each row of ``(B, K)``; all 0 for a row of nothing but −∞."""
    if isinstance(temperature, Tensor):
        temperature = temperature[:, None]
    return torch.softmax(logits / temperature, dim=1).nan_to_num(0.0)


def list_kl(
    states: Tensor,
    embeddings: Tensor,
    items: Tensor,
    logits: Tensor,
    *,
    weights: Tensor,
    temperature: Tensor | float = 1.0,
    precision: Precision = "auto",
) -> Tensor:
    r"""KL divergence of the student's softmax over the whole catalogue from the softmax of a list.

    .. math:: \sum_u w_u \tau_u^2 \, \mathrm{KL}\bigl(\mathrm{softmax}(g_u / \tau_u) \,\|\,
              \mathrm{softmax}(f_u / \tau_u)\bigr)

    Args:
        states: ``(B, D)`` the student's vectors for the queries; f is their product with ``embeddings``.
        embeddings: ``(N+1, D)`` the student's item vectors; row 0 is padding and takes no part.
        items: ``(B, K)`` int64 listed items; 0 is padding. A row of padding adds nothing.
        logits: ``(B, K)`` g, −∞ under padding.
        weights: ``(B,)`` w, used as given.
        temperature: tau, one or ``(B,)``, positive; tau^2 keeps the gradients of soft targets from fading.
        precision: of the products with the item vectors.

    Returns:
        Scalar, in nats; 0 when the student agrees.
    """
    targets = soft_targets(logits, temperature)
    weights = weights * temperature**2
    entropy = torch.special.entr(targets).sum(1)
    cross_entropy = list_cross_entropy(
        states, embeddings, items, targets, weights=weights, temperature=temperature, precision=precision
    )
    loss: Tensor = cross_entropy - weights @ entropy
    return loss
