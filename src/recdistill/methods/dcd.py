"""DCD: what the student ranks too low is lifted above what it ranks too high."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from recdistill.arrays import Ints
from recdistill.losses.ranking import relaxed_ranking_loss
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.lists import contains, draw_places, list_logits, places
from recdistill.methods.opinion import SecondOpinionConfig
from recdistill.methods.scored import GuidedConfig, GuidedDistillation, n_asked, student_lists, teacher_lists
from recdistill.models.base import Model

_LEAST = 1e-5
"""Chance, before normalising, of items that the student ranks right, which fill up where others are too few."""
_SATURATED = 5
"""Temperatures beyond which two ranks are as different as can be: ``1 − tanh(5) < 1e-4``."""


class DCDConfig(GuidedConfig, SecondOpinionConfig):
    """Dual correction distillation."""

    n_corrected: PositiveInt = 100
    """Items drawn of either kind (K)."""
    top_k: PositiveInt = 500
    """Length of the teacher's list (M)."""
    rank_temperature: PositiveFloat = 10.0
    """T: ranks that lie this far apart are drawn with chance ``tanh(1)``, before normalising."""


class DCD(GuidedDistillation, name="dcd"):
    r"""Draw underestimated and overestimated items, and learn the order of the first above the second.

    .. math:: L = L_{label} + \lambda \frac1B \sum_u -\frac1K \sum_{k=1}^{K}
              \log \frac{\exp r^S_{\pi_k}}{\sum_{j \ge k} \exp r^S_{\pi_j} + \sum_{o} \exp r^S_o}, \quad
              P(i) \propto \tanh\bigl(\max(0, \pm(\mathrm{rk}_S(i) - \mathrm{rk}_T(i)) / T)\bigr)

    π are the underestimated items (plus) in the teacher's order, o the overestimated ones (minus).

    Source: Lee and Kim, "Dual Correction Strategy for Ranking Distillation in Top-N Recommender System", CIKM 2021, as
    the authors of RCE-KD run it. Differs: means over users and places, not sums, so that λ is K times theirs; π is in
    the teacher's order, not in that of the draw; no item is drawn as both, nor as what it is not, where theirs fill up
    with such items, and fewer than K are drawn instead; and the student's ranks are read off its list without the
    history, as the teacher's are, 5 T longer than that, beyond which all ranks are alike. As with theirs, items that
    both rank alike fill up either side where there are too few others: so the loss is not least where the student
    agrees with the teacher in everything.
    """

    Config = DCDConfig
    config: DCDConfig
    needs = frozenset({"rankings"})
    under: Tensor
    """``(R, K)`` underestimated items, in the teacher's order; 0 is padding."""
    over: Tensor
    """``(R, K)`` overestimated items."""

    def n_listed(self, setting: Setting) -> int:
        """Length of the teacher's list, before the items of the history are left out."""
        return n_asked(setting, min(self.config.top_k, setting.n_items))

    def prepare(self, setting: Setting) -> None:
        """Ask the teacher for its lists."""
        super().prepare(setting)
        config = self.config
        self.listed = teacher_lists(self.setting, config.top_k)
        n = min(config.n_corrected, self.listed.shape[1])
        self.keep("under", n, dtype=torch.int32)
        self.keep("over", n, dtype=torch.int32)

    def refresh(self, student: Model, rows: Ints, generator: torch.Generator) -> None:
        """Compare the student's ranks with the teacher's, and draw."""
        config = self.config
        depth = config.top_k + round(_SATURATED * config.rank_temperature)
        for block, own in student_lists(student, self.setting, rows, depth, seen_items=False):
            listed = self.listed[block]
            too_low = rank_difference(listed, own) / config.rank_temperature
            at = block.to(self.under.device)
            free = listed
            for kept, difference in ((self.under, too_low), (self.over, -too_low)):
                some = free.masked_fill(difference < 0, 0)
                chances = torch.where(some > 0, difference.tanh().clamp_min(_LEAST).log(), -torch.inf)
                places_drawn = draw_places(chances, config.n_corrected, generator).sort(dim=1).values
                drawn = some.gather(1, places_drawn)
                kept[at] = drawn.to(kept)
                free = listed.masked_fill(contains(drawn, listed), 0)

    def distil(self, student: Model, queries: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the likelihood of the order."""
        under, over = self.under[batch.rows], self.over[batch.rows]
        logits = list_logits(queries, student.item_embeddings(), torch.cat([under, over], dim=1))
        lifted, lowered = logits.split(under.shape[1], dim=1)
        return relaxed_ranking_loss(lifted, under > 0, lowered, over > 0).mean()


def rank_difference(listed: Tensor, own: Tensor) -> Tensor:
    """Return how many ranks lower than the teacher the student ranks each item of the teacher's list.

    Args:
        listed: ``(B, K)`` the teacher's list, best first; 0 is padding.
        own: ``(B, M)`` the student's; what is not in it counts as ranked right behind it.

    Returns:
        ``(B, K)`` float32; negative where the student ranks higher.
    """
    return (places(own, listed) - torch.arange(listed.shape[1])).float()
