"""What a student learns from labels: each loss by hand, masks, negatives."""

import math

import numpy as np
import pytest
import torch

from recdistill.data.dataset import Sequences
from recdistill.methods.base import Setting
from recdistill.methods.labels import LabelLoss, LabelLossConfig, bce_loss, gbce_loss, mask_items
from recdistill.models.base import Batch


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_bce_by_hand_leaves_out_a_negative_that_is_the_label() -> None:
    states, embeddings = torch.ones(2, 1), torch.tensor([[9.0], [1.0], [-2.0]])
    loss = bce_loss(states, embeddings, torch.tensor([1, 1]), torch.tensor([2, 1]))
    first = -math.log(_sigmoid(1)) - math.log(1 - _sigmoid(-2))
    second = -math.log(_sigmoid(1))
    assert loss.item() == pytest.approx((first + second) / 2)


def test_gbce_by_hand() -> None:
    states, embeddings = torch.ones(1, 1), torch.tensor([[9.0], [1.0], [-2.0], [0.5], [0.1]])
    loss = gbce_loss(states, embeddings, torch.tensor([1]), torch.tensor([2, 1]), calibration=0.75, precision="fp32")
    alpha = 2 / (4 - 1)
    beta = alpha * (0.75 * (1 - 1 / alpha) + 1 / alpha)
    start = math.log(2 / beta)
    expected = -beta * math.log(_sigmoid(1 - start)) - math.log(1 - _sigmoid(-2 - start))  # the second is the label
    assert loss.item() == pytest.approx(expected)


def test_gbce_without_calibration_keeps_the_positive_whole() -> None:
    states, embeddings = torch.ones(1, 1), torch.tensor([[9.0], [1.0], [-2.0], [0.5], [0.1]])
    loss = gbce_loss(states, embeddings, torch.tensor([1]), torch.tensor([2]), calibration=0, precision="fp32")
    assert loss.item() == pytest.approx(-math.log(_sigmoid(1)) - math.log(1 - _sigmoid(-2)))


def test_gbce_begins_in_balance() -> None:
    """At equal scores nothing pushes all items down, or up."""
    shift = torch.zeros(1, 1, requires_grad=True)  # the one coordinate of a state, on items that all are 1
    embeddings, negatives = torch.ones(60, 1), torch.arange(2, 52)
    gbce_loss(shift, embeddings, torch.tensor([1]), negatives, calibration=0.75, precision="fp32").backward()
    assert shift.grad is not None
    assert shift.grad.item() == pytest.approx(0, abs=1e-6)


def _labels(config: LabelLossConfig, rows: list[list[int]], n_items: int) -> LabelLoss:
    return LabelLoss(config, Setting(Sequences.from_lists(rows), np.arange(len(rows)), n_items))


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_negatives_estimate_the_sum_over_the_catalogue_without_bias(by: str) -> None:
    """The logQ correction: on average the weighted negatives stand for every item that is ever drawn."""
    rows = [[1, 1, 1, 1, 2, 2, 3, 4]]
    labels = _labels(LabelLossConfig(n_negatives=2), rows, n_items=4)
    generator, total = torch.Generator().manual_seed(0), torch.zeros(5)
    for _ in range(4000):
        negatives, log_weights = labels._negatives(by, 4, generator)
        assert len(set(negatives.tolist())) == len(negatives)
        total[negatives] += log_weights.exp()
    torch.testing.assert_close(total[1:] / 4000, torch.ones(4), rtol=0, atol=0.12)


def test_masks_hide_at_least_one_item_of_each_history_and_label_it() -> None:
    batch = Batch.from_lists([[1, 2, 3], [4], [5, 6]])
    for seed in range(20):
        masked, labels = mask_items(batch, 99, share=0.1, last_share=0.0, generator=torch.Generator().manual_seed(seed))
        hidden = masked.items == 99
        assert torch.equal(torch.where(hidden, labels, masked.items), batch.items)
        assert torch.equal(labels > 0, hidden)
        assert all(part.any() for part in hidden.split(batch.lengths.tolist()))


def test_last_share_hides_only_the_newest_item() -> None:
    batch = Batch.from_lists([[1, 2, 3], [4], [5, 6]])
    masked, labels = mask_items(batch, 99, share=0.9, last_share=1.0, generator=torch.Generator().manual_seed(0))
    assert masked.items.tolist() == [1, 2, 99, 99, 5, 99]
    assert labels.tolist() == [0, 0, 3, 4, 0, 6]
