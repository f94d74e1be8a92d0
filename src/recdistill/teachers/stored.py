"""Scores that are stored: whatever any library has computed, as a teacher."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recdistill.arrays import Bools, Ints
from recdistill.data.columns import parse_ids, problems
from recdistill.data.dataset import IdMap, RawId, Sequences
from recdistill.data.files import Source, file_bytes, open_tables
from recdistill.data.interactions import describe_bad_rows, first_problems, label
from recdistill.errors import TeacherError
from recdistill.rankings import Ranking, Scores
from recdistill.teachers.answers import Scorer
from recdistill.teachers.base import STRANGE, Teacher

_log = logging.getLogger("recdistill.teachers")

_SHOWN = 3
"""Examples in a message."""


class StoredTeacher(Teacher):
    """A table of scores, a row for each user and item: the higher a score, the better.

    Where each of its users has a score for every item, the table is a whole matrix. Any item can be asked about then,
    so that methods such as ``rcekd`` can learn from it. Where items are left out it is a list with scores for each
    user, for methods such as ``kd`` and ``rrd``, or ``bahsd`` with ``scales = [1.0]``. Asked about an item that it
    leaves out, or a user without a row, it raises. A table that leaves out a few is such a list as well; where it has
    more than half of its users' scores, a warning tells of the gap before students learn by the default method.

    Rows of users and items that are not in the data are left out, and counted in a warning. So are users of the data
    without a row: they learn from labels alone. A table for more users than the data hold is as welcome as one for a
    few of them; but where it names strange users, and most of the data's have no row, its ids are taken to be wrong.

    All of it is held in memory; a matrix that is too large for that, or dense, is for `MatrixTeacher`.

    Args:
        source: a Parquet, CSV or TSV file, a glob of them, or a polars frame.
        ids: the items of the data.
        users: the users of the data.
        user: column of user ids, in the ids of the data.
        item: column of item ids, in the ids of the data.
        score: column of scores; where several are equal, the items stand in the order of the data.
        separator: what separates fields; by default a tab in ``.tsv`` files, else a comma.
        exclude_history: whether items of the history are left out of the lists.

    Raises:
        DataError: for a file that cannot be read, or a missing column.
        TeacherError: for an array, a score that is not a finite number in 32 bits, a missing id, two scores of one
            item for a user, ids most of which are not those of the data, or a table of which nothing is left.
    """

    takes = "user"
    gives_scores = True
    free = True

    def __init__(
        self,
        source: Source,
        *,
        ids: IdMap,
        users: IdMap,
        user: str = "user",
        item: str = "item",
        score: str = "score",
        separator: str | None = None,
        exclude_history: bool = True,
    ) -> None:
        _refuse_matrix(source)
        found = _read(source, [user, item, score], separator, ids, users)
        rows = _known(found, label(source), ids, users)
        rows = rows.sort("user", "score", "item", descending=[False, True, False])
        self.dropped["unknown"] = found.frame.height - rows.height
        counts = np.bincount(rows["user"].to_numpy(), minlength=len(users))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        self.lists = Sequences.from_offsets(rows["item"].to_numpy(), offsets)
        """A row a user: the items that have a score, the best first."""
        self.values: Scores = rows["score"].to_numpy()
        """The scores, parallel to ``lists.items``."""
        self.file_bytes = file_bytes(source)
        """Size of the files; ``None`` of a frame."""
        self.scores_items = bool((counts[counts > 0] == len(ids)).all())
        self.scores_most = not self.scores_items and bool(2 * rows.height > np.count_nonzero(counts) * len(ids))
        self.exclude_history = exclude_history
        self.n_items: int = len(ids)
        self._raw_items, self._raw_users = ids, users
        self.gap = "" if self.scores_items else self._first_gap()
        digest = hashlib.sha256(json.dumps([ids.raw.to_list(), users.raw.to_list(), exclude_history]).encode())
        for array in (offsets, self.lists.items, self.values):
            digest.update(array.data)
        self._identity = f"stored-{digest.hexdigest()[:12]}"

    @property
    def identity(self) -> str:
        """A hash of the scores, and of the ids of users and items."""
        return self._identity

    def knows(self, users: npt.NDArray[np.integer]) -> Bools:
        """Return ``(B,)`` which users have a row."""
        rows: Bools = self.lists.lengths[users] > 0
        return rows

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Return the ``k`` best items of each user, without those of the history; nothing for users without a row.

        Raises:
            TeacherError: when no users are given.
        """
        lists = self.lists.take(self._check_users(users))
        spare = histories.lengths if self.exclude_history else np.zeros(len(histories), np.int64)
        lists = Sequences(lists.items, lists.starts, np.minimum(lists.ends, lists.starts + k + spare))
        row = np.repeat(np.arange(len(lists)), lists.lengths)
        at = np.arange(len(row)) + np.repeat(lists.starts - np.cumsum(lists.lengths) + lists.lengths, lists.lengths)
        if self.exclude_history:
            kept = ~np.isin(self._cells(row, lists.items[at]), histories.pairs(self.n_items))
            row, at = row[kept], at[kept]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        row, at, place = row[place < k], at[place < k], place[place < k]
        items = np.zeros((len(lists), k), np.int32)
        scores = np.full(items.shape, -np.inf, np.float32)
        items[row, place], scores[row, place] = lists.items[at], self.values[at]
        return Ranking(items, scores)

    def scorer(self, histories: Sequences, *, users: npt.NDArray[np.integer] | None = None) -> Scorer:
        """Return what looks up the scores of chosen items.

        Raises:
            TeacherError: when no users are given; when asked, for an item outside 1…N, or one without a score.
        """
        who = self._check_users(users)

        def scores(rows: Ints, candidates: Ints | None) -> Scores:
            users = who[rows]
            if candidates is None and self.scores_items and self.knows(users).all():
                matrix: Scores = self._by_item.reshape(-1, self.n_items)
                return matrix[self.lists.starts[users] // self.n_items]
            if candidates is None:
                candidates = np.broadcast_to(np.arange(1, self.n_items + 1), (len(rows), self.n_items))
            self._check_candidates(candidates)
            return self._look_up(users, candidates)

        return scores

    def _first_gap(self) -> str:
        lengths = self.lists.lengths
        user = int(np.flatnonzero((lengths > 0) & (lengths < self.n_items))[0])
        item = np.setdiff1d(np.arange(1, self.n_items + 1), self.lists[user])[0]
        (raw_user,), (raw_item,) = self._raw_users.decode([user]), self._raw_items.decode([item])
        return (
            f"of {self.n_items:,} items it scores {lengths[user]:,} for user {raw_user!r}, say, but not item "
            f"{raw_item!r}"
        )

    def _look_up(self, users: Ints, candidates: Ints) -> Scores:
        """Return the scores of ``candidates (b, C)``, for each of ``users (b,)`` its own."""
        if self.scores_items:
            held = np.broadcast_to(self.lists.lengths[users, None] > 0, candidates.shape)
            at, values = self.lists.starts[users, None] + candidates - 1, self._by_item
        else:
            cells, values = self._by_cell
            wanted = self._cells(users[:, None], candidates)
            at = np.searchsorted(cells, wanted)
            held = cells.take(at, mode="clip") == wanted
        if not held.all():
            row, column = np.argwhere(~held)[0]
            (user,), (item,) = self._raw_users.decode(users[row]), self._raw_items.decode(candidates[row, column])
            raise TeacherError(
                f"teacher {self.identity!r} holds no score of item {item!r} for user {user!r}, nor "
                f"{(~held).sum() - 1:,} others that were asked for; add their rows, or take a method that learns from "
                "its lists, such as 'kd' or 'rrd'."
            )
        scores: Scores = values[at]
        return scores

    def _cells(self, users: npt.NDArray[np.integer], items: npt.NDArray[np.integer]) -> Ints:
        """Turn pairs of a user and an item into one number each."""
        return users.astype(np.int64) * (self.n_items + 1) + items

    @cached_property
    def _by_item(self) -> Scores:
        """The scores of a whole matrix, each user's in the order of the items."""
        values = np.empty_like(self.values)
        values[np.repeat(self.lists.starts, self.lists.lengths) + self.lists.items - 1] = self.values
        return values

    @cached_property
    def _by_cell(self) -> tuple[Ints, Scores]:
        """All cells that have a score, rising, and their scores."""
        cells = self.lists.pairs(self.n_items)
        order = np.argsort(cells)
        return cells[order], self.values[order]


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What stands in a table."""

    frame: pl.DataFrame
    """Columns ``user`` and ``item``, dense, −1 where they are not in the data, and ``score``."""
    unknown_users: list[RawId]
    """The first that are not in the data."""
    unknown_items: list[RawId]


def _refuse_matrix(source: object) -> None:
    """Say where a matrix, or a frame of another library, belongs."""
    if isinstance(source, str | Path):
        given = f"the file {source}" if str(source).endswith(".npy") else ""
    else:
        given = "" if isinstance(source, pl.DataFrame | pl.LazyFrame) else f"what is given as a {type(source).__name__}"
    if given:
        raise TeacherError(
            f"a row for each user, item and score is read from a file or a polars frame, not from {given}. A matrix of "
            "users × items teaches by MatrixTeacher(scores, row_users=…, column_items=…), in a run file by "
            'kind = "matrix"; '
            "a frame of pandas by pl.from_pandas(frame)."
        )


def _read(source: Source, columns: list[str], separator: str | None, ids: IdMap, users: IdMap) -> _Rows:
    """Read users, items and scores, and check every row by itself."""
    frames: list[pl.DataFrame] = []
    unknown: tuple[list[RawId], list[RawId]] = ([], [])
    for table in open_tables(source, dict(zip(("user", "item", "score"), columns, strict=True)), separator):
        raw_user, raw_item, raw_score = (table.frame[column] for column in columns)
        user, bad_users = parse_ids(raw_user, text_ids=users.is_text)
        item, bad_items = parse_ids(raw_item, text_ids=ids.is_text)
        score, bad_scores = _parse_scores(raw_score)
        bad = first_problems(table, [bad_users, bad_items, bad_scores])
        if bad.height:
            raise TeacherError(f"{describe_bad_rows(table, bad)}\nCorrect these rows, or leave them out.")
        dense = [known.find(raw).astype(np.int32) for raw, known in ((user, users), (item, ids))]
        frames.append(pl.DataFrame({"user": dense[0], "item": dense[1], "score": score}))
        for found, raw, number in zip(unknown, (user, item), dense, strict=True):
            found += raw.filter(pl.Series(number < 0)).unique(maintain_order=True).head(_SHOWN).to_list()
    return _Rows(pl.concat(frames), unknown[0][:_SHOWN], unknown[1][:_SHOWN])


def _parse_scores(raw: pl.Series) -> tuple[pl.Series, pl.DataFrame]:
    """Return the scores in 32 bits, and the list of rows whose score is no finite number."""
    if not (raw.dtype.is_numeric() or raw.dtype in (pl.String, pl.Null)):
        raise TeacherError(f"column {raw.name!r} holds {raw.dtype}; scores are numbers, so cast it first")
    text = raw.str.strip_chars() if raw.dtype == pl.String else raw
    scores = text.cast(pl.Float32, strict=False)
    return scores, problems(raw, ~scores.is_finite().fill_null(False), "not a finite number (in 32 bits)")


def _known(rows: _Rows, name: str, ids: IdMap, users: IdMap) -> pl.DataFrame:
    """Return the rows of users and items that are in the data, if they make a teacher, and say what was left out."""
    frame = rows.frame
    strange_users, strange_items = int((frame["user"] < 0).sum()), int((frame["item"] < 0).sum())
    known = frame.filter(pl.col("user") >= 0, pl.col("item") > 0)
    if frame.is_empty():
        raise TeacherError(f"{name} names its columns and holds no row; write one for each user, item and score.")
    if 2 * strange_items > frame.height:
        raise TeacherError(
            f"{strange_items:,} of {frame.height:,} rows in {name} name items that are not in the data, for example "
            f"{rows.unknown_items}; the data's {len(ids):,} items have ids like {ids.raw[0]!r}. Write the ids of the "
            "data, or leave out the rows of other items if these ids are right."
        )
    if known.is_empty():
        raise TeacherError(
            f"none of the {frame.height:,} rows in {name} names a user and an item of the data; its users are like "
            f"{rows.unknown_users}, the data's {len(users):,} have ids like {users.raw[0]!r}. Write the "
            "ids of the data."
        )
    unanswered = len(users) - known["user"].n_unique()
    if strange_users and 2 * unanswered > len(users):
        raise TeacherError(
            f"{strange_users:,} of {frame.height:,} rows in {name} name users that are not in the data, for example "
            f"{rows.unknown_users}, and {unanswered:,} of the data's {len(users):,} users, which have ids like "
            f"{users.raw[0]!r}, have no row. Write the ids of the data, or leave out the rows of other users if these "
            "ids are right."
        )
    _refuse_doubles(known, name, ids, users)
    sides = (
        ("items", strange_items, rows.unknown_items, ids, known["item"]),
        ("users", strange_users, rows.unknown_users, users, known["user"]),
    )
    notes = [
        left_out(strange, frame.height, f"rows are left out, as their {what}", shown, own, _named(dense, own))
        for what, strange, shown, own, dense in sides
        if strange
    ]
    if unanswered:
        notes.append(f"{unanswered:,} of {len(users):,} users of the data have no row, and learn nothing from it")
    if notes:
        _log.warning("%s: %s", name, "; ".join(notes))
    return known


def _named(dense: pl.Series, own: IdMap) -> Bools:
    return np.bincount(dense.to_numpy() - own.first, minlength=len(own)) > 0


def left_out(strange: int, total: int, what: str, shown: Sequence[RawId], own: IdMap, named: Bools) -> str:
    """Say what is left out as its ids are not in the data, and ask whether these are the data's own, with one of each.

    It is not asked where next to nothing is left out and all of the data are named. Where ids are off by one, all but
    the last of them are found, though each for another item or user.

    Args:
        strange: how many are left out.
        total: of how many.
        what: they are, and whose the ids are.
        shown: some of the strange ids.
        own: the ids of the data.
        named: ``(len(own),)`` which of them are named.
    """
    said = f"{strange:,} of {total:,} {what} are not in the data, for example {shown}"
    if not named.all():
        return f"{said}: are these the data's own ids, of which {own.raw[int(named.argmin())]!r}, say, is not there?"
    return f"{said}: are these the data's own ids, such as {own.raw[0]!r}?" if strange >= STRANGE * total else said


def _refuse_doubles(known: pl.DataFrame, name: str, ids: IdMap, users: IdMap) -> None:
    cell = pl.col("user").cast(pl.Int64) * (len(ids) + 1) + pl.col("item")
    doubles = known.filter(~cell.is_first_distinct())
    if doubles.height:
        shown = doubles.head(_SHOWN)
        pairs = list(zip(users.decode(shown["user"]), ids.decode(shown["item"]), strict=True))
        raise TeacherError(
            f"{doubles.height:,} rows in {name} give a user's item a second score, for example (user, item) {pairs}; "
            "keep one of each."
        )
