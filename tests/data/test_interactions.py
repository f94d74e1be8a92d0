import gzip
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data import files
from recdistill.data.dataset import Dataset
from recdistill.data.interactions import Interactions, name_bad_row, read_interactions
from recdistill.errors import DataError

ROWS = [(1, 5, 30), (2, 6, 10), (1, 7, 10), (1, 6, 20)]  # user, item, time
IN_ORDER = {1: [7, 6, 5], 2: [6]}


def write(folder: Path, text: str, name: str = "log.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def csv_text(rows: Sequence[tuple[object, ...]], separator: str = ",") -> str:
    header = separator.join(["user_id", "item_id", "timestamp"][: len(rows[0])])
    return "\n".join([header, *(separator.join(map(str, row)) for row in rows)]) + "\n"


def frame(rows: Sequence[tuple[object, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def histories(dataset: Dataset) -> dict[object, list[object]]:
    rows = zip(dataset.users.raw, dataset.sequences, strict=True)
    return {user: list(dataset.items.decode(items)) for user, items in rows}


def refusal(source: Path | pl.DataFrame, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_interactions(source, **options)  # type: ignore[arg-type]
    return str(caught.value)


class TestSources:
    def test_csv(self, tmp_path: Path) -> None:
        assert histories(read_interactions(write(tmp_path, csv_text(ROWS))).dataset()) == IN_ORDER

    def test_tsv(self, tmp_path: Path) -> None:
        path = write(tmp_path, csv_text(ROWS, "\t"), "log.tsv")
        assert histories(read_interactions(path).dataset()) == IN_ORDER

    def test_compressed(self, tmp_path: Path) -> None:
        path = tmp_path / "log.csv.gz"
        path.write_bytes(gzip.compress(csv_text(ROWS).encode()))
        assert histories(read_interactions(path).dataset()) == IN_ORDER

    def test_parquet(self, tmp_path: Path) -> None:
        frame(ROWS).write_parquet(tmp_path / "log.parquet")
        assert histories(read_interactions(tmp_path / "log.parquet").dataset()) == IN_ORDER

    def test_frame_and_lazy_frame(self) -> None:
        assert histories(read_interactions(frame(ROWS)).dataset()) == IN_ORDER
        assert histories(read_interactions(frame(ROWS).lazy()).dataset()) == IN_ORDER

    def test_glob_reads_files_in_order_of_their_names(self, tmp_path: Path) -> None:
        write(tmp_path, "user_id,item_id\n1,b\n", "2.csv")
        write(tmp_path, "user_id,item_id\n1,a\n1,c\n", "1.csv")
        assert histories(read_interactions(tmp_path / "*.csv", time=None).dataset()) == {1: ["a", "c", "b"]}

    def test_two_stars_reach_files_in_folders_of_any_depth(self, tmp_path: Path) -> None:
        """A year of logs in folders must not shrink in silence to the files one folder down."""
        for number, folder in enumerate((".", "2024", "2024/05/31"), 1):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            write(tmp_path / folder, f"user_id,item_id\n1,{number}\n1,{number}\n1,{number}\n")
        for pattern in ("**/*.csv", "**"):
            found = read_interactions(tmp_path / pattern, time=None)
            assert found.frame["item"].unique().sort().to_list() == [1, 2, 3]

    def test_a_name_that_looks_like_a_pattern_is_a_file_if_it_exists(self, tmp_path: Path) -> None:
        path = write(tmp_path, csv_text(ROWS), "log[1].csv")
        assert len(read_interactions(path)) == len(ROWS)

    def test_columns_and_separator_by_option(self, tmp_path: Path) -> None:
        path = write(tmp_path, "x;who;what;when\n0;1;5;30\n0;1;7;10\n0;1;6;20\n", "log.txt")
        data = read_interactions(path, user="who", item="what", time="when", separator=";").dataset()
        assert histories(data) == {1: [7, 6, 5]}

    def test_byte_order_mark_and_windows_line_ends(self, tmp_path: Path) -> None:
        path = write(tmp_path, "\ufeff" + csv_text(ROWS).replace("\n", "\r\n"))
        assert histories(read_interactions(path).dataset()) == IN_ORDER

    def test_empty_lines_at_the_end_are_no_rows(self, tmp_path: Path) -> None:
        assert len(read_interactions(write(tmp_path, csv_text(ROWS) + "\n\n"))) == len(ROWS)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        assert "there is no file" in refusal(tmp_path / "none.csv")

    def test_a_folder_is_refused_with_a_pattern_to_use(self, tmp_path: Path) -> None:
        assert f"{tmp_path}/*.parquet" in refusal(tmp_path)

    def test_an_unknown_kind_of_file_is_refused(self, tmp_path: Path) -> None:
        assert "cannot tell how to read" in refusal(write(tmp_path, "x", "log.xlsx"))

    def test_a_broken_parquet_file_is_refused(self, tmp_path: Path) -> None:
        assert "cannot be read" in refusal(write(tmp_path, "not parquet at all", "log.parquet"))

    def test_a_quote_that_is_never_closed_is_refused(self, tmp_path: Path) -> None:
        text = csv_text(ROWS) + '3,"x,40\n'
        assert "a quote that is never closed" in refusal(write(tmp_path, text))

    @pytest.mark.parametrize("separator", ["::", "§", '"', "\n"])
    def test_a_separator_that_cannot_be_one_is_refused(self, tmp_path: Path, separator: str) -> None:
        message = refusal(write(tmp_path, csv_text(ROWS), "ratings.dat"), separator=separator)
        assert f"separator {separator!r} must be one ASCII character" in message

    def test_a_tab_may_be_written_as_two_characters(self, tmp_path: Path) -> None:
        path = write(tmp_path, csv_text(ROWS, "\t"))
        assert histories(read_interactions(path, separator="\\t").dataset()) == IN_ORDER

    def test_what_is_compressed_is_seen_in_the_bytes(self, tmp_path: Path) -> None:
        """A file may have been unpacked, or packed, without another name; bad rows are looked up in its lines."""
        text = csv_text([*ROWS, ("", 5, 40)])
        write(tmp_path, text, "plain.csv.gz")
        (tmp_path / "packed.csv").write_bytes(gzip.compress(text.encode()))
        for name in ("plain.csv.gz", "packed.csv"):
            assert "row 5 (line 6): column 'user_id' is empty" in refusal(tmp_path / name)
            assert len(read_interactions(tmp_path / name, skip_bad_rows=True)) == len(ROWS)

    def test_a_very_long_field_is_no_hindrance_to_naming_bad_rows(self, tmp_path: Path) -> None:
        text = f"note,user_id,item_id\n{'x' * 200_000},1,5\n,1,\n"
        assert "row 2 (line 3): column 'item_id' is empty" in refusal(write(tmp_path, text), time=None)

    def test_a_good_file_is_not_read_twice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "_open_bytes", lambda _: pytest.fail("read for lines that nobody asked for"))
        assert len(read_interactions(write(tmp_path, csv_text(ROWS)))) == len(ROWS)


class TestIds:
    def test_integers_stay_integers(self, tmp_path: Path) -> None:
        assert read_interactions(write(tmp_path, csv_text(ROWS))).frame["user"].dtype == pl.Int64

    def test_leading_zeros_are_kept(self, tmp_path: Path) -> None:
        """A column of 007 and 7 must not become one item."""
        text = csv_text([(1, "007", 1), (1, "7", 2), (1, "08", 3)])
        assert histories(read_interactions(write(tmp_path, text)).dataset()) == {1: ["007", "7", "08"]}

    def test_numbers_beyond_64_bits_keep_their_digits(self, tmp_path: Path) -> None:
        big = "123456789012345678901234567890"
        text = csv_text([(1, big, 1), (1, "2", 2), (1, "3", 3)])
        assert histories(read_interactions(write(tmp_path, text)).dataset()) == {1: [big, "2", "3"]}

    def test_text_ids_keeps_numbers_as_strings(self, tmp_path: Path) -> None:
        data = read_interactions(write(tmp_path, csv_text(ROWS)), text_ids=True).dataset()
        assert histories(data) == {"1": ["7", "6", "5"], "2": ["6"]}

    def test_text_that_holds_integers_becomes_integers_wherever_it_stands(self, tmp_path: Path) -> None:
        rows = frame(ROWS).with_columns(pl.col("user_id", "item_id").cast(pl.String))
        rows.write_parquet(tmp_path / "log.parquet")
        for source in (rows, tmp_path / "log.parquet"):
            assert histories(read_interactions(source).dataset()) == IN_ORDER
            assert read_interactions(source, text_ids=True).frame["item"].dtype == pl.String

    def test_ids_are_strings_in_all_files_if_they_are_in_one(self, tmp_path: Path) -> None:
        write(tmp_path, "user_id,item_id\n1,10\n1,11\n", "1.csv")
        write(tmp_path, "user_id,item_id\n1,x\n", "2.csv")
        data = read_interactions(tmp_path / "*.csv", time=None).dataset()
        assert histories(data) == {1: ["10", "11", "x"]}

    def test_an_empty_id_is_refused_with_row_line_and_column(self, tmp_path: Path) -> None:
        message = refusal(write(tmp_path, csv_text([*ROWS, ("", 5, 40)])))
        assert "1 of 5 rows cannot be used" in message
        assert "row 5 (line 6): column 'user_id' is empty" in message
        assert "skip_bad_rows=True (in a run file: skip_bad_rows = true; data describe: --skip-bad-rows)" in message

    def test_the_line_counts_line_breaks_inside_quotes(self, tmp_path: Path) -> None:
        text = '\nuser_id,note,item_id\n1,"two\nlines",5\n1,x,6\n1,x,\n'  # the bad row 3 begins on line 6
        assert "row 3 (line 6): column 'item_id' is empty" in refusal(write(tmp_path, text), time=None)

    @pytest.mark.parametrize("word", ["NULL", "NaN", "None", "N/A", "  "])
    def test_words_for_a_missing_id_are_refused(self, tmp_path: Path, word: str) -> None:
        assert "row 5" in refusal(write(tmp_path, csv_text([*ROWS, (1, word, 40)])))

    def test_text_ids_accepts_words_that_stand_for_a_missing_id(self, tmp_path: Path) -> None:
        path = write(tmp_path, csv_text([*ROWS, (1, "NA", 40)]))
        assert histories(read_interactions(path, text_ids=True).dataset())["1"] == ["7", "6", "5", "NA"]

    def test_ids_written_as_decimal_numbers_are_refused(self, tmp_path: Path) -> None:
        """A table library writes 1 as 1.0 when another id of the column is missing."""
        message = refusal(write(tmp_path, csv_text([("1.0", 5, 1), ("", 6, 2), ("1.0", 7, 3)])))
        assert "row 1 (line 2): column 'user_id' is '1.0', a decimal number" in message
        assert "store the column as integers" in message

    def test_ids_stored_as_floats_are_refused(self) -> None:
        message = refusal(frame([(1.0, 5, 1), (None, 6, 2), (1.0, 7, 3)]))
        assert "3 of 3 rows" in message
        assert "row 1: column 'user_id' is '1.0', a decimal number" in message

    def test_integers_beyond_64_bits_in_a_frame_are_refused(self) -> None:
        items = pl.Series([1, 2**63, 3], dtype=pl.UInt64)
        message = refusal(frame([(1, 0, 1)] * 3).with_columns(item_id=items))
        assert "row 2: column 'item_id' is '9223372036854775808', beyond 64-bit integers" in message

    def test_a_column_that_cannot_hold_ids_is_refused(self) -> None:
        assert "holds Boolean" in refusal(frame([(1, True, 1)] * 3))

    def test_categories_are_strings(self) -> None:
        rows = frame([(1, "a", 1), (1, "b", 2), (1, "a", 3)]).with_columns(pl.col("item_id").cast(pl.Categorical))
        assert histories(read_interactions(rows).dataset()) == {1: ["a", "b", "a"]}

    @given(st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=0x24F)), min_size=3, max_size=6))
    def test_text_ids_come_out_as_they_went_in(self, ids: list[str]) -> None:
        ids = [f"x{word}" for word in ids]  # neither empty, nor a number, nor a word for a missing id
        rows = pl.DataFrame({"user_id": ["u"] * len(ids), "item_id": ids})
        assert histories(read_interactions(rows, time=None).dataset()) == {"u": ids}


class TestTimes:
    def order(self, times: list[object]) -> list[object]:
        """Read rows of one user, item i at the i-th time, and return the items in order."""
        rows = pl.DataFrame({"user_id": 1, "item_id": range(len(times)), "timestamp": times})
        return histories(read_interactions(rows).dataset())[1]

    def seconds(self, times: list[str]) -> list[float]:
        found = read_interactions(pl.DataFrame({"user_id": 1, "item_id": 1, "timestamp": times})).frame["time"]
        return found.to_list()

    def test_equal_times_stay_in_file_order(self) -> None:
        assert self.order([5, 5, 1, 5, 1]) == [2, 4, 0, 1, 3]

    def test_equal_decimal_times_stay_in_file_order(self) -> None:
        assert self.order([0.5, 0.5, 0.1, 0.5, 0.1]) == [2, 4, 0, 1, 3]

    def test_times_too_far_apart_for_one_key_are_ordered(self) -> None:
        assert self.order([2**62, -(2**62), 0]) == [1, 2, 0]

    def test_without_times_the_file_order_counts(self) -> None:
        rows = read_interactions(frame([(2, 1, 9), (1, 3, 5), (1, 2, 4), (1, 1, 3)]), time=None)
        data = rows.dataset()
        assert histories(data) == {1: [3, 2, 1], 2: [1]}
        assert data.times is None

    def test_decimal_text(self) -> None:
        assert self.seconds(["1", "1.5", "1e1"]) == [1.0, 1.5, 10.0]

    def test_iso_text_becomes_seconds(self) -> None:
        times = ["1970-01-02", "1970-01-01T00:01", "1970-01-01 00:00:01"]
        assert self.seconds(times) == [86_400, 60, 1]

    def test_fractions_of_a_second_are_kept(self) -> None:
        assert self.seconds(["1970-01-01T00:00:01.25", "1970-01-01T00:00:01", "1970-01-01"]) == [1.25, 1.0, 0.0]

    def test_zones_are_taken_into_account(self) -> None:
        times = ["1970-01-01T02:00:00+02:00", "1970-01-01T00:00:01Z", "1970-01-01T00:00:00.5+0000"]
        assert self.seconds(times) == [0.0, 1.0, 0.5]

    def test_dates_of_a_frame_become_seconds(self) -> None:
        rows = pl.DataFrame({"user_id": 1, "item_id": 1, "timestamp": [date(1970, 1, day) for day in (1, 2, 3)]})
        assert read_interactions(rows).frame["time"].to_list() == [0, 86_400, 172_800]

    def test_an_unreadable_time_is_refused(self, tmp_path: Path) -> None:
        message = refusal(write(tmp_path, csv_text([*ROWS, (1, 5, "yesterday")])))
        assert "row 5 (line 6): column 'timestamp' is 'yesterday', not a time" in message

    def test_mixed_times_are_refused_where_they_differ_from_most(self, tmp_path: Path) -> None:
        days = [(1, i, f"2024-01-0{i}") for i in range(1, 4)]
        message = refusal(write(tmp_path, csv_text([(1, 9, 1704067200), *days])))
        assert "1 of 4 rows" in message
        assert "row 1 (line 2): column 'timestamp' is '1704067200', while most rows hold a date" in message

    def test_times_with_and_without_zone_are_mixed(self) -> None:
        rows = [(1, i, f"2024-01-01T0{i}:00:00") for i in range(3)]
        assert "row 4" in refusal(frame([*rows, (1, 9, "2024-01-01T09:00:00Z")]))

    def test_files_with_times_written_differently_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path, csv_text([(1, 1, 1), (1, 2, 2)]), "1.csv")
        write(tmp_path, csv_text([(1, 3, "2024-01-01")]), "2.csv")
        assert "written in several ways" in refusal(tmp_path / "*.csv")

    @pytest.mark.parametrize("time", ["", "nan", "inf"])
    def test_missing_and_infinite_times_are_refused(self, tmp_path: Path, time: str) -> None:
        assert "row 5" in refusal(write(tmp_path, csv_text([*ROWS, (1, 5, time)])))

    def test_a_column_that_cannot_hold_times_is_refused(self) -> None:
        assert "holds Boolean" in refusal(frame([(1, 1, True)] * 3))


class TestRefusals:
    def test_a_missing_column_suggests_the_nearest(self, tmp_path: Path) -> None:
        message = refusal(write(tmp_path, "userid,item_id,timestamp\n1,1,1\n"))
        assert "no column 'user_id' for the user; did you mean 'userid'? Say which it is: user = \"…\"." in message

    def test_a_missing_column_lists_the_others_if_none_is_near(self) -> None:
        said = 'choose one of: item_id, timestamp, user_id. Say which it is: user = "…".'
        assert said in refusal(frame(ROWS), user="customer number")

    def test_a_missing_time_says_how_to_do_without(self) -> None:
        said = 'time=None (in a run file: time = ""; data describe: --no-time)'
        assert said in refusal(frame(ROWS).drop("timestamp"))

    def test_another_separator_is_recognised(self, tmp_path: Path) -> None:
        said = "separator=';' (in a run file: separator = \";\"; data describe: --separator)"
        assert said in refusal(write(tmp_path, csv_text(ROWS, ";")))

    def test_a_file_of_another_kind_says_how_to_name_the_separator(self, tmp_path: Path) -> None:
        said = "separator=…, in a run file: separator = …; data describe: --separator"
        assert said in refusal(write(tmp_path, csv_text(ROWS), "log.data"))

    def test_a_word_for_a_missing_id_says_how_to_keep_it(self, tmp_path: Path) -> None:
        said = "text_ids=True (in a run file: text_ids = true; data describe: --text-ids)"
        assert said in refusal(write(tmp_path, csv_text([*ROWS, (1, "NA", 40)])))

    def test_a_column_that_occurs_twice_is_refused(self, tmp_path: Path) -> None:
        assert "two columns named 'item_id'" in refusal(write(tmp_path, "user_id,item_id,item_id,timestamp\n1,1,1,1\n"))

    def test_one_column_for_two_roles_is_refused(self) -> None:
        assert "different columns" in refusal(frame(ROWS), item="user_id")

    def test_an_empty_file(self, tmp_path: Path) -> None:
        assert "is empty" in refusal(write(tmp_path, ""))

    def test_a_file_with_only_a_header(self, tmp_path: Path) -> None:
        assert "there is no row" in refusal(write(tmp_path, "user_id,item_id,timestamp\n"))

    def test_an_empty_frame(self) -> None:
        assert "there is no row in the frame" in refusal(frame(ROWS).clear())

    def test_fewer_than_three_interactions_for_every_user(self) -> None:
        message = refusal(frame([(1, 1, 1), (1, 2, 2), (2, 1, 1)]))
        assert "none of the 2 users has 3 interactions (at most 2)" in message

    def test_a_file_that_is_not_utf8_is_refused_with_line_and_column(self, tmp_path: Path) -> None:
        path = tmp_path / "log.csv"
        path.write_bytes(csv_text(ROWS).encode() + "3,é,40\n".encode("latin1"))
        message = refusal(path)
        assert "is not UTF-8: line 6 (row 5), column 'item_id', byte 0xe9" in message
        assert "iconv" in message

    def test_utf16_is_refused_as_not_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "log.csv"
        path.write_bytes(csv_text(ROWS).encode("utf-16"))
        assert "is not UTF-8: line 1" in refusal(path)

    def test_a_row_with_too_many_fields_is_refused(self, tmp_path: Path) -> None:
        """An unquoted separator in a title would shift the columns after it."""
        text = "title,user_id,item_id\nFoo,1,2\nSmith, John,1,3\nBar,1,4\n"
        message = refusal(write(tmp_path, text), time=None)
        assert "row 2 (line 3): has more fields than the header" in message

    def test_empty_fields_beyond_the_header_are_harmless(self, tmp_path: Path) -> None:
        text = csv_text(ROWS).replace("\n", ",,\n").replace("timestamp,,", "timestamp")
        assert len(read_interactions(write(tmp_path, text))) == len(ROWS)

    def test_only_the_first_bad_rows_are_shown(self, tmp_path: Path) -> None:
        message = refusal(write(tmp_path, csv_text([*ROWS, *[("", 5, 40)] * 9])))
        assert message.count("is empty") == 5
        assert "and 4 more" in message


class TestSkipBadRows:
    def test_keeps_the_rest_and_names_each_row_once(self, tmp_path: Path) -> None:
        rows = [("", 5, "x"), *ROWS, (1, 5, "soon")]
        found = read_interactions(write(tmp_path, csv_text(rows)), skip_bad_rows=True)
        assert histories(found.dataset()) == {1: [7, 6, 5], 2: [6]}
        assert [name_bad_row(row) for row in found.skipped.iter_rows(named=True)] == [
            "row 1 (line 2): column 'user_id' is empty",
            "row 6 (line 7): column 'timestamp' is 'soon', not a time: neither a number nor like 2024-05-31 or "
            "2024-05-31T18:30:00",
        ]

    def test_rows_with_too_many_fields_are_skipped(self, tmp_path: Path) -> None:
        text = "title,user_id,item_id\nFoo,1,2\nSmith, John,1,3\nBar,1,4\nBaz,1,5\n"
        found = read_interactions(write(tmp_path, text), time=None, skip_bad_rows=True)
        assert histories(found.dataset()) == {1: [2, 4, 5]}
        assert found.skipped["row"].to_list() == [2]

    def test_rows_are_counted_in_each_file(self, tmp_path: Path) -> None:
        write(tmp_path, csv_text(ROWS), "1.csv")
        second = write(tmp_path, csv_text([(1, 5, 50), ("", 5, 60)]), "2.csv")
        skipped = read_interactions(tmp_path / "*.csv", skip_bad_rows=True).skipped
        assert skipped.select("file", "row", "line").rows() == [(str(second), 2, 3)]

    def test_nothing_is_skipped_in_a_good_file(self) -> None:
        assert read_interactions(frame(ROWS), skip_bad_rows=True).skipped.height == 0

    def test_a_file_with_only_bad_rows_is_refused(self) -> None:
        rows = frame([(1.5, 1, 1)] * 3)
        assert "there is no usable row in the frame, out of 3" in refusal(rows, skip_bad_rows=True)


def interactions(rows: list[tuple[int, int, int]]) -> Interactions:
    return Interactions(pl.DataFrame(rows, schema=["user", "item", "time"], orient="row"))


class TestKCore:
    def test_goes_on_to_a_fixed_point(self) -> None:
        # Item 9 has one user and goes; user 3 is then left with one item and goes; item 8 is then left with one user.
        rows = [(1, 5, 0), (1, 6, 0), (2, 5, 0), (2, 6, 0), (1, 8, 0), (3, 8, 0), (3, 9, 0)]
        assert interactions(rows).k_core(users=2, items=2).frame.rows() == rows[:4]

    def test_on_items_only(self) -> None:
        rows = [(1, 5, 0), (2, 5, 0), (2, 6, 0)]
        assert interactions(rows).k_core(items=2).frame.rows() == rows[:2]

    def test_on_users_only(self) -> None:
        rows = [(1, 5, 0), (2, 5, 0), (2, 6, 0)]
        assert interactions(rows).k_core(users=2).frame.rows() == rows[1:]

    def test_nothing_left_is_refused(self) -> None:
        with pytest.raises(DataError, match="nothing is left of 3 interactions"):
            interactions([(1, 5, 0), (2, 5, 0), (2, 6, 0)]).k_core(users=2, items=2)

    @given(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.just(0)), min_size=1, max_size=40),
        st.integers(1, 3),
    )
    def test_every_user_and_item_left_has_enough(self, rows: list[tuple[int, int, int]], k: int) -> None:
        try:
            left = interactions(rows).k_core(users=k, items=k).frame
        except DataError:
            return
        assert left["user"].value_counts()["count"].min() >= k  # type: ignore[operator]
        assert left["item"].value_counts()["count"].min() >= k  # type: ignore[operator]


class TestDuplicates:
    @pytest.mark.parametrize(
        ("keep", "times"),
        [
            ("all", [30, 10, 20, 25, 40]),
            ("first", [10, 20, 40]),
            ("last", [25, 30, 40]),
            ("collapse", [10, 20, 30, 40]),
        ],
    )
    def test_policies(self, keep: str, times: list[int]) -> None:
        rows = [(1, 5, 30), (1, 5, 10), (1, 6, 20), (1, 6, 25), (1, 7, 40)]  # in order: 5 6 6 5 7
        assert interactions(rows).deduplicate(keep).frame["time"].to_list() == times  # type: ignore[arg-type]

    def test_the_same_item_of_two_users_is_no_run(self) -> None:
        rows = [(1, 5, 0), (2, 5, 0)]
        assert interactions(rows).deduplicate("collapse").frame.rows() == rows


class TestDataset:
    def test_numbers_follow_the_sorted_ids(self) -> None:
        data = read_interactions(frame([("b", 30, 1), ("b", 10, 2), ("b", 20, 3), ("a", 30, 1)])).dataset()
        assert data.users.raw.to_list() == ["a", "b"]
        assert data.items.raw.to_list() == [10, 20, 30]
        assert [row.tolist() for row in data.sequences] == [[3], [3, 1, 2]]

    def test_times_are_parallel_to_items(self) -> None:
        data = read_interactions(frame(ROWS)).dataset()
        assert data.times is not None
        assert data.times.tolist() == [10, 20, 30, 10]
        assert data.sequences.items.dtype == np.int32

    def test_titles_come_from_an_items_table(self, tmp_path: Path) -> None:
        items = write(tmp_path, "item_id,name\n7,Seven\n5,Five\n5,Other\n99,Unknown\n", "items.csv")
        data = read_interactions(frame(ROWS)).dataset(items, title="name")
        assert [data.title(dense) for dense in (1, 2, 3)] == ["Five", "6", "Seven"]

    def test_an_items_table_that_fits_to_nothing_is_refused(self) -> None:
        items = pl.DataFrame({"item_id": ["x"], "title": ["X"]})
        with pytest.raises(DataError, match=r"no title for any of the 3 items.*\['x'\].*\[5, 6, 7\]"):
            read_interactions(frame(ROWS)).dataset(items)

    def test_a_title_with_a_separator_and_no_quotes_is_refused(self, tmp_path: Path) -> None:
        """Its row would lose the title in silence."""
        items = write(tmp_path, "item_id,title\n5,Five\n6,Movie 1, The (1995)\n7,Seven\n", "items.csv")
        with pytest.raises(
            DataError, match=r"1 of 3 rows cannot be used:\n  row 2 \(line 3\): has more fields"
        ) as refused:
            read_interactions(frame(ROWS)).dataset(items)
        assert "skip" not in str(refused.value)  # there is no such option for titles

    def test_titles_with_another_separator_say_what_can_be_done(self, tmp_path: Path) -> None:
        """No setting says what separates the fields of titles."""
        items = write(tmp_path, "item_id;title\n5;Five\n", "items.csv")
        with pytest.raises(DataError, match="separated by ';': write them with commas, or with tabs") as refused:
            read_interactions(frame(ROWS)).dataset(items)
        assert "separator" not in str(refused.value)

    def test_an_items_table_without_the_column_is_refused(self) -> None:
        with pytest.raises(DataError, match="no column 'title' for the title"):
            read_interactions(frame(ROWS)).dataset(pl.DataFrame({"item_id": [5]}))

    def test_no_interactions_are_refused(self) -> None:
        with pytest.raises(DataError, match="no interactions"):
            interactions([]).dataset()

    @given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=50))
    def test_sequences_are_the_rows_sorted_by_time(self, rows: list[tuple[int, int, int]]) -> None:
        expected: dict[object, list[object]] = {}
        for user, item, _ in sorted(rows, key=lambda row: row[2]):  # stable, as the reader must be
            expected.setdefault(user, []).append(item)
        assert histories(interactions(rows).dataset()) == expected
