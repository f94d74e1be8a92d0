"""BPR-MF: a vector for each user and each item, and nothing else.

Source: Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009, section 4.3.1.
Differs from the paper: the loss is the method's business (``loss = "bpr"`` is the paper's).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from recdistill.data.dataset import Sequences
from recdistill.models.base import Batch, UserModel
from recdistill.models.layers import init_weights
from recdistill.settings import Settings


class MFConfig(Settings):
    """The size of the two tables."""

    dim: PositiveInt = 64
    """Width of user and item vectors (D)."""
    item_bias: bool = False
    """Whether each item has a number of its own that is added to all its scores.

    It is one more coordinate of the item's vector, where the users' vectors are 1.
    """
    init_std: float = Field(default=0.01, gt=0)
    """Standard deviation of the initial vectors."""


class MF(UserModel, name="mf"):
    """Matrix factorisation: a score is the product of the user's and the item's vector."""

    Config = MFConfig
    config: MFConfig

    def __init__(self, config: MFConfig, n_items: int, train: Sequences) -> None:
        super().__init__(config, n_items, train)
        self.user_embedding = nn.Embedding(self.n_users, config.dim)
        self.embedding = nn.Embedding(n_items + 1, config.dim, padding_idx=0)
        init_weights(self, std=config.init_std)
        with torch.no_grad():
            self.embedding.weight[0] = 0
        self.item_bias = nn.Parameter(torch.zeros(n_items + 1)) if config.item_bias else None

    def encode(self, batch: Batch) -> Tensor:
        """Return the vector of each user, ``(B, D)``; ``(B, D+1)`` with a bias."""
        users: Tensor = self.user_embedding(self._users(batch))
        return users if self.item_bias is None else F.pad(users, (0, 1), value=1.0)

    def item_embeddings(self) -> Tensor:
        """Return ``(N+1, D)`` item vectors; ``(N+1, D+1)`` with a bias."""
        weight: Tensor = self.embedding.weight
        return weight if self.item_bias is None else torch.cat([weight, self.item_bias[:, None]], 1)
