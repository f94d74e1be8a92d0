"""RRD: the order at the top of a teacher's list is learned, and everything else only stays below it."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from recdistill.losses.ranking import relaxed_ranking_loss
from recdistill.methods.base import Method, Setting, TrainingBatch
from recdistill.methods.labels import LabelLoss, as_lists, distinct_pairs
from recdistill.methods.lists import contains, draw_places, draw_unlisted, list_logits
from recdistill.methods.probing import probe
from recdistill.methods.soft_lists import ListConfig, label_and_queries
from recdistill.models.base import Batch, Model


class RRDConfig(ListConfig):
    """Relaxed ranking distillation from a teacher's lists."""

    n_interesting: PositiveInt = 40
    """Listed items whose order is learned at a time (K); they are drawn from the list anew for each batch."""
    n_uninteresting: PositiveInt = 200
    """Items that are to stay below them (L), drawn evenly from the catalogue.

    Drawn ones that are listed do not count, nor do those of the history where the teacher leaves it out of its lists.
    """
    rank_temperature: PositiveFloat = 10.0
    """T in the chance ``exp(−rank / T)`` to be drawn; low values draw the head of the list."""


class RRD(Method, name="rrd"):
    r"""Draw some of each list, and maximise the likelihood of their order above items that are not listed.

    .. math:: L = L_{label} + \frac{\lambda}{T} \sum_u -\frac1K \sum_{k=1}^{K}
              \log \frac{\exp f_{\pi_k}}{\sum_{j \ge k} \exp f_{\pi_j} + \sum_{l=1}^{L} \exp f_l}

    λ and T are those of `KD`: an answer counts as much as λ labels.

    Source: Kang et al., "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020, section 4.
    Differs: a mean over the K places, not a sum; and the interesting items come from the list that a black box gives,
    which leaves out the history, not from its scores of all items. Where the authors of RCE-KD sum over the distinct
    users of a batch of (user, item) rows, with weight λ', λ is K times λ' times the items of the average user.
    """

    Config = RRDConfig
    config: RRDConfig
    needs = frozenset({"rankings"})

    def prepare(self, setting: Setting) -> None:
        """Ask the teacher about every training history once."""
        answers = probe(self.config.advised(setting), k=self.config.top_k).full
        self.listed, self.histories = torch.from_numpy(answers.items), setting.train
        self.lists_history = setting.teacher is not None and not setting.teacher.exclude_history
        self.label_loss = LabelLoss(self.config.label_loss, setting) if self.config.labels else None
        self.taught = None if self.config.labels else answers.rows_answered

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the parts ``label`` (assisted only) and ``order``."""
        config, embeddings = self.config, student.item_embeddings()
        parts, queries, worth = label_and_queries(student, batch, self.label_loss, config.weight)
        listed = self.listed[batch.rows.to(self.listed.device)].long()
        chosen = draw_interesting(listed, config.n_interesting, config.rank_temperature, batch.generator)
        others, unlisted = draw_unlisted(listed, config.n_uninteresting, student.n_items, batch.generator)
        if not self.lists_history:
            whole = Batch.from_sequences(self.histories.take(batch.rows.cpu().numpy()))  # the batch may show less
            unlisted &= ~contains(as_lists(*distinct_pairs(whole, student.n_items), len(listed)), others)
        chosen, others, unlisted = (x.to(queries.device) for x in (chosen, others, unlisted))
        loss = relaxed_ranking_loss(
            list_logits(queries, embeddings, chosen),
            chosen > 0,
            list_logits(queries, embeddings, others),
            unlisted,
        )
        parts["order"] = worth * loss.sum()
        return parts


def draw_interesting(listed: Tensor, n: int, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw ``n`` places of each list without replacement, with chance ``exp(−rank / temperature)``.

    Args:
        listed: ``(B, K)`` int64 items, best first; 0 is padding.
        n: how many; a shorter list is taken whole.
        temperature: T.
        generator: the source of the draws.

    Returns:
        ``(B, min(n, K))`` int64 the drawn items, still best first; 0 is padding.
    """
    ranks = torch.arange(1, listed.shape[1] + 1)
    chances = torch.where(listed > 0, -ranks / temperature, -torch.inf)
    return listed.gather(1, draw_places(chances, n, generator).sort(dim=1).values)
