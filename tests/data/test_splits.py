import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data.dataset import Dataset, Sequences
from recdistill.data.interactions import Interactions
from recdistill.data.splits import Cases, Split, last_basket, leave_one_out, random_split, time_cut
from recdistill.errors import DataError

Row = tuple[int, int, int]


def dataset(rows: list[Row], *, timed: bool = True) -> Dataset:
    """Make a data set of (user, item, time); users from 0 and items from 1 without gaps keep their numbers."""
    frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    return Interactions(frame if timed else frame.drop("time")).dataset()


def of_lists(*rows: list[int]) -> Dataset:
    """Make a data set of each user's items, one item at each time."""
    return dataset([(user, item, time) for user, items in enumerate(rows) for time, item in enumerate(items)])


def lists(rows: Sequences) -> list[list[int]]:
    return [row.tolist() for row in rows]


def cases(found: Cases) -> list[tuple[int, list[int], list[int]]]:
    """List user, history and targets."""
    return list(zip(found.users.tolist(), lists(found.histories), lists(found.targets), strict=True))


def is_view(rows: Sequences, data: Dataset) -> bool:
    return rows.items is data.sequences.items


class TestLeaveOneOut:
    DATA = of_lists([1, 2, 3, 4], [5, 1], [2, 1, 5], [3])

    def test_trains_on_all_but_the_last_two_and_on_short_users_whole(self) -> None:
        assert lists(leave_one_out(self.DATA).train) == [[1, 2], [5, 1], [2], [3]]

    def test_validates_on_the_last_but_one(self) -> None:
        assert cases(leave_one_out(self.DATA).valid) == [(0, [1, 2], [3]), (2, [2], [1])]

    def test_tests_on_the_last_with_the_validation_item_in_the_history(self) -> None:
        assert cases(leave_one_out(self.DATA).test) == [(0, [1, 2, 3], [4]), (2, [2, 1], [5])]

    def test_masks_the_history_shown(self) -> None:
        split = leave_one_out(self.DATA)
        assert lists(split.test.masked) == [[1, 2, 3], [2, 1]]
        assert split.protocol == "leave-one-out (last item test, last but one validation), seen items masked"

    def test_masks_nothing_if_told(self) -> None:
        split = leave_one_out(self.DATA, mask_seen=False)
        assert lists(split.test.masked) == [[], []]
        assert split.protocol.endswith("seen items not masked")

    def test_copies_no_items(self) -> None:
        split = leave_one_out(self.DATA)
        parts = [split.train, *(rows for c in (split.valid, split.test) for rows in (c.histories, c.targets, c.masked))]
        assert all(is_view(rows, self.DATA) for rows in parts)

    def test_refused_without_a_user_of_three(self) -> None:
        with pytest.raises(DataError, match="no user has 3 interactions"):
            leave_one_out(of_lists([1, 2], [3]))


class TestLastBasket:
    # User 0 has baskets 1 2 | 3 | 4 5, user 1 has two, user 2 has 6 | 1 | 2 3 3 (an item twice in a basket).
    DATA = dataset(
        [
            *[(0, 1, 1), (0, 2, 1), (0, 3, 2), (0, 4, 3), (0, 5, 3)],
            *[(1, 1, 3), (1, 2, 4), (1, 3, 4)],
            *[(2, 6, 4), (2, 1, 5), (2, 2, 6), (2, 3, 6), (2, 3, 6)],
        ]
    )

    def test_trains_on_all_but_the_last_two_baskets_and_on_short_users_whole(self) -> None:
        assert lists(last_basket(self.DATA).train) == [[1, 2], [1, 2, 3], [6]]

    def test_validates_on_the_last_basket_but_one(self) -> None:
        assert cases(last_basket(self.DATA).valid) == [(0, [1, 2], [3]), (2, [6], [1])]

    def test_tests_on_the_last_basket_and_counts_an_item_once(self) -> None:
        assert cases(last_basket(self.DATA).test) == [(0, [1, 2, 3], [4, 5]), (2, [6, 1], [2, 3])]

    def test_needs_times(self) -> None:
        with pytest.raises(DataError, match="last basket split needs times"):
            last_basket(dataset([(0, 1, 1)] * 3, timed=False))

    def test_refused_if_no_user_has_three_baskets(self) -> None:
        with pytest.raises(DataError, match="no user has interactions at 3 different times"):
            last_basket(dataset([(0, 1, 1), (0, 2, 1), (0, 3, 2)]))


class TestTimeCut:
    # User 2 begins after the validation instant, user 3 after the cut; user 1 has nothing after it.
    DATA = dataset(
        [
            *[(0, 1, 1), (0, 2, 5), (0, 3, 8), (0, 4, 9), (0, 4, 9)],
            *[(1, 1, 2), (1, 2, 3), (1, 3, 6)],
            *[(2, 4, 6), (2, 1, 9), (3, 2, 8)],
        ]
    )
    SPLIT = time_cut(DATA, at=8, valid_at=5)

    def test_trains_on_what_came_before_validation(self) -> None:
        assert lists(self.SPLIT.train) == [[1], [1, 2], [], []]

    def test_validates_between_the_instants(self) -> None:
        assert cases(self.SPLIT.valid) == [(0, [1], [2]), (1, [1, 2], [3])]

    def test_tests_from_the_cut_on_users_with_a_history(self) -> None:
        assert cases(self.SPLIT.test) == [(0, [1, 2], [3, 4]), (2, [4], [1])]

    def test_names_both_instants(self) -> None:
        assert self.SPLIT.protocol == "time cut at 8 (validation from 5), seen items masked"

    def test_the_default_cuts_off_the_last_tenth_twice(self) -> None:
        data = dataset([(0, 1 + i % 3, i) for i in range(100)])
        split = time_cut(data)  # 90 of 100 before the cut, 81 of those before validation
        assert split.protocol.startswith("time cut at 90 (validation from 81)")
        assert lists(split.train)[0] == [1 + i % 3 for i in range(81)]

    def test_iso_text_is_an_instant(self) -> None:
        day = 86_400
        data = dataset([(0, 1, 0), (0, 2, day), (0, 3, 2 * day)])
        split = time_cut(data, at="1970-01-03", valid_at="1970-01-01T12:00")
        assert cases(split.valid) == [(0, [1], [2])]
        assert cases(split.test) == [(0, [1, 2], [3])]

    def test_an_instant_outside_the_data_is_refused(self) -> None:
        with pytest.raises(DataError, match="outside the data, whose times run from 1 to 9"):
            time_cut(self.DATA, at=1000)

    def test_a_validation_instant_after_the_cut_is_refused(self) -> None:
        with pytest.raises(DataError, match="must lie after the first time, 1, and before the cut at 8"):
            time_cut(self.DATA, at=8, valid_at=9)

    def test_text_that_is_no_instant_is_refused(self) -> None:
        with pytest.raises(DataError, match="'soon' is not a date or time"):
            time_cut(self.DATA, at="soon")

    def test_nothing_to_validate_on_is_refused(self) -> None:
        data = dataset([(0, 1, 1), (0, 2, 9), (1, 1, 5)])  # between 4 and 9 only user 1, without a history
        with pytest.raises(DataError, match="nothing is left to validate on"):
            time_cut(data, at=9, valid_at=4)

    def test_needs_times(self) -> None:
        with pytest.raises(DataError, match="time cut split needs times"):
            time_cut(dataset([(0, 1, 1)] * 3, timed=False), at=2)


class TestRandom:
    DATA = of_lists(list(range(1, 21)), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 2], [3])

    def test_sizes_are_eight_one_one(self) -> None:
        split = random_split(self.DATA, seed=3)
        # 20: 16 + 2 + 2; 10: 8 + 1 + 1; 2: max(1, ⌊1.6⌋) = 1, up to ⌊1.8⌋ = 1, so 1 + 0 + 1; 1: 1 + 0 + 0
        assert split.train.lengths.tolist() == [16, 8, 1, 1]
        assert split.valid.users.tolist() == [0, 1]
        assert split.valid.targets.lengths.tolist() == [2, 1]
        assert split.test.users.tolist() == [0, 1, 2]
        assert split.test.targets.lengths.tolist() == [2, 1, 1]

    def test_parts_make_up_the_whole_and_keep_the_order_of_time(self) -> None:
        split = random_split(self.DATA, seed=3)
        for row, user in enumerate(split.test.users):
            known = split.test.histories[row].tolist()
            assert known == sorted(known)
            assert sorted([*known, *split.test.targets[row].tolist()]) == self.DATA.sequences[user].tolist()
        assert lists(split.train)[0] == sorted(lists(split.train)[0])

    def test_validation_items_join_the_history_at_test_time(self) -> None:
        split = random_split(self.DATA, seed=3)
        assert set(split.valid.histories[0]) | set(split.valid.targets[0]) == set(split.test.histories[0])

    def test_the_seed_decides(self) -> None:
        first, again, other = (random_split(self.DATA, seed=seed) for seed in (0, 0, 1))
        assert lists(first.train) == lists(again.train)
        assert lists(first.train) != lists(other.train)
        assert "seed 1" in other.protocol

    def test_every_interaction_is_as_likely_to_be_tested(self) -> None:
        data = of_lists(*([list(range(1, 11))] * 2000))
        tested = np.bincount(random_split(data, seed=0).test.targets.flat()[0], minlength=11)[1:]
        assert tested.sum() == 2000
        assert np.abs(tested - 200).max() < 5 * np.sqrt(200)  # five deviations of a Poisson count

    def test_file_order_takes_the_parts_as_they_stand(self) -> None:
        split = random_split(self.DATA, file_order=True)
        assert lists(split.train) == [list(range(1, 17)), [1, 2, 3, 4, 5, 6, 7, 8], [1], [3]]
        assert cases(split.valid)[1] == (1, [1, 2, 3, 4, 5, 6, 7, 8], [9])
        assert cases(split.test)[1:] == [(1, [1, 2, 3, 4, 5, 6, 7, 8, 9], [10]), (2, [1], [2])]
        assert split.protocol == "8:1:1 per user in file order, seen items masked"
        assert is_view(split.train, self.DATA)

    def test_works_without_times(self) -> None:
        data = dataset([(0, item, 0) for item in range(1, 11)], timed=False)
        assert random_split(data).train.lengths.tolist() == [8]

    def test_nothing_to_validate_on_is_refused(self) -> None:
        with pytest.raises(DataError, match="nothing is left to validate on"):
            random_split(of_lists([1, 2, 3]))


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=60)


@pytest.mark.parametrize(
    "make",
    [leave_one_out, last_basket, time_cut, random_split, lambda data: random_split(data, file_order=True)],
    ids=["leave-one-out", "last basket", "time cut", "random", "file order"],
)
@given(rows=ROWS)
def test_any_split_keeps_its_promises(make, rows: list[Row]) -> None:  # type: ignore[no-untyped-def]
    """No history or target is empty, targets are distinct, and nothing of a case's future is shown or trained on."""
    data = dataset(rows)
    try:
        split: Split = make(data)
    except DataError:
        return
    assert len(split.train) == data.n_users
    for found in (split.valid, split.test):
        assert len(found) > 0
        assert found.histories.lengths.min() > 0
        assert found.targets.lengths.min() > 0
        for user, history, targets in cases(found):
            assert len(set(targets)) == len(targets)
            whole = sorted(data.sequences[user].tolist())
            for item in set(targets):
                assert history.count(item) + 1 <= whole.count(item)
    for row, user in enumerate(split.test.users):
        shown = split.test.histories[row].tolist()
        trained = split.train[user].tolist()
        assert all(trained.count(item) <= shown.count(item) for item in trained)
