"""Losses on the logits of a few items a row, most of them on their order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def subset_cross_entropy(student: Tensor, teacher: Tensor, real: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Cross-entropy of the student's softmax over a few items against the teacher's over the same items.

    .. math:: -\sum_{i \in J} \sigma_J(r^T / \tau)_i \log \sigma_J(r^S / \tau)_i

    Items outside J have no say: their scores may be anything.

    Args:
        student: ``(B, C)`` its logits r^S of C items.
        teacher: ``(B, C)`` the teacher's scores r^T of them. No gradient flows into them.
        real: ``(B, C)`` which of them are in J, a set for each row.
        temperature: tau, positive; higher is softer.

    Returns:
        ``(B,)`` in nats, least where the student agrees; 0 for an empty J.

    Source: Zhu and Zhang, "Rejuvenating Cross-Entropy Loss in Knowledge Distillation for Recommender Systems", ICLR
    2026.
    """
    nothing = torch.finfo(student.dtype).min  # an infinity would make gradients NaN
    targets = torch.softmax((teacher.detach() / temperature).masked_fill(~real, nothing), dim=1)
    log_probs = torch.log_softmax((student / temperature).masked_fill(~real, nothing), dim=1)
    return -torch.where(real, targets * log_probs, 0.0).sum(1)


def relaxed_ranking_loss(listed: Tensor, real: Tensor, others: Tensor, unlisted: Tensor) -> Tensor:
    r"""Negative log-likelihood of an order whose items all stand above some others, a mean over places.

    .. math:: -\frac1K \sum_{k=1}^{K} \Bigl(f_{\pi_k}
              - \log\bigl(\sum_{j \ge k} e^{f_{\pi_j}} + \sum_l e^{f_l}\bigr)\Bigr)

    Args:
        listed: ``(B, K)`` the student's logits of the interesting items, best first.
        real: ``(B, K)`` which of them are no padding.
        others: ``(B, L)`` its logits of the uninteresting ones.
        unlisted: ``(B, L)`` which of those count.

    Returns:
        ``(B,)`` in nats; 0 for a list of padding.

    Source: Kang et al., "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020, section 4.
    """
    nothing = torch.finfo(listed.dtype).min  # an infinity would make gradients NaN
    listed = listed.masked_fill(~real, nothing)
    below = others.masked_fill(~unlisted, nothing).logsumexp(1, keepdim=True)
    rest = torch.logcumsumexp(listed.flip(1), 1).flip(1)
    surprise = torch.where(real, torch.logaddexp(rest, below) - listed, 0.0)
    return surprise.sum(1) / real.sum(1).clamp_min(1)


def ranking_consistency(
    listed: Tensor, points: Tensor, others: Tensor, unlisted: Tensor, *, margin: float | None
) -> Tensor:
    r"""Order of the consensus, and the lead of its items over those that no answer lists.

    .. math:: \frac{1}{|P|} \sum_{(i,j) \in P} \ell(f_i - f_j) + \frac{1}{|C|} \sum_{i \in C} \ell(f_i - f_{j^-})

    where P are the neighbours in the consensus C with different points, and ℓ(x) is ``max(0, margin − x)``, or the
    smooth ``log(1 + exp(−x))`` without a margin.

    Args:
        listed: ``(B, K)`` the student's logits f of the consensus, best item first.
        points: ``(B, K)`` what each counts in the consensus, never rising along a row; 0 is padding.
        others: ``(B, K)`` the student's logits of random items.
        unlisted: ``(B, K)`` which of those are in no answer; the rest is left out, and not counted in C.
        margin: delta; ``None`` for the smooth form.

    Returns:
        ``(B,)``; 0 without a consensus.

    Source: the margin form is the list loss of Yue et al., "Black-Box Attacks on Sequential Recommenders via Data-Free
    Model Extraction", RecSys 2021, on the consensus instead of one list.
    """
    real = points > 0
    order = order_loss(listed, torch.where(real, points, -torch.inf), margin=margin)
    return order + _mean_penalty(listed - others, real & unlisted, margin)


def order_loss(listed: Tensor, worth: Tensor, *, margin: float | None) -> Tensor:
    r"""Order of a list, neighbour by neighbour.

    .. math:: \frac{1}{|P|} \sum_{(i,j) \in P} \ell(f_i - f_j)

    where P are the neighbours of different worth, and ℓ is that of `ranking_consistency`.

    Args:
        listed: ``(B, K)`` the student's logits f, best item first.
        worth: ``(B, K)`` what each is worth, never rising along a row; −∞ under padding.
        margin: delta; ``None`` for the smooth form.

    Returns:
        ``(B,)``; 0 for a list of padding, or of items that are all worth the same.
    """
    pairs = (worth[:, :-1] > worth[:, 1:]) & (worth[:, 1:] > -torch.inf)
    return _mean_penalty(listed[:, :-1] - listed[:, 1:], pairs, margin)


def _mean_penalty(lead: Tensor, counted: Tensor, margin: float | None) -> Tensor:
    penalty = F.softplus(-lead) if margin is None else F.relu(margin - lead)
    return torch.where(counted, penalty, 0.0).sum(1) / counted.sum(1).clamp_min(1)
