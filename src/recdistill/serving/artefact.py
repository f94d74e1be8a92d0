"""A trained student as a folder: weights, what they are, and the items in the caller's own ids."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from recdistill import __version__
from recdistill.data.dataset import Dataset, IdMap, RawId, Sequences
from recdistill.errors import ArtefactError, DataError, SettingsError
from recdistill.evaluation.scoring import top_k
from recdistill.files import write_whole
from recdistill.models.base import Model, build_model
from recdistill.settings import Settings

CARD, WEIGHTS, ITEMS = "model.json", "model.safetensors", "items.parquet"
FOLDER = "student"
"""Where a run folder keeps its artefact."""
_FORMAT = 1


class Recommendation(NamedTuple):
    """One recommended item, in the caller's own ids."""

    item: RawId
    score: float
    title: str | None


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
    sha256: dict[str, str]
    """Checksum of each of the other two files."""


@dataclass(eq=False)
class Student:
    """A trained model with the ids and titles of its items: raw ids in, raw ids out.

    A saved student is a folder of three files: ``model.safetensors`` (weights), ``model.json`` (what they are) and
    ``items.parquet`` (raw ids and titles, in the model's order). It needs nothing else, and loading it runs no code.
    """

    model: Model
    items: IdMap
    titles: pl.Series | None = None
    """``(N,)`` a name for each item, in the order of ``items``."""
    protocol: str = ""
    """How the data were split for training and evaluation."""
    mask_seen: bool = True
    """Whether items of the history are left out of the recommendations."""

    def __post_init__(self) -> None:
        if len(self.items) != self.model.n_items:
            raise ArtefactError(
                f"the model knows {self.model.n_items:,} items and the id map {len(self.items):,}; "
                f"they do not belong together"
            )

    @classmethod
    def of(cls, model: Model, dataset: Dataset, *, protocol: str = "", mask_seen: bool = True) -> Self:
        """Join a model with the items of the data that it was trained on."""
        return cls(model, dataset.items, dataset.titles, protocol, mask_seen)

    @property
    def n_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.model.parameters())

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
            DataError: for an unknown item, a history without a known item, or a ``k`` below 1.
        """
        rows = self._encode(histories, skip=unknown == "skip")
        ranking = top_k(self.model, rows, k, rows if self.mask_seen else None)
        assert ranking.scores is not None, "a model scores what it ranks"
        real = ranking.items > 0
        listed, scores = ranking.items[real], ranking.scores[real].tolist()
        raw = self.items.decode(listed)
        titles = [None] * len(raw) if self.titles is None else self.titles.gather(listed - 1).to_list()
        ends = np.cumsum(ranking.lengths).tolist()
        named = [Recommendation(*each) for each in zip(raw, scores, titles, strict=True)]
        return [named[end - n : end] for end, n in zip(ends, ranking.lengths.tolist(), strict=True)]

    def save(self, folder: Path | str) -> Path:
        """Write the three files, each whole or not at all, the one that vouches for the others last.

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
            card = Card(
                format=_FORMAT,
                recdistill=__version__,
                model=self.model.name,
                config=self.model.config.model_dump(mode="json"),
                protocol=self.protocol,
                mask_seen=self.mask_seen,
                sha256={name: _sha256(content) for name, content in contents.items()},
            )
            for name, content in contents.items():
                write_whole(folder / name, content)
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
        for name in (WEIGHTS, ITEMS):
            if not (folder / name).is_file():
                raise ArtefactError(f"{folder} lacks {name}; copy the whole folder")
            if _sha256((folder / name).read_bytes()) != card.sha256.get(name):
                raise ArtefactError(f"{folder / name} is damaged: it is not the file that was saved; copy it again")
        try:
            table = pl.read_parquet(folder / ITEMS, columns=["item", "title"])
            model = build_model(card.model, len(table), card.config)
            model.load_state_dict(load_file(folder / WEIGHTS))
        except (SettingsError, SafetensorError, RuntimeError, pl.exceptions.PolarsError, OSError) as error:
            raise ArtefactError(f"{folder} cannot be read by recdistill {__version__}: {error}") from error
        titles = table["title"]
        return cls(
            model,
            IdMap(table["item"].rename("id"), first=1),
            None if titles.is_null().all() else titles,
            card.protocol,
            card.mask_seen,
        )

    def _encode(self, histories: Sequence[Sequence[RawId]], *, skip: bool) -> Sequences:
        """Translate raw ids to dense rows."""
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
    found = "does not exist" if not folder.exists() else f"holds no {CARD}"
    raise ArtefactError(f"no saved student in {folder}: it {found}; give the folder that Student.save or a run wrote")


def _read_card(folder: Path) -> Card:
    try:
        values = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return Card.parse(values, where=CARD)
    except (OSError, ValueError, SettingsError) as error:
        raise ArtefactError(
            f"{folder / CARD} is not a student that recdistill {__version__} can read: {error}"
        ) from error


def _parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
