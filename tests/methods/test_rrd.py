"""Relaxed ranking distillation: the likelihood by hand, and what is drawn."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.losses.ranking import relaxed_ranking_loss
from recdistill.methods.base import Method, TrainingBatch, build_method
from recdistill.methods.rrd import draw_interesting
from recdistill.models.base import Model
from recdistill.training.batches import Batches

from .users import ROWS, TRAIN, WITH_HISTORY, mf, ready, scores_of, setting, top


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


def test_it_vanishes_when_the_student_agrees_by_far() -> None:
    listed, others, both = torch.tensor([[90.0, 60.0]]), torch.tensor([[-40.0, 20.0]]), torch.tensor([[True, True]])
    assert relaxed_ranking_loss(listed, both, others, both).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_loss_and_gradient_are_finite_at_extreme_scores(extreme: float) -> None:
    listed = torch.tensor([[extreme, -extreme, extreme]], requires_grad=True)
    others = torch.tensor([[-extreme, extreme]], requires_grad=True)
    loss = relaxed_ranking_loss(listed, torch.tensor([[True, True, False]]), others, torch.tensor([[True, True]]))
    assert loss.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss.sum(), [listed, others]))


def order_part(method: Method, student: Model, users: list[int], *, shown: int | None = None) -> Tensor:
    batches = Batches(TRAIN, batch_size=len(users), max_len=shown, reads_last=True)
    return method.loss(student, TrainingBatch(*batches.of(np.array(users)), torch.Generator().manual_seed(0)))["order"]


def test_an_answer_counts_as_many_labels_as_its_weight_says() -> None:
    """Lists of all items but the history leave none to stand below."""
    teacher, student = mf(1), mf(2)
    method = ready("rrd", teacher, student, top_k=30, n_interesting=30, weight=2.0)
    total, n_labels = 0.0, 6
    for user in WITH_HISTORY:
        scores = scores_of(student)[user][top(teacher, user, 30 - len(ROWS[user]), seen_items=False)]
        total += (scores.flip(0).logcumsumexp(0).flip(0) - scores).mean().item()
    assert order_part(method, student, WITH_HISTORY).item() == pytest.approx(2 / n_labels * total, rel=1e-4)


@pytest.mark.parametrize("shown", [None, 1], ids=["whole", "cut"])
@pytest.mark.parametrize("exclude_history", [True, False])
def test_all_that_is_not_listed_stands_below_but_for_the_history_where_the_teacher_leaves_it_out(
    exclude_history: bool, shown: int | None
) -> None:
    """A label is not told to stand below what the teacher likes just because it was not asked about it.

    Nor is one that the batch does not show, as it is older than what the student reads.
    """
    teacher, student = mf(1), mf(2)
    method = build_method("rrd", {"top_k": 3, "n_interesting": 1, "rank_temperature": 0.01, "n_uninteresting": 2000})
    method.prepare(setting(teacher, exclude_history=exclude_history))
    table = student.get_parameter("embedding.weight")
    (gradient,) = torch.autograd.grad(order_part(method, student, [0], shown=shown), table)
    listed = top(teacher, 0, 3, seen_items=not exclude_history)
    left_out = {0, *listed[1:], *(ROWS[0] if exclude_history else [])}
    assert {*gradient.any(1).nonzero().flatten().tolist()} == {*range(31)} - left_out


def test_as_many_others_as_the_setting_says_stand_below() -> None:
    student = mf(2)
    method = ready("rrd", mf(1), student, top_k=3, n_interesting=1, rank_temperature=0.01, n_uninteresting=1)
    (gradient,) = torch.autograd.grad(order_part(method, student, [0]), student.get_parameter("embedding.weight"))
    moved = gradient.any(1).nonzero().flatten().tolist()
    assert len(moved) == 2
    assert top(mf(1), 0, 1, seen_items=False)[0] in moved


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
