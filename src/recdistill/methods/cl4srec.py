"""CL4SRec: two augmented views of a history are to be told from those of others.

Source: Xie et al., "Contrastive Learning for Sequential Recommendation", ICDE 2022 (arXiv 2010.14395).
"""

from __future__ import annotations

from torch import Tensor

from recdistill.augmentations import AugmentationConfig, Kinds, Share, two_views
from recdistill.methods.base import Method, Setting, TrainingBatch
from recdistill.methods.contrast import ContrastConfig, encode_views, nt_xent
from recdistill.methods.labels import LabelLoss
from recdistill.models.base import Model


class CL4SRecAugmentation(AugmentationConfig):
    """The paper's three operators; the shares are those of the CL4SRec that DuoRec's authors publish."""

    kinds: Kinds = ("crop", "mask", "reorder")
    """Operators, of which one is drawn for every history and view."""
    crop_share: Share = 0.6
    """Share of a history that a crop keeps, rounded up (η)."""
    mask_share: Share = 0.3
    """Share of a history's items that are hidden, rounded down (γ)."""
    reorder_share: Share = 0.6
    """Share of a history that is shuffled, rounded down (β)."""


class CL4SRecConfig(ContrastConfig):
    """Contrast of augmented views; weight and temperature are those of the CL4SRec that DuoRec's authors publish."""

    augmentation: CL4SRecAugmentation = CL4SRecAugmentation()
    """How views are made."""


class CL4SRec(Method, name="cl4srec"):
    r"""Learn true items, and recognise a history by another view of it.

    .. math:: L = L_{label} + \lambda L_{cl}

    with `nt_xent` between the states after two views of each history as the second part.

    Differs from the paper: a crop is rounded up, so that something is always left, and a hidden item is the zero vector
    of padding instead of a learned one. Differs from the code of DuoRec's authors: the two operators of a history are
    drawn independently, so that they may be the same.
    """

    Config = CL4SRecConfig
    config: CL4SRecConfig
    reads_last = False
    parts_of_histories = True

    def prepare(self, setting: Setting) -> None:
        """Count how often each item is taken."""
        self.label_loss = LabelLoss(self.config.label_loss, setting)

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the parts ``label`` and ``contrast``."""
        config = self.config
        parts = {"label": self.label_loss(student, batch)}
        if config.contrast_weight:
            views = two_views(batch.batch, config.augmentation, batch.generator, max_len=student.max_len)
            first, second = encode_views(student, views, "last")
            contrast = nt_xent(first, second, temperature=config.temperature, similarity=config.similarity)
            parts["contrast"] = config.contrast_weight * contrast
        return parts
