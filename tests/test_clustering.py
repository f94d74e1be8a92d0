"""Balanced assignment by optimal transport, against solvers that we did not write, and K-means."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from scipy.optimize import Bounds, LinearConstraint, linprog, minimize
from torch import Tensor

from recdistill.clustering import k_means, sinkhorn
from recdistill.methods.intents import IntentConfig

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores(n_rows: int, n_clusters: int, seed: int = 0) -> Tensor:
    """Cosines of random vectors and prototypes."""
    vectors = torch.randn(n_rows + n_clusters, 8, generator=generator(seed), dtype=torch.float64)
    rows, clusters = F.normalize(vectors, dim=1).split([n_rows, n_clusters])
    cosines: Tensor = rows @ clusters.T
    return cosines


def marginals(n_rows: int, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """What the sums of rows and then of columns are made of, and what they have to be."""
    row, column = np.divmod(np.arange(n_rows * n_clusters), n_clusters)
    sums = np.concatenate([row == np.arange(n_rows)[:, None], column == np.arange(n_clusters)[:, None]])
    return sums.astype(float), np.repeat([1.0, n_rows / n_clusters], [n_rows, n_clusters])


@pytest.mark.parametrize(("n_rows", "n_clusters"), [(12, 4), (5, 7), (512, 128), (1, 3)])
def test_rows_sum_to_1_and_all_clusters_are_equally_large(n_rows: int, n_clusters: int) -> None:
    q = sinkhorn(scores(n_rows, n_clusters).float(), epsilon=0.05, n_iterations=500)
    torch.testing.assert_close(q.sum(1), torch.ones(n_rows), atol=1e-4, rtol=0)
    torch.testing.assert_close(q.sum(0), torch.full((n_clusters,), n_rows / n_clusters), atol=1e-4, rtol=0)
    assert (q >= 0).all()


def test_rows_sum_to_1_after_few_iterations_as_well() -> None:
    q = sinkhorn(scores(64, 16), epsilon=0.05, n_iterations=3)
    torch.testing.assert_close(q.sum(1), torch.ones(64, dtype=torch.float64))


def clustered(vectors: str, seed: int) -> Tensor:
    """Cosines of 512 vectors and 128 prototypes of width 64: the vectors are random, in clusters, or at prototypes."""
    draws = generator(seed)
    prototypes, noise = torch.randn(128, 64, generator=draws), torch.randn(512, 64, generator=draws)
    if vectors == "in 20 clusters":
        noise = 0.3 * noise + torch.randn(20, 64, generator=draws)[torch.randint(20, (512,), generator=draws)]
    elif vectors == "at prototypes":  # the k-th draws a share of 1/k
        share = 1 / torch.arange(1.0, 129)
        noise = 0.3 * noise + prototypes[torch.multinomial(share, 512, replacement=True, generator=draws)]
    cosines: Tensor = F.normalize(noise, dim=1) @ F.normalize(prototypes, dim=1).T
    return cosines


@pytest.mark.parametrize(
    ("vectors", "n_iterations", "least", "most"),
    [
        ("random", 3, 0.03, 0.15),
        ("in 20 clusters", 3, 0.03, 0.15),
        ("at prototypes", 3, 1.0, 2.0),
        ("at prototypes", 50, 0.0, 0.05),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_how_far_clusters_are_from_equally_large(
    vectors: str, n_iterations: int, least: float, most: float, seed: int
) -> None:
    """Three iterations, the default, do for vectors that no prototype stands out for, and not for others."""
    epsilon, default = (IntentConfig.model_fields[name].default for name in ("epsilon", "sinkhorn_iterations"))
    assert default == 3
    sizes = sinkhorn(clustered(vectors, seed), epsilon=epsilon, n_iterations=n_iterations).sum(0)
    assert least < (sizes / (512 / 128) - 1).abs().max().item() < most


def test_one_iteration_by_hand() -> None:
    # exp(S/ε) is [[1, 3], [1, 1]]; its columns, scaled to 2/2, are [[1/2, 3/4], [1/2, 1/4]]; then rows are scaled to 1.
    q = sinkhorn(torch.tensor([[0.0, math.log(3) / 2], [0.0, 0.0]]), epsilon=0.5, n_iterations=1)
    torch.testing.assert_close(q, torch.tensor([[2 / 5, 3 / 5], [2 / 3, 1 / 3]]))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_as_good_as_the_plan_of_a_linear_programme_when_entropy_hardly_counts(seed: int) -> None:
    given = scores(6, 3, seed)
    sums, wanted = marginals(6, 3)
    best = linprog(-given.flatten().numpy(), A_eq=sums, b_eq=wanted).x
    q = sinkhorn(given, epsilon=0.02, n_iterations=2000)
    assert (q * given).sum().item() == pytest.approx(best @ given.flatten().numpy(), abs=0.05)
    assert sums @ q.flatten().numpy() == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("epsilon", [0.2, 1.0])
def test_it_is_the_optimum_with_entropy_that_a_general_solver_finds(epsilon: float) -> None:
    given = scores(4, 2)
    flat, (sums, wanted) = given.flatten().numpy(), marginals(4, 2)

    def negative(q: Vector) -> float:
        return float(-(flat @ q) + epsilon * (q @ np.log(q)))

    def gradient(q: Vector) -> Vector:
        return -flat + epsilon * (np.log(q) + 1)

    found = minimize(
        negative,
        np.full(8, 0.5),
        jac=gradient,
        bounds=Bounds(1e-9),
        constraints=LinearConstraint(sums[:-1], wanted[:-1], wanted[:-1]),  # the last follows from the others
        method="SLSQP",
        tol=1e-12,
    )
    q = sinkhorn(given, epsilon=epsilon, n_iterations=500)
    torch.testing.assert_close(q, torch.from_numpy(found.x).view(4, 2), atol=1e-4, rtol=0)


def test_it_is_finite_where_an_exponential_would_overflow() -> None:
    q = sinkhorn(1e4 * scores(8, 4).float(), epsilon=0.05, n_iterations=10)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(8))


def test_no_gradient_flows_through_an_assignment() -> None:
    assert not sinkhorn(scores(4, 2).requires_grad_(), epsilon=0.05, n_iterations=3).requires_grad


def blobs(n_blobs: int, *, each: int) -> tuple[Tensor, Tensor]:
    """Points around a few places that lie far from each other, and those places."""
    places = 10 * torch.eye(n_blobs)
    return places.repeat_interleave(each, 0) + 0.1 * torch.randn(n_blobs * each, n_blobs, generator=generator()), places


@pytest.mark.parametrize("seed", range(3))
def test_k_means_finds_groups_that_lie_apart(seed: int) -> None:
    points, _ = blobs(5, each=30)
    centres = k_means(points, 5, generator=generator(seed))
    means = points.view(5, 30, 5).mean(1)
    torch.testing.assert_close(centres[centres.argmax(1).argsort()], means)


def test_k_means_does_not_need_a_sample_to_hold_all_points() -> None:
    """The start is looked for among ten points a cluster; the iterations see every point."""
    points, _ = blobs(3, each=500)
    centres = k_means(points, 3, generator=generator())
    torch.testing.assert_close(centres[centres.argmax(1).argsort()], points.view(3, 500, 3).mean(1))


def test_every_iteration_of_k_means_brings_points_nearer_to_their_centres() -> None:
    points = torch.randn(400, 4, generator=generator())
    missed = []
    for n_iterations in (1, 2, 4, 8):
        centres = k_means(points, 8, generator=generator(), n_iterations=n_iterations)
        missed.append(torch.cdist(points, centres).min(1).values.square().mean().item())
    assert missed == sorted(set(missed), reverse=True)


def test_fewer_different_points_than_clusters_are_their_own_centres() -> None:
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    for n_clusters in (2, 3, 8):
        assert k_means(points, n_clusters, generator=generator()).tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_no_centre_is_left_without_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster can lose all of its points on the way, if seldom; here one has none to begin with."""

    def begin_far_away(data: Any, start: Any, **options: Any) -> Any:
        if options["minit"] == "++":
            return np.array([[0.0], [1.0], [99.0]], np.float32), None
        return kmeans2(data, start, **options)

    monkeypatch.setattr("recdistill.clustering.kmeans2", begin_far_away)
    centres = k_means(torch.tensor([[0.0], [0.25], [1.0], [1.25]]), 3, generator=generator())
    assert centres.tolist() == [[0.125], [1.125]]


def test_k_means_follows_from_its_generator() -> None:
    points = torch.randn(200, 4, generator=generator())
    first, again, other = (k_means(points, 8, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
