"""Vanilla cross-entropy between the softmaxes of teacher and student, on a few items or on all."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from recdistill.data.dataset import Ints
from recdistill.losses.precision import Precision
from recdistill.losses.ranking import subset_cross_entropy
from recdistill.losses.softmax import list_cross_entropy
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.lists import contains, list_logits
from recdistill.methods.opinion import SecondOpinionConfig
from recdistill.methods.scored import (
    GuidedConfig,
    GuidedDistillation,
    TeacherView,
    blocks,
    student_lists,
)
from recdistill.models.base import Model


class CEConfig(GuidedConfig, SecondOpinionConfig):
    """Cross-entropy against the teacher's scores."""

    on: Literal["teacher", "student", "union", "all"] = "teacher"
    """The items compared: the teacher's list, the student's own, both, or all there are."""
    top_k: PositiveInt = 50
    """Length of the lists (K)."""
    temperature: PositiveFloat = 1.0
    """τ, at which teacher and student are compared; higher is softer."""
    seen_items: bool = True
    """Whether items of the user's history stand in the lists, teacher's and student's alike."""

    def unread(self) -> dict[str, str]:
        """The student's lists are looked at only where they are learned on, and all items are no list."""
        unread = super().unread()
        if self.on in ("teacher", "all"):
            unread["refresh_every"] = "on = 'student' or 'union'"
        if self.on == "all":
            unread |= dict.fromkeys(("top_k", "seen_items"), "on = 'teacher', 'student' or 'union'")
        return unread


class CE(GuidedDistillation, name="ce"):
    r"""Learn the teacher's softmax over some items.

    .. math:: L = L_{label} + \lambda \frac1B \sum_u
              -\sum_{i \in J_u} \sigma_{J_u}(r^T_u / \tau)_i \log \sigma_{J_u}(r^S_u / \tau)_i

    Source: the baselines and ablations of Zhu and Zhang, "Rejuvenating Cross-Entropy Loss in Knowledge Distillation for
    Recommender Systems", ICLR 2026. Differs: a mean over users, not a sum over (user, item) rows.
    """

    Config = CEConfig
    config: CEConfig
    needs = frozenset({"rankings", "scores"})
    items: Tensor
    """``(R, C)`` the items compared; 0 is padding."""
    scores: Tensor
    """``(R, C)`` the teacher's scores of them."""

    def prepare(self, setting: Setting) -> None:
        """Ask the teacher for its lists, where they are needed."""
        super().prepare(setting)
        config = self.config
        self.view = TeacherView(self.setting)
        if config.on == "all":
            return
        k = min(config.top_k, setting.n_items)
        self.keep("items", 2 * k if config.on == "union" else k, dtype=torch.int32)
        self.keep("scores", *self.items.shape[1:], dtype=torch.float32)
        if config.on != "student":
            self.listed = self.view.lists(k, seen_items=config.seen_items)
        if config.on == "teacher":
            for rows in map(torch.from_numpy, blocks(self.view.rows)):
                self._compare_on(rows, self.listed[rows])

    def refresh(self, student: Model, rows: Ints, generator: torch.Generator) -> None:
        """Take the student's lists, where they are needed."""
        config = self.config
        if config.on not in ("student", "union"):
            return
        for block, own in student_lists(student, self.setting, rows, config.top_k, seen_items=config.seen_items):
            if config.on == "union":
                listed = self.listed[block]
                own = torch.cat([listed, own.masked_fill(contains(listed, own), 0)], dim=1)
            self._compare_on(block, own)

    def _compare_on(self, rows: Tensor, items: Tensor) -> None:
        at = rows.to(self.items.device)
        self.items[at] = items.to(self.items)
        self.scores[at] = self.view.scores(rows, items).to(self.scores)

    def distil(self, student: Model, queries: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the cross-entropy on the chosen items."""
        embeddings, temperature = student.item_embeddings(), self.config.temperature
        if self.config.on == "all":
            every = torch.arange(1, len(embeddings), device=queries.device).expand(len(queries), -1)
            scores = self.view.scores(batch.rows, every)
            precision = self.config.label_loss.precision
            return full_cross_entropy(queries, embeddings, scores, temperature=temperature, precision=precision)
        items = self.items[batch.rows]
        logits = list_logits(queries, embeddings, items)
        return subset_cross_entropy(logits, self.scores[batch.rows], items > 0, temperature=temperature).mean()


def full_cross_entropy(
    queries: Tensor, embeddings: Tensor, scores: Tensor, *, temperature: float = 1.0, precision: Precision = "auto"
) -> Tensor:
    r"""Cross-entropy of the student's softmax over all items against the teacher's.

    .. math:: \frac1B \sum_u \Bigl(\log\sum_j e^{h_u \cdot v_j / \tau} - h_u \cdot \bar v_u / \tau\Bigr), \quad
              \bar v_u = \sum_i \sigma(r^T_u / \tau)_i \, v_i

    The student's side is made chunk by chunk, as in `list_cross_entropy`: cross-entropy against any one item, here the
    teacher's first, and what the target expects instead of it.

    Args:
        queries: ``(B, D)`` the student's vectors h.
        embeddings: ``(N+1, D)`` its item vectors v; row 0 is padding and takes no part.
        scores: ``(B, N)`` the teacher's scores r^T of items 1…N. No gradient flows into them. A row of −∞, of a user
            whom the teacher does not know, adds nothing.
        temperature: τ, positive.
        precision: of the products with the item vectors.

    Returns:
        Scalar, in nats, least where the student agrees.

    Source: "full-CE" in the ablation of the paper of `CE`.
    """
    score, item = scores.max(1, keepdim=True)
    has_scores, best = score > -torch.inf, item + 1
    one = has_scores.to(queries.dtype)
    against_best = list_cross_entropy(queries, embeddings, best, one, temperature=temperature, precision=precision)
    expected = torch.softmax((scores.detach() / temperature).masked_fill(~has_scores, 0.0), dim=1) @ embeddings[1:]
    lead = (queries * (embeddings[best[:, 0]] - expected)).sum(1, keepdim=True)
    return against_best + (one * lead).mean() / temperature
