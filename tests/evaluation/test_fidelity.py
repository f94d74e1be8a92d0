import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recdistill.arrays import Items
from recdistill.errors import DataError
from recdistill.evaluation import fidelity
from recdistill.evaluation.fidelity import agreement, rank_biased_overlap


def lists(*rows: list[int]) -> Items:
    return np.array(rows, np.int32)


def test_agreement_is_the_share_in_common_whatever_the_order() -> None:
    first, second = lists([1, 2, 3, 4], [1, 2, 3, 4]), lists([4, 9, 1, 8], [5, 6, 7, 8])
    assert agreement(first, second, 4).tolist() == [2 / 4, 0]


def test_agreement_looks_at_the_top_k_only() -> None:
    assert agreement(lists([1, 2, 3]), lists([3, 2, 1]), 2).tolist() == [1 / 2]


def test_padding_agrees_with_nothing() -> None:
    assert agreement(lists([1, 2, 0, 0]), lists([1, 3, 4, 0]), 4).tolist() == [1 / 3]


def test_two_empty_lists_agree_in_nothing() -> None:
    assert agreement(lists([0, 0]), lists([0, 0]), 2).tolist() == [0]
    assert rank_biased_overlap(lists([0, 0]), lists([0, 0]), 2).tolist() == [0]


def test_rank_biased_overlap_by_hand() -> None:
    """Lists 1 2 3 and 2 1 4: in common 0 of 1, 2 of 2, 2 of 3; weights 1, 1/2, 1/4."""
    expected = (1 * 0 / 1 + 1 / 2 * 2 / 2 + 1 / 4 * 2 / 3) / (1 + 1 / 2 + 1 / 4)
    assert rank_biased_overlap(lists([1, 2, 3]), lists([2, 1, 4]), 3, 0.5) == pytest.approx([expected])


def test_agreeing_at_the_top_is_worth_more_than_at_the_end() -> None:
    top, end = rank_biased_overlap(lists([1, 2, 3], [1, 2, 3]), lists([1, 8, 9], [8, 9, 3]), 3, 0.9)
    assert top > end > 0


def test_depths_that_neither_list_reaches_are_left_out() -> None:
    """Depth 3 is the last: 1 of 1, 1 of 2, 1 of 3 with weights 1, 1/2, 1/4."""
    expected = (1 + 1 / 2 * 1 / 2 + 1 / 4 * 1 / 3) / (1 + 1 / 2 + 1 / 4)
    assert rank_biased_overlap(lists([1, 0, 0, 0]), lists([1, 2, 3, 0]), 4, 0.5) == pytest.approx([expected])


rows = st.lists(st.integers(1, 12), max_size=6, unique=True).map(lambda row: row + [0] * (6 - len(row)))


@given(first=rows, second=rows, k=st.integers(1, 8), p=st.sampled_from([0.3, 0.9, 1.0]))
def test_overlap_agrees_with_the_formula_on_sets(first: list[int], second: list[int], k: int, p: float) -> None:
    a, b = [i for i in first if i], [i for i in second if i]
    depth = min(k, max(len(a), len(b)))
    overlaps = [len(set(a[:t]) & set(b[:t])) / t for t in range(1, depth + 1)]
    weights = [p ** (t - 1) for t in range(1, depth + 1)]
    expected = sum(w * o for w, o in zip(weights, overlaps, strict=True)) / sum(weights) if depth else 0
    assert rank_biased_overlap(lists(first), lists(second), k, p) == pytest.approx([expected])
    assert agreement(lists(first), lists(second), k) == pytest.approx([overlaps[-1] if depth else 0])


@given(row=rows.filter(any), k=st.integers(1, 8))
def test_a_list_agrees_with_itself_however_short(row: list[int], k: int) -> None:
    assert rank_biased_overlap(lists(row), lists(row), k) == pytest.approx([1])
    assert agreement(lists(row), lists(row), k).tolist() == [1]


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.permuted(np.tile(np.arange(1, 21), (30, 1)), axis=1)[:, :10] for _ in range(2))
    whole = rank_biased_overlap(first, second, 10)
    monkeypatch.setattr(fidelity, "_PAIRS", 700)
    assert rank_biased_overlap(first, second, 10).tolist() == whole.tolist()


def test_different_numbers_of_lists_are_refused() -> None:
    """One row against many would be compared silently otherwise."""
    with pytest.raises(DataError, match="1 lists cannot be compared with 2"):
        agreement(lists([1]), lists([1], [2]), 1)


def test_an_empty_top_is_refused() -> None:
    with pytest.raises(DataError, match="k = 0"):
        agreement(lists([1]), lists([1]), 0)
