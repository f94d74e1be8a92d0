"""How a student learns from what users truly took; the base of every method that reads labels."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from recdistill.errors import SettingsError
from recdistill.losses.precision import Precision, compute_dtype
from recdistill.losses.softmax import list_cross_entropy, sampled_softmax_loss, softmax_cross_entropy
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.smoothing import Smoothing
from recdistill.models.base import Batch, Model
from recdistill.settings import Settings


class LabelLossConfig(Settings):
    """How true items are learned."""

    loss: Literal["softmax", "sampled_softmax", "gbce", "bce", "bpr"] = "softmax"
    """Softmax over the catalogue or over shared negatives, generalised or plain binary cross-entropy, or BPR.

    ``bce`` and ``bpr`` draw one negative for each true item. Models that read the user draw it from what the user has
    not taken, models that read histories from the whole catalogue.
    """
    n_negatives: PositiveInt = 1024
    """Negatives drawn per batch and shared by its positions, at most N; for ``sampled_softmax`` and ``gbce``."""
    negatives: Literal["uniform", "popularity"] = "uniform"
    """What ``sampled_softmax`` draws its negatives by: each alike, or by how often an item was taken."""
    calibration: float = Field(default=0.75, ge=0, le=1)
    """t of ``gbce``: 0 is plain binary cross-entropy, 1 makes its scores those of a full softmax."""
    mask_share: float = Field(default=0.4, gt=0, lt=1)
    """Share of a history's items that are masked; models that see both sides, such as BERT4Rec, only."""
    last_share: float = Field(default=0.2, ge=0, le=1)
    """Share of histories in which only the newest item is masked, as when the model is asked; BERT4Rec only."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each label that goes to what followed the same items in other histories, see `Smoothing`; ``softmax``
    only. On sparse data students are better for it, 0.4 is a good value there (``benchmarks/bahsd.md``)."""
    smoothing_depth: PositiveInt = 50
    """Over how many items that share is spread. They take 6 bytes each, for every training interaction."""
    precision: Precision = "auto"
    """Of the products with the item table; ``auto`` is bf16 where the processor multiplies it natively. ``fp32`` is for
    large scores: in bf16 gradients are off by 1 % where logits have a standard deviation of 4, by 4 % where it is 40.

    By 2 % at 16 and by 10 % at 400; by more near agreement with a teacher, where little is left of them. For 256
    softmaxes over 12,000 items of width 64 on one thread bf16 is 2.5 times as fast, for `CE` on all items 1.4 times.
    """

    def unread(self) -> dict[str, str]:
        """Each loss reads its own."""
        readers = {
            "n_negatives": ("sampled_softmax", "gbce"),
            "negatives": ("sampled_softmax",),
            "calibration": ("gbce",),
            "smoothing": ("softmax",),
            "smoothing_depth": ("softmax",),
        }
        unread = {
            name: f"loss = {' or '.join(map(repr, losses))}"
            for name, losses in readers.items()
            if self.loss not in losses
        }
        return unread if self.smoothing else {"smoothing_depth": "smoothing above 0", **unread}


class LabelLoss:
    """The loss on true items for any model."""

    def __init__(self, config: LabelLossConfig, setting: Setting) -> None:
        self.config = config
        self.smoothing = Smoothing(setting, config.smoothing, config.smoothing_depth) if config.smoothing else None
        items, _ = setting.whole.flat()
        counts = torch.bincount(torch.from_numpy(items).long(), minlength=setting.n_items + 1)
        self.popularity = counts.double() / max(int(counts.sum()), 1)

    def __call__(self, student: Model, batch: TrainingBatch) -> Tensor:
        """Return the loss, a mean over labels; 0 for a batch without any.

        Causal models learn the next item at every position; models that see both sides learn masked items; models that
        read the user learn all items that the user took, each once.

        Raises:
            SettingsError: for models that see both sides and have no item to mask others by.
        """
        if sees_both_sides(student):
            return self._masked(student, batch)[0]
        if student.reads == "user":
            return self._taken(student, batch, student.encode(batch.batch))[0]
        return self._next(student, batch, student.encode_positions(batch.batch))[0]

    def with_queries(self, student: Model, batch: TrainingBatch) -> tuple[Tensor, Tensor, int]:
        """Return the loss, the student's states after whole histories, or its vectors of users, and the labels' number.

        Models that see both sides read the histories once more for the states.

        Returns:
            The loss; ``(B, D)`` states; over how many labels the loss is a mean.
        """
        if sees_both_sides(student):
            loss, n_labels = self._masked(student, batch)
            return loss, student.encode(batch.batch), n_labels
        if student.reads == "user":
            queries = student.encode(batch.batch)
            loss, n_labels = self._taken(student, batch, queries)
            return loss, queries, n_labels
        states = student.encode_positions(batch.batch)
        loss, n_labels = self._next(student, batch, states)
        return loss, states[batch.batch.last], n_labels

    def with_states(self, student: Model, batch: TrainingBatch) -> tuple[Tensor, Tensor, int]:
        """Return the loss, the student's states at all items of the histories, and the labels' number, from one pass.

        Models that see both sides read the histories once more for the states, without masks.

        Returns:
            The loss; ``(T, D)`` states; over how many labels the loss is a mean.

        Raises:
            SettingsError: for models that read the user.
        """
        if sees_both_sides(student):
            loss, n_labels = self._masked(student, batch)
            return loss, student.encode_positions(batch.batch), n_labels
        states = student.encode_positions(batch.batch)
        loss, n_labels = self._next(student, batch, states)
        return loss, states, n_labels

    def _masked(self, student: Model, batch: TrainingBatch) -> tuple[Tensor, int]:
        if student.mask_item is None:
            raise SettingsError(
                f"model {student.name!r} sees both sides of an item (causal = False), and would be shown the labels "
                "that it is to guess: give it a mask_item to hide them, as 'bert4rec' has one, or learn without labels"
            )
        masked, labels = mask_items(
            batch.batch,
            student.mask_item,
            share=self.config.mask_share,
            last_share=self.config.last_share,
            generator=batch.generator,
        )
        at = labels.nonzero().squeeze(1)
        before = torch.where(torch.isin(at, masked.offsets[:-1]), -1, at - 1)
        return self._loss(student.encode_positions(masked)[at], student, batch, labels[at], before), len(at)

    def _next(self, student: Model, batch: TrainingBatch, states: Tensor) -> tuple[Tensor, int]:
        at = batch.labels.nonzero().squeeze(1)
        labelled = states if len(at) == len(states) else states[at]
        return self._loss(labelled, student, batch, batch.labels[at], at), len(at)

    def _taken(self, student: Model, batch: TrainingBatch, queries: Tensor) -> tuple[Tensor, int]:
        """Take the loss over all pairs of a user and an item; what can be is computed once a user."""
        config = self.config
        rows, items = distinct_pairs(batch.batch, student.n_items)
        if config.loss == "softmax":
            lists = as_lists(rows, items, len(queries))
            weights = torch.full_like(queries[:, 0], 1 / len(items))
            probs = torch.ones_like(lists, dtype=queries.dtype)
            if self.smoothing is not None:
                lists, probs = self.smoothing.for_users(batch, lists)
            loss = list_cross_entropy(
                queries, student.item_embeddings(), lists, probs, weights=weights, precision=config.precision
            )
            return loss, len(items)
        untaken = None
        if config.loss in _PAIRWISE:
            untaken = draw_untaken(rows, items, student.n_items, batch.generator)
        return self._loss(queries[rows], student, batch, items, rows, untaken), len(items)

    def _loss(
        self,
        states: Tensor,
        student: Model,
        batch: TrainingBatch,
        labels: Tensor,
        after: Tensor,
        negatives: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of one true item a state; what it draws, it draws itself where no negatives are given.

        ``after``: the item of the batch that each label comes right after, −1 for one that nothing precedes.
        """
        config, embeddings, generator = self.config, student.item_embeddings(), batch.generator
        if self.smoothing is not None:
            items, probs = self.smoothing.after(batch, after, labels)
            return list_cross_entropy(states, embeddings, items, probs, precision=config.precision)
        if config.loss == "softmax":
            return softmax_cross_entropy(states, embeddings, labels, precision=config.precision)
        if config.loss in _PAIRWISE:
            if negatives is None:
                negatives = torch.randint(1, student.n_items + 1, labels.shape, generator=generator).to(labels.device)
            return _PAIRWISE[config.loss](states, embeddings, labels, negatives)
        if config.loss == "gbce":
            negatives = self._negatives("uniform", student.n_items, generator)[0].to(labels.device)
            return gbce_loss(
                states, embeddings, labels, negatives, calibration=config.calibration, precision=config.precision
            )
        drawn = self._negatives(config.negatives, student.n_items, generator)
        negatives, log_weights = (values.to(labels.device) for values in drawn)
        return sampled_softmax_loss(states, embeddings, labels, negatives, log_weights, precision=config.precision)

    def _negatives(self, by: str, n_items: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw distinct negatives and −log of how often each was expected; ``(S,)`` both, on the CPU."""
        n = min(self.config.n_negatives, n_items)
        if by == "uniform":  # without replacement
            negatives = torch.randperm(n_items, generator=generator)[:n] + 1
            return negatives, torch.full((n,), math.log(n_items / n))
        drawn = torch.multinomial(self.popularity, n, replacement=True, generator=generator)
        negatives, counts = torch.unique(drawn, return_counts=True)
        return negatives, (counts / (n * self.popularity[negatives])).log().float()


def sees_both_sides(student: Model) -> bool:
    """Whether a model's state at an item depends on those after it, so that the next item is no label for it."""
    return student.reads == "history" and not student.causal


def bce_loss(states: Tensor, embeddings: Tensor, labels: Tensor, negatives: Tensor) -> Tensor:
    r"""Binary cross-entropy of the true item against one drawn item a position.

    .. math:: -\frac1T \sum_t \log\sigma(h_t \cdot v_{y_t}) + \log(1 - \sigma(h_t \cdot v_{j_t}))

    Args:
        states: ``(T, D)`` query vectors h.
        embeddings: ``(N+1, D)`` item vectors v.
        labels: ``(T,)`` true items y.
        negatives: ``(T,)`` drawn items j; where one is 0 or the true item, its term is left out.

    Returns:
        Scalar, in nats; 0 without labels.

    Source: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, Eq. 6.
    Differs from the paper: of models that read histories, negatives may come from the user's own.
    """
    positive = (states * embeddings[labels]).sum(1)
    negative = (states * embeddings[negatives]).sum(1)
    return _mean(F.softplus(-positive) + F.softplus(negative) * _real(negatives, labels))


def bpr_loss(states: Tensor, embeddings: Tensor, labels: Tensor, negatives: Tensor) -> Tensor:
    r"""Bayesian personalised ranking: the true item is to score above a drawn one.

    .. math:: -\frac1T \sum_t \log\sigma(h_t \cdot v_{y_t} - h_t \cdot v_{j_t})

    Args:
        states: ``(T, D)`` query vectors h.
        embeddings: ``(N+1, D)`` item vectors v.
        labels: ``(T,)`` true items y.
        negatives: ``(T,)`` drawn items j; where one is 0 or the true item, its term is left out.

    Returns:
        Scalar, in nats; 0 without labels.

    Source: Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009, section 4.1.
    Differs from the paper: a mean over true items, each with one draw, instead of draws of both; and the regularisation
    is the optimiser's ``weight_decay``.
    """
    lead = (states * (embeddings[labels] - embeddings[negatives])).sum(1)
    return _mean(F.softplus(-lead) * _real(negatives, labels))


_PAIRWISE = {"bce": bce_loss, "bpr": bpr_loss}


def _real(negatives: Tensor, labels: Tensor) -> Tensor:
    return (negatives > 0) & (negatives != labels)


def _mean(surprise: Tensor) -> Tensor:
    """Return the mean over labels; 0 where a batch has none, since nothing comes next in histories of one item."""
    return surprise.sum() / max(len(surprise), 1)


def distinct_pairs(batch: Batch, n_items: int) -> tuple[Tensor, Tensor]:
    """Return ``(P,)`` row and ``(P,)`` item of all that the users of a batch took, each pair once and in order."""
    rows = torch.repeat_interleave(torch.arange(len(batch), device=batch.items.device), batch.lengths)
    keys = torch.unique(rows * (n_items + 1) + batch.items)
    return keys // (n_items + 1), keys % (n_items + 1)


def as_lists(rows: Tensor, items: Tensor, n_rows: int) -> Tensor:
    """Lay out pairs, ordered by row, as ``(n_rows, K)`` items; 0 is padding, K the longest row."""
    counts = torch.bincount(rows, minlength=n_rows)
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    lists = items.new_zeros(n_rows, int(counts.max()))
    lists[rows, places] = items
    return lists


def draw_untaken(rows: Tensor, items: Tensor, n_items: int, generator: torch.Generator) -> Tensor:
    """Draw for each taken item one that its user has not taken, each of those alike.

    Nothing is drawn twice: a user with m items left draws the r-th of them, r in 0…m−1, and r is turned into an item by
    counting the taken ones before it. Of these, the j-th (from 0) item i_j has ``i_j − 1 − j`` that are left before it.

    Args:
        rows: ``(P,)`` int64 user of each taken item.
        items: ``(P,)`` int64 taken items in 1…N, each pair once, ordered by row and item (see `distinct_pairs`).
        n_items: N.
        generator: the source of the draws.

    Returns:
        ``(P,)`` int64 items; 0 for a user who took all.
    """
    counts = torch.bincount(rows)
    starts = (counts.cumsum(0) - counts)[rows]
    left = n_items - counts[rows]
    draws = torch.rand(len(rows), dtype=torch.float64, generator=generator).to(rows.device)
    nth = (draws * left).long()
    left_before = items - 1 - (torch.arange(len(rows), device=rows.device) - starts)
    block = rows * (n_items + 1)
    taken_before = torch.searchsorted(block + left_before, block + nth, right=True) - starts
    return torch.where(left > 0, nth + 1 + taken_before, 0)


def gbce_loss(
    states: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    negatives: Tensor,
    *,
    calibration: float,
    precision: Precision = "auto",
) -> Tensor:
    r"""Generalised binary cross-entropy: the positive's probability is raised to beta to undo negative sampling.

    .. math:: -\frac{1}{T} \sum_t \Bigl(\log\sigma^\beta(h_t \cdot v_{y_t} - b)
              + \sum_j \log(1 - \sigma(h_t \cdot v_j - b))\Bigr), \quad b = \log\tfrac{S}{\beta}, \;
              \beta = \alpha \bigl(t (1 - \tfrac1\alpha) + \tfrac1\alpha\bigr), \; \alpha = \tfrac{S}{N - 1}

    Args:
        states: ``(T, D)`` query vectors h.
        embeddings: ``(N+1, D)`` item vectors v.
        labels: ``(T,)`` true items y.
        negatives: ``(S,)`` drawn items j, shared by all positions; where one is the true item it is left out.
        calibration: t in [0, 1].
        precision: of the matrix product; ``auto`` is bf16 where the processor multiplies it natively.

    Returns:
        Scalar, in nats; 0 without labels.

    Source: Petrov and Macdonald, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative
    Sampling", RecSys 2023, Eqs. 7 and 10. Differs from the paper: negatives are shared by the batch. The loss is not
    divided by their number S, which would bring gradients of rare items down to Adam's epsilon. And the constant b puts
    the average item where it belongs from the start; otherwise the first steps push all items down, and Adam's second
    moment remembers their gradients for a hundred epochs. Neither changes an order.
    """
    n_items, n_negatives = len(embeddings) - 1, len(negatives)
    rate = min(1.0, n_negatives / max(n_items - 1, 1))
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    dtype = compute_dtype(states, precision)
    start = math.log(n_negatives / beta)
    positive = (states * embeddings[labels]).sum(1) - start
    logits = (states.to(dtype) @ embeddings[negatives].to(dtype).T).float() - start
    logits = logits.masked_fill(negatives == labels[:, None], -torch.inf)
    return _mean(beta * F.softplus(-positive) + F.softplus(logits).sum(1))


def mask_items(
    batch: Batch, mask_item: int, *, share: float, last_share: float, generator: torch.Generator
) -> tuple[Batch, Tensor]:
    """Hide items for a model that sees both sides.

    Args:
        batch: B histories of T items in all.
        mask_item: what stands where an item is hidden.
        share: chance that an item is hidden; at least one of each history is.
        last_share: chance that, instead, only a history's newest item is hidden.
        generator: the source of the draws.

    Returns:
        The batch with masks, and ``(T,)`` the hidden items, 0 where nothing is hidden.

    Source: Sun et al., "BERT4Rec", CIKM 2019, section 3.6. Differs from the paper: fresh masks every time a history is
    read, and no chance that a hidden item is left in place.
    """
    device = batch.items.device
    owner = torch.repeat_interleave(torch.arange(len(batch), device=device), batch.lengths)
    draws = torch.rand(len(batch.items), generator=generator).to(device)
    hidden = draws < share
    # Where chance hid nothing, the item with the least draw is hidden.
    least = torch.full((len(batch),), torch.inf, device=device).scatter_reduce(0, owner, draws, "amin")
    hidden |= draws == least[owner]
    only_last = (torch.rand(len(batch), generator=generator) < last_share).to(device)
    is_last = torch.zeros_like(hidden)
    is_last[batch.last] = True
    hidden = torch.where(only_last[owner], is_last, hidden)
    labels = torch.where(hidden, batch.items, 0)
    items = torch.where(hidden, mask_item, batch.items)
    return Batch(items, batch.offsets, batch.users), labels
