"""HetComp: a teacher's checkpoints, from easy to hard, each user going on when the student has come close enough."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from recdistill.losses.ranking import relaxed_ranking_loss
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.lists import contains
from recdistill.methods.scored import Distillation, DistillationConfig, filled, student_lists, teacher_lists
from recdistill.models.base import Batch, Model

_DECAY = 0.995
"""By which the threshold falls at each look."""


class HetCompConfig(DistillationConfig):
    """Distillation along a teacher's training."""

    top_k: PositiveInt = 50
    """Length of the lists (K)."""
    look_every: PositiveInt = 10
    """Epochs between two looks at how far the student has come (p)."""
    threshold: PositiveFloat = 1.05
    """α: how much closer to the next checkpoint than at first the student has to be, as a ratio of distances."""


class HetComp(Distillation, name="hetcomp"):
    r"""Learn the lists of earlier checkpoints as sets, and the last one's in its order.

    A user goes on to the next checkpoint when the distance to it, ``1 − NDCG`` of the student's list, has fallen by the
    factor ``α 0.995^{look}``, or has grown. Once the users' mean stage, to two decimals, is the last checkpoint, the
    loss turns from the coarse one to the fine one, and nobody goes on any more.

    .. math:: L = L_{label} + \frac{\lambda}{BK} \sum_u \begin{cases}
              2 \, \mathrm{set}(\pi_u) & \text{coarse} \\
              \tfrac12 (\mathrm{order}(\pi_{u,1..K/2}) + \mathrm{order}(\pi_{u,1..K/10})) & \text{fine} \end{cases}

    ``set`` and ``order`` are sums over places. The authors add up the places and users of a batch: their λ times K is
    ``weight``. K/2 and K/10 are rounded up.

    Source: Kang et al., "Distillation from Heterogeneous Models for Top-K Recommendation", WWW 2023, as the authors of
    RCE-KD run it, with the checkpoints of one teacher. Differs: a mean over users, not a sum; the user's own items are
    learned by the label loss alone; and a user whose list already is the next checkpoint's goes on to it.
    """

    Config = HetCompConfig
    config: HetCompConfig
    needs = frozenset({"rankings", "checkpoints"})
    stage: Tensor
    """``(R,)`` int64 which checkpoint each user learns from."""
    distance: Tensor
    """``(R,)`` to the next one, when it was last set."""

    def prepare(self, setting: Setting) -> None:
        """Ask every checkpoint for its lists."""
        super().prepare(setting)
        self.lists = torch.stack(
            [
                teacher_lists(replace(setting, teacher=checkpoint), self.config.top_k).int()
                for checkpoint in self.teacher.checkpoints
            ]
        )
        self.last = len(self.lists) - 1
        self.register_buffer("stage", torch.zeros(len(setting.train), dtype=torch.int64))
        self.register_buffer("distance", torch.zeros(len(setting.train)))

    def start_epoch(self, student: Model, epoch: int, generator: torch.Generator) -> None:
        """Look how far the student has come, where it is time, and let users go on."""
        look = epoch // self.config.look_every
        if epoch % self.config.look_every or look == 0 or self._finished():
            return
        threshold, everyone = self.config.threshold * _DECAY**look, filled(self.setting.train)
        for rows, own in student_lists(student, self.setting, everyone, self.config.top_k, seen_items=False):
            stage, before = self.stage.cpu()[rows], self.distance.cpu()[rows]
            if look > 1:
                goes = goes_on(before, self._distance(own, rows, stage + 1), threshold) & (stage < self.last)
                stage = stage + goes
                before = torch.where(goes, self._distance(own, rows, stage + 1), before)
            else:
                before = self._distance(own, rows, stage + 1)
            at = rows.to(self.stage.device)
            self.stage[at], self.distance[at] = stage.to(self.stage), before.to(self.distance)

    def _finished(self) -> bool:
        listed = self.lists[0, :, 0].to(self.stage.device) > 0
        return round(self.stage[listed].double().mean().item(), 2) >= self.last

    def _distance(self, own: Tensor, rows: Tensor, stage: Tensor) -> Tensor:
        return list_distance(own, self.lists[stage.clamp_max(self.last), rows].long())

    def distil(self, student: Model, queries: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the coarse loss, or the fine one where the users are at the last checkpoint."""
        rows, stage = batch.rows.to(self.lists.device), self.stage[batch.rows].to(self.lists.device)
        listed = self.lists[stage, rows].long().to(queries.device)
        logits = queries @ student.item_embeddings().T
        whole = Batch.from_sequences(self.setting.train.take(batch.rows.cpu().numpy()))  # the batch may show less
        others = ~seen_items(whole.to(logits.device), logits.shape[1])
        k = listed.shape[1]
        if not self._finished():
            return 2 / k * set_loss(logits, listed, others).mean()
        half, tenth = (list_loss(logits, listed[:, : -(-k // part)], others).mean() for part in (2, 10))
        return (half + tenth) / (2 * k)


def goes_on(before: Tensor, now: Tensor, threshold: float) -> Tensor:
    """Return ``(B,)`` whose distance to the next checkpoint has fallen by more than a factor, or has grown."""
    ratio = before / now.clamp_min(1e-6)
    return (ratio > threshold) | (ratio < 1)


def list_distance(own: Tensor, listed: Tensor) -> Tensor:
    r"""How far a student's list is from a teacher's, by its discounted hits.

    .. math:: 1 - \frac{\sum_t 1[\pi^S_t \in \pi^T] \, g_t}{\sum_t g_t}, \quad
              g_t = \frac{2^{\exp(-t / 10)} - 1}{\log_2(t + 2)}, \quad t = 0 \dots K-1

    Args:
        own: ``(B, K)`` the student's list, best first.
        listed: ``(B, K)`` the teacher's.

    Returns:
        ``(B,)`` in [0, 1].

    Source: the authors' code of `HetComp`.
    """
    t = torch.arange(own.shape[1], dtype=torch.float32)
    gains = (2 ** torch.exp(-t / 10) - 1) / torch.log2(t + 2)
    return 1 - (contains(listed, own) * gains).sum(1) / gains.sum()


def seen_items(batch: Batch, width: int) -> Tensor:
    """Return ``(B, width)`` which items each history holds; padding (column 0) counts as held."""
    rows = torch.repeat_interleave(torch.arange(len(batch), device=batch.items.device), batch.lengths)
    seen = torch.zeros(len(batch), width, dtype=torch.bool, device=batch.items.device)
    seen[:, 0] = True
    seen[rows, batch.items] = True
    return seen


def set_loss(logits: Tensor, listed: Tensor, others: Tensor) -> Tensor:
    r"""Each listed item, by itself, above all that are not listed; a sum over places.

    .. math:: -\sum_{i \in \pi} \log \frac{e^{f_i}}{e^{f_i} + \sum_{o \notin \pi} e^{f_o}}

    Args:
        logits: ``(B, N+1)`` the student's logits of all items.
        listed: ``(B, K)`` the teacher's list; 0 is padding.
        others: ``(B, N+1)`` which items may stand below; listed ones are left out here.

    Returns:
        ``(B,)`` in nats.

    Source: the paper of `HetComp`.
    """
    real = listed > 0
    top = logits.gather(1, listed)
    below = _below(logits, listed, others).logsumexp(1, keepdim=True)
    return torch.where(real, torch.logaddexp(top, below) - top, 0.0).sum(1)


def list_loss(logits: Tensor, listed: Tensor, others: Tensor) -> Tensor:
    """Take `relaxed_ranking_loss` of a list above all that are not listed, as a sum; shapes are those of `set_loss`."""
    real, below = listed > 0, _below(logits, listed, others)
    mean = relaxed_ranking_loss(logits.gather(1, listed), real, below, torch.ones_like(below, dtype=torch.bool))
    return mean * real.sum(1)


def _below(logits: Tensor, listed: Tensor, others: Tensor) -> Tensor:
    nothing = torch.finfo(logits.dtype).min
    return logits.masked_fill(~others.scatter(1, listed, False), nothing)
