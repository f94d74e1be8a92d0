"""A few users of matrix factorisation, for tests of methods that compare a student with a scored teacher."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from recdistill.data.dataset import IdMap, Sequences
from recdistill.methods.base import Method, Setting, TrainingBatch, build_method
from recdistill.models.base import Model, build_model
from recdistill.teachers.local import LocalTeacher
from recdistill.teachers.stored import StoredTeacher
from recdistill.training.batches import Batches

ROWS = [[1, 2], [3], [], [4, 5, 6]]
"""Histories of four users; one has none."""
WITH_HISTORY = [0, 1, 3]
N = 30
TRAIN = Sequences.from_lists(ROWS)


def mf(seed: int, *, dim: int = 6) -> Model:
    """Make a model of the users whose scores differ by a few units."""
    return build_model("mf", N, {"dim": dim, "init_std": 0.8}, train=TRAIN, seed=seed)


def setting(teacher: Model, *, exclude_history: bool = True, earlier: tuple[Model, ...] = ()) -> Setting:
    local = LocalTeacher(teacher, exclude_history=exclude_history, earlier=earlier)
    return Setting(TRAIN, np.arange(len(ROWS)), N, local)


def ready(name: str, teacher: Model, student: Model, *, earlier: tuple[Model, ...] = (), **settings: Any) -> Method:
    """Make a method that has asked the teacher and looked at the student once."""
    method = build_method(name, settings)
    method.prepare(setting(teacher, earlier=earlier))
    method.fit_to(student)
    method.start_epoch(student, 0, torch.Generator().manual_seed(0))
    return method


def stored(teacher: Model, *, users: list[int]) -> StoredTeacher:
    """Make a table of a teacher's scores of all items for some users."""
    scores = scores_of(teacher)
    rows = [(user, item, scores[user, item].item()) for user in users for item in range(1, N + 1)]
    frame = pl.DataFrame(rows, schema=["user", "item", "score"], orient="row")
    return StoredTeacher(frame, ids=IdMap(range(1, N + 1), first=1), users=IdMap(range(len(ROWS)), first=0))


def scores_of(model: Model) -> Tensor:
    """Return ``(U, N+1)`` the scores of all items; column 0 is −∞."""
    with torch.no_grad():
        scores = model.get_parameter("user_embedding.weight") @ model.item_embeddings().T
    scores[:, 0] = -torch.inf
    return scores


def top(model: Model, user: int, k: int, *, seen_items: bool) -> list[int]:
    """Return a user's best items, best first."""
    scores = scores_of(model)[user]
    if not seen_items:
        scores[ROWS[user]] = -torch.inf
    return scores.topk(k).indices.tolist()


def teacher_part(method: Method, student: Model, users: list[int], *, shown: int | None = None) -> Tensor:
    """Return the teacher's part of the loss of a batch, in which so many items of each history are shown, or all."""
    batches = Batches(TRAIN, batch_size=len(users), max_len=shown, reads_last=True)
    batch = TrainingBatch(*batches.of(np.array(users)), torch.Generator().manual_seed(0))
    return method.loss(student, batch)["teacher"]


def learn(method: Method, student: Model, *, steps: int = 150) -> None:
    """Let the student learn what the method wants of it, and nothing else; it is looked at before each step."""
    optimiser = torch.optim.Adam([*student.parameters(), *method.parameters()], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        method.start_epoch(student, step, generator)
        optimiser.zero_grad()
        teacher_part(method, student, WITH_HISTORY).backward()
        optimiser.step()
