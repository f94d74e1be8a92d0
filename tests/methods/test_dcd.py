"""Dual correction: what counts as ranked too low or too high, and what is made of it."""

import math

import numpy as np
import pytest
import torch

from recdistill.methods.dcd import DCD, rank_difference

from .users import WITH_HISTORY, N, learn, mf, ready, scores_of, teacher_part, top


def test_ranks_are_compared_in_the_teachers_order() -> None:
    listed, own = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[7, 5, 9, 6, 4]])
    # 5 is second instead of first, 6 fourth instead of second, 7 first instead of third; 8 stands behind the five.
    assert rank_difference(listed, own).tolist() == [[1, 2, -2, 2]]


def test_what_the_student_ranks_too_low_is_lifted_and_too_high_lowered() -> None:
    teacher, student = mf(1), mf(2)
    method = ready("dcd", teacher, student, top_k=20, n_corrected=3, rank_temperature=1.0)
    assert isinstance(method, DCD)
    for user in WITH_HISTORY:
        theirs = top(teacher, user, 20, seen_items=False)
        # Twenty of the teacher's and five temperatures more: what is not in the student's list is 26th.
        own = top(student, user, 25, seen_items=False)
        too_low = {item: (own.index(item) if item in own else 25) - theirs.index(item) for item in theirs}
        assert all(too_low[item] > 0 for item in method.under[user].tolist())
        assert all(too_low[item] < 0 for item in method.over[user].tolist())
        places = [theirs.index(item) for item in method.under[user].tolist()]
        assert places == sorted(places)  # in the teacher's order


@pytest.mark.parametrize(("top_k", "temperature"), [(20, 2.0), (6, 4.0)], ids=["a long list", "a short one"])
def test_items_are_drawn_by_how_far_the_ranks_lie_apart(top_k: int, temperature: float) -> None:
    """P ∝ tanh(d / T); behind the student's list, five temperatures longer than the teacher's, all ranks are alike."""
    teacher, student, n_draws = mf(1), mf(2), 400
    method = ready("dcd", teacher, student, top_k=top_k, n_corrected=1, rank_temperature=temperature)
    assert isinstance(method, DCD)
    rng, rows = torch.Generator().manual_seed(0), np.array(WITH_HISTORY)
    lifted = torch.zeros(len(rows), N + 1)
    for _ in range(n_draws):
        method.refresh(student, rows, rng)
        lifted[torch.arange(len(rows)), method.under[rows, 0].long()] += 1 / n_draws
    depth = top_k + round(5 * temperature)
    for user, found in zip(WITH_HISTORY, lifted, strict=True):
        own = top(student, user, depth, seen_items=False)
        expected = torch.zeros(N + 1)
        for place, item in enumerate(top(teacher, user, top_k, seen_items=False)):
            rank = own.index(item) if item in own else depth
            expected[item] = math.tanh(max(0, rank - place) / temperature)
        torch.testing.assert_close(found, expected / expected.sum(), atol=0.08, rtol=0)


def test_no_item_is_lifted_and_lowered_where_lists_are_shorter_than_what_is_drawn() -> None:
    method = ready("dcd", mf(1), mf(2), top_k=6, n_corrected=6, rank_temperature=1.0)
    assert isinstance(method, DCD)
    for user in WITH_HISTORY:
        lifted, lowered = (set(kept[user].tolist()) - {0} for kept in (method.under, method.over))
        assert lifted
        assert not lifted & lowered


def test_the_loss_is_the_likelihood_of_the_teachers_order_above_the_overestimated() -> None:
    teacher, student = mf(1), mf(2)
    method = ready("dcd", teacher, student, top_k=20, n_corrected=3, rank_temperature=1.0, weight=2.0)
    assert isinstance(method, DCD)
    expected = []
    for user in WITH_HISTORY:
        scores = scores_of(student)[user]
        lifted, lowered = scores[method.under[user].long()], scores[method.over[user].long()]
        each = [torch.cat([lifted[k:], lowered]).logsumexp(0) - lifted[k] for k in range(3)]
        expected.append(torch.stack(each).mean().item())
    assert teacher_part(method, student, WITH_HISTORY).item() == pytest.approx(2 * sum(expected) / 3, rel=1e-4)


def test_the_student_comes_to_order_the_teachers_list_as_it_does() -> None:
    teacher, student = mf(1), mf(2)
    learn(ready("dcd", teacher, student, top_k=20, n_corrected=6, rank_temperature=3.0), student, steps=400)
    for user in WITH_HISTORY:
        scores = scores_of(student)[user][top(teacher, user, 20, seen_items=False)]
        right = (scores[:, None] > scores).triu(1).sum() / (20 * 19 / 2)
        assert right > 0.75  # half of them without learning


def test_what_is_ranked_alike_is_not_lifted_and_lowered_at_once() -> None:
    """All six may be drawn as either."""
    model = mf(1)
    method = ready("dcd", model, model, top_k=6, n_corrected=3, rank_temperature=1.0)
    assert isinstance(method, DCD)
    for user in WITH_HISTORY:
        lifted, lowered = (set(kept[user].tolist()) - {0} for kept in (method.under, method.over))
        assert (len(lifted), len(lowered), lifted & lowered) == (3, 3, set())
