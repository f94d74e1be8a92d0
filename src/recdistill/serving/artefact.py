"""A trained student as a folder: weights, what they are, and the items in the caller's own ids."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from recdistill import __version__
from recdistill.arrays import Bools
from recdistill.data.dataset import Dataset, IdMap, Sequences
from recdistill.errors import ArtefactError, SettingsError
from recdistill.files import write_whole
from recdistill.models.base import Model, UserModel, build_model
from recdistill.settings import Settings

CARD, WEIGHTS, ITEMS, USERS = "model.json", "model.safetensors", "items.parquet", "users.parquet"
FOLDER = "student"
"""Where a run folder keeps its artefact."""
_FORMAT = 1


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
class Artefact:
    """A trained model with the ids and titles of its items, and what is known of how it was trained.

    Saved it is a folder of three files: ``model.safetensors`` (weights), ``model.json`` (what they are) and
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


def size_of(folder: Path) -> int:
    """Return how many bytes a saved student's files have; others that lie beside them do not count.

    Raises:
        ArtefactError: when the folder holds no student.
    """
    return sum((folder / name).stat().st_size for name in (CARD, *_read_card(folder).sha256))


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
