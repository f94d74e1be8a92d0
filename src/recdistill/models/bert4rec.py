"""BERT4Rec: a transformer that sees both sides of a masked item.

Source: Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer",
CIKM 2019. Differs from the paper: no extra projection layer before the scores, so that scores are a plain product.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from recdistill.models.base import Batch
from recdistill.models.transformer import Transformer, TransformerConfig


class BERT4RecConfig(TransformerConfig):
    """The size and shape of BERT4Rec."""

    max_len: int = Field(default=50, ge=2)
    """How many of a history's newest items are read (L), the mask after them included."""


class BERT4Rec(Transformer, name="bert4rec"):
    """A bidirectional transformer: the state at a masked item says which item stands there."""

    Config = BERT4RecConfig
    causal = False
    n_special = 1

    @property
    def mask_item(self) -> int:
        """The item that stands for "which one?"; N+1."""
        return self.n_items + 1

    def encode(self, batch: Batch) -> Tensor:
        """Return the state at a mask put after each history, ``(B, D)``; one item less of a full history is read."""
        self._check(batch.newest(self.config.max_len))
        return self._encode_newest(self._with_mask(batch))

    def _with_mask(self, batch: Batch) -> Batch:
        kept = batch.newest(self.config.max_len - 1)
        lengths = kept.lengths + 1
        offsets = torch.zeros_like(kept.offsets)
        torch.cumsum(lengths, 0, out=offsets[1:])
        items = torch.full((int(offsets[-1]),), self.mask_item, dtype=torch.int64, device=kept.items.device)
        real = torch.ones_like(items, dtype=torch.bool)
        real[offsets[1:] - 1] = False
        items[real] = kept.items
        return Batch(items, offsets, batch.users)
