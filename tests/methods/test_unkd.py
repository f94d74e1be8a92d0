"""UnKD: groups of similar popularity, what is drawn from them, and the pairwise loss."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from recdistill.methods.base import Setting, build_method
from recdistill.methods.unkd import UnKD, draw_pairs, pair_loss, pairs_by_group, popularity_groups
from recdistill.teachers.local import LocalTeacher

from .users import ROWS, TRAIN, WITH_HISTORY, N, learn, mf, ready, scores_of, teacher_part


def test_groups_have_the_same_share_of_interactions() -> None:
    # In all 12, six a group: the most popular item alone has half, the other four the rest.
    assert popularity_groups(np.array([1, 6, 2, 2, 1]), 2).tolist() == [1, 0, 1, 1, 1]


def test_an_item_with_more_than_its_groups_share_leaves_no_group_empty() -> None:
    assert popularity_groups(np.array([1, 98, 1]), 3).tolist() == [1, 0, 1]


def test_rare_groups_get_more_pairs() -> None:
    # Mean popularities 6 and 2: turned around 2 and 6, so that shares are 1/4 and 3/4.
    counts, groups = np.array([6, 2, 2, 2]), np.array([0, 1, 1, 1])
    assert pairs_by_group(counts, groups, 20, emphasis=1.0) == [5, 15]
    assert pairs_by_group(counts, groups, 20, emphasis=0.0) == [10, 10]


def test_the_most_popular_group_keeps_a_share() -> None:
    """Turned around, 98 and 1 are 1 and 98: shares of .0101, raised to .1, and .9899, of 1.0899 in all."""
    assert pairs_by_group(np.array([98, 1]), np.array([0, 1]), 1000, emphasis=1.0) == [92, 908]


def test_no_group_is_left_without_pairs() -> None:
    """Two pairs, of which the first group's share is .18."""
    assert pairs_by_group(np.array([98, 1]), np.array([0, 1]), 2, emphasis=1.0) == [1, 2]


def test_pairs_keep_the_teachers_order_and_prefer_the_head() -> None:
    listed = torch.arange(1, 101).expand(500, -1)
    better, worse = draw_pairs(listed, 20, 5.0, torch.Generator().manual_seed(0))
    real = better > 0
    assert (better < worse)[real].all()
    assert ((worse > 0) == real).all()  # two draws of one place are no pair
    # The better of two places that are exponential with mean 5 is so with mean 2.5.
    assert better[real].float().mean().item() == pytest.approx(1 + 2.5, abs=0.5)


def test_a_list_too_short_for_a_pair_gives_none() -> None:
    better, worse = draw_pairs(torch.tensor([[7, 0, 0], [0, 0, 0]]), 5, 1.0, torch.Generator().manual_seed(0))
    assert not better.any()
    assert not worse.any()


def test_the_loss_by_hand() -> None:
    better, worse = torch.tensor([[math.log(3), 0.0, 9.0]]), torch.tensor([[0.0, math.log(4), 9.0]])
    loss = pair_loss(better, worse, torch.tensor([[True, True, False]]))  # 3/4 and 1/5
    assert loss.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 5)) / 2)


def test_it_vanishes_when_the_student_agrees_by_far_and_a_shift_changes_nothing() -> None:
    better, worse, real = torch.tensor([[30.0]]), torch.tensor([[0.0]]), torch.tensor([[True]])
    assert pair_loss(better, worse, real).item() == pytest.approx(0, abs=1e-6)
    shifted = pair_loss(worse + 100, better + 100, real)
    assert shifted.item() == pytest.approx(pair_loss(worse, better, real).item())


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_loss_and_gradient_are_finite_at_extreme_scores(extreme: float) -> None:
    better = torch.tensor([[extreme, -extreme]], requires_grad=True)
    loss = pair_loss(better, -better.detach(), torch.ones(1, 2, dtype=torch.bool))
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), better)[0].isfinite().all()


@pytest.mark.parametrize("n_groups", [2, 3])
def test_each_groups_list_is_the_teachers_order_of_it_without_the_history(n_groups: int) -> None:
    teacher = mf(1)
    method = ready("unkd", teacher, mf(2), depth=4, n_groups=n_groups)
    assert isinstance(method, UnKD)
    counts = np.bincount([item for row in ROWS for item in row], minlength=31)[1:].astype(np.int64)
    groups = popularity_groups(counts, n_groups)
    assert method.listed.shape[1] == n_groups
    for user in WITH_HISTORY:
        for group in range(n_groups):
            scores = scores_of(teacher)[user]
            members = [i for i in np.flatnonzero(groups == group) + 1 if i not in ROWS[user]]
            expected = sorted(members, key=lambda item: -scores[item].item())[:4]
            listed = method.listed[user, group]
            assert listed[listed > 0].tolist() == expected


@pytest.mark.parametrize(("emphasis", "expected"), [(0.0, [10, 10]), (0.5, [5, 15]), (1.0, [2, 18])])
def test_rare_groups_are_emphasised_as_the_setting_says(emphasis: float, expected: list[int]) -> None:
    # Three items of one interaction each, and 27 that have as many together: shares are 1/10 and 9/10.
    method = ready("unkd", mf(1), mf(2), n_pairs=20, rare_emphasis=emphasis)
    assert isinstance(method, UnKD)
    assert method.pairs == expected


def test_pairs_are_drawn_as_near_the_head_as_the_setting_says() -> None:
    """Of first places alone, none is before another."""
    teacher, student = mf(1), mf(2)
    near, far = (ready("unkd", teacher, student, rank_temperature=temperature) for temperature in (1e-3, 10.0))
    assert teacher_part(near, student, WITH_HISTORY).item() == 0
    assert teacher_part(far, student, WITH_HISTORY).item() > 0.1


def test_windows_of_a_long_history_do_not_make_its_items_more_popular() -> None:
    setting = Setting(*TRAIN.with_windows(2), N, LocalTeacher(mf(1)))
    assert len(setting.train) > len(TRAIN)
    windows, whole = (build_method("unkd", {"n_groups": 5, "n_pairs": 100}) for _ in range(2))
    windows.prepare(setting)
    whole.prepare(replace(setting, train=TRAIN, users=np.arange(len(TRAIN))))
    assert isinstance(windows, UnKD)
    assert isinstance(whole, UnKD)
    assert windows.pairs == whole.pairs
    assert torch.equal(windows.listed[: len(TRAIN)], whole.listed)


def test_the_student_comes_to_order_each_group_as_the_teacher_does() -> None:
    teacher, student = mf(1), mf(2)
    method = ready("unkd", teacher, student, depth=10, n_pairs=60, rank_temperature=5.0)
    assert isinstance(method, UnKD)
    learn(method, student, steps=200)
    scores = scores_of(student)
    for user in WITH_HISTORY:
        best, *others = method.listed[user, 1][:8].tolist()
        assert sum(scores[user, best] > scores[user, other] for other in others) >= 6
