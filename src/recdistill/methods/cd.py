"""CD: the teacher's probabilities for a few items that the student itself ranks high."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from recdistill.arrays import Ints
from recdistill.errors import SettingsError
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.lists import draw_places, list_logits
from recdistill.methods.scored import GuidedConfig, GuidedDistillation, TeacherView, student_lists
from recdistill.models.base import Model
from recdistill.teachers.base import Teacher


class CDConfig(GuidedConfig):
    """Collaborative distillation, guided by the student."""

    n_sampled: PositiveInt = 2
    """Items learned for each user between two looks at the student."""
    depth: PositiveInt = 3000
    """How deep in the student's ranking they are drawn (M)."""
    rank_temperature: PositiveFloat = 20.0
    """T in the chance ``exp(−rank / (M T))`` of a draw. At 20 it is nearly even, and what prefers the head is that an
    item is the better one of two draws.
    """
    score_scale: PositiveFloat = 1.0
    """What the teacher's scores are divided by before they are read as logits (t1 in the authors' code)."""
    score_shift: float = 0.0
    """What is added to them before that (t2)."""


class CD(GuidedDistillation, name="cd"):
    r"""Learn the teacher's probabilities, item by item, where the student ranks high.

    .. math:: L = L_{label} + \lambda \frac1B \sum_u \sum_{i \in A_u} \mathrm{BCE}(\sigma(r^S_{ui}), q_{ui}), \quad
              q = \sigma\bigl((r^T + t_2) / t_1\bigr)

    Source: Lee et al., "Collaborative Distillation for Top-N Recommendation", ICDM 2019, as the authors of RCE-KD run
    it. Differs: a mean over users, not a sum over (user, item) rows.
    """

    Config = CDConfig
    config: CDConfig
    needs = frozenset({"rankings", "scores"})
    items: Tensor
    """``(R, n)`` what is learned; 0 is padding."""
    scores: Tensor
    """``(R, n)`` the teacher's scores of it."""

    def check_teacher(self, teacher: Teacher | None) -> Teacher:
        """Refuse an ensemble, too, whose scores are logarithms of shares."""
        if teacher is not None and len(teacher.members) > 1:
            raise SettingsError(
                f"method {self.name!r} reads every score as the logit of a probability, and those of several teachers "
                "together are shares of all items, nearly none of which is likely: name one teacher, or take a method "
                "that compares scores with each other, such as 'rcekd'"
            )
        return super().check_teacher(teacher)

    def prepare(self, setting: Setting) -> None:
        """Make the teacher ready to be asked."""
        super().prepare(setting)
        self.view = TeacherView(self.setting)
        n = min(self.config.n_sampled, self.config.depth, setting.n_items)
        self.keep("items", n, dtype=torch.int32)
        self.keep("scores", n, dtype=torch.float32)

    def refresh(self, student: Model, rows: Ints, generator: torch.Generator) -> None:
        """Draw from the head of the student's ranking."""
        config = self.config
        for block, head in student_lists(student, self.setting, rows, config.depth, seen_items=False):
            chances = better_of_two(head.shape[1], temperature=config.depth * config.rank_temperature)
            chances = torch.where(head > 0, chances, -torch.inf)
            items = head.gather(1, draw_places(chances, config.n_sampled, generator))
            at = block.to(self.items.device)
            self.items[at] = items.to(self.items)
            self.scores[at] = self.view.scores(block, items).to(self.scores)

    def distil(self, student: Model, queries: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the binary cross-entropy, a sum over a user's items."""
        items, config = self.items[batch.rows], self.config
        logits = list_logits(queries, student.item_embeddings(), items)
        targets = torch.sigmoid((self.scores[batch.rows] + config.score_shift) / config.score_scale)
        return probability_loss(logits, targets, items > 0).mean()


def better_of_two(n: int, *, temperature: float) -> Tensor:
    r"""Log-chances of the better place of two draws.

    .. math:: P(r) = S_r^2 - S_{r+1}^2, \quad S_r = \sum_{q \ge r} p_q, \quad p_q \propto e^{-q / T}

    Args:
        n: number of places.
        temperature: T.

    Returns:
        ``(n,)``.
    """
    chances = torch.softmax(-torch.arange(n, dtype=torch.float64) / temperature, dim=0)
    tails = chances.flip(0).cumsum(0).flip(0)
    # S_r² − S_{r+1}² = p_r (S_r + S_{r+1}), which does not cancel.
    return (chances.log() + (2 * tails - chances).log()).float()


def probability_loss(student: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    r"""Binary cross-entropy of the student's probabilities against given ones.

    .. math:: -\sum_i q_i \log\sigma(r^S_i) + (1 - q_i) \log(1 - \sigma(r^S_i))

    Args:
        student: ``(B, n)`` its logits r^S.
        targets: ``(B, n)`` q in [0, 1]. No gradient flows into them.
        real: ``(B, n)`` which are no padding.

    Returns:
        ``(B,)`` in nats, least where the student agrees.

    Source: the paper of `CD`.
    """
    loss = F.binary_cross_entropy_with_logits(student, targets.detach(), reduction="none")
    return torch.where(real, loss, 0.0).sum(1)
