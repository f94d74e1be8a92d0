"""Collaborative distillation: what is drawn, and the binary cross-entropy by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdistill.methods.cd import CD, better_of_two, probability_loss

from .users import WITH_HISTORY, learn, mf, ready, scores_of, teacher_part, top

REAL = torch.tensor([[True, True, False]])


def test_the_loss_by_hand() -> None:
    student = torch.tensor([[math.log(3), 0.0, 5.0]])  # 3/4, 1/2, and padding
    targets = torch.tensor([[1 / 3, 1.0, 0.5]])
    expected = -(1 / 3 * math.log(3 / 4) + 2 / 3 * math.log(1 / 4)) - math.log(1 / 2)
    assert probability_loss(student, targets, REAL).item() == pytest.approx(expected)


def test_there_is_nothing_to_learn_when_the_student_agrees() -> None:
    student = torch.tensor([[0.3, -2.0, 1.0]], requires_grad=True)
    loss = probability_loss(student, torch.sigmoid(student), REAL)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(gradient, torch.zeros(1, 3), atol=1e-6, rtol=0)


@given(st.floats(-20, 20), st.floats(0, 1))
def test_no_student_does_better_than_the_target_itself(logit: float, target: float) -> None:
    q, real = torch.tensor([[target]], dtype=torch.float64), torch.tensor([[True]])
    best = torch.special.entr(q) + torch.special.entr(1 - q)
    loss = probability_loss(torch.tensor([[logit]], dtype=torch.float64), q, real)
    assert loss.item() >= best.item() - 1e-9


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_loss_and_gradient_are_finite_at_extreme_scores(extreme: float) -> None:
    student = torch.tensor([[extreme, -extreme, 0.0]], requires_grad=True)
    loss = probability_loss(student, torch.sigmoid(torch.tensor([[-extreme, extreme, -torch.inf]])), REAL)
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


def test_the_better_of_two_draws_by_hand() -> None:
    # With chances 1/2, 1/4, 1/8, … (normalised over three places): 4/7, 2/7, 1/7.
    chances = better_of_two(3, temperature=1 / math.log(2)).exp()
    assert chances.tolist() == pytest.approx([1 - (3 / 7) ** 2, (3 / 7) ** 2 - (1 / 7) ** 2, (1 / 7) ** 2])


def test_chances_of_deep_places_do_not_cancel_to_nothing() -> None:
    chances = better_of_two(3000, temperature=60_000.0)
    assert chances.isfinite().all()
    assert (chances.diff() < 0).all()
    assert chances.exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_items_come_from_the_head_of_the_students_ranking_without_the_history() -> None:
    teacher, student = mf(1), mf(2)
    method = ready("cd", teacher, student, depth=6, n_sampled=3)
    assert isinstance(method, CD)
    for user in WITH_HISTORY:
        drawn = method.items[user].tolist()
        assert {*drawn} <= {*top(student, user, 6, seen_items=False)}
        assert len({*drawn}) == 3
        torch.testing.assert_close(method.scores[user], scores_of(teacher)[user][drawn])


def test_of_two_places_the_better_one_is_learned() -> None:
    """Each is drawn with chances exp(−rank / (M T)), here by a temperature of 4 · 1/2 = 2."""
    student, looks = mf(2), 500
    method = ready("cd", mf(1), student, depth=4, n_sampled=1, rank_temperature=0.5)
    assert isinstance(method, CD)
    drawn, generator = torch.zeros(4), torch.Generator().manual_seed(0)
    for _ in range(looks):
        method.start_epoch(student, 1, generator)
        for user in WITH_HISTORY:
            drawn[top(student, user, 4, seen_items=False).index(int(method.items[user]))] += 1 / (3 * looks)
    chances = [math.exp(-rank / 2) for rank in range(4)]
    tails = [sum(chances[rank:]) / sum(chances) for rank in range(5)]
    expected = [tails[rank] ** 2 - tails[rank + 1] ** 2 for rank in range(4)]
    assert drawn.tolist() == pytest.approx(expected, abs=0.04)


def test_the_loss_is_taken_against_the_rescaled_teacher() -> None:
    teacher, student = mf(1), mf(2)
    method = ready("cd", teacher, student, depth=6, n_sampled=3, score_scale=2.0, score_shift=0.5, weight=3.0)
    assert isinstance(method, CD)
    expected = 0.0
    for user in WITH_HISTORY:
        drawn = method.items[user].long()
        q = torch.sigmoid((scores_of(teacher)[user][drawn] + 0.5) / 2)
        p = torch.sigmoid(scores_of(student)[user][drawn])
        expected -= (q * p.log() + (1 - q) * (1 - p).log()).sum().item()
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(3 * expected / 3, rel=1e-4)


def test_the_student_comes_to_score_as_the_teacher_does() -> None:
    teacher, student = mf(1), mf(2)
    learn(ready("cd", teacher, student, depth=30, n_sampled=10), student, steps=300)
    for user in WITH_HISTORY:
        unseen = top(teacher, user, 27, seen_items=False)
        gap = scores_of(teacher)[user][unseen].sigmoid() - scores_of(student)[user][unseen].sigmoid()
        assert gap.abs().mean() < 0.05
