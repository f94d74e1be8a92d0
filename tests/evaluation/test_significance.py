import math

import numpy as np
import pytest
from scipy import stats

from recdistill.evaluation import significance
from recdistill.evaluation.significance import bootstrap_interval, by_user, sign_flip_test


def test_interval_of_equal_values_is_a_point() -> None:
    ends = bootstrap_interval(np.full((10, 1), 0.3), np.arange(10))
    assert ends.ravel().tolist() == pytest.approx([0.3, 0.3])


def test_interval_of_a_mean_is_close_to_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=(2000, 1))
    low, high = bootstrap_interval(values, np.arange(2000), n_resamples=4000).ravel()
    error = values.std() / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_cases_of_one_user_are_drawn_together() -> None:
    """With a single user there is nothing to draw from, however many cases there are."""
    ends = bootstrap_interval(np.arange(6.0)[:, None], np.full(6, 4))
    assert ends.ravel().tolist() == [2.5, 2.5]


def test_columns_share_their_draws() -> None:
    values = np.random.default_rng(1).random((50, 1))
    ends = bootstrap_interval(np.hstack([values, 2 * values]), np.arange(50))
    assert ends[:, 1] == pytest.approx(2 * ends[:, 0])


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(2).random((50, 1))
    first, again, other = (bootstrap_interval(values, np.arange(50), seed=seed) for seed in (7, 7, 8))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_no_cases_have_no_interval() -> None:
    assert np.isnan(bootstrap_interval(np.empty((0, 2)), np.empty(0, np.int64))).all()


def test_exact_p_value_by_hand() -> None:
    """Three users, all better: of 8 sign patterns only + + + and − − − are as extreme."""
    assert sign_flip_test(np.array([0.1, 0.2, 0.3])) == 2 / 8


def test_users_on_whom_both_agree_change_nothing() -> None:
    assert sign_flip_test(np.array([0.1, 0, 0, 0.2, 0.3, 0])) == 2 / 8


def test_no_difference_at_all_gives_1() -> None:
    assert sign_flip_test(np.zeros(5)) == 1


@pytest.mark.parametrize("n", [6, 10])
def test_exact_p_value_agrees_with_scipy(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.4, 1.0, size=n)
    theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=2**n)
    assert sign_flip_test(differences) == pytest.approx(theirs.pvalue)


def test_drawn_p_value_agrees_with_the_normal_limit() -> None:
    """For many users the sum of random signs is normal with the differences' root sum of squares."""
    differences = np.random.default_rng(3).normal(0.05, 1.0, size=1500)
    z = abs(differences.sum()) / math.sqrt((differences**2).sum())
    assert sign_flip_test(differences) == pytest.approx(2 * stats.norm.sf(z), abs=0.02)


def test_drawing_in_blocks_does_not_lose_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 users all better by the same: p is 2 / 2^16, so hardly a draw is as extreme, and the floor is seen."""
    monkeypatch.setattr(significance, "_SIGNS", 16 * 100)
    assert sign_flip_test(np.ones(16), n_resamples=999) <= 2 / 1000


def test_by_user_sums_the_cases_of_each() -> None:
    assert by_user(np.array([1.0, 2.0, 4.0]), np.array([9, 3, 9])).tolist() == [2, 5]
