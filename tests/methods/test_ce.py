"""Cross-entropy on any set of items."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recdistill.losses.ranking import subset_cross_entropy
from recdistill.methods.ce import CE, full_cross_entropy
from recdistill.models.base import Model

from .users import WITH_HISTORY, learn, mf, ready, scores_of, teacher_part, top

EVERYWHERE = ["teacher", "student", "union", "all"]


def full(student: list[float], teacher: list[float], *, temperature: float = 1.0) -> Tensor:
    """The loss of one query whose logits of items 1…N are given."""
    embeddings = torch.cat([torch.zeros(1, len(student)), torch.eye(len(student))])
    return full_cross_entropy(
        torch.tensor([student]), embeddings, torch.tensor([teacher]), temperature=temperature, precision="fp32"
    )


def test_over_all_items_by_hand() -> None:
    # The student says 1/4, 3/4; the teacher 2/3, 1/3.
    expected = -(2 / 3 * math.log(1 / 4) + 1 / 3 * math.log(3 / 4))
    assert full([0.0, math.log(3)], [math.log(2), 0.0]).item() == pytest.approx(expected, rel=1e-5)


def test_over_all_items_is_that_on_the_set_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, embeddings = torch.randn(3, 4, generator=generator), torch.randn(8, 4, generator=generator)
    scores = 3 * torch.randn(3, 7, generator=generator)
    chunked = full_cross_entropy(queries, embeddings, scores, temperature=0.7, precision="fp32")
    whole = torch.ones(3, 7, dtype=torch.bool)
    plain = subset_cross_entropy(queries @ embeddings[1:].T, scores, whole, temperature=0.7)
    assert chunked.item() == pytest.approx(plain.mean().item(), rel=1e-5)


def test_its_gradients_are_those_of_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(3, 4, generator=generator, requires_grad=True)
    embeddings = torch.randn(8, 4, generator=generator, requires_grad=True)
    scores = 3 * torch.randn(3, 7, generator=generator)
    chunked = full_cross_entropy(queries, embeddings, scores, precision="fp32")
    plain = subset_cross_entropy(queries @ embeddings[1:].T, scores, torch.ones(3, 7, dtype=torch.bool)).mean()
    for ours, theirs in zip(
        torch.autograd.grad(chunked, [queries, embeddings]),
        torch.autograd.grad(plain, [queries, embeddings]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


logits = st.lists(st.floats(-15, 15), min_size=5, max_size=5)


@given(logits, logits)
def test_over_all_items_no_student_does_better_than_the_teacher_itself(s: list[float], t: list[float]) -> None:
    assert full(s, t).item() >= full(t, t).item() - 1e-3


@given(logits, logits, st.floats(-50, 50), st.floats(-50, 50))
def test_over_all_items_constants_change_nothing(s: list[float], t: list[float], a: float, b: float) -> None:
    assert full([x + a for x in s], [x + b for x in t]).item() == pytest.approx(full(s, t).item(), abs=1e-3)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_over_all_items_loss_and_gradient_are_finite_at_extreme_scores(extreme: float) -> None:
    student = torch.tensor([[extreme, -extreme, 0.0]], requires_grad=True)
    embeddings = torch.cat([torch.zeros(1, 3), torch.eye(3)])
    loss = full_cross_entropy(student, embeddings, torch.tensor([[-extreme, extreme, 0.0]]), precision="fp32")
    assert loss.isfinite()
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


def prepared(on: str, teacher: Model, student: Model) -> CE:
    length: dict[str, Any] = {} if on == "all" else {"top_k": 4}
    method = ready("ce", teacher, student, on=on, label_loss={"precision": "fp32"}, **length)
    assert isinstance(method, CE)
    return method


@pytest.mark.parametrize("on", ["teacher", "student", "union"])
def test_items_compared_are_those_that_the_setting_names(on: str) -> None:
    teacher, student = mf(1), mf(2)
    method = prepared(on, teacher, student)
    for user in WITH_HISTORY:
        theirs, own = {*top(teacher, user, 4, seen_items=True)}, {*top(student, user, 4, seen_items=True)}
        expected = {"teacher": theirs, "student": own, "union": theirs | own}[on]
        named = method.items[user][method.items[user] > 0].tolist()
        assert len(named) == len(expected)
        assert {*named} == expected


@pytest.mark.parametrize("on", EVERYWHERE)
def test_the_loss_of_a_user_is_that_of_the_formula(on: str) -> None:
    teacher, student = mf(1), mf(2)
    method = prepared(on, teacher, student)
    expected = []
    for user in WITH_HISTORY:
        items = torch.arange(1, 31) if on == "all" else method.items[user][method.items[user] > 0].long()
        target, mine = scores_of(teacher)[user][items].softmax(0), scores_of(student)[user][items].log_softmax(0)
        expected.append(-(target * mine).sum().item())
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(sum(expected) / 3, rel=1e-4)


@pytest.mark.parametrize("on", ["union", "all"])
def test_the_student_comes_to_rank_as_the_teacher_does(on: str) -> None:
    teacher, student = mf(1), mf(2)
    learn(prepared(on, teacher, student), student)
    for user in WITH_HISTORY:
        shared = {*top(teacher, user, 4, seen_items=True)} & {*top(student, user, 4, seen_items=True)}
        assert len(shared) >= 3


def test_on_the_teachers_list_alone_nothing_holds_other_items_down() -> None:
    """Which is why this loss is the worst of all: scores of listed items matter only to one another."""
    teacher, student = mf(1), mf(2)
    method = prepared("teacher", teacher, student)
    other = next(item for item in range(1, 31) if all(item not in method.items[user] for user in WITH_HISTORY))
    table = student.get_parameter("embedding.weight")
    (gradient,) = torch.autograd.grad(teacher_part(method, student, WITH_HISTORY), table)
    assert (gradient[other] == 0).all()
