"""ICLRec: the views of a history are to be told by the intent that K-means finds behind it.

Source: Chen et al., "Intent Contrastive Learning for Sequential Recommendation", WWW 2022 (arXiv 2202.02519), and the
authors' code for its numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from recdistill.augmentations import AugmentationConfig, Kinds, two_views
from recdistill.clustering import k_means
from recdistill.methods.base import Method, Setting, TrainingBatch
from recdistill.methods.contrast import (
    ContrastConfig,
    Pooling,
    Similarity,
    encode_all,
    encode_views,
    label_and_vectors,
    nt_xent,
)
from recdistill.methods.labels import LabelLoss
from recdistill.models.base import Model


class ICLRecAugmentation(AugmentationConfig):
    """The operators of the authors' code."""

    kinds: Kinds = ("crop", "mask", "reorder")
    """Operators, of which one is drawn for every history and view."""


class ICLRecConfig(ContrastConfig):
    """Contrast of views with each other and with intents."""

    intent_weight: NonNegativeFloat = 0.1
    """Of the contrast with intents, against 1 for the labels; 0 leaves it out, and K-means with it (λ)."""
    n_clusters: PositiveInt = 256
    """Intents at most (K)."""
    exclude_same_intent: bool = True
    """Whether users of the same intent are not each other's negatives in the contrast with intents."""
    pooling: Pooling = "mean"
    """A history's vector: the mean of its states, or the one that next items are scored by."""
    augmentation: ICLRecAugmentation = ICLRecAugmentation()
    """How views are made."""


class ICLRec(Method, name="iclrec"):
    r"""Learn true items, and recognise a history's views by each other and by its intent.

    .. math:: L = L_{label} + \lambda L_{intent} + \beta L_{cl}

    Before every epoch K-means finds intents among the vectors of all training histories. A history has the intent that
    is nearest to its vector, as that is by now.

    Differs from the paper: the contrast of views is `nt_xent` between pooled vectors, not between all states in a row,
    and one pass over the views serves both contrasts.
    """

    Config = ICLRecConfig
    config: ICLRecConfig
    reads_last = False
    parts_of_histories = True

    def prepare(self, setting: Setting) -> None:
        """Count how often each item is taken."""
        self.histories = setting.train
        self.label_loss = LabelLoss(self.config.label_loss, setting)

    def start_epoch(self, student: Model, epoch: int, generator: torch.Generator) -> None:
        """Find the intents."""
        config = self.config
        if config.intent_weight:
            vectors = encode_all(student, self.histories, config.pooling)
            self.intents = k_means(vectors, config.n_clusters, generator=generator)

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the parts ``label``, ``intent`` and ``contrast``."""
        config = self.config
        if config.intent_weight:
            label, vectors = label_and_vectors(self.label_loss, student, batch, config.pooling)
        else:
            label = self.label_loss(student, batch)
        parts = {"label": label}
        if config.intent_weight or config.contrast_weight:
            views = two_views(batch.batch, config.augmentation, batch.generator, max_len=student.max_len)
            first, second = encode_views(student, views, config.pooling)
        if config.intent_weight:
            intent = intent_loss(
                first,
                second,
                self.intents,
                torch.cdist(vectors.detach(), self.intents).argmin(1),
                temperature=config.temperature,
                similarity=config.similarity,
                exclude_same=config.exclude_same_intent,
            )
            parts["intent"] = config.intent_weight * intent
        if config.contrast_weight:
            contrast = nt_xent(first, second, temperature=config.temperature, similarity=config.similarity)
            parts["contrast"] = config.contrast_weight * contrast
        return parts


def intent_loss(
    first: Tensor,
    second: Tensor,
    centres: Tensor,
    intents: Tensor,
    *,
    temperature: float,
    similarity: Similarity,
    exclude_same: bool,
) -> Tensor:
    r"""Tell a view's intent from those of the other histories in the batch.

    .. math:: -\frac{1}{2B} \sum_u \sum_{v=1}^2 \log \frac{\exp(z_u^v \cdot c_u / \tau)}
              {\exp(z_u^v \cdot c_u / \tau) + \sum_{n : c_n \ne c_u} \exp(z_u^v \cdot c_n / \tau)}

    Args:
        first: ``(B, D)`` vectors z of one view of each history.
        second: ``(B, D)`` vectors z of the other view.
        centres: ``(K, D)`` of all intents; c is the centre of a history's intent, cut to length 1.
        intents: ``(B,)`` int64 the intent of each history.
        temperature: tau, positive.
        similarity: the product of view and centre, or ``cosine`` for that of views cut to length 1 as well.
        exclude_same: whether the sum leaves out histories of the same intent, as above, or only u itself.

    Returns:
        Scalar, in nats; 0 where all histories have the same intent and ``exclude_same`` is set.

    Source: Chen et al., "Intent Contrastive Learning for Sequential Recommendation", WWW 2022, with centres of
    length 1 and the mean over both views as in the authors' code.
    """
    views = torch.cat([first, second])
    if similarity == "cosine":
        views = F.normalize(views, dim=1)
    logits = views @ F.normalize(centres, dim=1)[intents].T / temperature
    own = torch.arange(len(intents), device=views.device)
    if exclude_same:
        same = (intents[:, None] == intents) & (own[:, None] != own)
        logits = logits.masked_fill(torch.cat([same, same]), -torch.inf)
    return F.cross_entropy(logits, torch.cat([own, own]))
