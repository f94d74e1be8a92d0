"""A piece of the shop, small enough that other libraries' models are trained, and distilled, in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from threadpoolctl import threadpool_limits

import recdistill as rd
from recdistill.arrays import Items
from recdistill.data.dataset import RawId, Sequences
from recdistill.evaluation.fidelity import agreement
from recdistill.models.scoring import top_k

N_CUSTOMERS, N_PRODUCTS = 600, 300


@dataclass(frozen=True)
class Piece:
    """What the tests of this folder have in common."""

    split: rd.Split
    top_k: int = 50
    """Length of the lists that a student learns."""

    def pairs(self) -> list[tuple[RawId, RawId]]:
        """Return the user and the item of each training interaction, in their raw ids."""
        train, dataset = self.split.train, self.split.dataset
        users = dataset.users.decode(np.repeat(np.arange(len(train)), train.lengths))
        return list(zip(users, dataset.items.decode(train.flat()[0]), strict=True))

    def distill(self, teacher: rd.CallableTeacher | rd.HttpTeacher, folder: Path, *, budget: int) -> rd.Student:
        """Train a SASRec on the teacher's answers alone, always to the last epoch."""
        epochs = 40
        return rd.distill(
            teacher,
            self.split,
            method=rd.KD(labels=False, top_k=self.top_k, values="ranks"),
            student=rd.SASRec(dim=32, n_blocks=1, max_len=50),
            training=rd.TrainerSettings(epochs=epochs, validate_every=epochs, batch_size=32, learning_rate=0.01),
            budget=budget,
            folder=folder,
        )

    def popular(self, histories: Sequences) -> Items:
        """Return the 10 most bought products that are not in the history."""
        bought = np.bincount(self.split.train.flat()[0], minlength=self.split.dataset.n_items + 1)
        best = np.argsort(-bought[1:], kind="stable") + 1
        lists = np.zeros((len(histories), 10), np.int32)
        for row, history in enumerate(histories):
            left = best[~np.isin(best, history)][:10]
            lists[row, : len(left)] = left
        return lists

    def check(self, student: rd.Student, lists: Items, histories: Sequences) -> None:
        """Assert that the student gives a teacher's lists, and that popularity does not."""
        learned = agreement(top_k(student.model, histories, 10, histories).items, lists, 10).mean()
        trivial = agreement(self.popular(histories), lists, 10).mean()
        assert learned > 0.4
        assert learned > 2 * trivial


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep to one thread: with more, models this small wait for each other, and implicit never learns the same."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def piece() -> Piece:
    """The first customers of the shop and its best selling products; ids are text, like ``c17`` and ``p4``."""
    shop = rd.load_shop()
    items, offsets = shop.sequences.flat()
    users = np.repeat(np.arange(shop.n_users), np.diff(offsets))
    bought = np.bincount(items)
    kept = np.isin(items, np.argsort(-bought, kind="stable")[:N_PRODUCTS]) & (users < N_CUSTOMERS)
    frame = pl.DataFrame({"user": users[kept], "item": items[kept], "time": np.arange(len(items))[kept]})
    named = frame.select(
        pl.format("c{}", "user").alias("user_id"),
        pl.format("p{}", "item").alias("item_id"),
        pl.col("time").alias("timestamp"),
    )
    return Piece(rd.leave_one_out(rd.read_interactions(named).k_core(users=5, items=5).dataset()))
