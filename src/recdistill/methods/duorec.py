"""DuoRec: a history read twice with other dropout, and another that leads to the same item, are alike.

Source: Qiu et al., "Contrastive Learning for Representation Degeneration Problem in Sequential Recommendation", WSDM
2022 (arXiv 2110.05730).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recdistill.arrays import Bools, Ints
from recdistill.augmentations import join
from recdistill.data.dataset import Sequences
from recdistill.methods.base import Method, Setting, TrainingBatch
from recdistill.methods.contrast import ContrastConfig, encode_views, nt_xent
from recdistill.methods.labels import LabelLoss
from recdistill.models.base import Batch, Model


class DuoRecConfig(ContrastConfig):
    """Contrast by dropout and by next items; weight, temperature and similarity are those of the authors' code."""

    positives: Literal["same_target", "dropout"] = "same_target"
    """What a history is like: another that was followed by the same item, or only itself with other dropout.

    With ``dropout`` all other histories of the batch are negatives.
    """


class DuoRec(Method, name="duorec"):
    r"""Learn true items, and see what histories with the same next item have in common.

    .. math:: L = L_{label} + \lambda L_{reg}

    The second part is `nt_xent` between a further pass over each history without its last training item, with its own
    dropout, and a pass over another history, or part of one, that was followed by that very item. It is drawn anew
    each time; where there is none the history itself is read once more. Of a history that the batch shows from a later
    item on, no more is read here, and the other one is read from a random item on, too. Histories with the same next
    item are not each other's negatives.

    Differs from the paper: one pair a history and not one for each of its prefixes, all of which can be drawn.
    """

    Config = DuoRecConfig
    config: DuoRecConfig
    reads_last = False
    parts_of_histories = True

    def prepare(self, setting: Setting) -> None:
        """File every prefix of every training history under the item that follows it."""
        self.label_loss = LabelLoss(self.config.label_loss, setting)
        self.prefixes = Prefixes(setting)

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the parts ``label`` and ``contrast``."""
        config = self.config
        parts = {"label": self.label_loss(student, batch)}
        if config.contrast_weight:
            pairs, same = self._pairs(batch, student)
            first, second = encode_views(student, pairs, "last")
            contrast = nt_xent(first, second, temperature=config.temperature, similarity=config.similarity, same=same)
            parts["contrast"] = config.contrast_weight * contrast
        return parts

    def _pairs(self, batch: TrainingBatch, student: Model) -> tuple[Batch, Tensor | None]:
        """Return 2B histories, the batch's and then what each is like; and ``(B,)`` equal for those with one target."""
        rows, device = batch.rows.cpu().numpy(), batch.rows.device
        longest = self.prefixes.longest(rows)
        own, later = self._as_shown(longest, rows, batch.batch, student)
        packed = Batch.from_sequences(own).to(device)
        if self.config.positives == "dropout":
            return join(packed, packed), None
        other = self.prefixes.with_same_target(rows, batch.generator)
        itself = other.ends == longest.ends
        other = _newest(other, student.max_len)
        if later.any():
            draws = torch.rand(len(rows), generator=batch.generator, dtype=torch.float64).numpy()
            begun = np.where(later, other.starts + (draws * other.lengths).astype(np.int64), other.starts)
            other = Sequences(other.items, np.where(itself, own.starts, begun), other.ends)
        targets = self.prefixes.targets(rows)
        same = np.where(targets > 0, targets, -1 - np.arange(len(rows)))
        return join(packed, Batch.from_sequences(other).to(device)), torch.from_numpy(same).to(device)

    def _as_shown(self, longest: Sequences, rows: Ints, batch: Batch, student: Model) -> tuple[Sequences, Bools]:
        """Return what a batch shows of its histories before their targets, and which it shows from a later item on."""
        lengths, read = batch.lengths.cpu().numpy(), self.prefixes.rows.take(rows)
        if student.causal:
            read = read.without_newest(1)  # a batch for models that see both sides holds the target
        later = lengths < _newest(read, student.max_len).lengths
        shown = np.where(later, np.maximum(lengths - (not student.causal), 1), longest.lengths)
        own = Sequences(longest.items, np.maximum(longest.starts, longest.ends - shown), longest.ends)
        return _newest(own, student.max_len), later


def _newest(sequences: Sequences, max_len: int | None) -> Sequences:
    return sequences if max_len is None else sequences.newest(max_len)


class Prefixes:
    """The parts that histories begin with, each filed under the item that follows it, its target."""

    def __init__(self, setting: Setting) -> None:
        """File every prefix of at least one item; the whole histories have T items in all."""
        users, rows = setting.whole_rows
        whole = setting.train.take(rows)
        self.items, self.offsets = whole.flat()
        starts = self.offsets[np.searchsorted(users, setting.users)]
        self.rows = Sequences(self.items, starts, starts + setting.train.lengths)
        """``(R,)`` the training histories; a row that shows an earlier state is a prefix of its whole history."""
        ends = np.delete(np.arange(len(self.items)), self.offsets[:-1][whole.lengths > 0])
        self.keys: Ints = np.sort(self.items[ends].astype(np.int64) * len(self.items) + ends)
        """``(P,)`` rising, for each prefix: its target times T, plus the place in ``items`` where the target stands."""

    def targets(self, rows: Ints) -> Ints:
        """Return ``(B,)`` the last item of each row; 0 where nothing comes before it."""
        last = self.rows.ends[rows] - 1
        return np.where(last > self.rows.starts[rows], self.items[last], 0).astype(np.int64)

    def longest(self, rows: Ints) -> Sequences:
        """Return each row without its last item, or as it is where there is no other."""
        starts = self.rows.starts[rows]
        return Sequences(self.items, starts, np.maximum(self.rows.ends[rows] - 1, starts + 1))

    def with_same_target(self, rows: Ints, generator: torch.Generator) -> Sequences:
        """Draw for each row any other prefix with the same target; the row's own where there is no other."""
        own, total = self.longest(rows), len(self.items)
        first = self.targets(rows) * total
        begin, place, end = (np.searchsorted(self.keys, first + shift) for shift in (0, own.ends, total))
        n_others = end - begin - 1
        drawn = begin + (torch.rand(len(rows), generator=generator, dtype=torch.float64).numpy() * n_others).astype(int)
        drawn += drawn >= place
        found = n_others > 0
        starts, ends = own.starts.copy(), own.ends.copy()
        ends[found] = self.keys[drawn[found]] % total
        starts[found] = self.offsets[np.searchsorted(self.offsets, ends[found], side="right") - 1]
        return Sequences(self.items, starts, ends)
