"""UnKD: the teacher's order is learned among items that are about as popular as each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.lists import list_logits
from recdistill.methods.opinion import SecondOpinionConfig
from recdistill.methods.scored import Distillation, DistillationConfig, TeacherView, blocks
from recdistill.models.base import Batch, Model

_LEAST_SHARE = 0.1
"""Of the pairs that the authors' code gives a group."""


class UnKDConfig(DistillationConfig, SecondOpinionConfig):
    """Unbiased distillation."""

    n_groups: PositiveInt = 2
    """Groups of items; each has about the same share of all interactions."""
    n_pairs: PositiveInt = 30
    """Pairs learned for each user of a batch, over all groups."""
    depth: PositiveInt = 200
    """Items of a group that pairs are drawn from, the teacher's best.

    The authors keep 1000, of which a draw at their temperature is hardly ever (1 in 20 000) beyond the 200th.
    """
    rank_temperature: PositiveFloat = 20.0
    """T in the chance ``exp(−rank / T)`` of a draw."""
    rare_emphasis: NonNegativeFloat = 1.0
    """How much larger the share of pairs from groups of rare items is; 0 draws from all groups alike."""


class UnKD(Distillation, name="unkd"):
    r"""Draw pairs from each group of similar popularity, and learn which of the two the teacher prefers.

    .. math:: L = L_{label} + \lambda \frac1B \sum_u \frac1P \sum_{g} \sum_{(i,j) \in P_{ug}}
              -\log\sigma(r^S_{ui} - r^S_{uj})

    What a teacher holds of popular items just because they are popular is the same within a group, and cancels.

    Source: Chen et al., "Unbiased Knowledge Distillation for Recommendation", WSDM 2023, as the authors of RCE-KD run
    it. Differs: pairs are drawn anew for each batch, not each epoch, a user counts once a batch, and items that nobody
    took are among the rarest, where theirs are in no group.
    """

    Config = UnKDConfig
    config: UnKDConfig
    needs = frozenset({"rankings", "scores"})

    def prepare(self, setting: Setting) -> None:
        """Ask the teacher for its best items of each group."""
        super().prepare(setting)
        config = self.config
        counts = np.bincount(setting.whole.flat()[0], minlength=setting.n_items + 1)
        groups = popularity_groups(counts[1:], config.n_groups)
        self.pairs = pairs_by_group(counts[1:], groups, config.n_pairs, emphasis=config.rare_emphasis)
        self.listed = group_lists(self.setting, groups, config.depth)

    def distil(self, student: Model, queries: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the pairwise loss, a mean over pairs."""
        listed = self.listed[batch.rows.to(self.listed.device)].long()
        drawn = [
            draw_pairs(listed[:, group], n, self.config.rank_temperature, batch.generator)
            for group, n in enumerate(self.pairs)
        ]
        better, worse = (torch.cat(side, dim=1).to(queries.device) for side in zip(*drawn, strict=True))
        logits = list_logits(queries, student.item_embeddings(), torch.cat([better, worse], dim=1))
        of_better, of_worse = logits.split(better.shape[1], dim=1)
        return pair_loss(of_better, of_worse, (better > 0) & (worse > 0)).mean()


def popularity_groups(counts: npt.NDArray[np.int64], n_groups: int) -> npt.NDArray[np.int64]:
    """Cut items into groups, the most popular first, each with about the same share of all interactions.

    Args:
        counts: ``(N,)`` interactions of items 1…N.
        n_groups: at most as many are made.

    Returns:
        ``(N,)`` group of items 1…N, from 0.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    groups = np.empty(len(counts), np.int64)
    groups[order] = np.minimum(before * n_groups // max(int(counts.sum()), 1), n_groups - 1)
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def pairs_by_group(
    counts: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], n_pairs: int, *, emphasis: float
) -> list[int]:
    r"""Share pairs out, more to groups of rarer items.

    .. math:: n_g \propto \max\Bigl(0.1, \frac{\max \bar c + \min \bar c - \bar c_g}{\sum_h \dots}\Bigr)^\lambda

    Args:
        counts: ``(N,)`` interactions of items.
        groups: ``(N,)`` group of each.
        n_pairs: to be shared out.
        emphasis: λ.

    Returns:
        Pairs of each group, at least one.
    """
    mean = np.bincount(groups, counts) / np.bincount(groups)
    turned = mean.max() + mean.min() - mean
    shares = np.maximum(_LEAST_SHARE, turned / turned.sum()) ** emphasis
    return [max(1, round(float(share))) for share in n_pairs * shares / shares.sum()]


def group_lists(setting: Setting, groups: npt.NDArray[np.int64], depth: int) -> Tensor:
    """Return ``(R, G, depth)`` int32 the teacher's best items of each group, those of the history left out."""
    view, n_groups = TeacherView(setting), int(groups.max()) + 1
    listed = torch.zeros(len(setting.train), n_groups, min(depth, setting.n_items), dtype=torch.int32)
    every = torch.arange(1, setting.n_items + 1)
    members = [torch.from_numpy(np.flatnonzero(groups == group)) for group in range(n_groups)]
    for rows in blocks(view.rows, size=256):  # each with a score of every item
        scores = view.scores(torch.from_numpy(rows), every.expand(len(rows), -1))
        history = Batch.from_sequences(setting.train.take(rows))
        owner = torch.repeat_interleave(torch.arange(len(rows)), history.lengths)
        scores[owner, history.items - 1] = -torch.inf
        for group, items in enumerate(members):
            best = scores[:, items].topk(min(depth, len(items)), dim=1)
            found = every[items][best.indices].masked_fill(best.values == -torch.inf, 0)
            listed[torch.from_numpy(rows), group, : found.shape[1]] = found.int()
    return listed


def draw_pairs(listed: Tensor, n: int, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw pairs of two different places of a list, each place with chance ``exp(−rank / temperature)``.

    Args:
        listed: ``(B, K)`` items, best first; 0 is padding, behind them.
        n: pairs of each row.
        temperature: T.
        generator: the source of the draws.

    Returns:
        ``(B, n)`` the better, and ``(B, n)`` the worse item of each pair; 0 where a list has fewer than two items.
    """
    chances = torch.where(listed > 0, -torch.arange(listed.shape[1]) / temperature, -torch.inf)
    weights = torch.softmax(chances, dim=1).nan_to_num(0.0)
    weights[:, 0] = torch.where(listed[:, 0] > 0, weights[:, 0], 1.0)  # an empty row draws its padding
    first = torch.multinomial(weights, n, replacement=True, generator=generator)
    second = torch.multinomial(weights, n, replacement=True, generator=generator)
    pair = torch.stack([torch.minimum(first, second), torch.maximum(first, second)])
    better, worse = (listed.gather(1, place) for place in pair)
    same = first == second
    return better.masked_fill(same, 0), worse.masked_fill(same, 0)


def pair_loss(better: Tensor, worse: Tensor, real: Tensor) -> Tensor:
    r"""Negative log-likelihood that the better of two items wins, a mean over pairs.

    .. math:: -\frac1P \sum_{(i,j)} \log\sigma(r^S_i - r^S_j)

    Args:
        better: ``(B, P)`` the student's logits of the items that the teacher prefers.
        worse: ``(B, P)`` its logits of the others.
        real: ``(B, P)`` which pairs count.

    Returns:
        ``(B,)`` in nats; 0 without a pair.

    Source: the paper of `UnKD`.
    """
    loss = torch.where(real, F.softplus(worse - better), 0.0)
    return loss.sum(1) / real.sum(1).clamp_min(1)
