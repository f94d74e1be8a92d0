"""HetComp: who goes on to the next checkpoint, and the coarse and the fine loss."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError, TrainingError
from recdistill.methods.base import Setting, build_method
from recdistill.methods.hetcomp import HetComp, goes_on, list_distance, list_loss, seen_items, set_loss
from recdistill.models.base import Batch, Model, build_model
from recdistill.teachers.local import LocalTeacher
from recdistill.training.loop import fit
from recdistill.training.settings import TrainerSettings

from .users import WITH_HISTORY, N, learn, mf, ready, scores_of, setting, teacher_part, top

ALL = torch.tensor([[False, True, True, True, True]])
"""Every item but padding."""


def test_the_distance_is_one_minus_discounted_hits() -> None:
    def gain(t: int) -> float:
        return float((2 ** math.exp(-t / 10) - 1) / math.log2(t + 2))

    own, listed = torch.tensor([[3, 8, 5]]), torch.tensor([[5, 3, 1]])  # places 0 and 2 hit
    expected = 1 - (gain(0) + gain(2)) / (gain(0) + gain(1) + gain(2))
    assert list_distance(own, listed).item() == pytest.approx(expected)
    assert list_distance(own, own).item() == pytest.approx(0, abs=1e-6)
    assert list_distance(own, torch.tensor([[7, 9, 1]])).item() == pytest.approx(1)


def test_who_has_come_closer_or_moved_away_goes_on() -> None:
    before, now = torch.tensor([0.9, 0.9, 0.9]), torch.tensor([0.8, 0.88, 0.95])
    assert goes_on(before, now, threshold=1.05).tolist() == [True, False, True]


def test_the_coarse_loss_by_hand() -> None:
    logits = torch.tensor([[99.0, math.log(3), 0.0, math.log(2), 0.0]])
    # Items 1 and 3 are listed: 3/(3+2) and 2/(2+2), each above items 2 and 4 alone.
    loss = set_loss(logits, torch.tensor([[3, 1, 0]]), ALL)
    assert loss.item() == pytest.approx(-(math.log(3 / 5) + math.log(2 / 4)))


def test_the_fine_loss_by_hand() -> None:
    logits = torch.tensor([[99.0, math.log(3), 0.0, math.log(2), 0.0]])
    # First item 3 of 3, 1 and the others, then item 1 of it and the others.
    loss = list_loss(logits, torch.tensor([[3, 1, 0]]), ALL)
    assert loss.item() == pytest.approx(-(math.log(2 / 7) + math.log(3 / 5)))


def test_items_of_the_history_need_not_stand_below() -> None:
    batch = Batch.from_lists([[2, 4]])
    assert seen_items(batch, 5).tolist() == [[True, False, True, False, True]]
    logits = torch.tensor([[0.0, 1.0, 500.0, 2.0, 500.0]])
    loss = set_loss(logits, torch.tensor([[1]]), ~seen_items(batch, 5))
    assert loss.item() == pytest.approx(math.log(1 + math.e))


@pytest.mark.parametrize("loss", [set_loss, list_loss])
def test_it_vanishes_when_the_student_agrees_by_far_and_a_shift_changes_nothing(loss: object) -> None:
    assert callable(loss)
    logits, listed = torch.tensor([[0.0, 90.0, -50.0, 40.0, -60.0]]), torch.tensor([[1, 3]])
    assert loss(logits, listed, ALL).item() == pytest.approx(0, abs=1e-6)
    wrong = logits / 50
    assert loss(wrong + 100, listed.flip(1), ALL).item() == pytest.approx(
        loss(wrong, listed.flip(1), ALL).item(), rel=1e-3
    )


@pytest.mark.parametrize("loss", [set_loss, list_loss])
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_loss_and_gradient_are_finite_at_extreme_scores(loss: object, extreme: float) -> None:
    assert callable(loss)
    logits = torch.tensor([[0.0, extreme, -extreme, 0.0, extreme]], requires_grad=True)
    value = loss(logits, torch.tensor([[1, 2, 0]]), ALL)
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


def prepared(teacher: Model, student: Model, **settings: object) -> HetComp:
    method = ready("hetcomp", teacher, student, earlier=(mf(5), mf(6)), top_k=4, look_every=2, **settings)
    assert isinstance(method, HetComp)
    return method


@pytest.mark.parametrize("shown", [None, 1], ids=["whole", "cut"])
def test_users_begin_with_the_first_checkpoint_and_learn_its_list(shown: int | None) -> None:
    """What the batch does not show of a history, no teacher lists, and need not stand below."""
    student = mf(2)
    method = prepared(mf(1), student)
    assert method.stage.tolist() == [0, 0, 0, 0]
    listed = torch.tensor([top(mf(5), user, 4, seen_items=False) for user in WITH_HISTORY])
    others = ~torch.stack([seen_items(Batch.from_lists([row]), 31)[0] for row in ([1, 2], [3], [4, 5, 6])])
    expected = 2 * set_loss(scores_of(student)[WITH_HISTORY].clamp_min(-1e9), listed, others).mean() / 4
    assert teacher_part(method, student, WITH_HISTORY, shown=shown).item() == pytest.approx(expected.item(), rel=1e-4)


def test_users_go_on_when_the_student_has_come_close_and_then_learn_the_last_order() -> None:
    student, generator = mf(2), torch.Generator()
    method = prepared(mf(1), student)
    stages = []
    # Looks at epochs 2, 4, …; the student becomes each next checkpoint in turn.
    for epoch, now in ((2, student), (4, mf(6)), (6, mf(1))):
        method.start_epoch(now, epoch, generator)
        stages.append(method.stage[WITH_HISTORY].tolist())
    assert stages == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    listed = torch.tensor([top(mf(1), user, 4, seen_items=False) for user in WITH_HISTORY])
    others = ~torch.stack([seen_items(Batch.from_lists([row]), 31)[0] for row in ([1, 2], [3], [4, 5, 6])])
    logits = scores_of(student)[WITH_HISTORY].clamp_min(-1e9)
    expected = (list_loss(logits, listed[:, :2], others) + list_loss(logits, listed[:, :1], others)).mean() / 2 / 4
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(expected.item(), rel=1e-4)


def test_where_all_places_surprise_alike_the_phases_weigh_as_many_as_each_reads() -> None:
    """The authors add up places: at K = 50 the coarse loss has 2 · 50 of them, the fine one (25 + 5) / 2."""
    zeros = mf(2)
    with torch.no_grad():
        for parameter in zeros.parameters():
            parameter.zero_()
    # K = 10 of 30 items; a user's history stands nowhere. Of n items at 0, the k-th of a list is 1 of n − k + 1.
    expected = {"coarse": 0.0, "fine": 0.0}
    for n_seen in (2, 1, 3):
        n = 30 - n_seen
        expected["coarse"] += 2 / 10 * 10 * math.log(n - 10 + 1) / 3
        half, tenth = sum(math.log(n - place) for place in range(5)), math.log(n)
        expected["fine"] += (half + tenth) / 2 / 10 / 3
    method = ready("hetcomp", mf(1), zeros, earlier=(mf(5),), top_k=10)
    assert isinstance(method, HetComp)
    assert teacher_part(method, zeros, WITH_HISTORY).item() == pytest.approx(expected["coarse"], rel=1e-5)
    method.stage.fill_(1)
    assert teacher_part(method, zeros, WITH_HISTORY).item() == pytest.approx(expected["fine"], rel=1e-5)


@pytest.mark.parametrize(("n_behind", "is_fine"), [(0, True), (1, True), (2, False)])
def test_the_loss_is_fine_from_when_nearly_all_users_are_at_the_last_checkpoint(n_behind: int, is_fine: bool) -> None:
    """Of 300 users one makes the mean stage 1.997, which is 2.00, and two make it 1.993; those behind stay there."""
    train = Sequences.from_lists([[1 + user % N] for user in range(300)])
    teacher, *earlier = (
        build_model("mf", N, {"dim": 6, "init_std": 0.8}, train=train, seed=seed) for seed in (1, 5, 6)
    )
    method = build_method("hetcomp", {"top_k": 4, "look_every": 1})
    assert isinstance(method, HetComp)
    method.prepare(Setting(train, np.arange(300), N, LocalTeacher(teacher, earlier=earlier)))
    for look in (1, 2):  # at the second the student is the next checkpoint, so that all are as close as can be
        method.start_epoch(earlier[1], look, torch.Generator())
    method.stage.fill_(2)
    method.stage[:n_behind] = 1
    before = method.distance.clone()
    method.start_epoch(teacher, 3, torch.Generator())
    assert torch.equal(method.distance, before) == is_fine
    assert method.stage[:n_behind].tolist() == [1 if is_fine else 2] * n_behind


def test_who_has_gone_on_is_measured_by_how_far_the_next_checkpoint_was_then() -> None:
    """A student that stays where it is comes no closer, and its users go no further."""
    method, generator = prepared(mf(1), mf(2)), torch.Generator()
    for epoch, now in ((2, mf(2)), (4, mf(6)), (6, mf(6))):
        method.start_epoch(now, epoch, generator)
        assert method.stage[WITH_HISTORY].tolist() == [int(epoch > 2)] * 3
    own, listed = (
        torch.tensor([top(model, user, 4, seen_items=False) for user in WITH_HISTORY]) for model in (mf(6), mf(1))
    )
    torch.testing.assert_close(method.distance[WITH_HISTORY], list_distance(own, listed))


@pytest.mark.parametrize(("threshold", "goes"), [(1.06, True), (1.07, False)])
def test_how_close_is_close_enough_eases_with_every_look(threshold: float, goes: bool) -> None:
    """By a factor of .995: at the third, 1.06 asks that the distance was 1.044 times as far, 1.07 for 1.054 times."""
    student = mf(2)
    method = prepared(mf(1), student, threshold=threshold)
    rows = torch.tensor(WITH_HISTORY)
    own = torch.tensor([top(student, user, 4, seen_items=False) for user in WITH_HISTORY])
    method.distance[rows] = 1.05 * list_distance(own, method.lists[1, rows].long())
    method.start_epoch(student, 6, torch.Generator())
    assert method.stage[rows].tolist() == [int(goes)] * 3


def test_nobody_goes_on_between_two_looks_or_beyond_the_last_checkpoint() -> None:
    method, generator = prepared(mf(1), mf(2)), torch.Generator()
    for epoch in (1, 2, 3):
        method.start_epoch(mf(6), epoch, generator)
    assert method.stage.tolist() == [0, 0, 0, 0]
    for epoch in range(4, 30):
        method.start_epoch(mf(epoch), epoch, generator)
    assert int(method.stage.max()) == 2


def test_the_student_comes_to_rank_as_the_last_checkpoint_does() -> None:
    teacher, student = mf(1), mf(2)
    learn(prepared(teacher, student), student, steps=300)
    for user in WITH_HISTORY:
        shared = {*top(teacher, user, 2, seen_items=False)} & {*top(student, user, 4, seen_items=False)}
        assert len(shared) == 2


def test_a_teacher_whose_earlier_stages_are_lost_is_refused() -> None:
    with pytest.raises(SettingsError, match="two or more stages"):
        build_method("hetcomp").prepare(setting(mf(1)))


def test_a_folder_is_not_continued_with_other_stages_of_the_same_teacher(tmp_path: Path) -> None:
    def run(stage: Model) -> None:
        told, settings = setting(mf(1), earlier=(stage,)), TrainerSettings(epochs=1)
        fit(mf(2), build_method("hetcomp"), told, settings, validate=lambda model: 0.0, folder=tmp_path)

    run(mf(5))
    run(mf(5))
    with pytest.raises(TrainingError, match="checkpoint of another teacher"):
        run(mf(6))
