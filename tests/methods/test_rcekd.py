"""RCE-KD: which items are compared, how the two parts are fused, and the loss by hand."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recdistill.losses.ranking import subset_cross_entropy
from recdistill.methods.rcekd import RCEKD, beyond, closure_counts, fusion_share, padding_last, rce_loss
from recdistill.models.base import Model

from .users import WITH_HISTORY, N, learn, mf, ready, scores_of, teacher_part, top

HEAD = torch.tensor([[10, 20, 30, 40, 50]])
"""The student's best five, its own list being the first three."""
LISTED = torch.tensor([[20, 40, 60]])
"""The teacher's list: the second of them, the fourth, and one that lies deeper."""


def test_the_code_counts_every_listed_item_in_the_head_that_is_not_above() -> None:
    assert closure_counts(HEAD, LISTED, form="code").tolist() == [[2, 2, 1, 1, 0]]


def test_the_code_stops_counting_at_50() -> None:
    many = torch.arange(1, 61)[None]
    counts = closure_counts(many, many, form="code")[0]
    assert counts[:11].tolist() == [50] * 11
    assert counts[11:].tolist() == [*range(49, 0, -1)]


def test_the_paper_counts_listed_items_outside_the_students_own_list_however_deep() -> None:
    # 20 is in the student's list; 40 stands fourth, 60 below all: it counts for everyone.
    assert closure_counts(HEAD, LISTED, form="paper").tolist() == [[2, 2, 2, 2, 1]]


def test_padding_in_the_teachers_list_is_not_counted() -> None:
    short = torch.tensor([[20, 40, 0]])
    assert closure_counts(HEAD, short, form="paper").tolist() == [[1, 1, 1, 1, 0]]


def test_what_is_beyond_the_students_list_names_no_item_twice() -> None:
    deep, missed = beyond(own=HEAD[:, :3], drawn=torch.tensor([[40, 10]]), listed=LISTED)
    assert (deep.tolist(), missed.tolist()) == ([[40, 0]], [[0, 0, 60]])


def test_padding_moves_behind_all_items_but_for_the_columns_that_are_kept() -> None:
    items, order = padding_last(torch.tensor([[5, 0, 0, 7, 0, 8], [5, 6, 1, 2, 3, 4]]), n_kept=2)
    assert items.tolist() == [[5, 0, 7, 8, 0, 0], [5, 6, 1, 2, 3, 4]]
    assert order.tolist() == [[0, 1, 3, 5, 2, 4], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(("others", "shared"), [([1, 2, 3], 2), ([7, 8, 9], 0), ([2, 3, 4], 3)])
def test_fusion_falls_with_what_is_shared(others: list[int], shared: int) -> None:
    share = fusion_share(torch.tensor([[2, 3, 4]]), torch.tensor([others]), rate=1.5)
    assert share.item() == pytest.approx(math.exp(-1.5 * shared / 3))


def test_fusion_is_a_share_of_the_listed_items_padding_left_out() -> None:
    share = fusion_share(torch.tensor([[2, 3, 0, 0]]), torch.tensor([[3, 0]]), rate=1.0)
    assert share.item() == pytest.approx(math.exp(-1 / 2))


def test_the_loss_by_hand() -> None:
    # On the student's two items the teacher says 3/4, 1/4 and the student 1/2, 1/2. J holds the second of them and the
    # last: there the teacher says 1/6, 5/6 and the student 1/3, 2/3. The third is in neither.
    teacher = torch.tensor([[math.log(3), 0.0, 99.0, math.log(5)]])
    student = torch.tensor([[1.0, 1.0, 99.0, 1.0 + math.log(2)]])
    own, near = torch.tensor([[True, True]]), torch.tensor([[False, True, False, True]])
    exact = math.log(2)
    approximate = -(math.log(1 / 3) + 5 * math.log(2 / 3)) / 6
    loss = rce_loss(student, teacher, own, near, torch.tensor([0.3]))
    assert loss.item() == pytest.approx(0.7 * exact + 0.3 * approximate)


def test_temperature_softens_both_sides() -> None:
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.tensor([[0.0, 2 * math.log(4)]])
    real = torch.ones(1, 2, dtype=torch.bool)
    loss = subset_cross_entropy(student, teacher, real, temperature=2.0)  # 3/4, 1/4 against 1/5, 4/5
    assert loss.item() == pytest.approx(-(3 / 4 * math.log(1 / 5) + 1 / 4 * math.log(4 / 5)))


logits = st.lists(st.floats(-20, 20), min_size=6, max_size=6)
OWN = torch.tensor([[True, True, True]])
NEAR = torch.tensor([[True, False, True, True, True, True]])


def loss_of(student: Tensor, teacher: Tensor) -> Tensor:
    return rce_loss(student, teacher, OWN, NEAR, torch.tensor([0.4]))


@given(logits, logits)
def test_no_student_does_better_than_the_teacher_itself(student: list[float], teacher: list[float]) -> None:
    agreed = loss_of(torch.tensor([teacher]), torch.tensor([teacher]))
    assert loss_of(torch.tensor([student]), torch.tensor([teacher])).item() >= agreed.item() - 1e-4


def test_there_is_nothing_to_learn_when_the_student_agrees_but_for_a_constant() -> None:
    teacher = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    student = (teacher + 7).requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(student, teacher).sum(), student)
    torch.testing.assert_close(gradient, torch.zeros(1, 6), atol=1e-6, rtol=0)


@given(logits, logits, st.floats(-100, 100), st.floats(-100, 100))
def test_constants_added_to_either_side_change_nothing(
    student: list[float], teacher: list[float], to_student: float, to_teacher: float
) -> None:
    plain = loss_of(torch.tensor([student]), torch.tensor([teacher]))
    shifted = loss_of(torch.tensor([student]) + to_student, torch.tensor([teacher]) + to_teacher)
    assert shifted.item() == pytest.approx(plain.item(), abs=1e-3)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_loss_and_gradient_are_finite_at_extreme_scores(extreme: float) -> None:
    student = torch.tensor([[extreme, -extreme, 0.0, 1.0, extreme, 0.0]], requires_grad=True)
    loss = loss_of(student, torch.tensor([[-extreme, extreme, 0.0, 1.0, 0.0, extreme]]))
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


def test_empty_sets_cost_nothing_and_keep_gradients_finite() -> None:
    student = torch.ones(2, 3, requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    loss = rce_loss(student, torch.full((2, 3), -torch.inf), nothing[:, :1], nothing, torch.tensor([0.5, 0.5]))
    assert loss.tolist() == [0, 0]
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


SMALL: dict[str, Any] = {"top_k": 4, "n_sampled": 3, "depth": 9}


def prepared(teacher: Model, student: Model, **settings: Any) -> RCEKD:
    method = ready("rcekd", teacher, student, **SMALL | settings)
    assert isinstance(method, RCEKD)
    return method


def drawn_of(method: RCEKD, user: int, n: int = 3, *, n_own: int = 4) -> list[int]:
    """Return what was drawn for a user: what J shares with the student's list, and the first items behind that."""
    items, near = method.items[user].tolist(), method.near[user].tolist()
    of_own = [item for item, inside in zip(items[:n_own], near[:n_own], strict=True) if inside]
    return of_own + items[n_own : n_own + n - len(of_own)]


@pytest.mark.parametrize("seen_items", [True, False])
def test_lists_of_both_sides_hold_the_history_or_leave_it_out(seen_items: bool) -> None:
    teacher, student = mf(1), mf(2)
    method = prepared(teacher, student, seen_items=seen_items)
    for user in WITH_HISTORY:
        assert method.listed[user].tolist() == top(teacher, user, 4, seen_items=seen_items)
        assert method.items[user, :4].tolist() == top(student, user, 4, seen_items=seen_items)
        assert set(drawn_of(method, user)) <= set(top(student, user, 9, seen_items=seen_items))


def test_each_item_stands_once_and_j_is_the_draws_and_what_the_teacher_lists_besides() -> None:
    method = prepared(mf(1), mf(2))
    for user in WITH_HISTORY:
        items, near = method.items[user], method.near[user]
        real = items[items > 0].tolist()
        drawn, own = drawn_of(method, user), items[:4].tolist()
        assert len(set(real)) == len(real) < len(items)
        assert len(set(drawn)) == 3
        assert set(items[near].tolist()) == {*drawn, *({*method.listed[user].tolist()} - {*own})}


@pytest.mark.parametrize("closure", ["paper", "code"])
def test_items_above_many_of_the_teachers_are_drawn_rather(closure: str) -> None:
    """Each with a chance of exp(z / T), over their sum."""
    teacher, student, looks = mf(2), mf(3), 1000
    method = prepared(teacher, student, closure=closure, depth=12, n_sampled=1, sampling_temperature=0.5)
    drawn, expected = torch.zeros(2, len(WITH_HISTORY), N + 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(looks):
        method.start_epoch(student, 1, generator)
        for row, user in enumerate(WITH_HISTORY):
            drawn[row, drawn_of(method, user, 1)] += 1 / looks
    for row, user in enumerate(WITH_HISTORY):
        ranked, listed = top(student, user, N, seen_items=True), top(teacher, user, 4, seen_items=True)
        places = [ranked.index(item) for item in listed]
        counted = [place for place in places if (place < 12 if closure == "code" else place >= 4)]
        chances = [math.exp(2 * sum(place >= own for place in counted)) for own in range(12)]
        expected[row, ranked[:12]] = torch.tensor(chances) / sum(chances)
    assert expected.max() > 0.1  # some of 12 much rather than others
    torch.testing.assert_close(drawn, expected, atol=0.04, rtol=0)


def test_the_teacher_scores_what_is_compared() -> None:
    teacher = mf(1)
    method, expected = prepared(teacher, mf(2)), scores_of(teacher)
    for user in WITH_HISTORY:
        real = method.items[user] > 0
        torch.testing.assert_close(method.scores[user][real], expected[user][method.items[user][real].long()])


@pytest.mark.parametrize(("temperature", "depth", "fixed"), [(1.0, 10, None), (0.5, 10, None), (1.0, 3, 0.25)])
def test_the_loss_of_a_user_is_that_of_the_formula(temperature: float, depth: int, fixed: float | None) -> None:
    """Also where less of the student's ranking is looked at than the teacher lists."""
    teacher, student = mf(1), mf(2)
    fusion = {"fusion_rate": 2.0} if fixed is None else {"fusion": "constant", "constant_fusion": fixed}
    method = prepared(teacher, student, temperature=temperature, weight=3.0, depth=depth, **fusion)

    def cross_entropy(user: int, items: list[int]) -> float:
        target = (scores_of(teacher)[user][items] / temperature).softmax(0)
        return -(target * (scores_of(student)[user][items] / temperature).log_softmax(0)).sum().item()

    total = 0.0
    for user in WITH_HISTORY:
        own, listed = (top(model, user, k, seen_items=True) for model, k in ((student, min(4, depth)), (teacher, 4)))
        drawn = drawn_of(method, user, n_own=len(own))
        closed = drawn + [item for item in listed if item not in {*own, *drawn}]
        share = math.exp(-2 * len({*listed} & {*drawn}) / 4) if fixed is None else fixed
        total += (1 - share) * cross_entropy(user, own) + share * cross_entropy(user, closed)
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(3 * total / 3, rel=1e-4)


def test_the_teacher_is_asked_about_an_item_once_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws that stand in the student's list are scored with it, and scores of the teacher's own list are kept."""
    student = mf(2)
    method = prepared(mf(1), student, n_sampled=7)
    asked, scores = [], method.view.scores

    def watched(rows: Tensor, items: Tensor) -> Tensor:
        asked.append(items)
        return scores(rows, items)

    monkeypatch.setattr(method.view, "scores", watched)
    method.start_epoch(student, 1, torch.Generator().manual_seed(0))
    (items,) = asked
    for user, row in zip(WITH_HISTORY, items.tolist(), strict=True):
        assert row[:4] == top(student, user, 4, seen_items=True)
        assert sorted(item for item in row if item) == sorted({*row[:4], *drawn_of(method, user, 7)})


@pytest.mark.parametrize(("fusion", "expected"), [("paper", math.exp(-1)), ("code", math.exp(-1)), ("constant", 0.25)])
def test_fusion_is_what_the_setting_says(fusion: str, expected: float) -> None:
    """A student that is the teacher shares its whole list, and of four items four are drawn."""
    strength = {"constant_fusion": 0.25} if fusion == "constant" else {"fusion_rate": 1.0}
    method = prepared(mf(1), mf(1), fusion=fusion, depth=4, n_sampled=4, **strength)
    assert method.fused[WITH_HISTORY].tolist() == pytest.approx([expected] * 3)


@pytest.mark.parametrize(("fusion", "shared"), [("paper", 1), ("code", 1 / 4)])
def test_the_paper_looks_at_the_students_list_and_the_code_at_the_draws(fusion: str, shared: float) -> None:
    method = prepared(mf(1), mf(1), fusion=fusion, fusion_rate=1.0, depth=4, n_sampled=1)
    assert method.fused[0].item() == pytest.approx(math.exp(-shared))


@pytest.mark.parametrize("closure", ["paper", "code"])
def test_the_student_comes_to_rank_as_the_teacher_does(closure: str) -> None:
    teacher, student = mf(1), mf(2)
    learn(prepared(teacher, student, closure=closure, weight=1.0), student)
    shared = [
        len({*top(teacher, u, 4, seen_items=True)} & {*top(student, u, 4, seen_items=True)}) for u in WITH_HISTORY
    ]
    assert min(shared) >= 3


def test_the_loss_is_a_mean_over_users_whatever_their_number_of_items() -> None:
    student = mf(2)
    method = prepared(mf(1), student, weight=2.0)
    alone = [teacher_part(method, student, [user]).item() for user in WITH_HISTORY]
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(sum(alone) / 3, rel=1e-5)
