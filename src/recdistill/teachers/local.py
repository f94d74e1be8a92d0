"""A model of our own as a teacher: rankings, and scores of any item."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from recdistill.arrays import Bools, Ints, Items
from recdistill.data.dataset import Sequences
from recdistill.errors import TeacherError, TrainingError
from recdistill.models.base import Batch, Model
from recdistill.models.scoring import top_k
from recdistill.rankings import Ranking, Scores
from recdistill.teachers.answers import Scorer, Vectors
from recdistill.teachers.base import Teacher

_HISTORIES = 1024
"""Histories encoded at once."""
_NUMBERS = 4 << 20
"""Numbers held at once while scoring."""
_GATHER_COST = 8
"""How many times as long as multiplying it, in a product of large matrices, gathering an item's vector takes."""
_DIVERGED = "Its training has diverged: train it anew at a lower learning rate, or take an earlier state of it."


class LocalTeacher(Teacher):
    """A trained model; with ``gives_scores=False`` it poses as a black box that gives lists only.

    Args:
        model: the trained model.
        gives_scores: whether rankings come with scores.
        exclude_history: whether items of the history are left out; false for data with repeats.
        name: what it is called, before a hash of its weights; the model's own name by default.
        earlier: the model at earlier stages of its training, the earliest first, for methods that follow its course.

    Raises:
        TeacherError: for weights that are not finite numbers.
    """

    free = True

    def __init__(
        self,
        model: Model,
        *,
        gives_scores: bool = True,
        exclude_history: bool = True,
        name: str | None = None,
        earlier: Iterable[Model] = (),
    ) -> None:
        self.model = model
        self.gives_scores = self.scores_items = self.gives_vectors = gives_scores
        self.exclude_history = exclude_history
        self.takes = model.reads
        self.n_items = model.n_items
        told = [gives_scores, exclude_history]
        self._identity = f"{name or model.name}-{_fingerprint(model, told)}"
        _refuse_diverged(model, self._identity)
        before = [
            LocalTeacher(stage, gives_scores=gives_scores, exclude_history=exclude_history, name=name)
            for stage in earlier
        ]
        self.checkpoints = [*before, self] if before else []

    @property
    def identity(self) -> str:
        """The name, and a hash of the weights and of all else that changes the answers."""
        return self._identity

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Return the top ``k`` for each history; equal scores in the order of the items.

        Raises:
            TeacherError: when a score is NaN, or that of a listed item infinite.
            DataError: when a history is empty, or an item is none of the model's.
        """
        try:
            ranking = top_k(self.model, histories, k, histories if self.exclude_history else None, users=users)
        except TrainingError as error:
            raise TeacherError(f"teacher {self.identity!r} cannot teach: {error}") from error
        assert ranking.scores is not None, "a model ranks by scores"
        self._refuse_infinite(ranking.scores, ranking.items, np.arange(len(histories)), users)
        return ranking if self.gives_scores else Ranking(ranking.items)

    def knows(self, users: npt.NDArray[np.integer]) -> Bools:
        """Return ``(B,)`` for which users the model can rank."""
        return self.model.knows(users)

    def scorer(self, histories: Sequences, *, users: npt.NDArray[np.integer] | None = None) -> Scorer:
        """Read the histories once, and return what scores chosen items for some of them.

        Raises:
            TeacherError: for a teacher that gives lists only; when asked, for an item outside 1…N, or a score that is
                not a finite number.
        """
        self._refuse_black_box()
        queries, table = self._encode(histories, users)

        def scores(rows: Ints, candidates: Ints | None) -> Scores:
            if candidates is None:
                some = queries[torch.from_numpy(rows.astype(np.int64)).to(queries.device)]
                found: Scores = (some @ table[1:].T).cpu().numpy()
                candidates = np.broadcast_to(np.arange(1, len(table)), found.shape)
            else:
                self._check_candidates(candidates)
                found = _products(queries, table, rows, candidates)
            self._refuse_infinite(found, candidates, rows, users)
            return found

        return scores

    def vectors(self, histories: Sequences, *, users: npt.NDArray[np.integer] | None = None) -> Vectors:
        """Return the model's vectors of B histories (or users) and of all items.

        Raises:
            TeacherError: for a teacher that gives lists only.
        """
        self._refuse_black_box()
        queries, table = self._encode(histories, users)
        return Vectors(queries.cpu().numpy(), table.cpu().numpy())

    def _refuse_infinite(
        self, scores: Scores, items: Ints | Items, rows: Ints, users: npt.NDArray[np.integer] | None
    ) -> None:
        """Refuse ``scores (b, C)`` that are no finite numbers; of ``items (b, C)``, 0 for none, of some ``rows``."""
        wrong = ~np.isfinite(scores) & (items > 0)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            who = f"row {rows[row]}" if users is None else f"user {users[rows[row]]}"
            raise TeacherError(
                f"teacher {self.identity!r} cannot teach: it scores item {items[row, column]} for {who} as "
                f"{scores[row, column]}, and {wrong.sum() - 1:,} more that were asked for with it are no finite "
                f"numbers either. {_DIVERGED}"
            )

    def _refuse_black_box(self) -> None:
        if not self.gives_scores:
            raise TeacherError(f"teacher {self.identity!r} gives lists only; make it with gives_scores=True.")

    @torch.no_grad()
    def _encode(self, histories: Sequences, users: npt.NDArray[np.integer] | None) -> tuple[Tensor, Tensor]:
        """Return the vectors ``(B, D)`` of histories, and ``(N+1, D)`` of items."""
        model = self.model.eval()
        table = model.item_embeddings().detach().float()
        queries = table.new_empty(len(histories), table.shape[1])
        order = np.argsort(histories.lengths, kind="stable")  # of similar length together, for less padding
        for start in range(0, len(order), _HISTORIES):
            rows = order[start : start + _HISTORIES]
            who = None if users is None else users[rows]
            batch = Batch.from_sequences(histories.take(rows), users=who, max_len=model.max_len)
            queries[torch.from_numpy(rows).to(table.device)] = model.encode(batch.to(table.device)).float()
        return queries, table


@torch.no_grad()
def _products(queries: Tensor, table: Tensor, rows: Ints, candidates: Ints) -> Scores:
    """Return the products ``(b, C)`` of some queries and their own candidates, block by block.

    Few candidates are gathered. Where they are a good part of the catalogue, reading each vector once is faster.
    """
    n_items, dim = table.shape
    gathers = candidates.shape[1] * _GATHER_COST < n_items
    height = max(1, _NUMBERS // (candidates.shape[1] * dim if gathers else n_items))
    scores = np.empty(candidates.shape, np.float32)
    for start in range(0, len(rows), height):
        block = slice(start, start + height)
        some = queries[torch.from_numpy(rows[block].astype(np.int64)).to(queries.device)]
        wanted = torch.from_numpy(candidates[block].astype(np.int64)).to(table.device)
        if gathers:
            products = (some[:, None] @ F.embedding(wanted, table).mT)[:, 0]
        else:
            products = (some @ table.T).gather(1, wanted)
        scores[block] = products.cpu().numpy()
    return scores


def _refuse_diverged(model: Model, identity: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            wrong = int((~tensor.isfinite()).sum())
            raise TeacherError(
                f"teacher {identity!r} cannot teach: {wrong:,} of {tensor.numel():,} numbers in its weights {name!r} "
                f"are NaN or infinite. {_DIVERGED}"
            )


def _fingerprint(model: Model, told: list[bool]) -> str:
    """Return 12 hexadecimal digits of a hash over weights, settings and what the teacher tells."""
    digest = hashlib.sha256(json.dumps([model.config.model_dump(mode="json"), model.n_items, told]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
