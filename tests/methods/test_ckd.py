"""The teacher's best items as a soft target over the whole catalogue."""

from typing import Any

import pytest
import torch

from recdistill.methods.ckd import CKD
from recdistill.models.base import Model

from .users import ROWS, WITH_HISTORY, learn, mf, ready, scores_of, teacher_part, top

K = 4
ALONE: dict[str, Any] = {"second_opinion": 0.0, "label_loss": {"precision": "fp32"}}


def prepared(teacher: Model, student: Model, *, seen_items: bool = True, temperature: float = 1.0) -> CKD:
    method = ready("ckd", teacher, student, **ALONE, top_k=K, seen_items=seen_items, temperature=temperature)
    assert isinstance(method, CKD)
    return method


@pytest.mark.parametrize("seen_items", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_loss_of_a_user_is_that_of_the_formula(seen_items: bool, temperature: float) -> None:
    teacher, student = mf(1), mf(2)
    method = prepared(teacher, student, seen_items=seen_items, temperature=temperature)
    expected = []
    for user in WITH_HISTORY:
        items = top(teacher, user, K, seen_items=seen_items)
        target = (scores_of(teacher)[user][items] / temperature).softmax(0)
        mine = (scores_of(student)[user][1:] / temperature).log_softmax(0)[torch.tensor(items) - 1]
        expected.append(temperature**2 * (target * (target.log() - mine)).sum().item())
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(sum(expected) / 3, rel=1e-4)


def test_items_of_the_history_are_listed_unless_they_are_not_wanted() -> None:
    teacher, student = mf(1), mf(2)
    with_seen = prepared(teacher, student).answers.items
    without = prepared(teacher, student, seen_items=False).answers.items
    for user in WITH_HISTORY:
        assert with_seen[user].tolist() == top(teacher, user, K, seen_items=True)
        assert without[user].tolist() == top(teacher, user, K, seen_items=False)
        assert not {*without[user].tolist()} & {*ROWS[user]}


def test_the_student_comes_to_rank_as_the_teacher_does() -> None:
    teacher, student = mf(1), mf(2)
    learn(prepared(teacher, student), student)
    for user in WITH_HISTORY:
        shared = {*top(teacher, user, K, seen_items=True)} & {*top(student, user, K, seen_items=True)}
        assert len(shared) >= 3


def test_items_that_the_teacher_does_not_list_are_held_down() -> None:
    """Unlike cross-entropy on the list alone."""
    teacher, student = mf(1), mf(2)
    method = prepared(teacher, student)
    other = next(item for item in range(1, 31) if all(item not in method.answers.items[user] for user in WITH_HISTORY))
    before = scores_of(student)[WITH_HISTORY].softmax(1)[:, other]
    learn(method, student)
    assert (scores_of(student)[WITH_HISTORY].softmax(1)[:, other] < before).all()


def test_a_whole_list_is_cross_entropy_on_all_items_but_for_a_constant() -> None:
    teacher, student = mf(1), mf(2)
    cut = ready("ckd", teacher, student, **ALONE, top_k=100)
    whole = ready("ce", teacher, student, on="all", label_loss=ALONE["label_loss"])
    table = student.get_parameter("embedding.weight")
    ours, theirs = (
        torch.autograd.grad(teacher_part(method, student, WITH_HISTORY), table)[0] for method in (cut, whole)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
