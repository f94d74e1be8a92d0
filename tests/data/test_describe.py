import polars as pl
import pytest

from recdistill.data.dataset import Dataset
from recdistill.data.describe import Outcome, describe
from recdistill.data.interactions import Interactions
from recdistill.runs.sections import SplitSettings


def dataset(rows: list[tuple[int, int, int]], *, timed: bool = True) -> Dataset:
    frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    return Interactions(frame if timed else frame.drop("time")).dataset()


# User 0: items 1 2 1 3 at times 1 1 2 3; user 1: items 1 2 at time 3, which is no repeat of user 0's last time.
ROWS = [(0, 1, 1), (0, 2, 1), (0, 1, 2), (0, 3, 3), (1, 1, 3), (1, 2, 3)]


def test_counts_and_density() -> None:
    found = describe(dataset(ROWS))
    assert (found.n_users, found.n_items, found.n_interactions) == (2, 3, 6)
    assert found.density == pytest.approx(6 / (2 * 3))


def test_lengths() -> None:
    found = describe(dataset(ROWS))  # lengths 4 and 2
    assert found.mean_length == 3
    assert found.lengths == pytest.approx(
        {"shortest": 2, "25 %": 2.5, "median": 3, "75 %": 3.5, "90 %": 3.8, "longest": 4}
    )


def test_equal_times_are_counted_within_a_user() -> None:
    assert describe(dataset(ROWS)).equal_times == pytest.approx(2 / 6)


def test_repeats_are_counted_within_a_user() -> None:
    assert describe(dataset(ROWS)).repeats == pytest.approx(1 / 6)


def test_says_what_a_split_leaves() -> None:
    found = describe(dataset(ROWS)).splits["leave-one-out"]
    assert isinstance(found, Outcome)
    # User 0 trains on 1 2, validates on 1, tests on 3; user 1 is too short and only trains.
    assert (found.train_interactions, found.valid_cases, found.test_cases, found.seen_targets) == (4, 1, 1, 0.0)


def test_says_how_many_targets_were_seen_before() -> None:
    found = describe(dataset([(0, 1, 1), (0, 2, 2), (0, 1, 3), (1, 1, 1), (1, 2, 2), (1, 3, 3)])).splits
    assert isinstance(found["leave-one-out"], Outcome)
    assert found["leave-one-out"].seen_targets == 1 / 2


def test_says_why_a_split_cannot_be_made() -> None:
    found = describe(dataset(ROWS, timed=False))
    assert found.equal_times is None
    assert "needs times" in str(found.splits["last-basket"])
    assert "needs times" in str(found.splits["time-cut"])


def test_splits_have_the_names_that_a_run_file_takes() -> None:
    for name in describe(dataset(ROWS)).splits:
        assert SplitSettings(protocol=name).protocol == name
