"""Uniform distillation: every user's answer is a soft target over the whole catalogue, and all weigh the same."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from recdistill.errors import SettingsError
from recdistill.losses.ranking import order_loss
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.labels import LabelLoss
from recdistill.methods.lists import list_logits
from recdistill.methods.probing import probe
from recdistill.methods.soft_lists import Answers, ListConfig, Values, label_and_queries, list_kl
from recdistill.methods.with_intents import WithIntents, WithIntentsConfig
from recdistill.models.base import Model
from recdistill.teachers.base import Teacher


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

    def unread(self) -> dict[str, str]:
        """Ranks are worth nothing where scores are, and the margin is that of the order."""
        unread = super().unread()
        if self.values == "scores":
            unread["rank_decay"] = "values = 'ranks' or 'auto'"
        if not self.order_weight:
            unread["margin"] = "order_weight above 0"
        return unread


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
