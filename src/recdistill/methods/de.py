"""DE: experts map the student's vectors onto the teacher's."""

from __future__ import annotations

from torch import Tensor

from recdistill.methods.base import TrainingBatch
from recdistill.methods.vectors import VectorConfig, VectorDistillation
from recdistill.models.base import Model


class DEConfig(VectorConfig):
    """Distillation experts."""


class DE(VectorDistillation, name="de"):
    r"""Let the student's vectors tell what the teacher's are.

    .. math:: L = L_{label} + \lambda \Bigl(\frac1B \sum_u |t_u - \sum_e g_{ue} E_e(s_u)|^2
              + \frac1n \sum_i |t_i - \sum_e g_{ie} E'_e(s_i)|^2\Bigr)

    The gates g read the teacher's vector, and become a hard choice as training goes on, so that each expert serves
    users or items that are alike.

    Source: Kang et al., "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020, section 3.
    Differs: means over users (those whom the teacher knows) and items, not sums; and a fixed number of items a step.
    """

    Config = DEConfig
    config: DEConfig

    def distil(self, student: Model, queries: Tensor, batch: TrainingBatch) -> Tensor:
        """Return what the experts miss."""
        users, items = self.pairs(student, queries, self.draw_items(student, batch), batch)
        return self.expert_loss(users, items, batch.generator)
