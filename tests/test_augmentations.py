from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdistill.augmentations import AugmentationConfig, Kind, augment, crop, insert, join, mask, reorder, two_views
from recdistill.errors import SettingsError
from recdistill.models.base import Batch

Histories = list[list[int]]
Operator = Callable[..., Batch]

HISTORIES = st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=12), min_size=1, max_size=6)
SHARES = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 2**32)
OPERATORS: list[Operator] = [crop, mask, reorder, insert]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lists(batch: Batch) -> Histories:
    return [part.tolist() for part in batch.items.tensor_split(batch.offsets[1:-1])]


def apply(operator: Operator, histories: Histories, share: float, seed: int, **options: Any) -> Histories:
    if operator is insert:
        options = {"max_len": None} | options
    return lists(operator(Batch.from_lists(histories), share, generator(seed), **options))


# What each operator leaves as it was


@given(HISTORIES, SHARES, SEEDS)
def test_a_crop_is_a_block_of_neighbours_of_the_share_rounded_up(histories: Histories, share: float, seed: int) -> None:
    for whole, kept in zip(histories, apply(crop, histories, share, seed), strict=True):
        assert len(kept) == max(1, math.ceil(share * len(whole) - 1e-9))
        assert any(whole[start : start + len(kept)] == kept for start in range(len(whole)))


@given(HISTORIES, SHARES, SEEDS)
def test_a_mask_hides_the_share_rounded_down_and_nothing_moves(histories: Histories, share: float, seed: int) -> None:
    for whole, masked in zip(histories, apply(mask, histories, share, seed), strict=True):
        assert masked.count(0) == math.floor(share * len(whole) + 1e-9) < len(whole)
        assert all(now in (0, before) for before, now in zip(whole, masked, strict=True))


@given(HISTORIES, SHARES, SEEDS)
def test_reordering_keeps_the_items_and_stays_in_a_block_of_the_share(
    histories: Histories, share: float, seed: int
) -> None:
    for whole, shuffled in zip(histories, apply(reorder, histories, share, seed), strict=True):
        assert sorted(shuffled) == sorted(whole)
        moved = [place for place, pair in enumerate(zip(whole, shuffled, strict=True)) if pair[0] != pair[1]]
        assert not moved or moved[-1] - moved[0] < math.floor(share * len(whole) + 1e-9)


@given(HISTORIES.filter(lambda histories: len(histories) > 1), SHARES, SEEDS)
def test_insertion_adds_items_of_other_histories_and_keeps_the_order_of_its_own(
    histories: Histories, share: float, seed: int
) -> None:
    ours = [[100 * row + item for item in history] for row, history in enumerate(histories)]
    for row, (whole, longer) in enumerate(zip(ours, apply(insert, ours, share, seed), strict=True)):
        assert [item for item in longer if item // 100 == row] == whole
        assert len(longer) - len(whole) == max(1, math.ceil(share * len(whole) - 1e-9))
        assert set(longer) <= set(itertools.chain(*ours))


@given(HISTORIES, SHARES, SEEDS, st.integers(1, 8))
def test_insertion_keeps_the_newest_items(histories: Histories, share: float, seed: int, max_len: int) -> None:
    longer = apply(insert, histories, share, seed)
    newest = apply(insert, histories, share, seed, max_len=max_len)
    assert len(histories) == 1 or newest == [history[-max_len:] for history in longer]


def test_a_history_that_is_alone_has_nothing_to_be_inserted() -> None:
    assert apply(insert, [[1, 2, 3]], 0.9, seed=0) == [[1, 2, 3]]


@pytest.mark.parametrize("operator", OPERATORS)
def test_users_stay_with_their_histories(operator: Operator) -> None:
    batch = Batch(torch.tensor([1, 2, 3, 4]), torch.tensor([0, 1, 4]), torch.tensor([7, 5]))
    options = {"max_len": None} if operator is insert else {}
    users = operator(batch, 0.5, generator(), **options).users
    assert users is not None
    assert users.tolist() == [7, 5]


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_batch_that_is_given_does_not_change(operator: Operator) -> None:
    batch = Batch.from_lists([[1, 2, 3, 4, 5], [6, 7, 8]])
    options = {"max_len": 4} if operator is insert else {}
    operator(batch, 0.6, generator(), **options)
    assert lists(batch) == [[1, 2, 3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, math.nan])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_share_that_is_none_is_refused(operator: Operator, share: float) -> None:
    with pytest.raises(SettingsError, match="above 0 and below 1"):
        apply(operator, [[1, 2]], share, seed=0)


@pytest.mark.parametrize(("operator", "n", "share", "kept"), [(crop, 100, 0.55, 55), (mask, 100, 0.29, 71)])
def test_shares_that_no_binary_number_hits_are_rounded_as_written(
    operator: Operator, n: int, share: float, kept: int
) -> None:
    """0.55 of 100 is a little more than 55 in floating point, 0.29 of 100 a little less than 29."""
    (history,) = apply(operator, [[3] * n], share, seed=0)
    assert history.count(3) == kept


# The same in plain Python, history by history, from the same draws


def blocks(histories: Histories, sizes: list[int], draws: list[float]) -> list[int]:
    return [int(draw * (len(history) - size + 1)) for history, size, draw in zip(histories, sizes, draws, strict=True)]


def per_item(lengths: list[int], draws: list[float]) -> list[list[float]]:
    ends = list(itertools.accumulate(lengths))
    return [draws[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def uniform(n: int, source: torch.Generator) -> list[float]:
    return torch.rand(n, generator=source, dtype=torch.float64).tolist()


def plain_crop(histories: Histories, share: float, source: torch.Generator) -> Histories:
    sizes = [math.ceil(share * len(history)) for history in histories]
    starts = blocks(histories, sizes, uniform(len(histories), source))
    return [history[start : start + size] for history, start, size in zip(histories, starts, sizes, strict=True)]


def plain_mask(histories: Histories, share: float, source: torch.Generator) -> Histories:
    lengths = [len(history) for history in histories]
    masked = []
    for history, draws in zip(histories, per_item(lengths, uniform(sum(lengths), source)), strict=True):
        hidden = sorted(range(len(history)), key=draws.__getitem__)[: math.floor(share * len(history))]
        masked.append([0 if place in hidden else item for place, item in enumerate(history)])
    return masked


def plain_reorder(histories: Histories, share: float, source: torch.Generator) -> Histories:
    lengths = [len(history) for history in histories]
    sizes = [math.floor(share * length) for length in lengths]
    starts = blocks(histories, sizes, uniform(len(histories), source))
    all_draws = per_item(lengths, uniform(sum(lengths), source))
    shuffled = []
    for history, start, size, draws in zip(histories, starts, sizes, all_draws, strict=True):
        block = sorted(range(start, start + size), key=draws.__getitem__)
        shuffled.append([*history[:start], *(history[place] for place in block), *history[start + size :]])
    return shuffled


def plain_insert(histories: Histories, share: float, source: torch.Generator) -> Histories:
    added = [math.ceil(share * len(history)) for history in histories]
    lengths = [len(history) + n for history, n in zip(histories, added, strict=True)]
    all_draws = per_item(lengths, uniform(sum(lengths), source))
    drawn = iter(uniform(sum(added), source))
    longer = []
    for row, (history, n, draws) in enumerate(zip(histories, added, all_draws, strict=True)):
        others = list(itertools.chain(*histories[:row], *histories[row + 1 :]))
        new = sorted(range(len(draws)), key=draws.__getitem__)[:n]
        own = iter(history)
        longer.append(
            [others[int(next(drawn) * len(others))] if place in new else next(own) for place in range(len(draws))]
        )
    return longer


@pytest.mark.parametrize(
    ("operator", "plain"),
    [(crop, plain_crop), (mask, plain_mask), (reorder, plain_reorder), (insert, plain_insert)],
)
@given(HISTORIES.filter(lambda histories: len(histories) > 1), st.sampled_from([0.15, 0.4, 0.77]), SEEDS)
def test_it_is_what_a_loop_over_histories_does(
    operator: Operator, plain: Callable[..., Histories], histories: Histories, share: float, seed: int
) -> None:
    assert apply(operator, histories, share, seed) == plain(histories, share, generator(seed))


# What is drawn


def counts(operator: Operator, share: float, n: int = 3000) -> Counter[tuple[int, ...]]:
    """How often each outcome is met among many copies of one history."""
    return Counter(tuple(history) for history in apply(operator, [[1, 2, 3, 4]] * n, share, seed=1))


def is_even(found: Counter[Any], n_outcomes: int) -> bool:
    """Five standard deviations of a count: chance alone would fail once in a million."""
    n = found.total()
    expected = n / n_outcomes
    return len(found) == n_outcomes and all(abs(c - expected) < 5 * math.sqrt(expected) for c in found.values())


def test_every_block_every_set_and_every_order_is_as_likely_as_any_other() -> None:
    assert is_even(counts(crop, 0.5), 3)  # begins at the first, second or third item
    assert is_even(counts(mask, 0.5), 6)  # two of four
    found = counts(reorder, 0.5)  # two neighbours, at three places, change sides or not
    assert len(found) == 4
    assert abs(found.pop((1, 2, 3, 4)) - 1500) < 5 * math.sqrt(750)
    assert is_even(found, 3)


def test_items_are_inserted_before_between_and_after_alike() -> None:
    n = 3000
    views = apply(insert, [[1, 2, 3, 4]] * n + [[9] * 4] * n, 0.25, seed=1)[:n]
    assert is_even(Counter(view.index(9) for view in views if 9 in view), 5)


def test_what_is_inserted_is_drawn_as_often_as_the_others_hold_it() -> None:
    histories = [[1]] * 3000 + [[2, 2, 2]] * 1000
    inserted = Counter(item for history in apply(insert, histories, 0.5, seed=3)[:3000] for item in history)
    n_ones = inserted[1] - 3000  # the others hold 2999 of 1 and 3000 of 2
    assert abs(n_ones - 1500) < 5 * math.sqrt(750)


# One operator for every history


def kind_of(whole: list[int], view: list[int]) -> Kind:
    """Say which operator was applied to a history of different items; none leaves it as it is at these shares."""
    if 0 in view:
        return "mask"
    if len(view) != len(whole):
        return "crop" if len(view) < len(whole) else "insert"
    return "reorder"


ALL: dict[str, Any] = {"crop_share": 0.5, "mask_share": 0.5, "reorder_share": 0.5, "insert_share": 0.5}


def test_each_history_is_changed_by_one_operator_as_it_would_be_alone() -> None:
    histories = [[10 * row + place for place in range(1, 7)] for row in range(1, 200)]
    batch = Batch.from_lists(histories)
    seen = set()
    for whole, view in zip(
        histories, lists(augment(batch, AugmentationConfig(**ALL), generator(), max_len=None)), strict=True
    ):
        kind = kind_of(whole, view)
        seen.add(kind)
        own = [item for item in view if item in whole]
        if kind == "mask":
            assert [now or before for before, now in zip(whole, view, strict=True)] == whole
            assert view.count(0) == 3
        elif kind == "crop":
            assert len(view) == 3
            assert view == list(range(view[0], view[0] + 3))
        elif kind == "insert":
            assert own == whole
            assert len(view) == 9
            assert 0 not in view
        else:
            assert sorted(view) == whole
    assert seen == {"crop", "mask", "reorder", "insert"}


@pytest.mark.parametrize("kind", ["crop", "mask", "reorder", "insert"])
def test_one_kind_alone_changes_every_history_by_it(kind: Kind) -> None:
    histories = [[10 * row + place for place in range(1, 10)] for row in range(20)]
    config = AugmentationConfig(kinds=(kind,), **ALL | {"reorder_share": 0.9})
    views = lists(augment(Batch.from_lists(histories), config, generator(), max_len=None))
    assert {kind_of(*pair) for pair in zip(histories, views, strict=True)} == {kind}


def test_operators_are_drawn_independently_for_histories_and_views() -> None:
    """Pairs of operators of a history's two views, and of two neighbours in a batch, are all alike likely."""
    n, kinds = 4000, ("crop", "mask", "insert")
    histories = [[1, 2, 3, 4]] * n
    config = AugmentationConfig(kinds=kinds, **ALL)
    views = lists(two_views(Batch.from_lists(histories), config, generator(), max_len=None))
    drawn = [kind_of([1, 2, 3, 4], view) for view in views]
    assert is_even(Counter(zip(drawn[:n], drawn[n:], strict=True)), 9)
    assert is_even(Counter(zip(drawn[:n:2], drawn[1:n:2], strict=True)), 9)


def test_a_kind_that_stands_twice_is_drawn_twice_as_often() -> None:
    config = AugmentationConfig(kinds=("crop", "mask", "mask"), **ALL)
    views = lists(augment(Batch.from_lists([[1, 2, 3, 4]] * 3000), config, generator(), max_len=None))
    n_masked = sum(kind_of([1, 2, 3, 4], view) == "mask" for view in views)
    assert abs(n_masked - 2000) < 5 * math.sqrt(3000 * 2 / 9)


def test_what_is_inserted_is_never_hidden() -> None:
    """Items come from the histories as they were, not from those that another operator has masked already."""
    config = AugmentationConfig(kinds=("mask", "insert"), mask_share=0.9)
    views = lists(augment(Batch.from_lists([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]] * 300), config, generator(), max_len=None))
    assert {view.count(0) for view in views if len(view) > 10} == {0}


def test_a_view_does_not_outgrow_what_the_model_reads() -> None:
    config = AugmentationConfig(kinds=("insert",))
    assert set(augment(Batch.from_lists([[1, 2, 3, 4]] * 9), config, generator(), max_len=4).lengths.tolist()) == {4}


def test_two_views_stand_one_batch_after_the_other_and_differ() -> None:
    histories = [[10 * row + place for place in range(1, 9)] for row in range(1, 30)]
    batch = Batch.from_lists(histories)
    config = AugmentationConfig(kinds=("crop",), crop_share=0.5)
    views = lists(two_views(batch, config, generator(5), max_len=None))
    first = generator(5)
    expected = [lists(augment(batch, config, first, max_len=None)) for _ in range(2)]
    assert views == expected[0] + expected[1]
    assert expected[0] != expected[1]


def test_the_same_seed_gives_the_same_views() -> None:
    batch = Batch.from_lists([[1, 2, 3, 4, 5], [6, 7, 8], [9]])
    first, second, other = (
        lists(two_views(batch, AugmentationConfig(), generator(seed), max_len=5)) for seed in (1, 1, 2)
    )
    assert first == second != other


def test_histories_of_one_item_survive_every_operator() -> None:
    views = lists(two_views(Batch.from_lists([[1], [2]] * 20), AugmentationConfig(), generator(), max_len=3))
    assert all(view and 0 not in view for view in views)


@pytest.mark.parametrize("both", [True, False])
def test_joined_batches_keep_histories_and_users(both: bool) -> None:
    first = Batch(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3]), torch.tensor([4, 5]))
    second = Batch(torch.tensor([6, 7]), torch.tensor([0, 2]), torch.tensor([8]) if both else None)
    joined = join(first, second)
    assert lists(joined) == [[1], [2, 3], [6, 7]]
    assert (joined.users.tolist() if joined.users is not None else None) == ([4, 5, 8] if both else None)


@pytest.mark.parametrize("wrong", [{"kinds": []}, {"kinds": ["flip"]}, {"crop_share": 0}, {"mask_share": 1.0}])
def test_settings_that_make_no_view_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        AugmentationConfig.parse(wrong)


def test_settings_round_trip_through_json() -> None:
    config = AugmentationConfig(kinds=("mask", "insert"), mask_share=0.4)
    assert AugmentationConfig.model_validate_json(config.model_dump_json()) == config
