"""A trained student as it is asked: raw ids in, raw ids out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from typing import Literal, NamedTuple, Self

import numpy as np

from recdistill.arrays import Ints
from recdistill.data.dataset import Dataset, RawId, Sequences
from recdistill.errors import DataError, SettingsError
from recdistill.models.base import Model, UserModel
from recdistill.models.scoring import top_k
from recdistill.rankings import Ranking
from recdistill.serving.artefact import Artefact, Origin, Users

_MAY_DIFFER = {"dropout", "init_std", "precision", "max_len"}
"""Settings of a model that its weights do not depend on."""


class Recommendation(NamedTuple):
    """One recommended item, in the caller's own ids."""

    item: RawId
    score: float
    title: str | None


class Student(Artefact):
    """A trained model that recommends: raw ids in, raw ids out."""

    @classmethod
    def of(
        cls,
        model: Model,
        dataset: Dataset,
        *,
        protocol: str = "",
        mask_seen: bool = True,
        train: Sequences | None = None,
    ) -> Self:
        """Join a model with the items of the data that it was trained on, and with the users if it reads them.

        What a user took is all that is in the data, also what was held out to validate and test. What ``train`` is says
        which part of them the model was trained on.
        """
        users = Users(dataset.users, dataset.sequences) if model.reads == "user" else None
        origin = None if train is None else Origin.of(dataset, train)
        return cls(model, dataset.items, dataset.titles, protocol, mask_seen, users, origin)

    @property
    def n_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.model.parameters())

    def hand_on(self, model: Model) -> None:
        """Copy the weights to another model of the same kind and shape, which keeps the graph of its own training data.

        Raises:
            SettingsError: when it is another.
        """
        if model.name != self.model.name:
            raise SettingsError(f"a {model.name!r} cannot start from a {self.model.name!r}; take the same model")
        theirs, ours = self.model.config.model_dump(), model.config.model_dump()
        other = [key for key in ours if ours[key] != theirs[key]]
        own = {name: state for name, state in model.state_dict().items() if name.endswith("_extra_state")}
        try:
            model.load_state_dict(self.model.state_dict() | own)
            fits = _MAY_DIFFER.issuperset(other)
        except RuntimeError:
            fits = False
        if not fits:
            shape = ", ".join(f"{key} {theirs[key]}, not {ours[key]}" for key in other)
            raise SettingsError(f"the student to start from has another shape ({shape}); take the same")
        if isinstance(model, UserModel) and isinstance(self.model, UserModel):
            model.trained_users |= self.model.trained_users

    def recommend(
        self, histories: Sequence[Sequence[RawId]], k: int = 10, *, unknown: Literal["refuse", "skip"] = "refuse"
    ) -> list[list[Recommendation]]:
        """Return the top ``k`` items for each history, best first.

        Args:
            histories: raw item ids, oldest first; only the newest that the model can read are used.
            k: length of the lists; a list is shorter where fewer items are left to recommend.
            unknown: what to do with items that were not in the training data: ``refuse`` the request, or ``skip`` them
                (a history without one known item is refused all the same).

        Raises:
            DataError: for an unknown item, a history without a known item, one that is no list of ids, a ``k`` below 1,
                or a model that reads the user.
        """
        if self.users is not None:
            raise DataError(
                f"model {self.model.name!r} answers for users, not for histories: use recommend_for_users (--user)"
            )
        rows = self._encode(histories, skip=unknown == "skip")
        return self._named(top_k(self.model, rows, min(k, len(self.items)), rows if self.mask_seen else None))

    def recommend_for_users(
        self, users: Sequence[RawId], k: int = 10, *, unknown_users: Literal["refuse", "popular"] = "refuse"
    ) -> list[list[Recommendation]]:
        """Return the top ``k`` items for each user of a model that reads the user, best first.

        Args:
            users: raw user ids.
            k: length of the lists; a list is shorter where fewer items are left to recommend.
            unknown_users: what to do with users of whom no interaction was trained on, as they are not in the data, or
                began after a time cut: ``refuse`` the request, or answer with the most ``popular`` items, whose score
                is how often they were taken.

        Raises:
            DataError: for an unknown user, users that are no list, a ``k`` below 1, or a model that reads histories.
        """
        if self.users is None:
            raise DataError(
                f"model {self.model.name!r} answers for histories, not for users: use recommend (--history)"
            )
        _refuse_no_list(users, "the users", "user ids")
        dense = self.users.ids.find(users)
        known = dense >= 0
        known[known] = self.model.knows(dense[known])
        if unknown_users == "refuse" and not known.all():
            missing = [user for user, ok in zip(users, known, strict=True) if not ok]
            raise DataError(
                f"{len(missing)} of {len(users)} users are unknown to the student, for example {missing[:5]}: it was "
                f"trained on no interaction of theirs. The {len(self.users.ids):,} users of its data have ids like "
                f"{self.users.ids.raw[0]!r}. Pass unknown_users='popular' (--popular-if-unknown) to answer such users "
                "with the most popular items."
            )
        taken = self.users.taken.take(dense[known])
        masked = taken if self.mask_seen else None
        ranking = top_k(self.model, taken, min(k, len(self.items)), masked, users=dense[known])
        answers = iter(self._named(ranking))
        return [
            next(answers) if ok else self._popular(self.users, user, k) for ok, user in zip(known, dense, strict=True)
        ]

    def _popular(self, users: Users, user: int, k: int) -> list[Recommendation]:
        """Return the ``k`` items that were taken most often, of equal ones the first in the id map.

        Those that the user took are left out, where the user is in the data (−1: is not) and seen items are.
        """
        counts, best = self._popularity
        if user >= 0 and self.mask_seen:
            best = best[~np.isin(best + 1, users.taken[user])]
        best = best[None, :k]
        return self._named(Ranking((best + 1).astype(np.int32), counts[best].astype(np.float32)))[0]

    @cached_property
    def _popularity(self) -> tuple[Ints, Ints]:
        """``(N,)`` how often each item was taken, and the items by that, from 0."""
        assert self.users is not None, "asked of models that read the user"
        counts = np.bincount(self.users.taken.flat()[0], minlength=len(self.items) + 1)[1:]
        return counts, np.argsort(-counts, kind="stable")

    def _named(self, ranking: Ranking) -> list[list[Recommendation]]:
        """Translate lists to raw ids."""
        assert ranking.scores is not None, "a model scores what it ranks"
        real = ranking.items > 0
        listed, scores = ranking.items[real], ranking.scores[real].tolist()
        raw = self.items.decode(listed)
        titles = [None] * len(raw) if self.titles is None else self.titles.gather(listed - 1).to_list()
        ends = np.cumsum(ranking.lengths).tolist()
        named = [Recommendation(*each) for each in zip(raw, scores, titles, strict=True)]
        return [named[end - n : end] for end, n in zip(ends, ranking.lengths.tolist(), strict=True)]

    def _encode(self, histories: Sequence[Sequence[RawId]], *, skip: bool) -> Sequences:
        """Translate raw ids to dense rows."""
        _refuse_no_list(histories, "the histories", "lists of item ids")
        for number, history in enumerate(histories, 1):
            _refuse_no_list(history, f"history {number}", "item ids")
        lengths = np.array([len(history) for history in histories], np.int64)
        dense = self.items.find([item for history in histories for item in history])
        known = dense > 0
        row = np.repeat(np.arange(len(lengths)), lengths)
        if not skip and not known.all():
            worst = int(row[~known][0])
            missing = [item for item, ok in zip(histories[worst], known[row == worst], strict=True) if not ok]
            raise DataError(
                f"history {worst + 1} holds items that the student does not know: {missing[:5]}; "
                f"its {len(self.items):,} items have ids like {self.items.raw[0]!r}. Pass unknown='skip' "
                f"(--skip-unknown) to leave such items out."
            )
        kept = np.bincount(row[known], minlength=len(lengths))
        if (kept == 0).any():
            worst = int(np.flatnonzero(kept == 0)[0])
            raise DataError(
                f"history {worst + 1} of {len(lengths)}, {list(histories[worst][:5])}, has no item that the student "
                f"knows; its {len(self.items):,} items have ids like {self.items.raw[0]!r}."
            )
        offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
        return Sequences.from_offsets(dense[known].astype(np.int32), offsets)


def _refuse_no_list(value: object, what: str, of: str) -> None:
    """Refuse a text, which would be read letter by letter, and what has no order or no length."""
    if isinstance(value, str | bytes | Mapping | Set) or not (hasattr(value, "__len__") and hasattr(value, "__iter__")):
        raise DataError(f"{what} must be a list of {of}, and {value!r} is {type(value).__name__}; give a list")
