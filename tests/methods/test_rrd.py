"""Relaxed ranking distillation: the likelihood by hand, and what is drawn."""

import math

import pytest
import torch

from recdistill.losses import relaxed_ranking_loss
from recdistill.methods.rrd import draw_interesting


def test_the_likelihood_of_an_order_by_hand() -> None:
    listed, others = torch.tensor([[2.0, 1.0, 9.0]]), torch.tensor([[0.0, 5.0]])
    loss = relaxed_ranking_loss(
        listed, torch.tensor([[True, True, False]]), others, torch.tensor([[True, False]])
    )  # the padding and the other that is listed do not count
    first = math.exp(2) / (math.exp(2) + math.exp(1) + 1)
    second = math.exp(1) / (math.exp(1) + 1)
    assert loss.item() == pytest.approx(-(math.log(first) + math.log(second)) / 2)


def test_a_list_of_padding_and_one_without_others_cost_nothing_and_keep_gradients_finite() -> None:
    listed = torch.tensor([[1.0], [1.0]], requires_grad=True)
    others = torch.zeros(2, 3, requires_grad=True)
    real = torch.tensor([[False], [True]])
    loss = relaxed_ranking_loss(listed, real, others, torch.tensor([[True] * 3, [False] * 3]))
    assert loss.tolist() == [0, 0]
    gradients = torch.autograd.grad(loss.sum(), [listed, others])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_shift_of_all_logits_changes_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    listed, others = torch.randn(4, 6, generator=draw), torch.randn(4, 9, generator=draw)
    everything = torch.ones(4, 6, dtype=torch.bool), torch.ones(4, 9, dtype=torch.bool)
    loss = relaxed_ranking_loss(listed, everything[0], others, everything[1])
    shifted = relaxed_ranking_loss(listed + 1e3, everything[0], others + 1e3, everything[1])
    torch.testing.assert_close(shifted, loss, rtol=1e-3, atol=1e-3)


def test_what_is_drawn_keeps_the_order_and_prefers_the_head() -> None:
    listed = torch.arange(1, 11).repeat(4000, 1)
    drawn = draw_interesting(listed, 3, 2.0, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 3)
    assert (drawn[:, 1:] > drawn[:, :-1]).all()  # items are numbered by rank, so rising means best first, each once
    head, tail = (drawn == 1).any(1).float().mean(), (drawn == 10).any(1).float().mean()
    assert head > 0.75
    assert tail < 0.05


def test_the_chance_of_the_first_draw_is_that_of_its_rank() -> None:
    listed = torch.tensor([[7, 8, 0]]).repeat(20_000, 1)
    drawn = draw_interesting(listed, 1, 1.0, torch.Generator().manual_seed(0)).flatten()
    expected = math.exp(-1) / (math.exp(-1) + math.exp(-2))
    assert (drawn == 7).float().mean().item() == pytest.approx(expected, abs=0.01)
    assert set(drawn.tolist()) == {7, 8}


def test_a_short_list_is_taken_whole() -> None:
    listed = torch.tensor([[5, 3, 0], [4, 0, 0]])
    assert draw_interesting(listed, 9, 1.0, torch.Generator().manual_seed(0)).tolist() == listed.tolist()
