"""Labels smoothed by what followed the same items in other histories."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recdistill.arrays import Ints
from recdistill.data.dataset import Sequences
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.teachers.rules import RulesTeacher

_BLOCK = 65_536
"""Histories that rules are asked about at once."""
SHARP: dict[str, Any] = {"window": 5, "fade": 1.0, "decay": 0.5, "popularity": 0.0, "prior": 0.0}
"""What is counted in an order: the near past, as often as it was. The defaults of `RulesTeacher` recommend better by
themselves, but add less to labels (``benchmarks/s4rec.md``)."""


class Smoothing:
    r"""What rules say comes next, after each training item or for each user, as soft targets.

    .. math:: p = (1 - \lambda) \, e_y + \lambda q, \qquad
              q_j \propto \text{the share of } j \text{ in what the } K \text{ best rules of the history say}

    A label says that one item was taken, and denies all others alike, also those that other users took who had been at
    the same items. q says which these are: it spreads a share λ of every label over what followed the items of the
    history in all training histories (`RulesTeacher`). The label is among these itself, since its own step was counted,
    too. A label after an item of which rules say nothing stays whole.

    Source: ours. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7,
    smooth labels by a constant q.

    Args:
        setting: whose training histories are counted. Items of a history are in its q only if histories repeat items.
        share: λ, in (0, 1).
        depth: K.
    """

    def __init__(self, setting: Setting, share: float, depth: int) -> None:
        self.setting, self.share, self.depth = setting, share, min(depth, setting.n_items)
        users, rows = setting.whole_rows
        self.whole = setting.train.take(rows)
        self.row_of_user = np.zeros(int(users.max(initial=0)) + 1, np.int64)
        self.row_of_user[users] = np.arange(len(users))

    def after(self, batch: TrainingBatch, at: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the targets of labels that stand somewhere after items of the histories.

        Args:
            batch: its items, masked or not, are the newest of its rows.
            at: ``(L,)`` the item of the batch that each label comes right after; −1 for a label that nothing precedes.
            labels: ``(L,)``

        Returns:
            ``(L, 1 + K)`` items, the label first, 0 is padding; and their probabilities.
        """
        places = self._places(batch, at.cpu())
        items, shares = (table[places.clamp_min(0)] for table in self._after)
        shares = torch.where(places[:, None] >= 0, shares, 0)
        return self._mixed(labels, items.to(labels.device, torch.int64), shares.to(labels.device, torch.float32))

    def for_users(self, batch: TrainingBatch, lists: Tensor) -> tuple[Tensor, Tensor]:
        """Return the targets of users, all of whose items are labels.

        Args:
            batch: of B users.
            lists: ``(B, M)`` the different items of each; 0 is padding.

        Returns:
            ``(B, M + K)`` items and their probabilities, which add up to the number of labels in each row.
        """
        rows = self.row_of_user[self.setting.users[batch.rows.cpu().numpy()]]
        items, shares = (table[rows].to(lists.device) for table in self._of_users)
        counts = (lists > 0).sum(1, keepdim=True)
        share = torch.where(items[:, :1] > 0, self.share, 0.0)
        probs = [(1 - share).expand(lists.shape), share * counts * shares.to(torch.float32)]
        return torch.cat([lists, items.to(torch.int64)], 1), torch.cat(probs, 1)

    def _mixed(self, labels: Tensor, items: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Join ``(L,)`` labels with ``(L, K)`` what rules say; an item stands in a row once."""
        known = shares.sum(1, keepdim=True) > 0
        shares = self.share * shares
        again = items == labels[:, None]
        own = torch.where(known, 1 - self.share, 1.0) + torch.where(again, shares, 0).sum(1, keepdim=True)
        items = torch.where(again | (shares == 0), 0, items)
        return torch.cat([labels[:, None], items], 1), torch.cat([own, shares], 1)

    def _places(self, batch: TrainingBatch, at: Tensor) -> Tensor:
        """Return where items of a batch stand among all items of the whole histories; −1 stays."""
        inner = batch.batch.to("cpu")
        rows = batch.rows.cpu().numpy()
        owner = torch.searchsorted(inner.offsets, at.clamp_min(0), right=True) - 1
        from_end = inner.offsets[owner + 1] - at  # 1 for the newest that is shown
        hidden = (batch.labels.cpu()[inner.last] > 0).long()[owner]  # the last label is no item that is shown
        ends = torch.from_numpy(self._ends(rows))[owner]
        return torch.where(at < 0, -1, ends - hidden - from_end)

    def _ends(self, rows: Ints) -> Ints:
        """Return where training rows end among all items of the whole histories."""
        own = self.row_of_user[self.setting.users[rows]]
        ends: Ints = self._starts[own] + self.setting.train.ends[rows] - self.whole.starts[own]
        return ends

    @cached_property
    def _starts(self) -> Ints:
        lengths = self.whole.lengths
        return np.cumsum(lengths) - lengths

    @cached_property
    def _after(self) -> tuple[Tensor, Tensor]:
        """``(P, K)`` items and shares after each item of the whole histories."""
        lengths = self.whole.lengths
        inside = np.arange(int(lengths.sum())) - np.repeat(self._starts, lengths)
        starts = np.repeat(self.whole.starts, lengths)
        return self._ask(Sequences(self.whole.items, starts, starts + inside + 1), ordered=True)

    @cached_property
    def _of_users(self) -> tuple[Tensor, Tensor]:
        """``(R, K)`` items and shares of each whole history, in no order."""
        return self._ask(self.whole, ordered=False)

    def _ask(self, histories: Sequences, *, ordered: bool) -> tuple[Tensor, Tensor]:
        rules = RulesTeacher(
            self.whole,
            self.setting.n_items,
            ordered=ordered,
            exclude_history=not _repeats(self.whole),
            **(SHARP if ordered else {}),
        )
        items = torch.zeros(len(histories), self.depth, dtype=torch.int32)
        shares = torch.zeros(len(histories), self.depth, dtype=torch.float16)
        for start in range(0, len(histories), _BLOCK):
            rows = slice(start, min(start + _BLOCK, len(histories)))
            ranking = rules.rank(histories.take(rows), self.depth)
            assert ranking.scores is not None, "rules give scores"
            items[rows] = torch.from_numpy(ranking.items)
            shares[rows] = torch.softmax(torch.from_numpy(ranking.scores), 1).nan_to_num(0.0).half()
            self.setting.progress("counting what follows what", rows.stop, len(histories))
        return items, shares


def _repeats(histories: Sequences) -> bool:
    """Whether any history holds an item twice."""
    items, offsets = histories.flat()
    owner = np.repeat(np.arange(len(histories)), np.diff(offsets))
    return len(np.unique(owner * (int(items.max(initial=0)) + 1) + items)) < len(items)
