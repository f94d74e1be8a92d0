"""RCE-KD: cross-entropy where it bounds NDCG, and items drawn so that it nearly does elsewhere."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from recdistill.arrays import Ints
from recdistill.losses.ranking import subset_cross_entropy
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.lists import contains, draw_places, list_logits
from recdistill.methods.opinion import SecondOpinionConfig
from recdistill.methods.scored import GuidedConfig, GuidedDistillation, TeacherView, student_lists
from recdistill.methods.with_intents import WithIntents, WithIntentsConfig, learn_logs
from recdistill.models.base import Model

Form: TypeAlias = Literal["paper", "code"]

_MOST = 50
"""At which the authors' code cuts off z."""


class RCEKDConfig(GuidedConfig, SecondOpinionConfig, WithIntentsConfig):
    """Rejuvenated cross-entropy.

    Defaults are the authors' for matrix factorisation on CiteULike, but for ``weight``, which is 500 there.
    """

    top_k: PositiveInt = 50
    """Length of the teacher's and of the student's list (K)."""
    n_sampled: PositiveInt = 50
    """Items drawn from the head of the student's ranking (L)."""
    depth: PositiveInt = 200
    """How deep that head is (M)."""
    sampling_temperature: PositiveFloat = 10.0
    """T in the chance ``exp(z / T)`` to be drawn."""
    temperature: PositiveFloat = 1.0
    """τ, at which teacher and student are compared; higher is softer."""
    closure: Form = "code"
    """Which of the teacher's items z counts below an item: see `closure_counts`."""
    fusion: Literal["paper", "code", "constant"] = "code"
    """How γ follows the student: see `fusion_share`. ``constant`` keeps it at ``constant_fusion``."""
    fusion_rate: NonNegativeFloat = 3.0
    """β: how fast γ falls as the student's list comes to resemble the teacher's."""
    constant_fusion: float = Field(default=0.5, ge=0, le=1)
    """γ where ``fusion`` is ``constant``."""
    seen_items: bool = True
    """Whether items of the user's history stand in the lists, teacher's and student's alike."""

    def unread(self) -> dict[str, str]:
        """A constant γ follows nothing."""
        if self.fusion == "constant":
            return super().unread() | {"fusion_rate": "fusion = 'paper' or 'code'"}
        return super().unread() | {"constant_fusion": "fusion = 'constant'"}


class RCEKD(WithIntents, GuidedDistillation, name="rcekd"):
    r"""Learn the teacher's scores on the student's own list, and on the teacher's list closed by draws from above it.

    .. math:: L = L_{label} + \lambda \frac1B \sum_u (1 - \gamma_u) \mathrm{CE}_{Q^S_u} + \gamma_u \mathrm{CE}_{J_u},
              \quad J_u = A_u \cup (Q^T_u \setminus Q^S_u)

    Cross-entropy on a set of items bounds their NDCG where the set is closed: with an item it holds all that the
    student ranks above it. The student's list Q^S, its K best items, is closed; the teacher's, Q^T, is not, and so it
    is filled up by L items A that are drawn from the student's M best, those above many of the teacher's items rather.

    Source: Zhu and Zhang, "Rejuvenating Cross-Entropy Loss in Knowledge Distillation for Recommender Systems", ICLR
    2026, and the authors' code, from which the published numbers come and which differs in z and γ (``closure``,
    ``fusion``). Differs from both: a mean over users, each once a batch, where they sum over (user, item) rows, so that
    a user of many items counts no more than others; and logarithms of sums of exponentials, which do not overflow.
    With ``second_opinion = 0.3``, this library's own addition, the teacher's scores are mixed with those of a walk over
    users and items, or of other rules where histories are read. That made students of matrix factorisation better than
    their teacher, and SASRec's of a quarter of its width better than without it on one data set of two
    (``benchmarks/rcekd.md``).
    """

    Config = RCEKDConfig
    config: RCEKDConfig
    needs = frozenset({"rankings", "scores"})
    items: Tensor
    """``(R, 2K+L)`` the student's list Q^S, then what else is in J, each item once; 0 is padding."""
    scores: Tensor
    """``(R, 2K+L)`` the teacher's scores of them."""
    near: Tensor
    """``(R, 2K+L)`` which of them are in J."""
    fused: Tensor
    """``(R,)`` γ."""

    def prepare(self, setting: Setting) -> None:
        """Ask the teacher for its lists and what it thinks of them, which never changes."""
        super().prepare(setting)
        config = self.config
        self.view = TeacherView(self.setting)
        self.listed = self.view.lists(config.top_k, seen_items=config.seen_items)
        rows = torch.from_numpy(self.view.rows)
        self.listed_scores = torch.full(self.listed.shape, -torch.inf)
        self.listed_scores[rows] = self.view.scores(rows, self.listed[rows])
        k, depth = self.listed.shape[1], min(config.depth, setting.n_items)
        width = min(k, depth) + min(config.n_sampled, depth) + k
        self.keep("items", width, dtype=torch.int32)
        self.keep("scores", width, dtype=torch.float32)
        self.keep("near", width, dtype=torch.bool)
        self.keep("fused", dtype=torch.float32)

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the parts ``label`` and ``teacher``, and any of `WithIntents`."""
        parts, queries, _ = learn_logs(student, batch, self.label_loss, self.intents)
        return {**parts, "teacher": self.config.weight * self.distil(student, queries, batch)}

    def refresh(self, student: Model, rows: Ints, generator: torch.Generator) -> None:
        """Take the student's lists, draw from them, and ask the teacher what it thinks of both."""
        config = self.config
        for block, head in student_lists(student, self.setting, rows, config.depth, seen_items=config.seen_items):
            listed = self.listed[block]
            own = head[:, : listed.shape[1]]
            counts = closure_counts(head, listed, form=config.closure)
            chances = torch.where(head > 0, counts / config.sampling_temperature, -torch.inf)
            drawn = head.gather(1, draw_places(chances, config.n_sampled, generator))
            deep, missed = beyond(own, drawn, listed)
            asked = self.view.scores(block, torch.cat([own, deep], dim=1))
            scores = torch.cat([asked, self.listed_scores[block]], dim=1)
            items, order = padding_last(torch.cat([own, deep, missed], dim=1), n_kept=own.shape[1])
            at = block.to(self.items.device)
            self.items[at] = items.to(self.items)
            self.scores[at] = scores.gather(1, order).to(self.scores)
            self.near[at] = torch.cat([contains(drawn, own), items[:, own.shape[1] :] > 0], dim=1).to(self.near)
            self.fused[at] = self._fusion(listed, own, drawn).to(self.fused)

    def _fusion(self, listed: Tensor, own: Tensor, drawn: Tensor) -> Tensor:
        config = self.config
        if config.fusion == "constant":
            return torch.full((len(listed),), config.constant_fusion)
        return fusion_share(listed, own if config.fusion == "paper" else drawn, rate=config.fusion_rate)

    def distil(self, student: Model, queries: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the fused cross-entropies."""
        config, items = self.config, self.items[batch.rows]
        n_own = min(self.listed.shape[1], config.depth)
        shown = slice(0, n_own + int((items[:, n_own:] > 0).sum(1).max()))
        items = items[:, shown]
        loss = rce_loss(
            list_logits(queries, student.item_embeddings(), items),
            self.scores[batch.rows, shown],
            items[:, :n_own] > 0,
            self.near[batch.rows, shown],
            self.fused[batch.rows],
            temperature=config.temperature,
        )
        return loss.mean()


def rce_loss(
    student: Tensor, teacher: Tensor, own: Tensor, near: Tensor, fusion: Tensor, *, temperature: float = 1.0
) -> Tensor:
    r"""Cross-entropy on the student's list, fused with that on a set that is nearly closed.

    .. math:: (1 - \gamma) \mathrm{CE}_{Q^S} + \gamma \, \mathrm{CE}_J, \quad
              \mathrm{CE}_J = -\sum_{i \in J} \sigma_J(r^T / \tau)_i \log \sigma_J(r^S / \tau)_i

    Args:
        student: ``(B, C)`` its logits r^S of the items of Q^S, then of others.
        teacher: ``(B, C)`` the teacher's scores r^T of them.
        own: ``(B, K)`` which of the first K are in Q^S, and no padding.
        near: ``(B, C)`` which of all are in J.
        fusion: ``(B,)`` γ.
        temperature: τ, positive.

    Returns:
        ``(B,)`` in nats, least where the student agrees.

    Source: the paper of `RCEKD`.
    """
    n_own = own.shape[1]
    exact = subset_cross_entropy(student[:, :n_own], teacher[:, :n_own], own, temperature=temperature)
    approximate = subset_cross_entropy(student, teacher, near, temperature=temperature)
    return (1 - fusion) * exact + fusion * approximate


def beyond(own: Tensor, drawn: Tensor, listed: Tensor) -> tuple[Tensor, Tensor]:
    """Return what J holds outside the student's list, each item once.

    Args:
        own: ``(B, K)`` the student's list.
        drawn: ``(B, L)`` items from the head of its ranking, each once a row.
        listed: ``(B, K)`` the teacher's list.

    Returns:
        ``(B, L)`` what was drawn, and ``(B, K)`` what the teacher lists and was not drawn; 0 is padding.
    """
    missed = listed.masked_fill(contains(torch.cat([own, drawn], dim=1), listed), 0)
    return drawn.masked_fill(contains(own, drawn), 0), missed


def padding_last(items: Tensor, *, n_kept: int) -> tuple[Tensor, Tensor]:
    """Move the padding of each row to its end, but for the first columns, which stay.

    Args:
        items: ``(B, C)``; 0 is padding.
        n_kept: how many columns stay where they are.

    Returns:
        The items ``(B, C)``, and ``(B, C)`` the column that each was in.
    """
    empty = items == 0
    empty[:, :n_kept] = False
    order = empty.sort(dim=1, stable=True).indices
    return items.gather(1, order), order


def closure_counts(head: Tensor, listed: Tensor, *, form: Form) -> Tensor:
    r"""Count, for each item at the head of the student's ranking, the teacher's items that are not above it.

    .. math:: z_j = |\{i \in Q : \mathrm{rk}_S(i) \ge \mathrm{rk}_S(j)\}|

    Args:
        head: ``(B, M)`` the student's best items, best first; 0 is padding.
        listed: ``(B, K)`` the teacher's list Q^T; 0 is padding.
        form: ``paper``: Q are the items of Q^T outside the student's own K best. ``code``: Q are all items of Q^T that
            the head holds, and the count stops at 50.

    Returns:
        ``(B, M)`` in float32.

    Source: the paper and code of `RCEKD`. In the paper's form items below the head add the same to every z of a row.
    """
    if form == "code":
        inside = contains(listed, head)
        return _from_below(inside).clamp_max(_MOST)
    n_own = listed.shape[1]
    inside = contains(listed, head)
    inside[:, :n_own] = False
    deep = (listed > 0) & ~contains(head, listed)
    return _from_below(inside) + deep.sum(1, keepdim=True)


def _from_below(inside: Tensor) -> Tensor:
    return inside.float().flip(1).cumsum(1).flip(1)


def fusion_share(listed: Tensor, others: Tensor, *, rate: float) -> Tensor:
    r"""How much the approximate part counts: all where teacher and student share nothing, less as they come together.

    .. math:: \gamma = \exp(-\beta |Q^T \cap Q| / |Q^T|)

    Args:
        listed: ``(B, K)`` the teacher's list Q^T; 0 is padding.
        others: ``(B, C)`` Q: the student's list in the paper, the draws in the authors' code, where L < K draws never
            bring γ down to ``exp(−β)``.
        rate: β.

    Returns:
        ``(B,)`` in (0, 1].
    """
    shared = contains(others, listed).sum(1) / (listed > 0).sum(1).clamp_min(1)
    return torch.exp(-rate * shared)
