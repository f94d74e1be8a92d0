"""A trained student as a folder: weights, what they are, and the items in the caller's own ids."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from recdistill import __version__
from recdistill.data.dataset import Dataset, IdMap, Ints, RawId, Sequences
from recdistill.errors import ArtefactError, DataError, SettingsError
from recdistill.files import write_whole
from recdistill.models.base import Bools, Model, UserModel, build_model
from recdistill.models.scoring import top_k
from recdistill.rankings import Ranking
from recdistill.settings import Settings

CARD, WEIGHTS, ITEMS, USERS = "model.json", "model.safetensors", "items.parquet", "users.parquet"
FOLDER = "student"
"""Where a run folder keeps its artefact."""
_FORMAT = 1
_MAY_DIFFER = {"dropout", "init_std", "precision", "max_len"}
"""Settings of a model that its weights do not depend on."""


class Recommendation(NamedTuple):
    """One recommended item, in the caller's own ids."""

    item: RawId
    score: float
    title: str | None


class Origin(Settings):
    """Which interactions a model was trained on, and which it was split from, so that others can be told from them."""

    data: str
    """Hash of all interactions, also of those held out."""
    train: str
    """Hash of those that were trained on."""

    @classmethod
    def of(cls, dataset: Dataset, train: Sequences) -> Self:
        """Describe the training sequences of a data set."""
        return cls(data=dataset.sequences.digest(), train=train.digest())


class Card(Settings):
    """What ``model.json`` says."""

    format: Literal[1]
    """Version of the folder's layout."""
    recdistill: str
    """The version that wrote it."""
    model: str
    """Registered name of the model."""
    config: dict[str, Any]
    """The model's settings."""
    protocol: str
    """How the data were split for training and evaluation."""
    mask_seen: bool
    """Whether items of the history are left out of the recommendations."""
    origin: Origin | None = None
    """Which interactions it was trained on; not known of folders of earlier versions."""
    sha256: dict[str, str]
    """Checksum of each of the other files."""


@dataclass(frozen=True, slots=True, eq=False)
class Users:
    """Whom a model that reads the user knows."""

    ids: IdMap
    taken: Sequences
    """One row a user, in the order of ``ids``: the dense items that the user took, oldest first."""


@dataclass(eq=False)
class Student:
    """A trained model with the ids and titles of its items: raw ids in, raw ids out.

    A saved student is a folder of three files: ``model.safetensors`` (weights), ``model.json`` (what they are) and
    ``items.parquet`` (raw ids and titles, in the model's order). For a model that reads the user there is a fourth,
    ``users.parquet`` (raw ids, the items of each, and who was trained on). It needs nothing else, and loading it runs
    no code.
    """

    model: Model
    items: IdMap
    titles: pl.Series | None = None
    """``(N,)`` a name for each item, in the order of ``items``."""
    protocol: str = ""
    """How the data were split for training and evaluation."""
    mask_seen: bool = True
    """Whether items of the history are left out of the recommendations."""
    users: Users | None = None
    """For a model that reads the user: whom it knows."""
    origin: Origin | None = None
    """Which interactions it was trained on, where that is known."""

    def __post_init__(self) -> None:
        if len(self.items) != self.model.n_items:
            raise ArtefactError(
                f"the model knows {self.model.n_items:,} items and the id map {len(self.items):,}; "
                f"they do not belong together"
            )
        if (self.model.reads == "user") != (self.users is not None):
            wanted = "users" if self.users is None else "no users"
            raise ArtefactError(f"model {self.model.name!r} reads the {self.model.reads}; give {wanted}")
        if isinstance(self.model, UserModel) and self.users and len(self.users.ids) != self.model.n_users:
            raise ArtefactError(
                f"the model knows {self.model.n_users:,} users and the id map {len(self.users.ids):,}; "
                f"they do not belong together"
            )

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

    def save(self, folder: Path | str) -> Path:
        """Write the files, each whole or not at all, the one that vouches for the others last.

        After a crash in between, the folder is refused when it is loaded, never half used.

        Raises:
            ArtefactError: when the folder cannot be written.
        """
        folder = Path(folder)
        weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.model.state_dict().items()}
        titles = self.titles if self.titles is not None else pl.Series([None] * len(self.items), dtype=pl.String)
        table = pl.DataFrame({"item": self.items.raw, "title": titles})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            contents = {WEIGHTS: save(weights), ITEMS: _parquet(table)}
            if self.users is not None:
                contents[USERS] = _parquet(_users_table(self.users, self.model.knows(np.arange(len(self.users.ids)))))
            card = Card(
                format=_FORMAT,
                recdistill=__version__,
                model=self.model.name,
                config=self.model.config.model_dump(mode="json"),
                protocol=self.protocol,
                mask_seen=self.mask_seen,
                origin=self.origin,
                sha256={name: _sha256(content) for name, content in contents.items()},
            )
            for name, content in contents.items():
                write_whole(folder / name, content)
            if self.users is None:
                (folder / USERS).unlink(missing_ok=True)
            write_whole(folder / CARD, json.dumps(card.model_dump(), indent=2).encode())
        except OSError as error:
            raise ArtefactError(f"cannot write the student to {folder}: {error}") from error
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a saved student, from its own folder or from that of a run.

        Raises:
            ArtefactError: when the folder holds no student, or a damaged or foreign one.
        """
        folder = find(folder)
        card = _read_card(folder)
        for name in (WEIGHTS, ITEMS, *({USERS} & card.sha256.keys())):
            if not (folder / name).is_file():
                raise ArtefactError(f"{folder} lacks {name}; copy the whole folder")
            if _sha256((folder / name).read_bytes()) != card.sha256.get(name):
                raise ArtefactError(f"{folder / name} is damaged: it is not the file that was saved; copy it again")
        try:
            table = pl.read_parquet(folder / ITEMS, columns=["item", "title"])
            users, trained = _read_users(folder / USERS) if USERS in card.sha256 else (None, None)
            nothing = None if users is None else Sequences.empty(len(users.ids))
            model = build_model(card.model, len(table), card.config, train=nothing)
            model.load_state_dict(load_file(folder / WEIGHTS))
            if isinstance(model, UserModel) and trained is not None:
                model.trained_users = trained
        except (SettingsError, SafetensorError, RuntimeError, pl.exceptions.PolarsError, OSError) as error:
            raise ArtefactError(f"{folder} cannot be read by recdistill {__version__}: {error}") from error
        titles = table["title"]
        return cls(
            model.eval(),
            IdMap(table["item"].rename("id"), first=1),
            None if titles.is_null().all() else titles,
            card.protocol,
            card.mask_seen,
            users,
            card.origin,
        )

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


def find(folder: Path | str) -> Path:
    """Return the folder of the student that ``folder`` is, or that it holds if it is a run's.

    Raises:
        ArtefactError: when there is none.
    """
    folder = Path(folder)
    for candidate in (folder, folder / FOLDER):
        if (candidate / CARD).is_file():
            return candidate
    found = f"neither it nor its {FOLDER}/ holds a {CARD}" if folder.exists() else "it does not exist"
    raise ArtefactError(
        f"no saved student in {folder}: {found}; give the folder that Student.save or a finished run wrote"
    )


def _refuse_no_list(value: object, what: str, of: str) -> None:
    """Refuse a text, which would be read letter by letter, and what has no order or no length."""
    if isinstance(value, str | bytes | Mapping | Set) or not (hasattr(value, "__len__") and hasattr(value, "__iter__")):
        raise DataError(f"{what} must be a list of {of}, and {value!r} is {type(value).__name__}; give a list")


def _read_card(folder: Path) -> Card:
    try:
        values = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return Card.parse(values, where=CARD)
    except (OSError, ValueError, SettingsError) as error:
        raise ArtefactError(
            f"{folder / CARD} is not a student that recdistill {__version__} can read: {error}"
        ) from error


def _users_table(users: Users, trained: Bools) -> pl.DataFrame:
    items, offsets = users.taken.flat()
    rows = np.repeat(np.arange(len(users.ids), dtype=np.uint32), np.diff(offsets))
    taken = pl.DataFrame({"row": rows, "items": items}).group_by("row", maintain_order=True).agg("items")
    named = pl.DataFrame({"user": users.ids.raw, "trained": trained}).with_row_index("row")
    return named.join(taken, on="row", how="left", maintain_order="left").select("user", "items", "trained")


def _read_users(path: Path) -> tuple[Users, Bools]:
    """Return the users, and who was trained on; files of earlier versions do not say, so that all count."""
    table = pl.read_parquet(path)
    trained = table["trained"].to_numpy(writable=True) if "trained" in table.columns else np.ones(len(table), np.bool_)
    lengths = table["items"].list.len().fill_null(0).cast(pl.Int64).to_numpy()
    items = table["items"].explode().drop_nulls().to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Users(IdMap(table["user"].rename("id"), first=0), Sequences.from_offsets(items, offsets)), trained


def _parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
