"""A model of our own as a teacher: rankings, and scores of any item."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt
import torch

from recdistill.data.dataset import Ints, Sequences
from recdistill.errors import TeacherError
from recdistill.evaluation.scoring import score_blocks, top_k
from recdistill.models.base import Model
from recdistill.teachers.base import Ranking, Scores, Teacher


class LocalTeacher(Teacher):
    """A trained model; with ``gives_scores=False`` it poses as a black box that gives lists only.

    Args:
        model: the trained model.
        gives_scores: whether rankings come with scores.
        exclude_history: whether items of the history are left out; false for data with repeats.
        name: what it is called, before a hash of its weights; the model's own name by default.
    """

    def __init__(
        self, model: Model, *, gives_scores: bool = True, exclude_history: bool = True, name: str | None = None
    ) -> None:
        self.model = model
        self.gives_scores = gives_scores
        self.exclude_history = exclude_history
        self.takes = model.reads
        told = [gives_scores, exclude_history]
        self._identity = f"{name or model.name}-{_fingerprint(model, told)}"

    @property
    def identity(self) -> str:
        """The name, and a hash of the weights and of all else that changes the answers."""
        return self._identity

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Return the top ``k`` for each history; equal scores in the order of the items.

        Raises:
            TrainingError: when a score is NaN.
            DataError: when a history is empty, or an item is none of the model's.
        """
        ranking = top_k(self.model, histories, k, histories if self.exclude_history else None, users=users)
        return ranking if self.gives_scores else Ranking(ranking.items)

    def scores(self, histories: Sequences, candidates: Ints, *, users: npt.NDArray[np.integer] | None = None) -> Scores:
        """Return the scores ``(B, C)`` of chosen items.

        Args:
            histories: B rows of dense item ids, oldest first.
            candidates: ``(B, C)`` dense item ids in 1…N, for each history its own; may be items of the history.
            users: ``(B,)`` dense users, for models that read the user.

        Raises:
            TeacherError: for an item outside 1…N, or a teacher that gives lists only.
        """
        if not self.gives_scores:
            raise TeacherError(f"teacher {self.identity!r} gives lists only; make it with gives_scores=True.")
        if candidates.size and (candidates.min() < 1 or candidates.max() > self.model.n_items):
            raise TeacherError(
                f"a candidate is outside 1…{self.model.n_items}, the items of teacher {self.identity!r}."
            )
        scores = np.empty(candidates.shape, np.float32)
        for rows, block in score_blocks(self.model, histories, None, users=users):
            wanted = torch.from_numpy(candidates[rows].astype(np.int64)).to(block.device)
            scores[rows] = block.gather(1, wanted).cpu().numpy()
        return scores


def _fingerprint(model: Model, told: list[bool]) -> str:
    """Return 12 hexadecimal digits of a hash over weights, settings and what the teacher tells."""
    digest = hashlib.sha256(json.dumps([model.config.model_dump(mode="json"), model.n_items, told]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
