"""What methods share that learn from a teacher's scores: the teacher's view of the users, and the student's own lists.

Nothing here ever holds a score for every user and item at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from recdistill.arrays import Ints
from recdistill.data.dataset import Sequences
from recdistill.errors import TeacherError
from recdistill.methods.base import Method, Setting, TrainingBatch
from recdistill.methods.believing import DEPTH
from recdistill.methods.labels import LabelLoss, LabelLossConfig, as_lists, distinct_pairs
from recdistill.methods.opinion import SecondOpinionConfig, advised
from recdistill.methods.probing import probe, without
from recdistill.models.base import Batch, Model
from recdistill.models.scoring import top_k
from recdistill.rankings import Ranking, Scores
from recdistill.settings import Settings
from recdistill.teachers.base import scorer_of_some


class DistillationConfig(Settings):
    """What all methods share that add a teacher's loss to that on true items."""

    label_loss: LabelLossConfig = LabelLossConfig()
    """How true items are learned; the ``precision`` holds for answers of `ckd`, and of `ce` on all items, as well."""
    weight: NonNegativeFloat = 1.0
    """λ: what the teacher's loss counts, a mean over users, beside that on true items, a mean over items.

    It has to be tuned: values in papers run from 0.005 to 100 000, with the scale of scores and losses. Where a paper
    sums both losses over the (user, item) rows of a batch, its λ is this one. Where it sums the teacher's over the
    distinct users of the batch, its λ times their share of the rows is.
    """


class GuidedConfig(DistillationConfig):
    """What methods share that look at the student's own lists."""

    refresh_every: PositiveInt = 1
    """Epochs between two looks at the same user's list. All users are looked at before the first epoch, then each epoch
    at another n-th part of them, so that epochs cost the same. The papers look at all before each epoch.
    """


class Distillation(Method):
    r"""A loss on true items, and ``weight`` times a teacher's loss that is a mean over users.

    .. math:: L = L_{label} + \lambda \frac1B \sum_u L_{teacher}(u)

    A user counts once a batch, however long the history is; with ``long_histories = "windows"`` so does each window,
    which the teacher is asked about by itself.
    """

    Config = DistillationConfig
    config: DistillationConfig

    def n_listed(self, setting: Setting) -> int:
        """How many items a teacher of lists is asked for; who scores any item is asked for scores."""
        return DEPTH

    def prepare(self, setting: Setting) -> None:
        """Take note of the training data and the teacher, advised where the settings ask for a second opinion.

        Raises:
            SettingsError: when the teacher does not give what is needed.
        """
        self.teacher = self.check_teacher(setting.teacher)
        self.setting = setting
        if isinstance(self.config, SecondOpinionConfig):
            self.setting = advised(setting, self.config.second_opinion, k=self.n_listed(setting))
        self.label_loss = LabelLoss(self.config.label_loss, setting)

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the parts ``label`` and ``teacher``."""
        label, queries, _ = self.label_loss.with_queries(student, batch)
        return {"label": label, "teacher": self.config.weight * self.distil(student, queries, batch)}

    @abstractmethod
    def distil(self, student: Model, queries: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the teacher's loss, a scalar, from the student's vectors ``queries (B, D)`` of the batch's users."""


class GuidedDistillation(Distillation):
    """A distillation that looks at the student's own lists, each user's every few epochs."""

    Config = GuidedConfig
    config: GuidedConfig

    def start_epoch(self, student: Model, epoch: int, generator: torch.Generator) -> None:
        """Look at the student's lists of the users whose turn it is; at first, of all."""
        rows, every = known(self.setting), self.config.refresh_every
        self.refresh(student, rows if epoch == 0 else rows[epoch % every :: every], generator)

    @abstractmethod
    def refresh(self, student: Model, rows: Ints, generator: torch.Generator) -> None:
        """Take from the student as it is now whatever the loss needs of some rows, into what `keep` made."""

    def keep(self, name: str, *shape: int, dtype: torch.dtype) -> None:
        """Make room for what a refresh finds, as the attribute ``name``: a zero tensor with a row for each user.

        Where a part of it outlives an epoch it is in the checkpoint, so that a resumed run goes on with it.
        """
        room = torch.zeros(len(self.setting.train), *shape, dtype=dtype)
        self.register_buffer(name, room, persistent=self.config.refresh_every > 1)


class TeacherView:
    """What a teacher says about the users of the training data: lists, and scores of any item."""

    def __init__(self, setting: Setting) -> None:
        """Let the teacher read the training histories that it can say something about."""
        assert setting.teacher is not None
        self.setting, self.teacher = setting, setting.teacher
        self.rows = known(setting)
        self.knows = np.isin(np.arange(len(setting.train)), self.rows)
        users = setting.users if self.teacher.needs_users else None
        self.scorer = scorer_of_some(self.teacher, setting.train, self.rows, users=users)

    def scores(self, rows: Tensor, items: Tensor) -> Tensor:
        """Return the scores ``(B, C)`` of ``items (B, C)`` for the users of ``rows (B,)``.

        They are −∞ under padding (0), and where the teacher does not know the user.

        Raises:
            TeacherError: for a score that is not a finite number.
        """
        wanted = items.cpu().numpy().astype(np.int64, copy=False)
        scores = self._ask(rows, np.maximum(wanted, 1))
        return torch.from_numpy(scores).to(items.device).masked_fill(items == 0, -torch.inf)

    def all_scores(self, rows: Tensor) -> Tensor:
        """Return the scores ``(B, N)`` of items 1…N for the users of ``rows (B,)``, on the rows' device.

        They are −∞ where the teacher does not know the user.

        Raises:
            TeacherError: for a score that is not a finite number, or for more or fewer items than there are.
        """
        scores = self._ask(rows, None)
        if scores.shape[1] != self.setting.n_items:
            raise TeacherError(
                f"teacher {self.teacher.identity!r} scores {scores.shape[1]:,} items, but the data have "
                f"{self.setting.n_items:,}; take a teacher of these items."
            )
        return torch.from_numpy(scores).to(rows.device)

    def _ask(self, rows: Tensor, items: Ints | None) -> Scores:
        """Return the scores of some items ``(B, C)``, or of all; finite where the user is known."""
        at = rows.cpu().numpy()
        scores = self.scorer(at, items)
        wrong = self.knows[at][:, None] & ~np.isfinite(scores)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            item = column + 1 if items is None else items[row, column]
            raise TeacherError(
                f"teacher {self.teacher.identity!r} scores item {item} as {scores[row, column]} for "
                f"user {self.setting.users[at[row]]}; scores must be finite numbers. Look at the teacher's weights."
            )
        return scores

    def lists(self, k: int, *, seen_items: bool) -> Tensor:
        """Return the teacher's top ``k`` for each training row, ``(R, k)`` int64, best first; 0 is padding.

        Args:
            k: length of the lists, at most N.
            seen_items: whether items of the user's history are listed, too.
        """
        if not seen_items:
            return teacher_lists(self.setting, k)
        lists = torch.from_numpy(probe(self.setting, k=k).full.items).long()
        if self.teacher.exclude_history:  # then let the items of each history compete with the list
            for rows in blocks(self.rows):
                batch = Batch.from_sequences(self.setting.train.take(rows))
                history = as_lists(*distinct_pairs(batch, self.setting.n_items), len(rows))
                at = torch.from_numpy(rows)
                both = torch.cat([lists[at], history], dim=1)
                best = self.scores(at, both).sort(dim=1, descending=True, stable=True).indices
                lists[at] = both.gather(1, best[:, : lists.shape[1]])
        return lists


def teacher_lists(setting: Setting, k: int) -> Tensor:
    """Return the items of `teacher_ranking`, ``(R, k)`` int64; 0 is padding."""
    return torch.from_numpy(teacher_ranking(setting, k).items).long()


def teacher_ranking(setting: Setting, k: int) -> Ranking:
    """Return a teacher's top ``k`` for each training row without the items of its history, best first.

    Args:
        setting: the training histories and the teacher.
        k: length of the lists, at most N.
    """
    assert setting.teacher is not None
    k = min(k, setting.n_items)
    answers = probe(setting, k=n_asked(setting, k)).full
    if not setting.teacher.exclude_history:
        answers = without(answers, setting.train, setting.n_items)
    return Ranking(answers.items[:, :k], None if answers.scores is None else answers.scores[:, :k])


def n_asked(setting: Setting, k: int) -> int:
    """Return how long lists are asked for, so that ``k`` items are left without those of the history."""
    assert setting.teacher is not None
    return k if setting.teacher.exclude_history else k + int(setting.train.lengths.max())


def student_lists(
    student: Model, setting: Setting, rows: Ints, k: int, *, seen_items: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rank all items by the student, some users at a time.

    Args:
        student: as it is now.
        setting: whose training histories are read.
        rows: of the training data that have a history; what it is ranked for.
        k: length of the lists, at most N.
        seen_items: whether items of the user's history are listed, too.

    Yields:
        Some ``(B,)`` of these rows, and their lists ``(B, k)`` int64, best first; 0 is padding. Both are on the CPU.
    """
    for block in blocks(rows):
        histories = setting.train.take(block)
        masked = None if seen_items else histories
        users = setting.users[block] if student.reads == "user" else None
        ranking = top_k(student, histories, min(k, setting.n_items), masked, users=users)
        yield torch.from_numpy(block), torch.from_numpy(ranking.items.astype(np.int64))


def filled(train: Sequences) -> Ints:
    """Return the rows that have a history."""
    return np.flatnonzero(train.lengths)


def known(setting: Setting) -> Ints:
    """Return the rows that have a history, and a user whom the teacher knows where it answers for users."""
    rows = filled(setting.train)
    users = asked_users(setting, rows)
    if users is None:
        return rows
    assert setting.teacher is not None
    return rows[setting.teacher.knows(users)]


def asked_users(setting: Setting, rows: Ints) -> Ints | None:
    """Return the users of some rows, where the teacher needs them."""
    assert setting.teacher is not None
    return setting.users[rows] if setting.teacher.needs_users else None


def blocks(rows: Ints, size: int = 2048) -> Iterator[Ints]:
    """Cut rows into as many as are handled at once."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
