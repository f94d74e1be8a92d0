"""Groups of vectors that are alike: as large as each other by optimal transport, or by K-means."""

from __future__ import annotations

import math
import warnings

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

_SAMPLE = 10
"""Points for each cluster among which K-means looks for where to begin."""


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, n_iterations: int) -> Tensor:
    r"""Assign vectors to clusters so that all clusters are equally large, by optimal transport with entropy.

    .. math:: Q = B \arg\max_{Q'} \mathrm{Tr}(Q'^\top S) + \epsilon H(Q'), \quad
              Q' \mathbf 1_K = \tfrac1B \mathbf 1_B, \; Q'^\top \mathbf 1_B = \tfrac1K \mathbf 1_K

    Rows and columns are scaled to their sums in turn, in log space. No gradient flows through.

    Args:
        scores: ``(B, K)`` S, how well each vector goes with each cluster.
        epsilon: of the entropy, positive; lower is harder, and takes more iterations.
        n_iterations: positive.

    Returns:
        ``(B, K)``: rows sum to 1; columns to B/K, the closer the more iterations.

    Source: Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013; as Caron et al.,
    "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (SwAV), NeurIPS 2020, apply it.
    """
    n_rows, n_clusters = scores.shape
    log_q = scores / epsilon
    for _ in range(n_iterations):
        log_q = log_q - log_q.logsumexp(0, keepdim=True) + math.log(n_rows / n_clusters)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


def k_means(points: Tensor, n_clusters: int, *, generator: torch.Generator, n_iterations: int = 20) -> Tensor:
    """Find the centres of clusters by Lloyd's iterations from a k-means++ start.

    Args:
        points: ``(n, D)``, n at least 1.
        n_clusters: K at most.
        generator: the source of the start.
        n_iterations: of Lloyd's.

    Returns:
        ``(K', D)`` centres on the points' device. K' is below K where there are fewer different points, or a cluster
        has lost all of its points.

    Source: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007, for the start. It is
    looked for among a sample of the points, since scipy's takes time with the square of K.
    """
    different: Tensor = torch.unique(points.detach().cpu(), dim=0)
    if len(different) <= n_clusters:
        return different.to(points.device)
    sample = torch.randperm(len(different), generator=generator)[: _SAMPLE * n_clusters]
    seed = int(torch.randint(2**31, (), generator=generator))
    data = points.detach().cpu().numpy()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of clusters without points
        start, _ = kmeans2(different[sample].numpy(), n_clusters, iter=1, minit="++", seed=seed)
        centres, members = kmeans2(data, start, iter=n_iterations, minit="matrix")
    kept = torch.bincount(torch.from_numpy(members).long(), minlength=n_clusters) > 0
    found: Tensor = torch.from_numpy(centres)[kept].to(points)
    return found
