import numpy as np
import pytest
from benchmarks.peers.arithmetic_floor import Work, epoch_work
from benchmarks.peers.driver import Histories

D, BLOCKS = 64, 2


def histories(*lengths: int) -> Histories:
    return Histories(np.ones(sum(lengths), np.int64), np.concatenate([[0], np.cumsum(lengths)]))


def test_one_user_by_hand() -> None:
    # 4 training items: 3 positions with a target. A product of (m, k) and (k, n) takes 2mkn operations.
    n, items = 3, 100
    forward_body = BLOCKS * (2 * n * D * 3 * D + 2 * n * D * D + 2 * n * D * 64 + 2 * n * 64 * D)
    forward_attention = BLOCKS * 2 * (2 * n * n * D) / 2  # scores and mixing, half of each by causality
    forward_softmax = 2 * n * D * items
    expected = Work(3 * forward_body + 3.5 * forward_attention + 3 * forward_softmax, n * items)
    assert epoch_work(histories(4), n_items=items, max_len=50, inner_dim=64) == expected


def test_only_the_newest_positions_count() -> None:
    assert epoch_work(histories(300), n_items=10, max_len=50, inner_dim=64) == epoch_work(
        histories(51), n_items=10, max_len=50, inner_dim=64
    )


@pytest.mark.parametrize("length", [0, 1])
def test_a_user_without_a_target_costs_nothing(length: int) -> None:
    assert epoch_work(histories(length), n_items=10, max_len=50, inner_dim=64) == Work(0, 0)


def test_wider_feed_forward_costs_two_products_more() -> None:
    narrow, wide = (epoch_work(histories(4), n_items=10, max_len=50, inner_dim=width) for width in (64, 256))
    assert wide.flops - narrow.flops == 3 * BLOCKS * 2 * (2 * 3 * D * (256 - 64))
