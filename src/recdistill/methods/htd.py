"""HTD: how alike users and items are to the teacher, in groups and between them."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from recdistill.methods.base import TrainingBatch
from recdistill.methods.vectors import VectorConfig, VectorDistillation
from recdistill.models.base import Model


class HTDConfig(VectorConfig):
    """Hierarchical topology distillation."""

    topology_share: float = Field(default=0.9, ge=0, le=1)
    """α: what the topologies count beside the experts that make the groups."""
    between: Literal["members", "prototypes"] = "members"
    """What the groups' prototypes are compared with: all users and items, or each other."""


class HTD(VectorDistillation, name="htd"):
    r"""Learn cosines: within groups one by one, between groups through their means.

    .. math:: L = L_{label} + \lambda \bigl((1 - \alpha) L_{experts} + \alpha L_{topology}\bigr)

    Groups are the experts that the teacher's vectors choose; those of users and of items are kept apart.

    Source: Kang et al., "Topology Distillation for Recommender System", KDD 2021, as the authors of RCE-KD run it.
    Differs: means over users (those whom the teacher knows), items and pairs, not sums; and a fixed number of items a
    step.
    """

    Config = HTDConfig
    config: HTDConfig

    def distil(self, student: Model, queries: Tensor, batch: TrainingBatch) -> Tensor:
        """Return what experts and topologies miss."""
        users, items = self.pairs(student, queries, self.draw_items(student, batch), batch)
        groups = torch.cat(
            [self.user_experts.group(users[1]), self.item_experts.group(items[1]) + self.config.n_experts]
        )
        topology = topology_loss(
            torch.cat([users[0], items[0]]), torch.cat([users[1], items[1]]), groups, between=self.config.between
        )
        share = self.config.topology_share
        return (1 - share) * self.expert_loss(users, items, batch.generator) + share * topology


def topology_loss(
    student: Tensor, teacher: Tensor, groups: Tensor, *, between: Literal["members", "prototypes"]
) -> Tensor:
    r"""Squared differences of cosines, within groups and of the groups' prototypes.

    .. math:: \mathrm{mean}_{(i,j) : z_i = z_j, \rho^T_{ij} > 0} (\rho^S_{ij} - \rho^T_{ij})^2
              + \mathrm{mean}_{(g,i)} (\rho^S_{gi} - \rho^T_{gi})^2

    Args:
        student: ``(n, D)`` its vectors of users and items.
        teacher: ``(n, D')`` the teacher's. No gradient flows into them.
        groups: ``(n,)`` int64 the group z of each.
        between: whether i in the second mean runs over members or over prototypes. A prototype g is its group's mean.
            With prototypes the second mean is counted and has no gradient: it teaches within groups only.

    Returns:
        Scalar; 0 where the student's vectors are the teacher's, turned and scaled.

    Source: the authors' code of `HTD`, where no gradient flows into the prototypes, and pairs within a group that the
    teacher holds to be opposed are left out.
    """
    teacher = teacher.detach()
    same = groups[:, None] == groups
    of_student, of_teacher = _cosines(student, student), _cosines(teacher, teacher)
    counted = same & (of_teacher > 0)
    within = torch.where(counted, (of_student - of_teacher).square(), 0.0).sum() / counted.sum().clamp_min(1)

    members = F.one_hot(torch.unique(groups, return_inverse=True)[1]).to(student.dtype).T
    members = members / members.sum(1, keepdim=True)
    student_means, teacher_means = (members @ student).detach(), members @ teacher
    if between == "prototypes":
        ours, theirs = _cosines(student_means, student_means), _cosines(teacher_means, teacher_means)
    else:
        ours, theirs = _cosines(student_means, student), _cosines(teacher_means, teacher)
    return within + (ours - theirs).square().mean()


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
