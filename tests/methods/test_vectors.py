"""DE and HTD: experts that map vectors, and topologies of cosines."""

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.methods.base import TrainingBatch, build_method
from recdistill.methods.de import DE
from recdistill.methods.htd import HTD, topology_loss
from recdistill.methods.vectors import Experts, Vecs, VectorDistillation, squared_distance
from recdistill.models.base import Model, build_model
from recdistill.teachers.local import LocalTeacher
from recdistill.training.batches import Batches

from .users import TRAIN, WITH_HISTORY, N, learn, mf, ready, setting, teacher_part

Between = Literal["members", "prototypes"]
BOTH: list[Between] = ["members", "prototypes"]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_distance_is_a_sum_over_coordinates() -> None:
    assert squared_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 0.0]])).tolist() == [13.0]


def test_a_mixture_is_the_sum_of_the_experts_outputs_by_their_gates() -> None:
    experts = Experts(3, 5, 4)
    student, teacher = torch.randn(2, 3, generator=generator()), torch.randn(2, 5, generator=generator())
    gates = experts.gates(teacher, temperature=0.5, generator=generator())
    hidden = (3 + 5) // 2
    expected = torch.zeros(2, 5)
    for e in range(4):
        own = slice(e * hidden, (e + 1) * hidden)
        inner = torch.relu(student @ experts.inner.weight[own].T + experts.inner.bias[own])
        output = inner @ experts.outer.weight[:, own].T + experts.bias.weight[:, e]
        expected += gates[:, e : e + 1] * output
    mixed = experts(student, teacher, temperature=0.5, generator=generator())
    torch.testing.assert_close(mixed, expected)


def test_experts_are_chosen_by_the_teacher_and_at_last_one_alone() -> None:
    experts, teacher = Experts(3, 5, 4), torch.randn(20_000, 5, generator=generator())[:1].expand(20_000, -1)
    gates = experts.gates(teacher, temperature=1e-3, generator=generator())
    assert ((gates > 0.99).sum(1) == 1).float().mean() > 0.98
    chances = torch.softmax(experts.choice(teacher[0]), dim=0)
    torch.testing.assert_close(gates.round().mean(0), chances, atol=0.02, rtol=0)
    assert int(experts.group(teacher)[0]) == int(chances.argmax())


def test_gates_fall_hard_over_the_epochs_that_the_setting_names() -> None:
    method = ready("de", mf(1, dim=8), mf(2), anneal_epochs=10, last_temperature=0.01)
    assert isinstance(method, VectorDistillation)
    temperatures = []
    for epoch in (0, 5, 10, 50):
        method.start_epoch(mf(2), epoch, generator())
        temperatures.append(method.temperature)
    assert temperatures == pytest.approx([1.0, 0.1, 0.01, 0.01])


def test_items_come_from_the_histories_and_the_catalogue_each_once() -> None:
    student = mf(2)
    method = ready("de", mf(1, dim=8), student, n_items=8)
    assert isinstance(method, DE)
    batch = TrainingBatch(
        *Batches(TRAIN, batch_size=2, max_len=None, reads_last=True).of(np.array([0, 1])), generator()
    )
    for _ in range(20):
        items = method.draw_items(student, batch).tolist()
        assert {1, 2, 3} <= {*items} <= {*range(1, N + 1)}
        assert 3 < len(items) == len({*items}) <= 7


def test_vectors_are_those_of_the_teacher_for_the_same_users_and_items() -> None:
    teacher, student = mf(1, dim=8), mf(2)
    method = ready("de", teacher, student)
    assert isinstance(method, DE)
    batch = TrainingBatch(
        *Batches(TRAIN, batch_size=2, max_len=None, reads_last=True).of(np.array([3, 0])), generator()
    )
    queries, items = student.encode(batch.batch), torch.tensor([7, 30])
    (own_users, of_users), (own_items, of_items) = method.pairs(student, queries, items, batch)
    torch.testing.assert_close(of_users, teacher.get_parameter("user_embedding.weight")[[3, 0]].detach())
    torch.testing.assert_close(of_items, teacher.item_embeddings()[[7, 30]].detach())
    assert torch.equal(own_users, queries)
    torch.testing.assert_close(own_items, student.item_embeddings()[items])


@pytest.mark.parametrize(("name", "share"), [("de", 0.1), ("htd", 0.3)])
def test_the_student_comes_to_tell_the_teachers_vectors(name: str, share: float) -> None:
    student = mf(2)
    method = ready(name, mf(1, dim=8), student, n_experts=2)
    before = teacher_part(method, student, WITH_HISTORY).item()
    learn(method, student, steps=200)
    assert teacher_part(method, student, WITH_HISTORY).item() < share * before


@pytest.mark.parametrize("name", ["de", "htd"])
def test_experts_begin_alike_for_the_same_seed(name: str) -> None:
    """Whatever was drawn before they were made."""
    weights = []
    for drawn_before in range(2):
        torch.manual_seed(drawn_before)
        weights.append(ready(name, mf(1, dim=8), mf(2), n_experts=2).state_dict())
    first, second = weights
    assert first
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["de", "htd"])
def test_other_seeds_begin_with_other_experts(name: str) -> None:
    first, second = (build_method(name, {"n_experts": 2}) for _ in range(2))
    for method, seed in ((first, 0), (second, 1)):
        method.prepare(replace(setting(mf(1, dim=8)), seed=seed))
        method.fit_to(mf(2))
    weights = [method.get_parameter("user_experts.inner.weight") for method in (first, second)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("epoch", [0, 10])
@pytest.mark.parametrize("name", ["de", "htd"])
def test_experts_are_chosen_as_hard_as_the_epoch_has_it(name: str, epoch: int) -> None:
    student, chosen = mf(2), dict[str, Any](n_experts=3, n_items=8, anneal_epochs=10, last_temperature=0.01)
    if name == "htd":
        chosen["topology_share"] = 0.0
    method = ready(name, mf(1, dim=8), student, **chosen)
    assert isinstance(method, VectorDistillation)
    method.start_epoch(student, epoch, generator())
    batches = Batches(TRAIN, batch_size=3, max_len=None, reads_last=True)
    batch = TrainingBatch(*batches.of(np.array(WITH_HISTORY)), generator())
    both = method.pairs(student, student.encode(batch.batch), method.draw_items(student, batch), batch)
    expected = 0.0
    for experts, (own, theirs) in zip((method.user_experts, method.item_experts), both, strict=True):
        told = experts(own, theirs, temperature=1.0 if epoch == 0 else 0.01, generator=batch.generator)
        expected += squared_distance(told, theirs).mean().item()
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["de", "htd"])
def test_a_teacher_that_cannot_be_looked_into_is_refused(name: str) -> None:
    hidden = LocalTeacher(mf(1), gives_scores=False)
    asked: dict[str, Any] = {name: getattr(setting(mf(1)), name) for name in ("train", "users", "n_items")}
    with pytest.raises(SettingsError, match="needs the vectors of queries and items"):
        build_method(name).prepare(type(setting(mf(1)))(**asked, teacher=hidden))
    with pytest.raises(TeacherError, match="lists only"):
        hidden.vectors(TRAIN)


def pairs(method: VectorDistillation, student: Model) -> tuple[Vecs, Vecs]:
    """Return what a method compares for the users with a history, and for the items that it draws."""
    batches = Batches(TRAIN, batch_size=3, max_len=None, reads_last=True)
    batch = TrainingBatch(*batches.of(np.array(WITH_HISTORY)), generator())
    return method.pairs(student, student.encode(batch.batch), method.draw_items(student, batch), batch)


def missed_by_one_expert(method: VectorDistillation, users: Vecs, items: Vecs) -> float:
    missed = 0.0
    for experts, (own, theirs) in ((method.user_experts, users), (method.item_experts, items)):
        mapped = experts.outer(torch.relu(experts.inner(own))) + experts.bias.weight[:, 0]
        missed += (theirs - mapped).square().sum(1).mean().item()
    return missed


def test_the_loss_of_one_expert_is_what_it_misses_of_users_and_of_items() -> None:
    """A choice of one is no choice, so that nothing but the items is drawn."""
    student = mf(2)
    method = ready("de", mf(1, dim=8), student, n_experts=1, n_items=8, weight=2.0)
    assert isinstance(method, DE)
    users, items = pairs(method, student)
    missed = missed_by_one_expert(method, users, items)
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(2 * missed, rel=1e-5)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_experts_and_their_gradients_are_finite_at_extreme_vectors(extreme: float) -> None:
    experts = Experts(3, 5, 4)
    student = torch.full((2, 3), extreme, requires_grad=True)
    teacher = torch.full((2, 5), -extreme)
    missed = squared_distance(experts(student, teacher, temperature=1e-3, generator=generator()), teacher)
    assert missed.isfinite().all()
    gradients = torch.autograd.grad(missed.sum(), [student, *experts.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients)


def loss(student: Tensor, teacher: Tensor, groups: list[int], between: Between) -> Tensor:
    return topology_loss(student, teacher, torch.tensor(groups), between=between)


@pytest.mark.parametrize("name", ["de", "htd"])
def test_users_whom_the_teacher_does_not_know_have_nothing_to_learn_from_it(name: str) -> None:
    """Its vectors of them are what was drawn before it was trained."""
    train, student = Sequences.from_lists([[1, 2], [3], [], []]), mf(2)
    teacher = build_model("mf", N, {"dim": 8}, train=train)
    method = ready(name, teacher, student, n_experts=1, n_items=8)
    assert isinstance(method, VectorDistillation)
    users, items = pairs(method, student)
    assert torch.equal(users[1], teacher.get_parameter("user_embedding.weight")[:2])
    if name == "de":
        expected = missed_by_one_expert(method, users, items)
        assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(expected, rel=1e-5)
    table = student.get_parameter("user_embedding.weight")
    (gradient,) = torch.autograd.grad(teacher_part(method, student, WITH_HISTORY), table)
    assert gradient.any(1).tolist() == [True, True, False, False]
    (gradient,) = torch.autograd.grad(teacher_part(method, student, [3]), table)
    assert not gradient.any()


STUDENT = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
TEACHER = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])


def test_topologies_by_hand() -> None:
    # Within {0, 1}: the student's cosine is 1/√2, the teacher's 1, twice; that of each with itself is 1. Prototypes
    # are (1, 1/2) and (0, 2) for the student, (5/2, 0) and (0, 1) for the teacher.
    within = 2 * (1 / math.sqrt(2) - 1) ** 2 / 5
    between = 2 * (0.5 / math.sqrt(1.25) - 0) ** 2 / 4
    assert loss(STUDENT, TEACHER, [0, 0, 4], "prototypes").item() == pytest.approx(within + between, rel=1e-5)
    g0 = torch.tensor([1.0, 0.5]) / math.sqrt(1.25)
    ours = [g0[0].item(), (g0.sum() / math.sqrt(2)).item(), g0[1].item(), 0.0, 1 / math.sqrt(2), 1.0]
    theirs = [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    members = sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / 6
    assert loss(STUDENT, TEACHER, [0, 0, 4], "members").item() == pytest.approx(within + members, rel=1e-5)


def test_pairs_that_the_teacher_holds_to_be_opposed_do_not_count_within_a_group() -> None:
    teacher = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    # Their prototype is 0 to the teacher, and so is its cosine to either: only the student's own remains between.
    value = loss(student, teacher, [0, 0], "prototypes")
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(gradient, torch.zeros(2, 2))


@pytest.mark.parametrize("between", BOTH)
def test_topologies_are_alike_when_vectors_are_turned_and_scaled(between: Between) -> None:
    teacher = torch.randn(6, 4, generator=generator())
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator()))
    assert loss(3 * teacher @ turn, teacher, [0, 1, 0, 2, 1, 0], between).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("between", BOTH)
def test_no_gradient_flows_into_the_teacher(between: Between) -> None:
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    value = loss(student, teacher, [0, 0, 1], between)
    assert torch.autograd.grad(value, [student, teacher], allow_unused=True)[1] is None


@pytest.mark.parametrize("between", BOTH)
@pytest.mark.parametrize("extreme", [1e4, -1e4, 0.0])
def test_topologies_and_gradients_are_finite_at_extreme_vectors(extreme: float, between: Between) -> None:
    student = torch.full((4, 3), extreme, requires_grad=True)
    value = loss(student, -torch.full((4, 5), extreme), [0, 0, 1, 2], between)
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


@pytest.mark.parametrize("between", BOTH)
def test_no_gradient_flows_through_prototypes(between: Between) -> None:
    # Each, alone in its group, is its own prototype. The student's cosine is 1/√2, which changes by (0, 1/√2) with the
    # first vector; the teacher's is 0. One of four terms between members and prototypes reads the first as a member.
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]], requires_grad=True)
    value = loss(student, torch.eye(2), [0, 1], between)
    assert value.item() == pytest.approx(2 * (1 / math.sqrt(2)) ** 2 / 4)
    (gradient,) = torch.autograd.grad(value, student)
    expected = [0.0, 2 * (1 / math.sqrt(2)) * (1 / math.sqrt(2)) / 4] if between == "members" else [0.0, 0.0]
    assert gradient[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_experts_and_topologies_share_the_loss_as_the_setting_says() -> None:
    """One expert of users and one of items make two groups."""
    student = mf(2)
    method = ready("htd", mf(1, dim=8), student, topology_share=0.25, n_experts=1, n_items=8)
    assert isinstance(method, HTD)
    users, items = pairs(method, student)
    own, theirs = (torch.cat(both) for both in zip(users, items, strict=True))
    topology = loss(own, theirs, [0] * len(users[0]) + [1] * len(items[0]), "members").item()
    expected = 0.75 * missed_by_one_expert(method, users, items) + 0.25 * topology
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("between", BOTH)
def test_prototypes_are_compared_with_what_the_setting_says(between: Between) -> None:
    student = mf(2)
    method = ready("htd", mf(1, dim=8), student, topology_share=1.0, n_experts=1, n_items=8, between=between)
    assert isinstance(method, HTD)
    users, items = pairs(method, student)
    own, theirs = (torch.cat(both) for both in zip(users, items, strict=True))
    expected = loss(own, theirs, [0] * len(users[0]) + [1] * len(items[0]), between).item()
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(expected, rel=1e-5)


def test_users_and_items_are_grouped_each_by_their_own_experts() -> None:
    """Here the experts of users put all of them into one group, and those of items each item by its first number."""
    student = mf(2)
    method = ready("htd", mf(1, dim=8), student, topology_share=1.0, n_experts=2, n_items=8)
    assert isinstance(method, HTD)
    with torch.no_grad():
        for experts, weight, bias in ((method.user_experts, 0.0, 1.0), (method.item_experts, 1.0, 0.0)):
            experts.choice.weight.zero_()
            experts.choice.weight[0, 0] = weight
            experts.choice.bias.copy_(torch.tensor([0.0, bias]))
    users, items = pairs(method, student)
    own, theirs = (torch.cat(both) for both in zip(users, items, strict=True))
    groups = [1] * len(users[0]) + [2 + int(first <= 0) for first in items[1][:, 0].tolist()]
    assert set(groups) == {1, 2, 3}
    expected = loss(own, theirs, groups, "members").item()
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "what"), [("user_embedding.weight", "histories or users"), ("embedding.weight", "items")]
)
@pytest.mark.parametrize("method", ["de", "htd"])
def test_vectors_that_have_no_length_in_32_bits_are_the_teachers_fault(method: str, name: str, what: str) -> None:
    """The loss would be NaN, and the student's learning rate would get the blame."""
    teacher = mf(1, dim=8)
    with torch.no_grad():
        teacher.get_parameter(name)[3] = 1e20
    said = rf"teacher 'mf-.*' cannot teach: of its \d+ vectors of {what}, 1 are not finite, or so long"
    with pytest.raises(TeacherError, match=said):
        ready(method, teacher, mf(2))
