import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data.dataset import Sequences
from recdistill.data.groups import Groups, band_cuts, head_cut, head_items, head_users, length_bands

LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=60).map(np.array)


def test_the_longest_fifth_is_head() -> None:
    assert head_users(np.array([1, 9, 3, 4, 8, 2, 5, 6, 7, 0])).nonzero()[0].tolist() == [1, 4]  # 9 and 8


def test_ties_at_the_cut_go_to_tail() -> None:
    assert head_users(np.array([9, 7, 7, 5, 4, 3, 3, 2, 1, 1])).tolist() == [True] + [False] * 9


def test_no_head_where_everybody_is_alike() -> None:
    assert not head_users(np.full(10, 4)).any()


def test_fewer_than_five_users_have_no_head() -> None:
    assert not head_users(np.array([1, 2, 3, 4])).any()


@given(LENGTHS)
def test_head_is_the_largest_set_of_longest_that_is_at_most_a_fifth(lengths: np.ndarray) -> None:
    head = head_users(lengths)
    assert head.sum() * 5 <= len(lengths)
    with_next = lengths >= max(lengths[~head])  # the next smaller length would be too many
    assert with_next.sum() * 5 > len(lengths)


def test_bands_are_equal_without_ties() -> None:
    assert length_bands(np.arange(10)).tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_a_tie_at_a_cut_goes_to_the_shorter_band() -> None:
    # Alone, the two 3s would be in bands 4 and 5.
    assert length_bands(np.array([0, 1, 2, 3, 3])).tolist() == [1, 2, 3, 4, 4]


def test_a_band_is_empty_where_one_length_fills_more_than_a_fifth() -> None:
    # Five of ten have length 3. At most 8 may be above band 1, so 3 is in band 1, and 5 in all above: nobody in band 2.
    lengths = np.array([3, 3, 3, 3, 3, 4, 5, 6, 7, 8])
    assert length_bands(lengths).tolist() == [1, 1, 1, 1, 1, 3, 4, 4, 5, 5]


@given(LENGTHS)
def test_the_longest_band_is_the_head(lengths: np.ndarray) -> None:
    assert ((length_bands(lengths) == 5) == head_users(lengths)).all()


@given(LENGTHS)
def test_bands_grow_with_length_and_keep_equals_together(lengths: np.ndarray) -> None:
    bands = length_bands(lengths)
    order = np.argsort(lengths, kind="stable")
    assert (np.diff(bands[order]) >= 0).all()
    assert all(len(set(bands[lengths == length])) == 1 for length in set(lengths))


def test_head_items_are_the_most_popular_fifth() -> None:
    # Items 1…5 of N = 10 occur 4, 3, 2, 1, 1 times, the others never.
    train = Sequences.from_lists([[1, 2, 3, 4], [1, 2, 3], [1, 2, 5], [1]])
    assert head_items(train, 10).nonzero()[0].tolist() == [1, 2]


def test_head_items_count_training_only() -> None:
    train = Sequences.from_lists([[1, 1, 2, 2, 2]]).without_newest(2)  # item 1 twice, item 2 once
    assert head_items(train, 5).nonzero()[0].tolist() == [1]


def test_an_item_that_was_never_taken_is_no_head() -> None:
    assert not head_items(Sequences.from_lists([[]]), 5).any()


def test_the_cut_is_the_bound_of_the_head() -> None:
    counts = np.array([5, 1, 4, 2, 3])
    assert ((counts >= head_cut(counts)) == [True, False, False, False, False]).all()


@pytest.mark.parametrize(("n", "n_head"), [(5, 1), (15, 3), (4, 0), (100, 20), (1005, 201)])
def test_a_whole_fifth_is_not_lost_to_rounding(n: int, n_head: int) -> None:
    assert head_users(np.arange(n)).sum() == n_head


def test_labels_name_size_and_cut_of_each_stratum() -> None:
    train = Sequences.from_lists([[1] * n for n in range(1, 6)])
    groups = Groups.from_train(train, 3)
    assert groups.band_cuts == band_cuts(train.lengths) == (2, 3, 4, 5)
    assert groups.labels() == {
        "head": "1 of 5 users, with 5 or more training interactions",
        "tail": "4 of 5 users, with fewer than 5 training interactions",
        "length-1": "1 of 5 users, with fewer than 2 training interactions",
        "length-2": "1 of 5 users, with 2 or more and fewer than 3 training interactions",
        "length-3": "1 of 5 users, with 3 or more and fewer than 4 training interactions",
        "length-4": "1 of 5 users, with 4 or more and fewer than 5 training interactions",
        "length-5": "1 of 5 users, with 5 or more training interactions",
        "item-head": "0 of 3 items, with 16 or more training interactions",
        "item-tail": "3 of 3 items, with fewer than 16",
    }
