"""A matrix of scores, users × items, as a teacher: read where it lies, some users at a time."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recdistill.arrays import Bools, Ints
from recdistill.data.dataset import IdMap, RawId, Sequences
from recdistill.errors import DataError, TeacherError
from recdistill.models.scoring import GROUP, best
from recdistill.rankings import Ranking, Scores
from recdistill.teachers.answers import Scorer
from recdistill.teachers.base import Teacher
from recdistill.teachers.stored import left_out

_log = logging.getLogger("recdistill.teachers")

Numbers: TypeAlias = npt.NDArray[np.floating[Any]]
Ids: TypeAlias = str | Path | Sequence[RawId] | pl.Series
"""A text file with an id on each line and no line besides, or the ids themselves."""

_NUMBERS = 4 << 20
"""Scores read at once."""
_SHOWN = 3
"""Examples in a message."""


class MatrixTeacher(Teacher):
    """A matrix of scores, a row a user and a column an item: the higher a score, the better.

    Which user and which item is never told from a place alone: both have to be named. A ``.npy`` file is read where it
    lies, so that it may be larger than the memory; once from end to end, for its hash, then some users at a time.

    Rows of users and columns of items that are not in the data are left out, and counted in a warning. So are users of
    the data without a row: they learn from labels alone. Where an item of the data has no column, the rows are lists
    for methods such as ``kd`` and ``rrd``. A matrix most of whose items are not in the data is refused, and one with
    strange users that has no row for most of the data's: its ids are taken to be wrong.

    Args:
        scores: a ``.npy`` file (``np.save``) or an array, ``(rows, columns)`` of float16, float32 or float64.
        row_users: the user of each row, in the ids of the data.
        column_items: the item of each column, in the ids of the data.
        ids: the items of the data.
        users: the users of the data.
        exclude_history: whether items of the history are left out of the lists.

    Raises:
        DataError: for a file that cannot be read.
        TeacherError: for another number of users or items than the matrix has rows or columns, an id that is named
            twice, ids that are not those of the data, or numbers of another kind. When asked, for a score that is not a
            finite number in 32 bits.
    """

    takes = "user"
    gives_scores = True
    free = True

    def __init__(
        self,
        scores: str | Path | Numbers,
        *,
        row_users: Ids,
        column_items: Ids,
        ids: IdMap,
        users: IdMap,
        exclude_history: bool = True,
    ) -> None:
        on_disk = isinstance(scores, str | Path)
        self._name = str(scores) if on_disk else "the matrix"
        self._matrix: Numbers = _open(Path(scores)) if isinstance(scores, str | Path) else np.asarray(scores)
        _check_kind(self._matrix, self._name)
        self.file_bytes = Path(str(scores)).stat().st_size if on_disk else None
        """Size of the file; ``None`` of an array."""
        known_as, items = _listed(row_users), _listed(column_items)
        if self._matrix.shape != (len(known_as), len(items)):
            rows, columns = self._matrix.shape
            raise TeacherError(
                f"{self._name} has {rows:,} rows and {columns:,} columns, but {len(known_as):,} users are named for "
                f"the rows (row_users, from {known_as[:1]}) and {len(items):,} items for the columns (column_items, "
                f"from {items[:1]}). A row is a user and a column an item: name each once, in order, without a heading."
            )
        self._row = _places(known_as, users, len(users), "row_users")
        self._column = _places(items, ids, len(ids) + 1, "column_items")
        self._held: Ints = np.flatnonzero(self._column >= 0)
        self._raw_items, self._raw_users = ids, users
        self.exclude_history = exclude_history
        self.n_items: int = len(ids)
        self._check_ids(known_as, items)
        self.scores_items = len(self._held) == len(ids)
        self.scores_most = not self.scores_items and 2 * len(self._held) > len(ids)
        self.gap = "" if self.scores_items else self._first_gap()

    @cached_property
    def _identity(self) -> str:
        told = [self._matrix.dtype.str, self._row.tolist(), self._column.tolist(), self.exclude_history]
        named = [self._raw_items.raw.to_list(), self._raw_users.raw.to_list()]
        digest = hashlib.sha256(json.dumps([*told, *named]).encode())
        for block in _blocks(*self._matrix.shape):
            digest.update(np.ascontiguousarray(self._matrix[block]).data)
        return f"matrix-{digest.hexdigest()[:12]}"

    @property
    def identity(self) -> str:
        """A hash of the scores, and of the ids of users and items."""
        return self._identity

    def knows(self, users: npt.NDArray[np.integer]) -> Bools:
        """Return ``(B,)`` which users have a row."""
        rows: Bools = self._row[users] >= 0
        return rows

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Return the ``k`` best items of each user, without those of the history; nothing for users without a row.

        Raises:
            TeacherError: when no users are given, or for a score that is no finite number.
        """
        who = self._check_users(users)
        items = np.zeros((len(who), k), np.int32)
        values = np.full(items.shape, -np.inf, np.float32)
        known = np.flatnonzero(self.knows(who))
        for block in _blocks(len(known), self._matrix.shape[1]):
            rows = known[block]
            scores = np.full((len(rows), -(-(self.n_items + 1) // GROUP) * GROUP), -np.inf, np.float32)
            found = self._matrix[self._row[who[rows]]][:, self._column[self._held]]
            scores[:, self._held] = self._checked(found, who[rows], self._held[None])
            if self.exclude_history:
                taken, offsets = histories.take(rows).flat()
                scores[np.repeat(np.arange(len(rows)), np.diff(offsets)), taken] = -np.inf
            items[rows], values[rows] = best(torch.from_numpy(scores), k)
        return Ranking(items, values)

    def scorer(self, histories: Sequences, *, users: npt.NDArray[np.integer] | None = None) -> Scorer:
        """Return what looks up the scores of chosen items.

        Raises:
            TeacherError: when no users are given; when asked, for an item outside 1…N, one without a score, or a score
                that is no finite number.
        """
        who = self._check_users(users)

        def scores(rows: Ints, candidates: Ints | None) -> Scores:
            if candidates is None:
                candidates = np.arange(1, self.n_items + 1)[None]
            self._check_candidates(candidates)
            row, column = self._row[who[rows]][:, None], self._column[candidates]
            if (missing := (row < 0) | (column < 0)).any():
                at, place = np.argwhere(missing)[0]
                user, item = self._named(who[rows[at]], np.broadcast_to(candidates, missing.shape)[at, place])
                raise TeacherError(
                    f"teacher {self.identity!r} holds no score of item {item!r} for user {user!r}, nor "
                    f"{missing.sum() - 1:,} others that were asked for; add their rows or columns, or take a method "
                    "that learns from its lists, such as 'kd' or 'rrd'."
                )
            return self._checked(self._matrix[row, column], who[rows], candidates)

        return scores

    def _checked(self, scores: Numbers, users: Ints, items: Ints) -> Scores:
        """Return ``scores (b, C)`` in 32 bits, if finite, of ``users (b,)`` and ``items``, ``(b, C)`` or ``(1, C)``."""
        with np.errstate(over="ignore"):
            found = scores.astype(np.float32)
        wrong = ~np.isfinite(found)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            user, item = self._named(users[row], np.broadcast_to(items, found.shape)[row, column])
            raise TeacherError(
                f"{self._name} scores item {item!r} as {scores[row, column]} for user {user!r}, and "
                f"{wrong.sum() - 1:,} others that were read with it are no finite numbers (in 32 bits) either; "
                "write finite ones, low where an item is not to be listed."
            )
        return found

    def _named(self, user: np.integer[Any], item: np.integer[Any]) -> tuple[RawId, RawId]:
        return self._raw_users.decode([user])[0], self._raw_items.decode([item])[0]

    def _first_gap(self) -> str:
        (item,) = self._raw_items.decode([np.flatnonzero(self._column[1:] < 0)[0] + 1])
        return f"of {self.n_items:,} items it scores {len(self._held):,}, but not item {item!r}"

    def _check_ids(self, row_users: Sequence[RawId], column_items: Sequence[RawId]) -> None:
        """Refuse ids that cannot be those of the data, and say whose rows and columns are left out."""
        ids, users = self._raw_items, self._raw_users
        answered = int((self._row >= 0).sum())
        strange_users, strange_items = len(row_users) - answered, len(column_items) - len(self._held)
        others = [_strange(row_users, users), _strange(column_items, ids)]
        if 2 * strange_items > len(column_items) or not len(self._held):
            raise TeacherError(
                f"{strange_items:,} of {len(column_items):,} columns of {self._name} are items that are not in the "
                f"data, for example {others[1]}; the data's {len(ids):,} items have ids like {ids.raw[0]!r}. Write the "
                "ids of the data into column_items, or leave out the columns of other items if these ids are right."
            )
        if not answered or (strange_users and 2 * answered < len(users)):
            raise TeacherError(
                f"{strange_users:,} of {len(row_users):,} rows of {self._name} are users that are not in the data, "
                f"for example {others[0]}, and {len(users) - answered:,} of the data's {len(users):,} users, which "
                f"have ids like {users.raw[0]!r}, have no row. Write the ids of the data into row_users, or leave out "
                "the rows of other users if these ids are right."
            )
        notes = [
            left_out(strange, total, f"{what} are left out, as their {whose}", shown, own, places >= 0)
            for strange, total, what, whose, shown, own, places in (
                (strange_items, len(column_items), "columns", "items", others[1], ids, self._column[1:]),
                (strange_users, len(row_users), "rows", "users", others[0], users, self._row),
            )
            if strange
        ]
        if answered < len(users):
            notes.append(
                f"{len(users) - answered:,} of {len(users):,} users of the data have no row, and learn nothing from it"
            )
        if notes:
            _log.warning("%s: %s", self._name, "; ".join(notes))


def _open(path: Path) -> Numbers:
    """Map a ``.npy`` file into memory."""
    try:
        matrix = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no array that np.save has written: {error}") from error
    if matrix.flags.f_contiguous and not matrix.flags.c_contiguous:
        raise DataError(
            f"{path} holds its columns one after the other, so that all of it would be read for each user; write it "
            "with np.save(path, np.ascontiguousarray(scores))"
        )
    return matrix


def _check_kind(matrix: Numbers, name: str) -> None:
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or matrix.dtype.itemsize not in (2, 4, 8):
        raise TeacherError(
            f"{name} is an array of shape {matrix.shape} and type {matrix.dtype}; scores are a matrix, a row a user "
            "and a column an item, of float16, float32 or float64."
        )


def _listed(ids: Ids) -> Sequence[RawId]:
    """Return ids as a list, read from a file where one is named."""
    if not isinstance(ids, str | Path):
        return ids.to_list() if isinstance(ids, pl.Series) else list(ids)
    try:
        text = Path(ids).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the ids in {ids}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{ids} is not UTF-8 text; it holds an id on each line") from error
    return text.removesuffix("\n").split("\n") if text else []


def _places(listed: Sequence[RawId], ids: IdMap, size: int, what: str) -> Ints:
    """Return ``(size,)`` where in a list each dense id stands, −1 where it does not."""
    dense = ids.find(listed)
    found = np.flatnonzero(dense >= ids.first)
    places = np.full(size, -1, np.int64)
    places[dense[found][::-1]] = found[::-1]
    if len(doubles := found[places[dense[found]] != found]):
        raise TeacherError(
            f"{what} names {len(doubles):,} ids a second time, for example {listed[doubles[0]]!r} at place "
            f"{doubles[0] + 1:,}; each may have one place."
        )
    return places


def _strange(listed: Sequence[RawId], ids: IdMap) -> list[RawId]:
    """Return the first ids of a list that are not in the data."""
    return [listed[place] for place in np.flatnonzero(ids.find(listed) < ids.first)[:_SHOWN]]


def _blocks(n_rows: int, width: int) -> Iterator[slice]:
    """Cut rows into as many as are read at once."""
    height = max(1, _NUMBERS // max(width, 1))
    for start in range(0, n_rows, height):
        yield slice(start, min(start + height, n_rows))
