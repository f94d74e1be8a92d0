"""Learning from what users took next, without a teacher."""

from __future__ import annotations

from torch import Tensor

from recdistill.methods.base import Method, Setting, TrainingBatch
from recdistill.methods.labels import LabelLoss, LabelLossConfig
from recdistill.models.base import Model


class Supervised(Method, name="supervised"):
    """Learn the next item at every position of the training histories.

    BERT4Rec learns masked items, and models that read the user learn all items that the user took.
    """

    Config = LabelLossConfig
    config: LabelLossConfig
    reads_last = False

    def prepare(self, setting: Setting) -> None:
        """Count how often each item is taken."""
        self.labels = LabelLoss(self.config, setting)

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the one part ``label``."""
        return {"label": self.labels(student, batch)}
