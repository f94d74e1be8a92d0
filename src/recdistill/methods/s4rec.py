"""S4Rec: pull every history towards the intent of its cluster, and hide from intents how long histories are.

Source: Wei et al., "Leave No One Behind: Online Self-Supervised Self-Distillation for Sequential Recommendation", WWW
2024. The paper leaves open how vectors are pooled and scaled, the temperatures, how Eqs. 5-7 are solved, and what
gradients prototypes get; the defaults are this library's. The largest difference from the letter: vectors and
prototypes are compared by their cosines (``similarity``), and the adversary confuses its classifier instead of
reversing its gradient (``adversary``).

The weights are the paper's, but what they weigh is not quite: its Eq. 1 is a sum over the positions of a history from
the second on, ours a mean over all labels of the batch, those at the first position among them, while the other parts
are means over histories here as there. So beside labels each of them counts about as many times more as a history has
labels: with 44 on average, on ``ml-1m``, a tenth of the weights is far better (``benchmarks/s4rec.md``). Where long
histories are read in windows, each window counts as a history, and those of one user are each other's negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recdistill.methods.base import Method, Setting, TrainingBatch
from recdistill.methods.contrast import label_and_vectors
from recdistill.methods.intents import IntentConfig, IntentParts
from recdistill.methods.labels import LabelLoss, LabelLossConfig
from recdistill.models.base import Model


class S4RecConfig(IntentConfig):
    """Online self-supervised self-distillation."""

    label_loss: LabelLossConfig = LabelLossConfig()
    """How the users' real next items are learned (Eq. 1, whose form the paper leaves open)."""


class S4Rec(Method, name="s4rec"):
    r"""Learn labels, pull every history towards the intent of its cluster, and hide how long it is.

    All parts but that of labels are those of `IntentParts`.

    .. math:: L = L_{SR} + \alpha L_{Clust} + \beta_1 L_{SCL} + \beta_2 L_{CKD} + \lambda L_{Adv}
              \quad \text{(Eq. 14)}
    """

    Config = S4RecConfig
    config: S4RecConfig
    reads_last = False
    parts_of_histories = True

    def prepare(self, setting: Setting) -> None:
        """Take note of the training data."""
        self.setting = setting
        self.label_loss = LabelLoss(self.config.label_loss, setting)

    def fit_to(self, student: Model) -> None:
        """Tell head from tail users; make prototypes and classifier."""
        self.intents = IntentParts.for_student(student, self.config, self.setting, reads_last=self.reads_last)

    def start_epoch(self, student: Model, epoch: int, generator: torch.Generator) -> None:
        """Find the intents anew, where K-means does."""
        self.intents.start_epoch(student, self.setting.train, generator, reads_last=self.reads_last)

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the parts ``label``, ``cluster``, ``contrast``, ``distillation`` and ``adversary``."""
        config = self.config
        if not config.needs_vectors:
            return {"label": self.label_loss(student, batch)}
        label, vectors = label_and_vectors(self.label_loss, student, batch, config.pooling)
        return {"label": label, **self.intents.of_batch(student, batch, vectors)}
