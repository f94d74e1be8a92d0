"""Vanilla cross-entropy between the softmaxes of teacher and student, on a few items or on all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.autograd.function import once_differentiable

from recdistill.arrays import Ints
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
    n_asked,
    student_lists,
    teacher_ranking,
)
from recdistill.models.base import Model
from recdistill.settings import Settings

_SCORES = 4 << 20
"""Of the teacher's, held at once where all items are compared."""


class CEConfig(GuidedConfig, SecondOpinionConfig):
    """Cross-entropy against the teacher's scores."""

    on: Literal["teacher", "student", "union", "all"] = "teacher"
    """The items compared: the teacher's list, the student's own, both, or all there are.

    On its list, without items of the history, a teacher is asked for no score that does not come with the list.
    """
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

    def __init__(self, config: Settings | None = None, **settings: Any) -> None:
        super().__init__(config, **settings)
        if self.config.on == "teacher" and not self.config.seen_items:
            self.needs = frozenset({"rankings", "listed_scores"})

    def n_listed(self, setting: Setting) -> int:
        """Length of the teacher's list, before the items of the history are left out."""
        return n_asked(setting, min(self.config.top_k, setting.n_items))

    def prepare(self, setting: Setting) -> None:
        """Ask the teacher for its lists, where they are needed."""
        super().prepare(setting)
        config = self.config
        k = min(config.top_k, setting.n_items)
        if config.on != "all":
            self.keep("items", 2 * k if config.on == "union" else k, dtype=torch.int32)
            self.keep("scores", *self.items.shape[1:], dtype=torch.float32)
        if "listed_scores" in self.needs:
            ranking = teacher_ranking(self.setting, k)
            assert ranking.scores is not None, "check_teacher has seen to it"
            self.items.copy_(torch.from_numpy(ranking.items))
            self.scores.copy_(torch.from_numpy(ranking.scores))
            return
        self.view = TeacherView(self.setting)
        if config.on == "all":
            return
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

            def scores(rows: slice) -> Tensor:
                return self.view.all_scores(batch.rows[rows]).to(queries.device)

            precision = self.config.label_loss.precision
            return full_cross_entropy(queries, embeddings, scores, temperature=temperature, precision=precision)
        items = self.items[batch.rows]
        logits = list_logits(queries, embeddings, items)
        return subset_cross_entropy(logits, self.scores[batch.rows], items > 0, temperature=temperature).mean()


def full_cross_entropy(
    queries: Tensor,
    embeddings: Tensor,
    scores: Callable[[slice], Tensor],
    *,
    temperature: float = 1.0,
    precision: Precision = "auto",
) -> Tensor:
    r"""Cross-entropy of the student's softmax over all items against the teacher's.

    .. math:: \frac1B \sum_u \Bigl(\log\sum_j e^{h_u \cdot v_j / \tau} - h_u \cdot \bar v_u / \tau\Bigr), \quad
              \bar v_u = \sum_i \sigma(r^T_u / \tau)_i \, v_i

    The student's side is made chunk by chunk, as in `list_cross_entropy`: cross-entropy against any one item, here the
    teacher's first, and what the target expects instead of it. So is the teacher's, of a block of rows at a time.

    Args:
        queries: ``(B, D)`` the student's vectors h.
        embeddings: ``(N+1, D)`` its item vectors v; row 0 is padding and takes no part.
        scores: gives some rows' ``(b, N)`` of the teacher's scores r^T of items 1…N; it is asked for each row once. No
            gradient flows into them. A row of −∞, of a user whom the teacher does not know, adds nothing.
        temperature: τ, positive.
        precision: of the products with the item vectors.

    Returns:
        Scalar, in nats, least where the student agrees.

    Source: "full-CE" in the ablation of the paper of `CE`.
    """
    expected, best = _ExpectedLogits.apply(queries, embeddings, scores, temperature)  # type: ignore[no-untyped-call]
    one = (best > 0).to(queries.dtype)
    against_best = list_cross_entropy(
        queries, embeddings, best[:, None], one[:, None], temperature=temperature, precision=precision
    )
    lead: Tensor = one @ (queries * embeddings[best]).sum(1) - expected
    return against_best + lead / (len(queries) * temperature)


class _ExpectedLogits(torch.autograd.Function):
    """Σ h_u · v̄_u of `full_cross_entropy`, its gradient formed block by block in the forward pass, and the best items.

    The second output is ``(B,)`` int64 the teacher's first item, 0 of a user whom it does not know.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, embeddings: Tensor, scores: Callable[[slice], Tensor], temperature: float
    ) -> tuple[Tensor, Tensor]:
        h, v = queries.detach(), embeddings.detach()[1:]
        best = torch.zeros(len(h), dtype=torch.int64, device=h.device)
        expected, d_embeddings = torch.empty_like(h), torch.zeros_like(embeddings)
        height = max(1, _SCORES // len(v))
        for start in range(0, len(h), height):
            rows = slice(start, min(start + height, len(h)))
            block = scores(rows)
            score, item = block.max(1)
            unknown = score == -torch.inf
            best[rows] = (item + 1).masked_fill(unknown, 0)
            probs = (block / temperature).masked_fill_(unknown[:, None], 0.0)
            probs = torch.softmax(probs, 1, out=probs).masked_fill_(unknown[:, None], 0.0)
            torch.mm(probs, v, out=expected[rows])
            d_embeddings[1:].addmm_(probs.T, h[rows])
        ctx.save_for_backward(expected, d_embeddings)
        ctx.mark_non_differentiable(best)
        return (h * expected).sum(), best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        expected, d_embeddings = ctx.saved_tensors
        return grad * expected, grad * d_embeddings, None, None
