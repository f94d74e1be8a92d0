"""The losses on the order of lists agree with their formulas."""

import math

import pytest
import torch

from recdistill.losses.ranking import order_loss


def test_order_is_learned_between_neighbours_of_different_worth() -> None:
    logits = torch.tensor([[2.0, 1.9, 3.0, 9.0], [1.0, 1.0, 1.0, 1.0], [5.0, 1.0, 0.0, 0.0]])
    worth = torch.tensor([[4.0, 3.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0], [-1.0, -2.0, -torch.inf, -torch.inf]])
    expected = [(0.4 + 1.6) / 2, 0.0, 0.0]  # leads of 0.1 and −1.1 where 0.5 is wanted
    assert order_loss(logits, worth, margin=0.5).tolist() == pytest.approx(expected)
    smooth = (math.log1p(math.exp(-0.1)) + math.log1p(math.exp(1.1))) / 2
    assert order_loss(logits, worth, margin=None)[0].item() == pytest.approx(smooth)
