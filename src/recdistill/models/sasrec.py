"""SASRec: a causal transformer over the items of a history.

Source: Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018.
Differs from the paper: pre-norm blocks and GELU by default, no dropout on attention weights (it costs three times the
attention itself on a CPU), and the loss is the method's business.
"""

from __future__ import annotations

from torch import Tensor

from recdistill.models.base import Batch
from recdistill.models.transformer import Transformer, TransformerConfig


class SASRecConfig(TransformerConfig):
    """The size and shape of SASRec."""


class SASRec(Transformer, name="sasrec"):
    """A causal transformer: the state at an item says what comes after it."""

    Config = SASRecConfig

    def encode(self, batch: Batch) -> Tensor:
        """Return the state at each history's newest item, ``(B, D)``."""
        return self._encode_newest(batch.newest(self.config.max_len))
