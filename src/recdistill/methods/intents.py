"""Intents that all users share, and what is learned of them: the parts of `S4Rec`, whose file says where they are from.

Eqs. are those of its paper: Wei et al., "Leave No One Behind", WWW 2024.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recdistill.arrays import Bools
from recdistill.augmentations import AugmentationConfig, two_views
from recdistill.clustering import k_means, sinkhorn
from recdistill.data.dataset import Sequences
from recdistill.data.groups import HEAD_SHARE, head_cut
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.contrast import Pooling, Similarity, as_learned, encode_all, encode_views
from recdistill.models.base import Model
from recdistill.settings import Settings

_log = logging.getLogger("recdistill.methods")


class IntentConfig(Settings):
    """Intents that all users share: what is learned of them, and how. A weight of 0 leaves its part out, but labels."""

    cluster_weight: NonNegativeFloat = 0.01
    """Of the assignment to intents, which shapes them (α).

    Where it is 0, intents stay as they were drawn, unless ``prototypes_learn_from`` is ``all``.
    """
    contrast_weight: NonNegativeFloat = 0.1
    """Of the contrast between two views of a history, with other intents among the negatives (β1)."""
    distillation_weight: NonNegativeFloat = 0.1
    """Of the distillation from an intent to the views of its histories (β2)."""
    adversary_weight: NonNegativeFloat = 1.0
    """Of the classifier that tells head from tail users, and of what the student does against it (λ).

    Where only one of both is learned from, there is nothing to hide, and the part is left out.
    """
    n_clusters: int = Field(default=128, ge=2)
    """Intents (K)."""
    clustering: Literal["online", "kmeans"] = "online"
    """Whether intents are learned with the student, or are found anew before each epoch and stand still in it.

    K-means has no assignment to learn: ``cluster_weight`` and all that says how intents are learned are refused.
    """
    epsilon: PositiveFloat = 0.05
    """Entropy of the assignment to intents (ε); lower is harder."""
    sinkhorn_iterations: PositiveInt = 3
    """Steps towards an assignment in which all intents are equally large.

    With 3, of 128 intents that share out 512 vectors, the one that misses its equal share most does by 3 to 18 % where
    vectors are random, by 3 to 9 % where they are in 20 clusters. Where they lie close about the intents themselves,
    about some many more than about others, the largest gets two to three times its share; 50 steps make that 1 % more.
    """
    queue_size: NonNegativeInt = 0
    """Recent vectors that are assigned together with the batch's, for batches that are small against ``n_clusters``.

    With fewer in all than intents, which are to be equally large, each is shared out among several intents. The first
    batch says so in a warning.
    """
    assignment_temperature: PositiveFloat = 0.1
    """At which a vector is compared with all intents (τ1)."""
    contrast_temperature: PositiveFloat = 0.1
    """At which a view is compared with others (τ2)."""
    distillation_temperature: PositiveFloat = 0.1
    """At which coordinates of a view and its intent are compared (τ3)."""
    positive_in_denominator: bool = True
    """Whether the other view counts in the denominator of the contrast, as is customary. As printed it does not."""
    prototypes_learn_from: Literal["clustering", "all"] = "clustering"
    """Whether contrast and distillation move the intents as well. The paper does not say."""
    similarity: Similarity = "cosine"
    """Whether vectors and intents are cut to length 1 before anything is made of them, or taken as they are (``dot``).

    As they are, they want ``epsilon`` and all temperatures at 1. The student then learns more slowly and for longer: on
    one negative a label it ends a tenth higher, on the full softmax as high (``benchmarks/s4rec.md``). Eq. 10 as
    printed has no lower bound then. The adversary always reads vectors as they are.
    """
    adversary: Literal["confusion", "reversal"] = "confusion"
    """How the student works against the classifier: it makes it guess as for an average user, or reverses its gradient.

    Reversal is the paper's. It rewards a classifier that is wrong, not one that is blind, and where the student learns
    faster than the classifier, vectors of head and tail users are driven apart instead of together.
    """
    adversary_strength: PositiveFloat = 1.0
    """How strong that is against the classifier's own learning (γ). The paper does not say."""
    head_share: float = Field(default=HEAD_SHARE, gt=0, lt=1)
    """The head is the largest set of the longest training histories that is at most this share of all."""
    pooling: Pooling = "mean"
    """A history's vector z: the mean of its states, or the state that items are scored by."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """How views are made."""

    def unread(self) -> dict[str, str]:
        """K-means has no assignment to learn."""
        assigning = ("epsilon", "sinkhorn_iterations", "queue_size", "assignment_temperature")
        learning = ("cluster_weight", *assigning, "prototypes_learn_from")
        return {} if self.clustering == "online" else dict.fromkeys(learning, "clustering = 'online'")

    @property
    def needs_views(self) -> bool:
        """Whether any part reads views of the histories."""
        return self.contrast_weight > 0 or self.distillation_weight > 0

    @property
    def learns_clusters(self) -> bool:
        """Whether prototypes are learned from the assignment to them."""
        return self.clustering == "online" and self.cluster_weight > 0

    @property
    def needs_vectors(self) -> bool:
        """Whether any part is left."""
        return self.needs_views or self.learns_clusters or self.adversary_weight > 0

    @property
    def pools_states(self) -> bool:
        """Whether vectors are made of the states at all items of a history."""
        return self.needs_vectors and self.pooling == "mean"


class IntentParts(nn.Module):
    """Prototypes of intents, a classifier of head and tail users, and the loss on vectors that they make.

    The prototypes learn from the clustering alone, unless ``prototypes_learn_from`` says otherwise; no gradient flows
    through the assignment to them. All parts move the student.
    """

    prototypes: Tensor
    """``(K, D)``: parameters, or what K-means found."""
    queue: Tensor
    """``(queue_size, D)`` recent vectors, newest first."""
    queued: Tensor
    """How many of them there are."""
    head: Tensor
    """``(R,)`` which rows of the training data are of head users."""

    def __init__(self, config: IntentConfig, dim: int, head: Tensor, *, share_of_head: float) -> None:
        super().__init__()
        self.config = config
        self.share_of_head = share_of_head
        self.size_checked = False
        self.register_buffer("head", head, persistent=False)
        start = F.normalize(torch.randn(config.n_clusters, dim), dim=1)
        if config.clustering == "online":
            self.prototypes = nn.Parameter(start)
        else:
            self.register_buffer("prototypes", start, persistent=False)
        self.classifier = nn.Linear(dim, 2)
        self.register_buffer("queue", torch.zeros(config.queue_size, dim))
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64))

    @classmethod
    def for_student(cls, student: Model, config: IntentConfig, setting: Setting, *, reads_last: bool) -> IntentParts:
        """Make them as wide as the student's vectors, on its device, for the users of the training data.

        Args:
            student: whose vectors they read.
            config: of the parts.
            setting: the training data; its seed fixes the initial weights.
            reads_last: whether the method reads the state after the last training item.
        """
        items, head = student.item_embeddings(), torch.from_numpy(head_rows(setting, config.head_share))
        learned = torch.from_numpy(as_learned(student, setting.train, reads_last=reads_last).lengths > 0)
        share_of_head = float(head[learned].float().mean())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            return cls(config, items.shape[1], head, share_of_head=share_of_head).to(items.device)

    def start_epoch(self, student: Model, train: Sequences, generator: torch.Generator, *, reads_last: bool) -> None:
        """Find the prototypes anew, where K-means does.

        Args:
            student: as it is.
            train: the training histories.
            generator: the source of the draws.
            reads_last: whether the method reads the state after the last training item.
        """
        if self.config.clustering == "kmeans" and self.config.needs_views:
            self.find(encode_all(student, train, self.config.pooling, reads_last=reads_last), generator)

    def find(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Take as prototypes what K-means finds among ``vectors (R, D)``; that may be fewer than K."""
        self.prototypes = k_means(self._scaled(vectors), self.config.n_clusters, generator=generator)

    def of_batch(self, student: Model, batch: TrainingBatch, vectors: Tensor) -> dict[str, Tensor]:
        """Make two views of each history of a batch, if any part reads them, and return the weighted parts.

        Args:
            student: in training mode; it encodes the views, in one pass.
            batch: B histories.
            vectors: ``(B, D)`` z, of the whole histories.
        """
        views = None
        if self.config.needs_views:
            augmented = two_views(batch.batch, self.config.augmentation, batch.generator, max_len=student.max_len)
            views = encode_views(student, augmented, self.config.pooling)
        parts: dict[str, Tensor] = self(vectors, views, self.head[batch.rows])
        return parts

    def forward(self, vectors: Tensor, views: tuple[Tensor, Tensor] | None, is_head: Tensor) -> dict[str, Tensor]:
        """Return the weighted parts of the loss that are not left out, each a mean over the B histories.

        Args:
            vectors: ``(B, D)`` z, of the whole histories.
            views: those of two views of each, both ``(B, D)``; ``None`` where ``needs_views`` says that none are read.
            is_head: ``(B,)`` True for head users.
        """
        config = self.config
        z, prototypes = self._scaled(vectors), self._scaled(self.prototypes)
        scores = z @ prototypes.T
        parts = {}
        if config.learns_clusters:
            cluster = clustering_loss(scores, self._targets(z, scores), temperature=config.assignment_temperature)
            parts["cluster"] = config.cluster_weight * cluster
        if views is not None:
            told = prototypes if config.prototypes_learn_from == "all" else prototypes.detach()
            first, second = map(self._scaled, views)
            parts |= self._of_views(first, second, told, self._intents(z, scores))
        if config.adversary_weight and 0 < self.share_of_head < 1:
            parts["adversary"] = config.adversary_weight * self._adversary(vectors, is_head.long())
        return parts

    def _of_views(self, first: Tensor, second: Tensor, prototypes: Tensor, intents: Tensor) -> dict[str, Tensor]:
        config, parts = self.config, {}
        if config.contrast_weight:
            contrast = intent_contrast(
                first,
                second,
                prototypes,
                intents,
                temperature=config.contrast_temperature,
                positive_in_denominator=config.positive_in_denominator,
            )
            parts["contrast"] = config.contrast_weight * contrast
        if config.distillation_weight:
            own, temperature = prototypes[intents], config.distillation_temperature
            missed = cluster_distillation_loss(first, own, temperature=temperature)
            missed = missed + cluster_distillation_loss(second, own, temperature=temperature)
            parts["distillation"] = config.distillation_weight * missed
        return parts

    def _adversary(self, vectors: Tensor, groups: Tensor) -> Tensor:
        """Eq. 13, with a bias, without which the shares of both groups would have to be told by the vectors."""
        strength, classifier = self.config.adversary_strength, self.classifier
        if self.config.adversary == "reversal":
            return F.cross_entropy(classifier(reverse_gradient(vectors, strength)), groups)
        told = F.cross_entropy(classifier(vectors.detach()), groups)
        guesses = F.linear(vectors, classifier.weight.detach(), classifier.bias.detach())
        average = guesses.new_tensor([1 - self.share_of_head, self.share_of_head]).expand_as(guesses)
        return told + strength * F.cross_entropy(guesses, average)

    @torch.no_grad()
    def _intents(self, z: Tensor, scores: Tensor) -> Tensor:
        """Return ``(B,)`` h: the intent that is most likely by Eq. 3, or, as K-means has it, the nearest centre."""
        return torch.cdist(z, self.prototypes).argmin(1) if self.config.clustering == "kmeans" else scores.argmax(1)

    @torch.no_grad()
    def _targets(self, z: Tensor, scores: Tensor) -> Tensor:
        """Assign the batch together with what the queue remembers, which then remembers the batch as well."""
        config = self.config
        if not self.size_checked:
            self._check_size(len(z))
        remembered = self.queue[: int(self.queued)]
        everyone = torch.cat([scores, remembered @ self._scaled(self.prototypes).T])
        targets = sinkhorn(everyone, epsilon=config.epsilon, n_iterations=config.sinkhorn_iterations)
        self.queue = torch.cat([z, self.queue])[: config.queue_size].clone()
        self.queued = (self.queued + len(z)).clamp_max(config.queue_size)
        return targets[: len(z)]

    def _check_size(self, n_histories: int) -> None:
        """Warn once where there are more intents than vectors that are assigned together, later batches aside."""
        self.size_checked, config = True, self.config
        if n_histories + config.queue_size < config.n_clusters:
            _log.warning(
                "a batch of %d histories with queue_size = %d is less than n_clusters = %d: equally large intents then "
                "share each history out, so that hardly any belongs to one. Set queue_size to at least %d, or "
                "n_clusters to at most %d, or a larger batch_size",
                n_histories,
                config.queue_size,
                config.n_clusters,
                config.n_clusters - n_histories,
                max(2, n_histories + config.queue_size),
            )

    def _scaled(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=1) if self.config.similarity == "cosine" else vectors


def head_rows(setting: Setting, share: float) -> Bools:
    """Return ``(R,)`` which rows are of head users: the longest training histories, at most ``share`` of all.

    A row that shows an earlier part of a long history belongs to its user's group.
    """
    users, rows = setting.whole_rows
    lengths = setting.train.lengths[rows]
    is_head: Bools = (lengths >= head_cut(lengths, share))[np.searchsorted(users, setting.users)]
    return is_head


def clustering_loss(scores: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    r"""Cross-entropy of the soft assignment to intents against the balanced one.

    .. math:: -\frac1B \sum_u \sum_k q_{uk} \log p_{uk}, \quad
              p_u = \mathrm{softmax}(z_u \mu^\top / \tau_1)

    Args:
        scores: ``(B, K)`` products of vectors z and prototypes mu.
        targets: ``(B, K)`` q from `sinkhorn`, whose rows sum to 1: B times the Q of the paper.
        temperature: tau_1, positive.

    Returns:
        Scalar, in nats.

    Source: Wei et al., "Leave No One Behind", WWW 2024, Eqs. 3-4; Eqs. 5-7 are `sinkhorn`.
    """
    return F.cross_entropy(scores / temperature, targets)


def intent_contrast(
    first: Tensor,
    second: Tensor,
    prototypes: Tensor,
    intents: Tensor,
    *,
    temperature: float,
    positive_in_denominator: bool,
) -> Tensor:
    r"""Find a history's other view among the views of other histories and the intents that it does not have.

    .. math:: \frac1B \sum_u \ell(z_u^1, z_u^2) + \ell(z_u^2, z_u^1), \quad \ell(z_u^1, z_u^2) = -\log
              \frac{\exp(z_u^1 \cdot z_u^2 / \tau_2)}{\sum_{n \ne u} \exp(z_u^1 \cdot z_n / \tau_2)
              + \sum_{k \ne h(u)} \exp(z_u^1 \cdot \mu_k / \tau_2)}

    Args:
        first: ``(B, D)`` vectors z^1 of one view of each history.
        second: ``(B, D)`` vectors z^2 of the other view; both views of other histories are negatives n.
        prototypes: ``(K, D)`` mu.
        intents: ``(B,)`` int64, h: the intent of each history.
        temperature: tau_2, positive.
        positive_in_denominator: whether the numerator is added to the denominator, as is customary; the loss is then
            never below 0.

    Returns:
        Scalar, in nats; 0 for one history alone where there is but its own intent.

    Source: Wei et al., "Leave No One Behind", WWW 2024, Eqs. 9-10.
    """
    views = torch.cat([first, second])
    place = torch.arange(len(views), device=views.device)
    other = place.roll(len(first))
    left_out = place[:, None] == place
    has_negatives = len(first) > 1 or len(prototypes) > 1
    if has_negatives and not positive_in_denominator:
        left_out |= other[:, None] == place
    own = F.one_hot(intents, len(prototypes)).bool().repeat(2, 1)
    logits = views @ torch.cat([views, prototypes]).T / temperature
    denominator = logits.masked_fill(torch.cat([left_out, own], 1), -torch.inf).logsumexp(1)
    return 2 * (denominator - logits[place, other]).mean()


def cluster_distillation_loss(embeddings: Tensor, prototypes: Tensor, *, temperature: float) -> Tensor:
    r"""KL divergence between a history's vector and the intent that it belongs to.

    .. math:: \sum_i e_t^i \log(e_t^i / e_s^i), \quad
              e_t = \mathrm{softmax}(\mu / \tau_3), \; e_s = \mathrm{softmax}(z / \tau_3)

    Args:
        embeddings: ``(B, D)`` vectors z, the students.
        prototypes: ``(B, D)`` prototype mu of each history's intent, the teacher.
        temperature: tau_3, positive; higher is softer.

    Returns:
        Scalar, in nats, a mean over the B histories.

    Source: Wei et al., "Leave No One Behind", WWW 2024, Eqs. 11-12, for one of the two views. The softmax runs over
    coordinates, as the paper has it.
    """
    teacher = F.log_softmax(prototypes / temperature, dim=1)
    student = F.log_softmax(embeddings / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def reverse_gradient(vectors: Tensor, strength: float) -> Tensor:
    """Return ``vectors`` as they are; what flows back through them is reversed, ``strength`` times.

    Source: Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015.
    """
    reversed_: Tensor = _Reverse.apply(vectors, strength)  # type: ignore[no-untyped-call]
    return reversed_


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return vectors.view_as(vectors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grad, None
