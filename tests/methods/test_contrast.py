from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from recdistill.augmentations import join
from recdistill.methods.contrast import encode_views, info_nce, nt_xent, pool
from recdistill.models.base import Batch, Model, build_model

N = 8


# NT-Xent


def nt(first: list[list[float]], second: list[list[float]], same: list[int] | None = None, **settings: Any) -> float:
    options = {"temperature": 1.0} | settings
    groups = None if same is None else torch.tensor(same)
    return nt_xent(torch.tensor(first), torch.tensor(second), same=groups, **options).item()


def test_nt_xent_by_hand() -> None:
    # Each view has a product of 2 or 3 with its own other one, and of 0 with both views of the other history.
    # At temperature .5 the own counts e^4 or e^6 against e^0 for each of the two others.
    value = nt([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 3.0]], temperature=0.5)
    expected = (math.log(math.exp(4) + 2) - 4 + math.log(math.exp(6) + 2) - 6) / 2
    assert value == pytest.approx(expected, rel=1e-4)


def test_cosines_do_not_see_how_long_vectors_are() -> None:
    # Cosines 1 with the own view, 0 with both others.
    value = nt([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 3.0]], similarity="cosine")
    assert value == pytest.approx(math.log(math.e + 2) - 1, rel=1e-5)


def plain_nt_xent(first: Tensor, second: Tensor, same: list[int], temperature: float) -> float:
    """The formula term by term."""
    views, n = [*first, *second], len(first)
    total = 0.0
    for i in range(2 * n):
        other = (i + n) % (2 * n)
        candidates = [j for j in range(2 * n) if j == other or same[j % n] != same[i % n]]
        logits = {j: float(views[i] @ views[j]) / temperature for j in candidates}
        total += math.log(sum(math.exp(logit) for logit in logits.values())) - logits[other]
    return total / (2 * n)


@pytest.mark.parametrize("same", [[0, 1, 2, 3, 4], [0, 1, 0, 1, 2], [3, 3, 3, 3, 3]])
def test_nt_xent_is_the_formula_term_by_term(same: list[int]) -> None:
    first, second = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))
    value = nt_xent(first, second, temperature=0.7, same=torch.tensor(same)).item()
    assert value == pytest.approx(plain_nt_xent(first, second, same, 0.7), rel=1e-5)


def test_without_groups_all_others_are_negatives() -> None:
    first, second = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(3))
    apart = nt_xent(first, second, temperature=1.0, same=torch.arange(4)).item()
    assert nt_xent(first, second, temperature=1.0).item() == pytest.approx(apart)


def test_it_does_not_matter_which_view_is_the_first() -> None:
    first, second = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(4))
    swapped = nt_xent(second, first, temperature=0.3).item()
    assert nt_xent(first, second, temperature=0.3).item() == pytest.approx(swapped, rel=1e-5)


def test_where_all_look_alike_any_candidate_is_as_good_as_the_own() -> None:
    assert nt([[1.0, 1.0]] * 4, [[1.0, 1.0]] * 4) == pytest.approx(math.log(7), rel=1e-5)


def test_one_history_alone_costs_and_teaches_nothing() -> None:
    first, second = torch.ones(1, 3, requires_grad=True), torch.full((1, 3), 2.0)
    loss = nt_xent(first, second, temperature=1.0)
    (gradient,) = torch.autograd.grad(loss, [first])
    assert loss.item() == 0.0
    assert gradient.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_nt_xent_is_finite_for_extreme_and_zero_vectors(similarity: str) -> None:
    assert math.isfinite(
        nt([[1e4, -1e4], [0.0, 0.0]], [[-1e4, 1e4], [0.0, 0.0]], similarity=similarity, temperature=0.1)
    )


# InfoNCE, one way


def nce(queries: list[list[float]], views: list[list[float]], same: list[int], temperature: float = 1.0) -> float:
    n = len(queries)
    loss = info_nce(
        torch.tensor(queries),
        torch.tensor(views),
        torch.tensor(same),
        weights=torch.full((n,), 1 / n),
        temperature=temperature,
    )
    return loss.item()


def test_info_nce_by_hand() -> None:
    # Cosines 1 to the own view, 0 to the other; at temperature .5 that is 2 against 0. Lengths do not matter.
    value = nce([[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 7.0]], [0, 1], temperature=0.5)
    assert value == pytest.approx(math.log1p(math.exp(-2)))


def test_users_with_the_same_history_are_not_each_others_negatives() -> None:
    """Their views are the same too: telling them apart cannot be learned."""
    twins = nce([[1.0, 0.0]] * 2 + [[0.0, 1.0]], [[1.0, 0.0]] * 2 + [[0.0, 1.0]], [0, 0, 1])
    # Each twin sees its own view (1) and the third user's (0); the third sees its own (1) and two others (0).
    assert twins == pytest.approx((2 * math.log1p(math.exp(-1)) + math.log(math.e + 2) - 1) / 3)


def test_info_nce_of_one_user_is_0() -> None:
    assert nce([[1.0, 2.0]], [[0.5, -1.0]], [0]) == pytest.approx(0.0)


def test_info_nce_is_finite_for_extreme_and_zero_vectors() -> None:
    assert math.isfinite(nce([[1e4, -1e4], [0.0, 0.0]], [[-1e4, 1e4], [0.0, 0.0]], [0, 1], temperature=0.1))


# Views and their vectors


def model(name: str) -> Model:
    return build_model(name, N, {"dim": 8, "max_len": 5, "init_std": 0.3})


HISTORIES = [[1, 2, 3], [4], [5, 6]]


def test_pooling_takes_the_last_state_or_the_mean_of_all() -> None:
    states = torch.tensor([[1.0, 0.0], [2.0, 3.0], [6.0, 0.0], [4.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    batch = Batch.from_lists(HISTORIES)
    assert pool(states, batch, "last").tolist() == [[6.0, 0.0], [4.0, 4.0], [1.0, 0.0]]
    assert pool(states, batch, "mean").tolist() == [[3.0, 1.0], [4.0, 4.0], [0.5, 1.0]]


def test_the_mean_is_taken_back_evenly() -> None:
    states = torch.zeros(6, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(pool(states, Batch.from_lists(HISTORIES), "mean").sum(), [states])
    assert gradient.squeeze(1).tolist() == pytest.approx([1 / 3] * 3 + [1.0] + [1 / 2] * 2)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "gru4rec", "hstu"])
def test_one_pass_encodes_what_two_would(name: str) -> None:
    student = model(name).eval()
    views = [Batch.from_lists(HISTORIES), Batch.from_lists([history[::-1] for history in HISTORIES])]
    for found, view in zip(encode_views(student, join(*views), "last"), views, strict=True):
        torch.testing.assert_close(found, student.encode(view), rtol=1e-4, atol=1e-5)
    for found, view in zip(encode_views(student, join(*views), "mean"), views, strict=True):
        states = student.encode_positions(view).tensor_split(view.offsets[1:-1])
        torch.testing.assert_close(found, torch.stack([part.mean(0) for part in states]), rtol=1e-4, atol=1e-5)


def test_the_same_history_read_twice_in_one_pass_meets_different_dropout() -> None:
    """What DuoRec's positives rest on."""
    history = Batch.from_lists([[1, 2, 3]])
    first, second = encode_views(model("sasrec").train(), join(history, history), "last")
    assert not torch.allclose(first, second)
