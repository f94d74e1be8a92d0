"""CKD: the teacher's scores of its best items, learned as a soft target over the whole catalogue."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.opinion import SecondOpinionConfig, Share
from recdistill.methods.scored import Distillation, DistillationConfig, TeacherView, blocks
from recdistill.methods.soft_lists import Answers, list_kl
from recdistill.models.base import Model


class CKDConfig(DistillationConfig, SecondOpinionConfig):
    """Distillation over the whole catalogue."""

    second_opinion: Share = 0.3
    """How much what went with what in the training histories counts in every answer, against 1 minus that for the
    teacher: see `SecondOpinionConfig`. Of users whom the teacher does not know rules speak alone.
    """
    top_k: PositiveInt = 200
    """How many of its best items the teacher scores (K)."""
    temperature: PositiveFloat = 1.0
    """τ, at which teacher and student are compared; higher is softer."""
    seen_items: bool = True
    """Whether items of the user's history stand in the lists.

    Where they do not, they are taught to be as unlikely as what the teacher thinks nothing of. A student that reads the
    user, and whose labels they are, is told the opposite by these.
    """


class CKD(Distillation, name="ckd"):
    r"""Learn the teacher's softmax over its K best items by a softmax over all items.

    .. math:: L = L_{label} + \lambda \frac1B \sum_u \tau^2 \, \mathrm{KL}\bigl(\sigma_{Q_u}(r^T_u / \tau) \,\|\,
              \sigma(r^S_u / \tau)\bigr)

    Cross-entropy bounds NDCG where the set that it runs over is closed, that is holds all that the student ranks above
    any of its items (the paper of `RCEKD`). The teacher's list is not closed, which is why `RCEKD` draws items to fill
    it up, anew each epoch, by the student's ranking of the whole catalogue. The whole catalogue is closed whatever the
    student does. Of the teacher's softmax only Q, its K best, is learned: the teacher is asked once, before training,
    and neither lists nor scores are made later. Scores of matrix factorisation are flat, so that the cut sharpens them,
    too. Without a second opinion RCE-KD's students are the better ones by a little for matrix factorisation: it looks
    where the student errs. With one, which is the default, CKD's are better than RCE-KD's without there, and as good as
    its for a SASRec of a quarter of its teacher's width (``benchmarks/rcekd.md``).

    Source: this library. `CE` with ``on = "all"`` takes the teacher's scores of all items instead, for each batch anew;
    `KD` learns lists without the items of the history, as an API gives them.
    """

    Config = CKDConfig
    config: CKDConfig
    needs = frozenset({"rankings", "scores"})

    def prepare(self, setting: Setting) -> None:
        """Ask the teacher for its lists and their scores.

        Raises:
            SettingsError: when it does not give them.
            TeacherError: for a score that is not a finite number.
        """
        super().prepare(setting)
        config, view = self.config, TeacherView(self.setting)
        items = view.lists(min(config.top_k, setting.n_items), seen_items=config.seen_items)
        logits = torch.full(items.shape, -torch.inf)
        for rows in map(torch.from_numpy, blocks(view.rows)):
            logits[rows] = view.scores(rows, items[rows]).float()
        self.answers = Answers(items.int(), logits)

    def distil(self, student: Model, queries: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the divergence over the whole catalogue."""
        return list_kl(
            queries,
            student.item_embeddings(),
            *self.answers.of(batch.rows),
            weights=torch.full_like(queries[:, 0], 1 / len(queries)),
            temperature=self.config.temperature,
            precision=self.config.label_loss.precision,
        )
