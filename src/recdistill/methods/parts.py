"""Parts of the histories of a batch: shorter ones, and states that users were in earlier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recdistill.models.base import Batch


@dataclass(frozen=True, slots=True, eq=False)
class ShownPrefixes:
    """E oldest parts of histories, within what a batch shows of them."""

    turns: Tensor
    """``(E,)`` the row of each in what says how many items it is without."""
    histories: Tensor
    """``(E,)`` which of the batch's histories each is a part of, in their order."""
    places: Tensor
    """``(E,)`` where its newest item stands among the batch's items."""
    counts: Tensor
    """``(E,)`` how many prefixes of its history each stands for."""

    @classmethod
    def of(cls, batch: Batch, dropped: Tensor) -> ShownPrefixes:
        """Find the prefixes of which a batch shows at least an item.

        Args:
            batch: B histories.
            dropped: ``(P, B)`` how many of the newest items each prefix is without; 0 where there is none.
        """
        histories, turns = ((dropped > 0) & (dropped < batch.lengths)).T.nonzero(as_tuple=True)
        places = batch.last[histories] - dropped[turns, histories]
        return cls(turns, histories, places, torch.ones_like(turns))

    def one_each(self, draws: Tensor) -> ShownPrefixes:
        """Keep one of each history's, which stands for all of them.

        Args:
            draws: ``(B,)`` in [0, 1), which one.
        """
        counts = torch.bincount(self.histories, minlength=len(draws))
        some = counts.nonzero().squeeze(1)
        kept = (counts.cumsum(0) - counts + (draws * counts).long())[some]
        return ShownPrefixes(self.turns[kept], some, self.places[kept], counts[some])

    def alone(self, batch: Batch) -> Batch:
        """Return them as E histories."""
        return cut(batch, batch.offsets[self.histories], self.places + 1)


def cut(batch: Batch, starts: Tensor, ends: Tensor) -> Batch:
    """Return E pieces of a batch as histories.

    Args:
        batch: whose items are taken.
        starts: ``(E,)`` int64 where each piece begins among the batch's items.
        ends: ``(E,)`` int64 where it is over, the first item that it is without.
    """
    lengths = ends - starts
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    at = torch.arange(int(offsets[-1]), device=lengths.device)
    return Batch(batch.items[at + torch.repeat_interleave(starts - offsets[:-1], lengths)], offsets)
