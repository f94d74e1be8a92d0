from __future__ import annotations

import pytest
import torch

from recdistill.methods.parts import ShownPrefixes, cut
from recdistill.models.base import Batch

WHOLE = Batch.from_lists([[1, 2, 3], [4], [5, 6, 7, 8]])


def test_a_piece_is_what_stands_from_its_start_to_its_end() -> None:
    pieces = cut(WHOLE, torch.tensor([1, 3, 5]), torch.tensor([3, 4, 7]))
    assert pieces.items.tolist() == [2, 3, 4, 6, 7]
    assert pieces.offsets.tolist() == [0, 2, 3, 5]


def test_prefixes_are_found_where_at_least_an_item_is_left() -> None:
    prefixes = ShownPrefixes.of(WHOLE, torch.tensor([[2, 1, 0], [1, 0, 3], [5, 0, 4]]))
    assert prefixes.histories.tolist() == [0, 0, 2]
    assert prefixes.turns.tolist() == [0, 1, 1]
    assert WHOLE.items[prefixes.places].tolist() == [1, 2, 5]
    assert prefixes.counts.tolist() == [1, 1, 1]
    alone = prefixes.alone(WHOLE)
    assert alone.items.tolist() == [1, 1, 2, 5]
    assert alone.lengths.tolist() == [1, 2, 1]


@pytest.mark.parametrize(("draw", "turn"), [(0.0, 0), (0.49, 0), (0.5, 2), (0.99, 2)])
def test_one_of_each_history_stands_for_all_of_them(draw: float, turn: int) -> None:
    prefixes = ShownPrefixes.of(WHOLE, torch.tensor([[2, 0, 0], [0, 0, 3], [1, 0, 0]]))
    kept = prefixes.one_each(torch.tensor([draw, 0.3, draw]))
    assert kept.histories.tolist() == [0, 2]
    assert kept.turns.tolist() == [turn, 1]
    assert kept.counts.tolist() == [2, 1]
    assert WHOLE.items[kept.places].tolist() == [1 if turn == 0 else 2, 5]


def test_where_nothing_is_shown_of_any_prefix_there_is_none() -> None:
    prefixes = ShownPrefixes.of(WHOLE, torch.tensor([[3, 1, 0]]))
    assert len(prefixes.places) == len(prefixes.one_each(torch.rand(3)).places) == 0
