"""Row-wise operations on lists of items."""

import math

import pytest
import torch

from recdistill.methods.lists import contains, draw_places, draw_unlisted, list_logits, places


def test_places_count_from_0_and_what_is_missing_stands_behind_the_list() -> None:
    listed = torch.tensor([[7, 3, 5], [4, 0, 0]])
    assert places(listed, torch.tensor([[5, 7, 9], [4, 3, 0]])).tolist() == [[2, 0, 3], [0, 3, 3]]


def test_padding_is_in_no_list() -> None:
    assert contains(torch.tensor([[2, 0]]), torch.tensor([[0, 2, 1]])).tolist() == [[False, True, False]]


def test_logits_are_products_with_each_item_of_the_list() -> None:
    queries, embeddings = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[9.0, 9.0], [1.0, 0.0], [3.0, 4.0]])
    assert list_logits(queries, embeddings, torch.tensor([[1, 2], [2, 2]])).tolist() == [[1.0, 11.0], [4.0, 4.0]]


def test_draws_follow_the_chances_and_never_repeat() -> None:
    logits = torch.tensor([[math.log(3), 0.0, -math.inf]]).expand(20_000, -1)
    drawn = draw_places(logits, 2, torch.Generator().manual_seed(0))
    assert abs((drawn[:, 0] == 0).float().mean().item() - 3 / 4) < 0.01
    assert (drawn.sort(dim=1).values == torch.tensor([0, 1])).all()  # the other one follows, padding never does


def test_a_short_row_is_drawn_whole() -> None:
    assert sorted(draw_places(torch.zeros(1, 2), 5, torch.Generator().manual_seed(0))[0].tolist()) == [0, 1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_gradients_of_logits_are_those_of_the_plain_formula(dtype: torch.dtype, tolerance: float) -> None:
    draw = torch.Generator().manual_seed(0)
    queries = torch.randn(3, 4, generator=draw).to(dtype).requires_grad_()
    embeddings = torch.randn(6, 4, generator=draw).to(dtype).requires_grad_()
    items = torch.randint(0, 6, (3, 5), generator=draw, dtype=torch.int32)
    weights = torch.randn(3, 5, generator=draw).to(dtype)
    ours = (list_logits(queries, embeddings, items) * weights).sum()
    plain = (torch.einsum("bd,bkd->bk", queries, embeddings[items.long()]) * weights).sum()
    for gradient, expected in zip(
        torch.autograd.grad(ours, [queries, embeddings]), torch.autograd.grad(plain, [queries, embeddings]), strict=True
    ):
        torch.testing.assert_close(gradient, expected, rtol=tolerance, atol=tolerance)


def test_items_are_drawn_from_the_whole_catalogue_and_told_from_those_listed() -> None:
    listed = torch.tensor([[2, 5, 0], [0, 0, 0]])
    others, unlisted = draw_unlisted(listed, 400, 5, torch.Generator().manual_seed(0))
    assert others.shape == unlisted.shape == (2, 400)
    assert set(others.flatten().tolist()) == {1, 2, 3, 4, 5}
    assert set(others[0][~unlisted[0]].tolist()) == {2, 5}
    assert set(others[0][unlisted[0]].tolist()) == {1, 3, 4}
    assert unlisted[1].all()
