"""Cross-entropy on any set of items."""

import math
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recdistill.arrays import Ints
from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.losses.precision import Precision
from recdistill.losses.ranking import subset_cross_entropy
from recdistill.methods.base import Setting, build_method
from recdistill.methods.ce import CE, full_cross_entropy
from recdistill.models.base import Model
from recdistill.rankings import Scores
from recdistill.teachers.answers import Scorer
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.local import LocalTeacher
from recdistill.teachers.stored import StoredTeacher

from .users import ROWS, TRAIN, WITH_HISTORY, N, learn, mf, ready, scores_of, teacher_part, top

EVERYWHERE = ["teacher", "student", "union", "all"]


def full(student: list[float], teacher: list[float], *, temperature: float = 1.0) -> Tensor:
    """The loss of one query whose logits of items 1…N are given."""
    embeddings = torch.cat([torch.zeros(1, len(student)), torch.eye(len(student))])
    return whole(torch.tensor([student]), embeddings, torch.tensor([teacher]), temperature=temperature)


def whole(queries: Tensor, embeddings: Tensor, scores: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The loss where the teacher's scores are at hand."""
    return full_cross_entropy(queries, embeddings, lambda rows: scores[rows], temperature=temperature, precision="fp32")


def test_over_all_items_by_hand() -> None:
    # The student says 1/4, 3/4; the teacher 2/3, 1/3.
    expected = -(2 / 3 * math.log(1 / 4) + 1 / 3 * math.log(3 / 4))
    assert full([0.0, math.log(3)], [math.log(2), 0.0]).item() == pytest.approx(expected, rel=1e-5)


def test_over_all_items_is_that_on_the_set_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, embeddings = torch.randn(3, 4, generator=generator), torch.randn(8, 4, generator=generator)
    scores = 3 * torch.randn(3, 7, generator=generator)
    chunked = whole(queries, embeddings, scores, temperature=0.7)
    every = torch.ones(3, 7, dtype=torch.bool)
    plain = subset_cross_entropy(queries @ embeddings[1:].T, scores, every, temperature=0.7)
    assert chunked.item() == pytest.approx(plain.mean().item(), rel=1e-5)


@pytest.mark.parametrize("rows_at_once", [1, 2, 3])
def test_its_gradients_are_those_of_the_plain_formula(rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second user the teacher knows nothing."""
    monkeypatch.setattr("recdistill.methods.ce._SCORES", 7 * rows_at_once)
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(3, 4, generator=generator, requires_grad=True)
    embeddings = torch.randn(8, 4, generator=generator, requires_grad=True)
    scores = 3 * torch.randn(3, 7, generator=generator)
    scores[1] = -torch.inf
    chunked = whole(queries, embeddings, scores, temperature=0.7)
    known = [0, 2]
    every = torch.ones(2, 7, dtype=torch.bool)
    plain = subset_cross_entropy(queries[known] @ embeddings[1:].T, scores[known], every, temperature=0.7).sum() / 3
    assert chunked.item() == pytest.approx(plain.item(), rel=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(2 * chunked, [queries, embeddings]),
        torch.autograd.grad(2 * plain, [queries, embeddings]),
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
    loss = whole(student, embeddings, torch.tensor([[-extreme, extreme, 0.0]]))
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


@pytest.mark.parametrize("precision", get_args(Precision))
def test_over_all_items_products_are_as_precise_as_the_setting_says(precision: Precision) -> None:
    teacher, student = mf(1), mf(2)
    method = ready("ce", teacher, student, on="all", label_loss={"precision": precision})
    queries = student.get_parameter("user_embedding.weight")[WITH_HISTORY]
    theirs = scores_of(teacher)[WITH_HISTORY, 1:]
    expected = full_cross_entropy(queries, student.item_embeddings(), lambda rows: theirs[rows], precision=precision)
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(expected.item(), rel=1e-6)


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


class Recording(LocalTeacher):
    """Says how many scores it was asked for at once, and whether it was given the ids of all items for that."""

    def scorer(self, histories: Sequences, *, users: npt.NDArray[np.integer] | None = None) -> Scorer:
        ask, self.asked = super().scorer(histories, users=users), list[tuple[int, bool]]()

        def scores(rows: Ints, candidates: Ints | None) -> Scores:
            found = ask(rows, candidates)
            self.asked.append((found.size, candidates is None))
            return found

        return scores


@pytest.mark.parametrize(("at_once", "asked"), [(1, [N] * 3), (2 * N + 1, [2 * N, N]), (3 * N, [3 * N])])
def test_a_teacher_that_scores_all_items_does_so_for_some_users_at_a_time(
    at_once: int, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a batch asks for does not grow with it, and no number is made for each item of each user to ask by."""
    monkeypatch.setattr("recdistill.methods.ce._SCORES", at_once)
    teacher, student = Recording(mf(1)), mf(2)
    method = build_method("ce", {"on": "all"})
    method.prepare(Setting(TRAIN, np.arange(4), N, teacher))
    teacher_part(method, student, WITH_HISTORY)
    assert teacher.asked == [(size, True) for size in asked]


def test_a_file_of_lists_with_scores_teaches_its_lists() -> None:
    """On the teacher's list without the history no score is read but those that stand in the list."""
    teacher, student, k = mf(1), mf(2), 4
    rows = [
        (user, item, scores_of(teacher)[user, item].item())
        for user in (0, 3)  # of user 1 it knows nothing
        for item in top(teacher, user, k, seen_items=False)
    ]
    frame = pl.DataFrame(rows, schema=["user", "item", "score"], orient="row")
    lists = StoredTeacher(frame, ids=IdMap(range(1, N + 1), first=1), users=IdMap(range(4), first=0))
    settings: dict[str, Any] = {"on": "teacher", "seen_items": False, "top_k": k}
    method = build_method("ce", settings)
    method.check(student, lists)
    method.prepare(Setting(TRAIN, np.arange(4), N, lists))
    expected = 0.0
    for user in (0, 3):
        items = torch.tensor(top(teacher, user, k, seen_items=False))
        target, mine = scores_of(teacher)[user][items].softmax(0), scores_of(student)[user][items].log_softmax(0)
        expected -= (target * mine).sum().item() / 3
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(expected, rel=1e-5)
    known = ready("ce", teacher, student, **settings)
    assert teacher_part(method, student, [0, 3]).item() == pytest.approx(teacher_part(known, student, [0, 3]).item())


@pytest.mark.parametrize("settings", [{}, {"seen_items": False, "on": "union"}, {"on": "all"}])
def test_elsewhere_lists_with_scores_are_too_little(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="needs scores of any item"):
        build_method("ce", settings).check(mf(2), FakeTeacher(N, gives_scores=True))


def test_lists_without_scores_are_too_little_everywhere() -> None:
    said = "'ce' needs lists with scores, which teacher 'fake' does not give: use 'bahsd', 'kd' or 'rrd', which learn"
    with pytest.raises(SettingsError, match=said):
        build_method("ce", {"on": "teacher", "seen_items": False}).check(mf(2), FakeTeacher(N))


def test_a_teacher_of_another_catalogue_is_refused() -> None:
    method = build_method("ce", {"on": "all"})
    method.prepare(Setting(TRAIN, np.arange(4), N - 1, LocalTeacher(mf(1))))
    with pytest.raises(TeacherError, match=f"scores {N} items, but the data have {N - 1}; take a teacher of these"):
        teacher_part(method, mf(2), WITH_HISTORY)


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


@pytest.mark.parametrize("on", EVERYWHERE)
def test_the_temperature_divides_the_scores_of_both(on: str) -> None:
    teacher, student = mf(1), mf(2)
    length: dict[str, Any] = {} if on == "all" else {"top_k": 4}
    method = ready("ce", teacher, student, on=on, temperature=0.5, label_loss={"precision": "fp32"}, **length)
    assert isinstance(method, CE)
    expected = 0.0
    for user in WITH_HISTORY:
        items = torch.arange(1, 31) if on == "all" else method.items[user][method.items[user] > 0].long()
        target, mine = (scores_of(model)[user][items] / 0.5 for model in (teacher, student))
        expected -= (target.softmax(0) * mine.log_softmax(0)).sum().item() / 3
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("on", ["teacher", "student", "union"])
def test_items_of_the_history_are_compared_only_where_that_is_wanted(on: str) -> None:
    """Of some users, some of the history is among what both rank first."""
    teacher, student = mf(1), mf(2)
    for model in (teacher, student):
        table = model.get_parameter("user_embedding.weight").data
        for user in WITH_HISTORY:
            table[user] = 9 * model.item_embeddings()[ROWS[user]].mean(0).detach()
    for seen_items in (True, False):
        method = ready("ce", teacher, student, on=on, top_k=4, seen_items=seen_items)
        assert isinstance(method, CE)
        named = {user: {*method.items[user].tolist()} - {0} for user in WITH_HISTORY}
        for user in WITH_HISTORY:
            theirs, own = ({*top(model, user, 4, seen_items=seen_items)} for model in (teacher, student))
            assert named[user] == {"teacher": theirs, "student": own, "union": theirs | own}[on]
        assert any(named[user] & {*ROWS[user]} for user in WITH_HISTORY) == seen_items
