"""Lists as soft targets over the whole catalogue."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recdistill.methods.soft_lists import Answers, list_kl, rank_logits, soft_targets
from recdistill.rankings import Ranking

N = 6
LOGITS = [0.0, math.log(2), math.log(3), math.log(4), 0.0, 0.0]
"""Of items 1…6 by the student: probabilities 1/12, 2/12, 3/12, 4/12, 1/12, 1/12."""


def student(*logits: list[float]) -> tuple[Tensor, Tensor]:
    """States and embeddings whose product is ``logits`` of items 1…N."""
    states = torch.tensor(logits)
    return states, torch.cat([torch.zeros(1, states.shape[1]), torch.eye(states.shape[1])])


def one(value: float = 1.0) -> Tensor:
    return torch.tensor([value])


def kl(states: Tensor, embeddings: Tensor, items: list[int], logits: list[float], **settings: object) -> Tensor:
    options: dict[str, object] = {"weights": one(), "precision": "fp32"} | settings
    return list_kl(states, embeddings, torch.tensor([items]), torch.tensor([logits]), **options)  # type: ignore[arg-type]


def test_rank_logits_follow_a_power_of_the_rank() -> None:
    probs = soft_targets(rank_logits(torch.tensor([[5, 3, 0]]), 1.0), 1.0)
    assert probs[0].tolist() == pytest.approx([(1 / 2) / (5 / 6), (1 / 3) / (5 / 6), 0.0])


def test_rank_decay_of_0_takes_a_list_for_a_set() -> None:
    assert soft_targets(rank_logits(torch.tensor([[5, 3]]), 0.0), 1.0).tolist() == [[0.5, 0.5]]


def test_temperature_flattens_a_target_row_by_row() -> None:
    logits = torch.tensor([[math.log(9), 0.0], [math.log(9), 0.0]])
    probs = soft_targets(logits, torch.tensor([1.0, 2.0]))
    assert probs.flatten().tolist() == pytest.approx([0.9, 0.1, 0.75, 0.25])


def test_a_row_without_an_answer_is_a_target_of_nothing() -> None:
    assert soft_targets(torch.full((1, 2), -math.inf), 1.0).tolist() == [[0.0, 0.0]]


def test_kl_over_the_whole_catalogue_by_hand() -> None:
    # The target is 3/4 on item 4 and 1/4 on item 1, where the student has 4/12 and 1/12.
    expected = 0.75 * math.log(0.75 / (4 / 12)) + 0.25 * math.log(0.25 / (1 / 12))
    assert kl(*student(LOGITS), [4, 1], [math.log(3), 0.0]).item() == pytest.approx(expected, rel=1e-5)


def test_kl_at_a_temperature_by_hand() -> None:
    # At temperature 2: the target is 1/2, 1/2; the student's weights are the roots 1, √2, √3, 2, 1, 1.
    norm = 5 + math.sqrt(2) + math.sqrt(3)
    expected = 0.5 * math.log(0.5 * norm / 2) + 0.5 * math.log(0.5 * norm)
    value = kl(*student(LOGITS), [4, 1], [0.0, 0.0], temperature=2.0)
    assert value.item() == pytest.approx(4 * expected, rel=1e-5)


def test_kl_adds_rows_by_their_weights() -> None:
    states, embeddings = student(LOGITS, LOGITS)
    items, logits = torch.tensor([[4, 1], [4, 1]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    single = kl(*student(LOGITS), [4, 1], [1.0, 0.0])
    both = list_kl(states, embeddings, items, logits, weights=torch.tensor([0.5, 2.0]), precision="fp32")
    assert both.item() == pytest.approx(2.5 * single.item(), rel=1e-5)


def test_kl_is_0_when_the_student_agrees() -> None:
    listed = [4, 3, 2, 1, 5, 6]
    assert kl(*student(LOGITS), listed, [LOGITS[item - 1] for item in listed]).item() == pytest.approx(0, abs=1e-6)


@given(st.lists(st.floats(-20, 20), min_size=N, max_size=N), st.lists(st.floats(-20, 20), min_size=2, max_size=4))
def test_kl_is_never_negative(logits: list[float], answer: list[float]) -> None:
    assert kl(*student(logits), [*range(1, len(answer) + 1)], answer).item() >= -1e-4


@given(st.floats(-100, 100), st.floats(-100, 100))
def test_kl_is_blind_to_constants_added_to_either_side(to_student: float, to_teacher: float) -> None:
    plain = kl(*student(LOGITS), [4, 1], [1.0, 0.0])
    shifted = kl(*student([logit + to_student for logit in LOGITS]), [4, 1], [1.0 + to_teacher, to_teacher])
    assert shifted.item() == pytest.approx(plain.item(), abs=1e-3)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_kl_and_its_gradient_are_finite_at_extreme_logits(extreme: float) -> None:
    states, embeddings = student([extreme, -extreme, 0.0, 0.0, 0.0, 0.0])
    states.requires_grad_()
    loss = kl(states, embeddings, [1, 2], [extreme, -extreme])
    assert loss.isfinite()
    assert torch.autograd.grad(loss, states)[0].isfinite().all()


def test_kl_pushes_unlisted_items_down() -> None:
    """A softmax over the list alone leaves them where they are, and a student without labels collapses."""
    states, embeddings = student(LOGITS)
    states.requires_grad_()
    (gradient,) = torch.autograd.grad(kl(states, embeddings, [4, 1], [1.0, 0.0]), states)
    assert (gradient[0, [1, 2, 4, 5]] > 0).all()


def test_kl_of_a_list_padded_with_0_is_that_of_the_list() -> None:
    padded = kl(*student(LOGITS), [4, 1, 0], [1.0, 0.0, -math.inf])
    assert padded.item() == pytest.approx(kl(*student(LOGITS), [4, 1], [1.0, 0.0]).item())


def test_answers_take_scores_where_there_are_some() -> None:
    ranking = Ranking(np.array([[4, 1]], np.int32), np.array([[7.0, 5.0]], np.float32))
    assert Answers.read(ranking, "auto", 1.0).logits.tolist() == [[7.0, 5.0]]


def test_answers_take_ranks_where_the_setting_says_so() -> None:
    ranking = Ranking(np.array([[4, 1]], np.int32), np.array([[7.0, 5.0]], np.float32))
    assert Answers.read(ranking, "ranks", 1.0).logits[0].tolist() == pytest.approx([-math.log(2), -math.log(3)])
