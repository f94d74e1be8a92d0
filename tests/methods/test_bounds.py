"""When cross-entropy bounds NDCG, and when it does not: the theory behind RCE-KD, on random scores.

With gains t, the teacher's softmax, and the student's ranks in the whole catalogue, log DCG ≥ −CE on all items and on
any head of the student's own ranking. On other sets nothing says so.
"""

from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from recdistill.losses.ranking import subset_cross_entropy

MANY, FEW = 300, 5
Figure: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


def scores(n_items: int, *, scale: float, seed: int) -> Tensor:
    return scale * torch.randn(MANY, n_items, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def head(of: Tensor, k: int) -> Tensor:
    """``(B, N)`` which items are the k best of each row."""
    return torch.zeros_like(of, dtype=torch.bool).scatter(1, of.topk(k).indices, True)


def log_dcg(student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
    """Of the chosen items at their ranks among all, with gains that are the teacher's softmax over the chosen."""
    gains = torch.softmax(teacher.masked_fill(~chosen, -torch.inf), dim=1)
    order = student.argsort(dim=1, descending=True)
    ranks = torch.empty_like(student).scatter_(
        1, order, torch.arange(1.0, student.shape[1] + 1, dtype=student.dtype).expand_as(student)
    )
    return (gains / torch.log2(1 + ranks)).sum(1).log()


def log_ndcg(student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
    """That over the best there is, the chosen items at the first ranks in the teacher's order; never below log DCG."""
    return log_dcg(student, teacher, chosen) - log_dcg(teacher.masked_fill(~chosen, -torch.inf), teacher, chosen)


def breaks(student: Tensor, teacher: Tensor, chosen: Tensor, *, of: Figure) -> int:
    """How many rows have a figure below minus the cross-entropy."""
    bound = -subset_cross_entropy(student, teacher, chosen)
    return int((of(student, teacher, chosen) < bound - 1e-12).sum())


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("n_items", [60, 2000])
def test_it_bounds_ndcg_on_all_items(n_items: int, scale: float) -> None:
    student, teacher = scores(n_items, scale=scale, seed=1), scores(n_items, scale=2.0, seed=2)
    assert breaks(student, teacher, torch.ones_like(student, dtype=torch.bool), of=log_dcg) == 0


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("k", [1, 5, 50])
def test_it_bounds_ndcg_on_any_head_of_the_students_ranking(k: int, scale: float) -> None:
    student, teacher = scores(2000, scale=scale, seed=1), scores(2000, scale=2.0, seed=2)
    assert breaks(student, teacher, head(student, k), of=log_dcg) == 0


def test_it_does_not_on_the_teachers_list_of_a_large_catalogue_and_an_untrained_student() -> None:
    """All scores are alike to the student, so that the list seems easy, while it lies deep in the ranking."""
    student, teacher = scores(5000, scale=0.01, seed=1), scores(5000, scale=1.0, seed=2)
    assert breaks(student, teacher, head(teacher, FEW), of=log_ndcg) > 0.95 * MANY


def test_the_gap_closes_as_the_student_learns() -> None:
    teacher = scores(5000, scale=1.0, seed=2)
    untrained = scores(5000, scale=1.0, seed=1)
    counts = [
        breaks(untrained + learned * teacher, teacher, head(teacher, FEW), of=log_ndcg) for learned in (0.0, 0.5, 3.0)
    ]
    assert counts[0] > counts[1] > counts[2] == 0


def test_adding_all_that_outranks_the_list_restores_the_bound() -> None:
    """Closure: with an item, the set holds whatever the student ranks above it."""
    student, teacher = scores(5000, scale=0.01, seed=1), scores(5000, scale=1.0, seed=2)
    listed = head(teacher, FEW)
    lowest = student.masked_fill(~listed, torch.inf).amin(1, keepdim=True)
    assert breaks(student, teacher, student >= lowest, of=log_dcg) == 0
