"""What every model gives: vectors for queries, vectors for items, and scores as their product."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recdistill.arrays import Bools
from recdistill.data.dataset import Sequences
from recdistill.errors import DataError, SettingsError
from recdistill.registry import import_all
from recdistill.settings import Settings, nearest


@dataclass(frozen=True, slots=True)
class Batch:
    """B histories of T items in all, one after the other without padding, oldest item first."""

    items: Tensor
    """``(T,)`` int64, in 1…N."""
    offsets: Tensor
    """``(B+1,)`` int64: history ``b`` is ``items[offsets[b]:offsets[b+1]]``."""
    users: Tensor | None = None
    """``(B,)`` int64 dense users, for models that read the user."""

    @classmethod
    def from_sequences(
        cls, sequences: Sequences, *, users: npt.NDArray[np.integer] | None = None, max_len: int | None = None
    ) -> Self:
        """Pack every row of ``sequences``, only the newest ``max_len`` items of each where given.

        Raises:
            DataError: when a row is empty.
        """
        rows = sequences if max_len is None else sequences.newest(max_len)
        if len(rows) and rows.lengths.min() == 0:
            raise DataError("a history is empty; a model needs at least one item to answer")
        items, offsets = rows.flat()
        return cls(
            torch.from_numpy(items.astype(np.int64)),
            torch.from_numpy(offsets),
            None if users is None else torch.from_numpy(np.asarray(users, np.int64)),
        )

    @classmethod
    def from_lists(cls, histories: Iterable[Iterable[int]]) -> Self:
        """Pack plain lists of dense item ids."""
        return cls.from_sequences(Sequences.from_lists(histories))

    def newest(self, n: int) -> Self:
        """Keep at most the ``n`` newest items of each history.

        Raises:
            DataError: when ``n`` is not positive.
        """
        if n < 1:
            raise DataError(f"cannot keep the newest {n} items of a history; at least one is needed")
        lengths = self.lengths
        if int(lengths.max()) <= n:
            return self
        from_end = torch.repeat_interleave(self.offsets[1:], lengths) - torch.arange(
            len(self.items), device=self.items.device
        )
        offsets = torch.zeros_like(self.offsets)
        torch.cumsum(lengths.clamp_max(n), 0, out=offsets[1:])
        return type(self)(self.items[from_end <= n], offsets, self.users)

    @property
    def lengths(self) -> Tensor:
        """``(B,)`` number of items in each history."""
        return self.offsets.diff()

    @property
    def last(self) -> Tensor:
        """``(B,)`` index into ``items`` of the newest item of each history."""
        return self.offsets[1:] - 1

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        users = None if self.users is None else self.users.to(device)
        return type(self)(self.items.to(device), self.offsets.to(device), users)


class Model(nn.Module, ABC):
    """A recommender that scores an item by the product of the query's and the item's vectors.

    A subclass names itself on its class line, ``class SASRec(Model, name="sasrec")``, which registers it.
    """

    registry: ClassVar[dict[str, type[Model]]] = {}
    name: ClassVar[str]
    Config: ClassVar[type[Settings]]
    reads: ClassVar[Literal["history", "user"]] = "history"
    causal: ClassVar[bool] = True
    """Whether the state at an item says what comes next, so that one pass over a history trains on all its prefixes.

    Models that are not learn from whole histories: those that read histories see both sides of an item, and learn
    labels that are hidden behind their ``mask_item``.
    """

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.name = name
            Model.registry[name] = cls

    def __init__(self, config: Settings, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.n_items = n_items

    @property
    def max_len(self) -> int | None:
        """How many of a history's newest items are read; ``None`` for models that read the user."""
        return getattr(self.config, "max_len", None)

    @property
    def mask_item(self) -> int | None:
        """The item that hides another from a model that sees both sides; ``None`` for all other models."""
        return None

    @abstractmethod
    def encode(self, batch: Batch) -> Tensor:
        """Return the vector of each query, ``(B, D)``: what comes after the whole history.

        Raises:
            DataError: when the batch holds an item that the model does not know.
        """

    def encode_positions(self, batch: Batch) -> Tensor:
        """Return a vector at each item of each history, ``(T, D)``, in the order of ``batch.items``.

        Raises:
            DataError: when the batch holds an item that the model does not know, or a history beyond ``max_len``.
        """
        raise SettingsError(f"{self.name} does not read a sequence, so it has no states between its items")

    @abstractmethod
    def item_embeddings(self) -> Tensor:
        """Return ``(N+1, D)`` item vectors; row 0 is padding and is never scored."""

    def knows(self, users: npt.NDArray[np.integer]) -> Bools:
        """Return ``(B,)`` for which users it can rank; all, where it reads histories."""
        return np.ones(len(users), np.bool_)

    def compile_body(self) -> None:
        """Let ``torch.compile`` fuse what can be fused; the weights stay the same. By default that is nothing."""

    def _check(self, batch: Batch, *, n_special: int = 0) -> None:
        """Refuse what an embedding table would answer with an index error, or silently with a wrong row.

        In training mode item 0 is one that an augmentation has hidden: its vector is zero, its position is read.
        """
        lowest, highest = (int(x) for x in torch.aminmax(batch.items))
        least = 0 if self.training else 1
        if lowest < least or highest > self.n_items + n_special:
            bad = lowest if lowest < least else highest
            raise DataError(f"item {bad} is unknown to this model, which knows items 1…{self.n_items}")
        if self.max_len is not None and (longest := int(batch.lengths.max())) > self.max_len:
            raise DataError(
                f"a history has {longest} items, the model reads at most {self.max_len}; "
                f"keep the newest with batch.newest({self.max_len})"
            )

    def scores(self, batch: Batch) -> Tensor:
        """Return ``(B, N+1)`` scores; column 0 (padding) is −∞."""
        scores = self.encode(batch) @ self.item_embeddings().T
        scores[:, 0] = -torch.inf
        return scores


class UserModel(Model):
    """A recommender that reads who asks, not what they took: a vector for each user of the training data.

    A subclass is made with the training sequences, and keeps of them what its answers depend on. Of a user without a
    training interaction it knows nothing but a vector drawn at random: it does not rank for such a user.
    """

    reads = "user"
    causal = False

    def __init__(self, config: Settings, n_items: int, train: Sequences) -> None:
        """Take the users from ``train``, which has one row a user; rows may be empty."""
        super().__init__(config, n_items)
        self.n_users = len(train)
        self.trained_users: Bools = train.lengths > 0
        """``(U,)`` who has a training interaction."""

    def knows(self, users: npt.NDArray[np.integer]) -> Bools:
        """Return ``(B,)`` which users have a training interaction."""
        known: Bools = self.trained_users[users]
        return known

    def _users(self, batch: Batch) -> Tensor:
        """Return the ``(B,)`` users of a batch.

        Raises:
            DataError: when there are none, or one is not of the training data.
        """
        if batch.users is None:
            raise DataError(
                f"model {self.name!r} answers for users, but the batch does not say whose it is; give users"
            )
        lowest, highest = (int(x) for x in torch.aminmax(batch.users))
        if lowest < 0 or highest >= self.n_users:
            bad = lowest if lowest < 0 else highest
            raise DataError(f"user {bad} is unknown to this model, which knows users 0…{self.n_users - 1}")
        return batch.users


def build_model(
    name: str,
    n_items: int,
    settings: dict[str, Any] | Settings | None = None,
    *,
    train: Sequences | None = None,
    seed: int = 0,
) -> Model:
    """Make an untrained model by its registered name.

    Args:
        name: of the model.
        n_items: number of items N.
        settings: of the model.
        train: the training sequences, one row a user. Models that read the user learn from them who there is; models
            that read histories need none.
        seed: fixes the initial weights.

    Raises:
        SettingsError: for an unknown name or setting, or a model that reads the user without ``train``.
    """
    import_all("recdistill.models")
    if name not in Model.registry:
        raise SettingsError(f"unknown model {name!r}{nearest(name, list(Model.registry))}")
    cls = Model.registry[name]
    config = settings if isinstance(settings, Settings) else cls.Config.parse(settings or {}, where=f"model {name}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not issubclass(cls, UserModel):
            return cls(config, n_items)
        if train is None:
            raise SettingsError(f"model {name!r} answers for the users of its training data: give train as well")
        return cls(config, n_items, train)
