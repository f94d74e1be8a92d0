"""Uniform distillation: every user's answer is a soft target over the whole catalogue, and all weigh the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from recdistill.errors import SettingsError
from recdistill.losses import Precision, list_cross_entropy, order_loss
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.intents import WithIntents, WithIntentsConfig, learn_logs
from recdistill.methods.labels import LabelLoss, LabelLossConfig
from recdistill.methods.lists import list_logits
from recdistill.methods.opinion import HALF, SecondOpinionConfig, advised
from recdistill.methods.probing import probe
from recdistill.methods.s4rec import IntentParts
from recdistill.models.base import Model
from recdistill.rankings import Ranking
from recdistill.teachers.base import Teacher

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

    def advised(self, setting: Setting) -> Setting:
        """Return a setting whose teacher is advised as is set here."""
        return advised(setting, self.second_opinion, k=self.top_k, least=self.least_share)


class KDConfig(ListConfig, WithIntentsConfig):
    """Uniform distillation from a teacher's lists."""

    values: Values = "auto"
    """What a place in the list is worth: its score, or its rank alone; ``auto`` takes scores where there are some.

    Scores are read as logits. Where they are something else, probabilities or cosines, ranks are the better choice.
    """
    rank_decay: NonNegativeFloat = 2.0
    """a in the target ``p_r ∝ (1 + r)^-a`` that ranks stand for; 0 takes a list for a set, higher trusts its head."""
    temperature: PositiveFloat = 1.0
    """At which target and student are compared; higher is softer."""
    order_weight: NonNegativeFloat = 0.0
    """Of the order inside each list, beside its soft target. The target puts the weight on the head of the list and
    pushes down what is not in it; the order says which of any two neighbours goes first. With 10, a student copies its
    teacher much more closely; it recommends no better (``benchmarks/bahsd.md``)."""
    margin: NonNegativeFloat = 0.5
    """By which a logit is to exceed that of the next item."""


class KD(WithIntents, name="kd"):
    r"""Learn the teacher's list for each user as a soft target over the whole catalogue.

    .. math:: L = L_{label} + \frac{\lambda}{T} \sum_u \tau^2
              \mathrm{KL}(\mathrm{softmax}(g_u / \tau) \,\|\, \mathrm{softmax}(f_u / \tau)) + \lambda_o L_o(u)

    One answer a user: g to the whole training history, whose own next item is held out. The student's f is taken after
    the last training item, where there is no label. L_o, which is off by default, is `order_loss` of the list. T is the
    number of labels in the batch, over which the label loss is a mean too: one answer counts as much as λ labels,
    however long histories are. In pure distillation λ/T is 1/B, and users without an answer are not read.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, Section 2, for the tau^2.
    Differs: the target is a list, with probability 0 for what it leaves out.
    """

    Config = KDConfig
    config: KDConfig
    needs = frozenset({"rankings"})

    def check_teacher(self, teacher: Teacher | None) -> Teacher:
        """Refuse one that gives no scores, too, where they are wanted."""
        return check_values(self.config, super().check_teacher(teacher))

    def prepare(self, setting: Setting) -> None:
        """Ask the teacher about every training history once.

        Raises:
            SettingsError: when it does not give what is needed.
        """
        self.check_teacher(setting.teacher)
        super().prepare(setting)
        config = self.config
        answers = probe(config.advised(setting), k=config.top_k).full
        self.answers = Answers.read(answers, config.values, config.rank_decay)
        self.taught = None if config.labels or config.intents is not None else answers.rows_answered
        self.label_loss = LabelLoss(config.label_loss, setting) if config.labels else None

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the parts ``label`` (assisted only), ``answer``, and any of `WithIntents`."""
        config = self.config
        parts, queries, worth = label_and_queries(student, batch, self.label_loss, config.weight, self.intents)
        weights = torch.full_like(queries[:, 0], worth)
        parts["answer"] = list_loss(student, config, queries, *self.answers.of(batch.rows), weights=weights)
        return parts


def check_values(config: KDConfig, teacher: Teacher) -> Teacher:
    """Return the teacher if it gives the values that are wanted.

    Raises:
        SettingsError: when these are scores, and it gives none.
    """
    if config.values == "scores" and not teacher.gives_scores:
        raise SettingsError(
            f"values = 'scores', but teacher {teacher.identity!r} gives lists without scores: set values to 'ranks'"
        )
    return teacher


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


def list_loss(
    student: Model,
    config: KDConfig,
    states: Tensor,
    items: Tensor,
    logits: Tensor,
    *,
    weights: Tensor,
    temperature: Tensor | float | None = None,
) -> Tensor:
    """Return what lists teach: a soft target over the whole catalogue, and the order of each, where that is learned.

    Args:
        student: whose item vectors are read.
        config: weight and margin of the order, precision, and the temperature where none is given.
        states: ``(B, D)`` its vectors for the queries.
        items: ``(B, K)`` int64 listed items; 0 is padding.
        logits: ``(B, K)`` what each place is worth, −∞ under padding.
        weights: ``(B,)``, used as given.
        temperature: one or ``(B,)``.

    Returns:
        Scalar.
    """
    embeddings = student.item_embeddings()
    loss = list_kl(
        states,
        embeddings,
        items,
        logits,
        weights=weights,
        temperature=config.temperature if temperature is None else temperature,
        precision=config.label_loss.precision,
    )
    if config.order_weight:
        order = order_loss(list_logits(states, embeddings, items), logits, margin=config.margin)
        loss = loss + config.order_weight * (weights @ order)
    return loss


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
