"""What methods see of a scored teacher, and of the student's own lists."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from recdistill.data.dataset import Sequences
from recdistill.errors import TeacherError
from recdistill.methods.base import Method, Setting, build_method
from recdistill.methods.scored import DistillationConfig, GuidedDistillation, TeacherView, student_lists, teacher_lists
from recdistill.models.base import Model, build_model
from recdistill.registry import import_all
from recdistill.teachers.answers import Scorer
from recdistill.teachers.local import LocalTeacher

from .users import TRAIN, WITH_HISTORY, N, mf, ready, scores_of, setting, stored, teacher_part, top


def test_scores_are_the_teachers_and_padding_has_none() -> None:
    teacher = mf(1)
    scores = TeacherView(setting(teacher)).scores(torch.tensor([3, 0]), torch.tensor([[5, 0], [7, 1]]))
    expected = scores_of(teacher)
    torch.testing.assert_close(scores[:, 0], torch.stack([expected[3, 5], expected[0, 7]]))
    assert scores[0, 1] == -torch.inf
    torch.testing.assert_close(scores[1, 1], expected[0, 1])


def test_a_score_that_is_no_number_is_refused_with_the_item_and_the_user() -> None:
    class Broken(LocalTeacher):
        def scorer(self, histories: Sequences, *, users: npt.NDArray[np.integer] | None = None) -> Scorer:
            return lambda rows, candidates: np.where(candidates == 7, np.inf, 0.0).astype(np.float32)

    view = TeacherView(replace(setting(mf(1)), teacher=Broken(mf(1))))
    with pytest.raises(TeacherError, match="scores item 7 as inf for user 3; scores must be finite"):
        view.scores(torch.tensor([0, 3]), torch.tensor([[1, 2], [5, 7]]))


@pytest.mark.parametrize("method", ["ckd", "rcekd", "kd", "rrd"])
def test_a_teacher_whose_scores_overflow_is_named_by_every_method(method: str) -> None:
    """By CKD too, whose second opinion would be mixed with what is no number, with warnings of NumPy."""
    teacher = mf(1)
    with torch.no_grad():
        teacher.get_parameter("embedding.weight")[7] = 1e38
        teacher.get_parameter("user_embedding.weight")[3] = 1e5
    with pytest.raises(TeacherError, match=r"teacher 'mf-.*' cannot teach: it scores item 7 for user 3 as inf, and 0"):
        ready(method, teacher, mf(2))


@pytest.mark.parametrize("exclude_history", [True, False])
@pytest.mark.parametrize("seen_items", [True, False])
def test_lists_hold_the_history_or_not_whatever_the_teacher_does_by_itself(
    seen_items: bool, exclude_history: bool
) -> None:
    teacher = mf(1)
    lists = TeacherView(setting(teacher, exclude_history=exclude_history)).lists(8, seen_items=seen_items)
    assert lists.shape == (4, 8)
    assert not lists[2].any()
    for user in WITH_HISTORY:
        assert lists[user].tolist() == top(teacher, user, 8, seen_items=seen_items)


def test_a_history_with_repeats_competes_once() -> None:
    teacher = build_model("sasrec", 6, {"dim": 8, "max_len": 5, "init_std": 0.5})
    train = Sequences.from_lists([[1, 2, 1, 2]])
    asked = Setting(train, np.arange(1), 6, LocalTeacher(teacher))
    lists = TeacherView(asked).lists(6, seen_items=True)
    assert sorted(lists[0].tolist()) == [1, 2, 3, 4, 5, 6]


def test_lists_are_no_longer_than_the_catalogue() -> None:
    assert teacher_lists(setting(mf(1)), 99).shape == (4, N)


SCORED: list[tuple[str, dict[str, Any]]] = [
    *(("ce", {"on": on}) for on in ("teacher", "student", "union", "all")),
    ("rcekd", {}),
    ("rcekd", {"seen_items": False}),
    ("ckd", {"second_opinion": 0}),
    ("cd", {}),
    ("dcd", {}),
    ("unkd", {}),
]


@pytest.mark.parametrize(("name", "settings"), SCORED)
def test_users_whom_the_teacher_does_not_know_learn_from_labels_alone(name: str, settings: dict[str, Any]) -> None:
    """Other libraries score the users that they were trained on, which need not be all."""
    student = mf(2)
    method = build_method(name, settings)
    method.prepare(Setting(TRAIN, np.arange(4), N, stored(mf(1), users=[0, 3])))
    method.start_epoch(student, 0, torch.Generator().manual_seed(0))
    alone = teacher_part(method, student, [1])
    assert alone.item() == 0
    together = teacher_part(method, student, WITH_HISTORY)
    assert together.item() > 0
    for part in (alone, together):
        gradients = torch.autograd.grad(part, list(student.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("on", ["teacher", "student", "union", "all"])
def test_they_count_in_the_mean_over_users(on: str) -> None:
    student = mf(2)
    method = build_method("ce", {"on": on, "label_loss": {"precision": "fp32"}})
    method.prepare(Setting(TRAIN, np.arange(4), N, stored(mf(1), users=[0, 3])))
    method.start_epoch(student, 0, torch.Generator().manual_seed(0))
    known, all_three = (teacher_part(method, student, users).item() for users in ([0, 3], WITH_HISTORY))
    assert all_three == pytest.approx(known * 2 / 3, rel=1e-5)


import_all("recdistill.methods")
WEIGHTED = sorted(name for name, method in Method.registry.items() if issubclass(method.Config, DistillationConfig))


@pytest.mark.parametrize("name", WEIGHTED)
def test_weight_multiplies_what_the_teacher_says(name: str) -> None:
    teacher, student = mf(1), mf(2)
    once, thrice = (ready(name, teacher, student, earlier=(mf(5),), weight=weight) for weight in (1.0, 3.0))
    one, three = (teacher_part(method, student, WITH_HISTORY).item() for method in (once, thrice))
    assert three == pytest.approx(3 * one, rel=1e-5)


@pytest.mark.parametrize("seen_items", [True, False])
def test_a_students_lists_are_its_best_items(seen_items: bool) -> None:
    student = mf(2)
    ((rows, lists),) = student_lists(student, setting(mf(1)), np.array([0, 3]), 5, seen_items=seen_items)
    assert rows.tolist() == [0, 3]
    for user, listed in zip([0, 3], lists, strict=True):
        assert listed.tolist() == top(student, user, 5, seen_items=seen_items)


@pytest.mark.parametrize(
    ("name", "settings"), [("ce", {"on": "student"}), ("cd", {}), ("dcd", {"n_corrected": 3}), ("rcekd", {})]
)
def test_all_users_are_looked_at_first_and_then_a_part_of_them_each_epoch(name: str, settings: dict[str, Any]) -> None:
    """The users' lists are on average as fresh as if all were looked at at once, and epochs cost the same."""
    method = build_method(name, {"refresh_every": 2, **settings})
    assert isinstance(method, GuidedDistillation)
    method.prepare(setting(mf(1)))

    def looked_at(student: Model, epoch: int) -> list[int]:
        before = {key: value.clone() for key, value in method.state_dict().items()}
        method.start_epoch(student, epoch, torch.Generator().manual_seed(epoch))
        after = method.state_dict().items()
        return [
            user for user in range(4) if any(not torch.equal(value[user], before[key][user]) for key, value in after)
        ]

    assert looked_at(mf(2), 0) == WITH_HISTORY
    assert [looked_at(mf(2 + epoch), epoch) for epoch in (1, 2, 3)] == [[1], [0, 3], [1]]


def test_no_user_is_looked_at_where_there_are_fewer_than_epochs_between_looks() -> None:
    method = ready("rcekd", mf(1), mf(2), refresh_every=9)
    before = method.state_dict()["items"].clone()
    method.start_epoch(mf(3), 5, torch.Generator())
    assert torch.equal(method.state_dict()["items"], before)


def test_users_beyond_a_block_come_in_the_next() -> None:
    train = Sequences.from_lists([[1 + user % N] for user in range(3000)])
    student = build_model("mf", N, {"dim": 2}, train=train)
    everyone = np.arange(3000)
    blocks = list(student_lists(student, Setting(train, everyone, N), everyone, 3, seen_items=False))
    assert len(blocks) == 2
    assert torch.cat([rows for rows, _ in blocks]).tolist() == list(range(3000))
