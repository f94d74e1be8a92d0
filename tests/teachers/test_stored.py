"""A table of scores as a teacher."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import DataError, SettingsError, TeacherError
from recdistill.methods.base import build_method
from recdistill.teachers.stored import StoredTeacher

ITEMS = IdMap(["a", "b", "c", "d"], first=1)
USERS = IdMap([10, 20, 30], first=0)
HISTORIES = Sequences.from_lists([[1], [4, 2], [3]])
EVERYBODY = np.arange(3)
TOP = [(10, "c", 0.5), (10, "a", 9.0), (10, "d", 0.75), (20, "b", -1.0), (20, "a", -2.0)]
"""User 10 lists a, d, c; user 20 b, a; user 30 nothing."""


def table(rows: list[tuple[Any, ...]], **names: str) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user", "item", "score"], orient="row").rename(names)


def stored(source: Any = None, **settings: Any) -> StoredTeacher:
    return StoredTeacher(table(TOP) if source is None else source, ids=ITEMS, users=USERS, **settings)


def whole(scale: float = 1.0) -> list[tuple[int, str, float]]:
    """Return all scores: user 10 scores a, b, c, d as 0, 1, 2, 3, user 20 as 4, 5, 6, 7, and so on, times ``scale``."""
    users, items = USERS.raw.to_list(), ITEMS.raw.to_list()
    return [(user, item, scale * (4 * u + i)) for u, user in enumerate(users) for i, item in enumerate(items)]


def test_the_best_come_first_without_the_history() -> None:
    ranking = stored().rank(HISTORIES, 2, users=EVERYBODY).check(len(ITEMS))
    assert ranking.items.tolist() == [[4, 3], [1, 0], [0, 0]]
    assert ranking.scores is not None
    assert ranking.scores.tolist() == [[0.75, 0.5], [-2.0, -np.inf], [-np.inf, -np.inf]]


def test_the_history_stays_for_data_with_repeats() -> None:
    ranking = stored(exclude_history=False).rank(HISTORIES, 2, users=EVERYBODY)
    assert ranking.items.tolist() == [[1, 4], [2, 1], [0, 0]]


def test_users_are_asked_in_any_order_and_again() -> None:
    histories = HISTORIES.take(np.array([2, 1, 0, 1]))
    ranking = stored().rank(histories, 3, users=np.array([2, 1, 0, 1]))
    assert ranking.items.tolist() == [[0, 0, 0], [1, 0, 0], [4, 3, 0], [1, 0, 0]]


def test_equal_scores_stand_in_the_order_of_the_items_whatever_that_of_the_rows() -> None:
    rows = [(10, item, 1.0) for item in ("d", "b", "c")]
    assert stored(table(rows)).rank(HISTORIES.take(slice(0, 1)), 3, users=np.array([0])).items.tolist() == [[2, 3, 4]]


def test_a_whole_matrix_scores_any_item() -> None:
    """Also items of the history, in any order of the rows."""
    teacher = stored(table(whole()[::-1]))
    assert teacher.scores_items
    candidates = np.array([[4, 1], [2, 2], [3, 1]])
    assert teacher.scores(HISTORIES, candidates, users=EVERYBODY).tolist() == [[3.0, 0.0], [5.0, 5.0], [10.0, 8.0]]
    assert teacher.rank(HISTORIES, 4, users=EVERYBODY).items.tolist() == [[4, 3, 2, 0], [3, 1, 0, 0], [4, 2, 1, 0]]


def test_a_scorer_answers_for_some_of_the_rows() -> None:
    scorer = stored(table(whole())).scorer(HISTORIES.take(np.array([2, 0])), users=np.array([2, 0]))
    assert scorer(np.array([1, 0, 1]), np.array([[1], [2], [3]])).tolist() == [[0.0], [9.0], [2.0]]
    assert scorer(np.array([1, 0]), None).tolist() == [[0.0, 1.0, 2.0, 3.0], [8.0, 9.0, 10.0, 11.0]]


def test_lists_score_what_they_hold_and_refuse_the_rest() -> None:
    teacher = stored()
    assert not teacher.scores_items
    two, users = HISTORIES.take(slice(0, 2)), np.array([0, 1])
    assert teacher.scores(two, np.array([[4, 1], [1, 2]]), users=users).tolist() == [[0.75, 9.0], [-2.0, -1.0]]
    with pytest.raises(TeacherError, match="no score of item 'b' for user 10, nor 1 others that were asked for; add"):
        teacher.scores(two, np.array([[4, 2], [4, 1]]), users=users)


def test_a_method_that_asks_for_any_score_wants_a_whole_matrix() -> None:
    method = build_method("rcekd")
    method.check_teacher(stored(table(whole())))
    said = (
        r"scores of any item .* does not give \(of 4 items it scores 3 for user 10, say, but not item 'b'\): "
        r"take .* a file with all scores as teacher, or 'kd' or 'rrd'"
    )
    with pytest.raises(SettingsError, match=said):
        method.check_teacher(stored())


def test_a_matrix_of_some_users_refuses_the_others_scores() -> None:
    """It is a whole one for those that it holds; they alone can be asked about."""
    teacher = stored(table(whole()[:8]))
    assert teacher.scores_items
    assert teacher.knows(np.array([2, 0, 1])).tolist() == [False, True, True]
    with pytest.raises(TeacherError, match="no score of item 'a' for user 30"):
        teacher.scores(HISTORIES, np.array([[1], [1], [1]]), users=EVERYBODY)
    with pytest.raises(TeacherError, match="no score of item 'a' for user 30, nor 3 others"):
        teacher.scorer(HISTORIES, users=EVERYBODY)(np.arange(3), None)


@pytest.mark.parametrize("outside", [0, 5])
def test_a_candidate_outside_the_items_is_refused(outside: int) -> None:
    with pytest.raises(TeacherError, match="outside 1…4"):
        stored(table(whole())).scores(HISTORIES, np.full((3, 1), outside), users=EVERYBODY)


def test_it_answers_for_users_alone() -> None:
    teacher = stored()
    assert (teacher.takes, teacher.gives_scores) == ("user", True)
    for ask in (lambda: teacher.rank(HISTORIES, 2), lambda: teacher.scorer(HISTORIES)):
        with pytest.raises(TeacherError, match="answers for users; pass the user of each history"):
            ask()


@pytest.mark.parametrize("name", ["scores.csv", "scores.tsv", "scores.parquet", "part-*.parquet"])
def test_files_of_all_kinds_say_the_same(tmp_path: Path, name: str) -> None:
    frame = table(TOP)
    if name.endswith(".parquet"):
        frame[:2].write_parquet(tmp_path / name.replace("*", "1"))
        (frame if "*" not in name else frame[2:]).write_parquet(tmp_path / name.replace("*", "2"))
    else:
        frame.write_csv(tmp_path / name, separator="," if name.endswith("csv") else "\t")
    assert stored(tmp_path / name).identity == stored().identity


def test_columns_may_have_other_names() -> None:
    frame = table(TOP, user="who", item="what", score="how much")
    assert stored(frame, user="who", item="what", score="how much").identity == stored().identity
    with pytest.raises(DataError, match=r"no column 'score' for the score; choose one of: .*how much"):
        stored(frame, user="who", item="what")


def test_of_lists_without_scores_it_is_said_how_they_teach() -> None:
    with pytest.raises(DataError, match="write minus the rank as the score, and learn it by a method of lists: 'kd'"):
        stored(table(TOP).drop("score"))


def test_the_identity_follows_the_scores_the_ids_and_what_is_told() -> None:
    assert stored(table(TOP[::-1])).identity == stored().identity
    others = [
        stored(),
        stored(table([*TOP[:-1], (20, "a", -3.0)])),
        stored(exclude_history=False),
        StoredTeacher(table(TOP), ids=IdMap(["a", "b", "c", "z", "d"], first=1), users=USERS),
        StoredTeacher(table(TOP), ids=ITEMS, users=IdMap([10, 20, 31], first=0)),
    ]
    assert len({teacher.identity for teacher in others}) == len(others)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf"), 1e39, None])
def test_a_score_that_is_no_finite_number_is_refused(score: float | None) -> None:
    with pytest.raises(TeacherError, match=r"1 of 6 rows cannot be used:\n  row 6: column 'score' is "):
        stored(table([*TOP, (30, "a", score)]))


def test_a_bad_row_of_a_file_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("user,item,score\n10,a,0.5\n10,b,much\n,c,1\n")
    said = (
        r"2 of 3 rows cannot be used:\n"
        r"  row 2 \(line 3\): column 'score' is 'much', not a finite number \(in 32 bits\)\n"
        r"  row 3 \(line 4\): column 'user' is empty\nCorrect these rows, or leave them out\."
    )
    with pytest.raises(TeacherError, match=said):
        stored(tmp_path / "scores.csv")


def test_scores_of_another_kind_are_refused() -> None:
    frame = table(TOP).with_columns(pl.lit(True).alias("score"))
    with pytest.raises(TeacherError, match="column 'score' holds Boolean; scores are numbers"):
        stored(frame)


def test_two_scores_of_one_item_are_refused() -> None:
    rows = [*TOP, (20, "b", 4.0), (10, "a", 9.0), (10, "a", 3.0)]
    said = r"3 rows in the frame .* second score, for example \(user, item\) \[\(20, 'b'\), \(10, 'a'\), \(10, 'a'\)\]"
    with pytest.raises(TeacherError, match=said):
        stored(table(rows))


def test_rows_of_strange_items_and_users_are_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    strange = [(10, "x", 99.0), (20, "y", 99.0), (77, "a", 1.0)]
    with caplog.at_level(logging.WARNING):
        teacher = stored(table([*TOP, *strange]))
    assert teacher.identity == stored().identity
    assert teacher.dropped["unknown"] == 3
    (record, _) = caplog.messages
    assert "2 of 8 rows are left out, as their items are not in the data, for example ['x', 'y']" in record
    assert "1 of 8 rows are left out, as their users are not in the data, for example [77]" in record


OFF_BY_ONE = IdMap(range(200), first=1)


@pytest.mark.parametrize(
    ("table_ids", "said"),
    [
        (
            range(1, 201),
            r"1 of 200 rows .* example \[200\]: are these the data's own ids, of which 0, say, is not there\?$",
        ),
        (range(-1, 199), r"1 of 200 rows .* example \[-1\]: are these the data's own ids, of which 199, say, is not"),
        (range(202), r"2 of 202 rows .* for example \[200, 201\]$"),
        (range(203), r"3 of 203 rows .* for example \[200, 201, 202\]: are these the data's own ids, such as 0\?$"),
    ],
)
def test_where_a_few_ids_are_strange_it_is_asked_what_the_others_are(
    table_ids: range, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Numbers from 1 to N, where the data's are from 0 to N - 1, would teach each item what is true of another."""
    frame = pl.DataFrame({"user": [0] * len(table_ids), "item": table_ids, "score": [0.0] * len(table_ids)})
    StoredTeacher(frame, ids=OFF_BY_ONE, users=IdMap([0], first=0))
    (found,) = caplog.messages
    assert re.search(said, found)
    caplog.clear()
    of_users = frame.select(item="user", user="item", score="score")
    users = IdMap(range(200), first=0)
    StoredTeacher(of_users, ids=IdMap([0], first=1), users=users)
    assert re.search(said.removesuffix("$"), caplog.messages[0])


def test_users_without_a_row_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        stored(table(whole()))
        stored()
    assert caplog.messages == ["the frame: 1 of 3 users of the data have no row, and learn nothing from it"]


def test_ids_of_something_else_are_refused() -> None:
    strange = [(10, f"item-{n}", 1.0) for n in range(6)]
    said = r"6 of 11 rows .* for example \['item-0', 'item-1', 'item-2'\]; the data's 4 items have ids like 'a'"
    with pytest.raises(TeacherError, match=said):
        stored(table([*TOP, *strange]))
    with pytest.raises(TeacherError, match=r"none of the 1 rows .* users are like \[11\], the data's 3 .* like 10"):
        stored(table([(11, "a", 1.0)]))


def test_ids_of_other_users_are_refused() -> None:
    """Two of three would learn nothing from it, with a warning that nobody reads."""
    other = [(user + 100 if user > 10 else user, item, score) for user, item, score in whole()]
    said = (
        r"8 of 12 rows in the frame name users that are not in the data, for example \[120, 130\], and 2 of the data's "
        r"3 users, which have ids like 10, have no row\. Write the ids of the data"
    )
    with pytest.raises(TeacherError, match=said):
        stored(table(other))


def test_a_table_of_many_other_users_or_of_few_alone_is_welcome() -> None:
    """A model of all customers teaches on some of them; and some may be all that was scored."""
    others = [(user + 100 * n, item, score) for user, item, score in whole() for n in range(3)]
    assert stored(table(others)).knows(EVERYBODY).all()
    assert stored(table(whole()[:4])).knows(EVERYBODY).tolist() == [True, False, False]


def test_integers_in_a_file_are_found_among_text_ids() -> None:
    """``7`` in Parquet is ``"7"`` where other ids of the logs are words."""
    teacher = StoredTeacher(table([(7, "a", 1.0)]), ids=ITEMS, users=IdMap(["7", "guest"], first=0))
    assert teacher.rank(Sequences.from_lists([[2]]), 1, users=np.array([0])).items.tolist() == [[1]]


def test_ids_stored_as_decimals_are_refused() -> None:
    with pytest.raises(TeacherError, match=r"column 'user' is '10\.0', a decimal number; ids are integers or strings"):
        stored(table(TOP).cast({"user": pl.Float64}))


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(TeacherError, match="the frame names its columns and holds no row; write one for each user"):
        stored(table(TOP)[:0])


@pytest.mark.parametrize("source", [np.zeros((3, 4)), [[0.0]], "scores.npy", Path("scores.npy")])
def test_a_matrix_is_sent_where_it_belongs(source: Any) -> None:
    said = r'not from .*(ndarray|list|npy)\. A matrix of users × items teaches by MatrixTeacher.* by kind = "matrix"'
    with pytest.raises(TeacherError, match=said):
        stored(source)
