"""A dozen users of four lengths, for what learns intents of them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recdistill.data.dataset import Sequences
from recdistill.methods.base import Setting
from recdistill.models.base import Model, build_model

OFF = {"cluster_weight": 0.0, "contrast_weight": 0.0, "distillation_weight": 0.0, "adversary_weight": 0.0}
"""Labels alone; a test switches on what it is about."""
N = 12
TRAIN = Sequences.from_lists([(start + step) % N + 1 for step in range(3 + start % 4)] for start in range(N))
"""Three users of each length from 3 to 6; the longest are the head where it may be 0.3 of all."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed)).requires_grad_()


def setting(train: Sequences = TRAIN, seed: int = 0) -> Setting:
    return Setting(train, np.arange(len(train)), N, seed=seed)


def student(name: str = "sasrec", **settings: Any) -> Model:
    return build_model(name, N, {"dim": 8, "max_len": 8, "dropout": 0.0} | settings, seed=0)
