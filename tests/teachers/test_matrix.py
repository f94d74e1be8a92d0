"""A matrix of scores as a teacher."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import DataError, TeacherError
from recdistill.teachers import matrix
from recdistill.teachers.matrix import MatrixTeacher
from recdistill.teachers.stored import StoredTeacher

ITEMS = IdMap(["a", "b", "c", "d"], first=1)
USERS = IdMap([10, 20, 30], first=0)
HISTORIES = Sequences.from_lists([[1], [4, 2], [3]])
EVERYBODY = np.arange(3)
ROWS, COLUMNS = [30, 10, 20], ["d", "b", "a", "c"]
"""Neither in the order of the data."""
SCORES = np.array([[8, 6, 4, 7], [0, 2, 9, 1], [5, 3, 5, 5]], np.float32)


def teacher(scores: Any = SCORES, **settings: Any) -> MatrixTeacher:
    told: dict[str, Any] = {"row_users": ROWS, "column_items": COLUMNS, "ids": ITEMS, "users": USERS}
    return MatrixTeacher(scores, **(told | settings))


def as_table(scores: Any = SCORES) -> StoredTeacher:
    rows = [(user, item, float(scores[r, c])) for r, user in enumerate(ROWS) for c, item in enumerate(COLUMNS)]
    return StoredTeacher(pl.DataFrame(rows, schema=["user", "item", "score"], orient="row"), ids=ITEMS, users=USERS)


def test_rows_and_columns_are_found_by_their_ids() -> None:
    """By their places user 10 would be told 7, 6, 4 for d, b, c, and 20 would be told 2 for a."""
    ranking = teacher().rank(HISTORIES, 3, users=EVERYBODY).check(len(ITEMS))
    assert ranking.items.tolist() == [[2, 3, 4], [1, 3, 0], [4, 2, 1]]
    assert ranking.scores is not None
    assert ranking.scores.tolist() == [[2.0, 1.0, 0.0], [5.0, 5.0, -np.inf], [8.0, 6.0, 4.0]]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("numbers", [1, 1 << 20])
def test_it_says_what_a_table_of_the_same_scores_says(kind: Any, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any kind of numbers, and however few are read at once."""
    monkeypatch.setattr(matrix, "_NUMBERS", numbers)
    one, other = teacher(SCORES.astype(kind)), as_table()
    assert (one.takes, one.gives_scores, one.scores_items, one.gap) == ("user", True, True, "")
    users = np.array([2, 0, 1, 0])
    histories, candidates = HISTORIES.take(users), np.array([[4, 1], [2, 2], [3, 1], [1, 4]])
    for kept in (True, False):
        one.exclude_history = other.exclude_history = kept
        ours, theirs = (one.rank(histories, 5, users=users), other.rank(histories, 5, users=users))
        assert ours.items.tolist() == theirs.items.tolist()
        assert np.array_equal(ours.scores, theirs.scores)  # type: ignore[arg-type]
    assert one.scores(histories, candidates, users=users).tolist() == [[8, 4], [2, 2], [5, 5], [9, 0]]
    rows = np.array([3, 0])
    every = one.scorer(histories, users=users)(rows, None)
    assert every.tolist() == other.scorer(histories, users=users)(rows, None).tolist()


def test_a_file_teaches_like_the_array_and_is_not_read_into_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "scores.npy", SCORES)
    (tmp_path / "users.txt").write_text("30\n10\n20\n")
    (tmp_path / "items.csv").write_bytes(b"d\r\nb\r\na\r\nc")
    read = teacher(tmp_path / "scores.npy", row_users=tmp_path / "users.txt", column_items=str(tmp_path / "items.csv"))
    assert read.identity == teacher().identity
    assert read.file_bytes == (tmp_path / "scores.npy").stat().st_size
    assert teacher().file_bytes is None
    assert isinstance(read._matrix, np.memmap)
    assert read.rank(HISTORIES, 1, users=EVERYBODY).items.tolist() == [[2], [1], [4]]


def test_the_identity_follows_the_scores_the_ids_and_what_is_told() -> None:
    changed = SCORES.copy()
    changed[2, 3] = 4
    others = [
        teacher(),
        teacher(changed),
        teacher(row_users=[10, 30, 20]),
        teacher(column_items=["b", "d", "a", "c"]),
        teacher(exclude_history=False),
        teacher(users=IdMap([10, 20, 31], first=0), row_users=[31, 10, 20]),
    ]
    assert len({other.identity for other in others}) == len(others)


@pytest.mark.parametrize(("score", "kind"), [(np.nan, np.float16), (np.inf, np.float64), (1e39, np.float64)])
def test_a_score_that_is_no_finite_number_is_refused_when_it_is_read(score: float, kind: Any) -> None:
    broken = SCORES.astype(kind)
    broken[1, [0, 3]] = score
    asked = teacher(broken)
    two = np.array([1, 2])
    assert asked.rank(HISTORIES.take(two), 1, users=two).items.tolist() == [[1], [4]]
    with pytest.raises(TeacherError, match=r"scores item '[cd]' as (nan|inf|1e\+39) for user 10, and 1 others"):
        asked.rank(HISTORIES, 1, users=EVERYBODY)
    with pytest.raises(TeacherError, match=r"scores item 'd' as (nan|inf|1e\+39) for user 10, and 0 others"):
        asked.scores(HISTORIES, np.array([[4], [1], [1]]), users=EVERYBODY)


def test_users_without_a_row_and_strange_rows_and_columns_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """They change nothing in what the others are told."""
    wider = np.pad(SCORES[:2], ((0, 1), (0, 2)), constant_values=99)
    with caplog.at_level(logging.WARNING):
        asked = teacher(wider, row_users=[30, 10, 77], column_items=[*COLUMNS, "x", "y"])
    assert asked.knows(EVERYBODY).tolist() == [True, False, True]
    assert asked.rank(HISTORIES, 3, users=EVERYBODY).items.tolist() == [[2, 3, 4], [0, 0, 0], [4, 2, 1]]
    (said,) = caplog.messages
    assert said.startswith("the matrix: ")
    assert "2 of 6 columns are left out, as their items are not in the data, for example ['x', 'y']" in said
    assert "1 of 3 rows are left out, as their users are not in the data, for example [77]" in said
    assert "1 of 3 users of the data have no row, and learn nothing from it" in said
    assert "are these the data's own ids, such as 'a'?" in said
    assert "are these the data's own ids, of which 20, say, is not there?" in said
    with pytest.raises(TeacherError, match="holds no score of item 'a' for user 20, nor 0 others"):
        asked.scores(HISTORIES, np.array([[1], [1], [1]]), users=EVERYBODY)


def test_without_a_column_for_every_item_rows_are_lists() -> None:
    asked = teacher(SCORES[:, :3], column_items=COLUMNS[:3])
    assert (asked.scores_items, asked.scores_most) == (False, True)
    assert asked.gap == "of 4 items it scores 3, but not item 'c'"
    assert asked.rank(HISTORIES, 4, users=EVERYBODY).items.tolist() == [[2, 4, 0, 0], [1, 0, 0, 0], [4, 2, 1, 0]]
    with pytest.raises(TeacherError, match="holds no score of item 'c' for user 10, nor 2 others"):
        asked.scores(HISTORIES, np.array([[3], [3], [3]]), users=EVERYBODY)
    assert not teacher(SCORES[:, :2], column_items=COLUMNS[:2]).scores_most


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scores": SCORES.T}, r"4 rows and 3 columns, but 3 users are named .* from \[30\]\) and 4 items .* \['d'\]"),
        ({"row_users": ["user", *ROWS]}, r"but 4 users are named .* from \['user'\]\) .* without a heading"),
        ({"row_users": [30, 10, 30]}, "row_users names 1 ids a second time, for example 30 at place 3"),
        ({"column_items": ["d", "b", "d", "d"]}, "column_items names 2 ids a second time, for example 'd' at place 3"),
        ({"column_items": ["d", "x", "y", "z"]}, r"3 of 4 columns .* for example \['x', 'y', 'z'\]; .* like 'a'"),
        (
            {"row_users": [30, 40, 50]},
            r"2 of 3 rows .* for example \[40, 50\], and 2 of the data's 3 users, .* like 10",
        ),
        ({"row_users": [3, 4, 5]}, r"3 of 3 rows .* and 3 of the data's 3 users"),
        ({"scores": SCORES.astype(int)}, r"shape \(3, 4\) and type int64; scores are a matrix"),
        ({"scores": SCORES[0]}, r"shape \(4,\) and type float32; scores are a matrix"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        teacher(**({"scores": SCORES} | settings))


def test_a_matrix_of_many_other_users_or_of_few_alone_is_welcome() -> None:
    others = teacher(np.tile(SCORES, (5, 1)), row_users=[*ROWS, *range(100, 112)])
    assert others.knows(EVERYBODY).all()
    assert teacher(SCORES[:1], row_users=[10]).knows(EVERYBODY).tolist() == [True, False, False]


def test_text_files_name_integers_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("30\n010\n20\n")
    assert teacher(row_users=tmp_path / "users.txt").knows(EVERYBODY).tolist() == [False, True, True]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*scores\.npy"):
        teacher(tmp_path / "scores.npy")
    for content in (b"", b"user,item,score\n"):
        (tmp_path / "scores.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"scores\.npy is no array that np\.save has written"):
            teacher(tmp_path / "scores.npy")
    np.save(tmp_path / "scores.npy", np.asfortranarray(SCORES))
    with pytest.raises(DataError, match=r"columns one after the other, .* np\.ascontiguousarray"):
        teacher(tmp_path / "scores.npy")
    with pytest.raises(DataError, match=r"cannot read the ids in .*users\.txt: No such file"):
        teacher(row_users=tmp_path / "users.txt")
    (tmp_path / "users.txt").write_bytes(b"\xff\xfe3\x000\x00")
    with pytest.raises(DataError, match=r"users\.txt is not UTF-8 text; it holds an id on each line"):
        teacher(row_users=tmp_path / "users.txt")


@pytest.mark.parametrize("outside", [0, 5])
def test_a_candidate_outside_the_items_is_refused(outside: int) -> None:
    with pytest.raises(TeacherError, match="outside 1…4"):
        teacher().scores(HISTORIES, np.full((3, 1), outside), users=EVERYBODY)


def test_it_answers_for_users_alone() -> None:
    for ask in (lambda: teacher().rank(HISTORIES, 2), lambda: teacher().scorer(HISTORIES)):
        with pytest.raises(TeacherError, match="answers for users; pass the user of each history"):
            ask()
