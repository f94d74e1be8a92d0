"""Id maps and flat sequences: the form in which every other part reads interactions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from recdistill.arrays import Ints, Items, Times
from recdistill.errors import DataError

RawId: TypeAlias = int | str


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """Rows of dense item ids, all in one flat array: row ``r`` is ``items[starts[r]:ends[r]]``, oldest first.

    Cutting the newest items off every row, or picking rows, makes a new view and copies no items.
    """

    items: Items
    """``(n_interactions,)`` item ids in 1…N."""
    starts: Ints
    """``(R,)`` where each row begins in ``items``."""
    ends: Ints
    """``(R,)`` where each row ends in ``items``."""

    @classmethod
    def from_offsets(cls, items: Items, offsets: Ints) -> Sequences:
        """View flat ``items`` with ``offsets (R+1,)``: row ``r`` is ``items[offsets[r]:offsets[r+1]]``."""
        return cls(items, offsets[:-1], offsets[1:])

    @classmethod
    def from_lists(cls, rows: Iterable[Iterable[int]]) -> Sequences:
        """Copy plain lists of item ids."""
        arrays = [np.fromiter(row, dtype=np.int32) for row in rows]
        offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays], dtype=np.int64)]).astype(np.int64)
        return cls.from_offsets(np.concatenate([np.empty(0, np.int32), *arrays]), offsets)

    @classmethod
    def empty(cls, n_rows: int) -> Sequences:
        """``n_rows`` rows without items."""
        zeros = np.zeros(n_rows, np.int64)
        return cls(np.empty(0, np.int32), zeros, zeros)

    @property
    def lengths(self) -> Ints:
        """``(R,)`` number of items in each row."""
        return self.ends - self.starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> Items:
        return self.items[self.starts[row] : self.ends[row]]

    def __iter__(self) -> Iterator[Items]:
        return (self[row] for row in range(len(self)))

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_] | slice) -> Sequences:
        """Return the chosen rows, in the order given; a view."""
        return Sequences(self.items, self.starts[rows], self.ends[rows])

    def newest(self, n: int) -> Sequences:
        """Keep at most the ``n`` newest items of each row; a view."""
        return Sequences(self.items, np.maximum(self.starts, self.ends - n), self.ends)

    def without_newest(self, n: int) -> Sequences:
        """Drop the ``n`` newest items of each row; a view."""
        return Sequences(self.items, self.starts, np.maximum(self.starts, self.ends - n))

    def with_windows(self, n: int, *, reads_last: bool = True) -> tuple[Sequences, Ints]:
        """Append each longer row as it stood before some of its newest items, before as many more, and so on.

        Read by their newest ``n`` items, or by the ``n`` before the newest, these rows show every two neighbours of
        every row once: an item, and the one that comes next.

        Args:
            n: at least 2.
            reads_last: whether newest items are read. Then windows of ``n`` items overlap by one; else that item is
                what comes next after the last of each, and windows follow one another.

        Returns:
            The rows and, after them, earlier states of two items or more, a view; ``(R + W,)`` the row of each.
        """
        step = n - 1 if reads_last else n
        counts = np.maximum(0, self.lengths - 2) // step
        owner = np.repeat(np.arange(len(self)), counts)
        steps = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        rows = np.concatenate([np.arange(len(self)), owner])
        dropped = step * np.concatenate([np.zeros(len(self), np.int64), steps])
        return Sequences(self.items, self.starts[rows], self.ends[rows] - dropped), rows

    def flat(self) -> tuple[Items, Ints]:
        """Copy the rows into one contiguous array; returns ``items (n,)`` and ``offsets (R+1,)``."""
        lengths = self.lengths
        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        index = np.arange(offsets[-1]) + np.repeat(self.starts - offsets[:-1], lengths)
        return self.items[index], offsets

    def pairs(self, n_items: int) -> Ints:
        """``(n,)`` one number for each item of 1…``n_items`` in its row, rising with the row: row · (N + 1) + item."""
        pairs: Ints = np.repeat(np.arange(len(self)), self.lengths) * (n_items + 1) + self.flat()[0]
        return pairs

    def digest(self) -> str:
        """Return a hash of which items each row holds, in which order."""
        items, offsets = self.flat()
        return hashlib.blake2b(items.tobytes() + offsets.tobytes(), digest_size=8).hexdigest()


_FEW = 1000
"""Ids up to which they are looked up one by one."""


class IdMap:
    """The raw ids of users or items and their dense numbers.

    Dense numbers run from ``first``: 0 for users, 1 for items (item 0 is padding).
    """

    def __init__(self, raw: pl.Series | Sequence[RawId], *, first: int) -> None:
        self.raw = raw if isinstance(raw, pl.Series) else pl.Series("id", list(raw))
        self.first = first
        if self.raw.n_unique() != len(self.raw):
            raise DataError("an id map must not hold the same id twice")

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def is_text(self) -> bool:
        """Whether raw ids are strings; otherwise they are integers."""
        return self.raw.dtype == pl.String

    def find(self, raw: Sequence[RawId] | pl.Series) -> Ints:
        """Return the dense number of each raw id, −1 where it is unknown; shape ``(n,)``.

        Integers and their text stand for each other, the text as the integer is written: "007" is not 7, as somebody
        may mean another item by it. A whole float stands for its integer. Other floats and truth values are no id, so
        they are unknown.

        Raises:
            DataError: when the ids are one text, or one of them is neither an integer nor a text.
        """
        if isinstance(raw, str | bytes):
            raise DataError(f"a list of ids was expected, not the text {raw!r}; put it into a list")
        kind = str if self.is_text else int
        if len(raw) <= _FEW and not isinstance(raw, pl.Series) and all(type(item) is kind for item in raw):
            return np.array([self._index.get(item, -1) for item in raw], np.int64)
        if len(raw) == 0:
            return np.empty(0, np.int64)
        wanted = _series(raw, as_text=self.is_text)
        if wanted.dtype == pl.String and not self.is_text:
            numbers = wanted.cast(pl.Int64, strict=False)
            wanted = numbers.set(numbers.cast(pl.String).ne_missing(wanted), None)
        if wanted.dtype != self.raw.dtype:
            wanted = wanted.cast(self.raw.dtype, strict=False)
        table = pl.DataFrame({"id": self.raw}).with_row_index("dense")
        found = pl.DataFrame({"id": wanted}).join(table, on="id", how="left", maintain_order="left")
        dense = found["dense"].cast(pl.Int64) + self.first
        return dense.fill_null(-1).to_numpy().astype(np.int64)

    @cached_property
    def _index(self) -> dict[RawId, int]:
        """Dense number by raw id: for a single request a look-up is fifty times as fast as a join."""
        return {raw: self.first + place for place, raw in enumerate(self.raw.to_list())}

    def encode(self, raw: Sequence[RawId] | pl.Series, *, what: str = "item") -> Ints:
        """Return the dense number of each raw id; shape ``(n,)``.

        Raises:
            DataError: when an id is unknown.
        """
        dense = self.find(raw)
        if (dense < 0).any():
            missing = [raw[int(i)] for i in np.flatnonzero(dense < 0)[:5]]
            kind = "strings" if self.is_text else "integers"
            raise DataError(
                f"{(dense < 0).sum()} of {len(dense)} {what} ids are unknown, for example {missing}; "
                f"known are the {len(self):,} {what} ids of the training data, which are {kind} like {self.raw[0]!r}."
            )
        return dense

    def decode(self, dense: npt.ArrayLike) -> list[RawId]:
        """Return the raw id of each dense number."""
        return self.raw.gather(np.asarray(dense, np.int64).ravel() - self.first).to_list()


def _series(raw: Sequence[RawId] | pl.Series, *, as_text: bool) -> pl.Series:
    """Return raw ids as a series of integers or of text, with null for what is no id.

    Args:
        raw: the ids.
        as_text: whether those of a list become text in any case, which keeps integers beyond 64 bits.
    """
    if isinstance(raw, np.ndarray):
        raw = pl.Series("id", raw) if raw.dtype.kind in "iuf" and raw.ndim == 1 else raw.tolist()
    if not isinstance(raw, pl.Series):
        kinds = set(map(type, raw))
        values = list(raw) if kinds in ({int}, {str}) else [_plain(value) for value in raw]
        if as_text or any(isinstance(value, str) for value in values):
            return _text([None if value is None else str(value) for value in values])
        return pl.Series("id", [value if _fits(value) else None for value in values], pl.Int64)
    if raw.dtype.is_float():
        return raw.set(~(raw == raw.floor()).fill_null(False), None).cast(pl.Int64, strict=False)
    if raw.dtype == pl.Boolean:
        return pl.Series("id", [None] * len(raw), pl.Int64)
    if not raw.dtype.is_integer() and raw.dtype not in (pl.String, pl.Null):
        raise DataError(f"ids must be integers or text, not {raw.dtype}; give them as such")
    return raw


def _plain(value: object) -> RawId | None:
    """Return an id as an integer or a text; ``None`` for what may stand among ids and is none."""
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, float | np.floating):
        return int(value) if value.is_integer() else None
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, str):
        return str(value)
    raise DataError(f"an id must be an integer or a text, and {value!r} is {type(value).__name__}")


def _fits(value: object) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _text(values: list[str | None]) -> pl.Series:
    """Return text as a series, with null for what UTF-8 cannot write, such as half of a pair."""
    try:
        return pl.Series("id", values, pl.String)
    except UnicodeEncodeError:
        return pl.Series("id", [value if value and _writable(value) else None for value in values], pl.String)


def _writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Interactions with dense ids.

    Users are 0…U−1, items 1…N, and row ``u`` of ``sequences`` is the history of user ``u``.
    """

    users: IdMap
    items: IdMap
    sequences: Sequences
    times: Times | None = None
    """``(n_interactions,)`` parallel to ``sequences.items``; ``None`` if only the order is known."""
    titles: pl.Series | None = None
    """``(N,)`` a name for each item, in the order of ``items``."""
    skipped_rows: int = 0
    """Rows that could not be used and were left out when the data were read."""

    @property
    def n_users(self) -> int:
        """Number of users, U."""
        return len(self.users)

    @property
    def n_items(self) -> int:
        """Number of items, N; item 0 (padding) is not counted."""
        return len(self.items)

    @property
    def n_interactions(self) -> int:
        """Number of interactions."""
        return int(self.sequences.lengths.sum())

    def title(self, dense: int) -> str:
        """Return the item's title, or its raw id where no titles are known."""
        if self.titles is not None and (title := self.titles[dense - 1]) is not None:
            return str(title)
        return str(self.items.raw[dense - 1])
