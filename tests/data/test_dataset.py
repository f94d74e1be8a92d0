from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data.dataset import Dataset, IdMap, Sequences
from recdistill.errors import DataError


def dataset(*, titled: bool = True) -> Dataset:
    return Dataset(
        users=IdMap(["ann", "bob"], first=0),
        items=IdMap([10, 20, 30], first=1),
        sequences=Sequences.from_lists([[3, 1], [2]]),
        titles=pl.Series("title", ["Ten", None, "Thirty"]) if titled else None,
    )


class TestSequences:
    ROWS = Sequences.from_lists([[1, 2, 3], [], [4]])

    def test_newest_and_without_newest_are_views(self) -> None:
        assert [row.tolist() for row in self.ROWS.newest(2)] == [[2, 3], [], [4]]
        assert [row.tolist() for row in self.ROWS.without_newest(1)] == [[1, 2], [], []]
        assert self.ROWS.newest(2).items is self.ROWS.items

    def test_pairs_tell_rows_and_items_apart(self) -> None:
        assert self.ROWS.pairs(4).tolist() == [1, 2, 3, 2 * 5 + 4]  # the second row is empty
        assert self.ROWS.newest(1).pairs(9).tolist() == [3, 2 * 10 + 4]

    def test_flat_copies_the_rows_chosen(self) -> None:
        items, offsets = self.ROWS.take(np.array([2, 0])).newest(2).flat()
        assert items.tolist() == [4, 2, 3]
        assert offsets.tolist() == [0, 1, 3]

    @given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(2, 5), st.booleans())
    def test_windows_show_every_two_neighbours_once_and_nothing_else(
        self, lengths: list[int], n: int, reads_last: bool
    ) -> None:
        """The second is the label of the first; one that two windows show is learned twice as much as the others."""
        rows = Sequences.from_offsets(
            np.arange(1, sum(lengths) + 1, dtype=np.int32), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        )
        windows, owners = rows.with_windows(n, reads_last=reads_last)
        assert owners[: len(rows)].tolist() == list(range(len(rows)))
        assert [row.tolist() for row in windows.take(slice(len(rows)))] == [row.tolist() for row in rows]
        read = windows.newest(n if reads_last else n + 1)  # the newest is only the label of the one before it
        shown = [pair for window in read for pair in pairwise(window.tolist())]
        assert sorted(shown) == sorted(pair for row in rows for pair in pairwise(row.tolist()))
        for window, owner in zip(windows, owners, strict=True):
            assert window.tolist() == rows[owner][: len(window)].tolist()
        assert (windows.lengths[len(rows) :] >= 2).all()
        assert (np.bincount(owners, minlength=len(rows))[np.array(lengths) <= n] == 1).all()


class TestIdMap:
    def test_finds_and_gives_back_raw_ids(self) -> None:
        ids = IdMap(["a", "b"], first=1)
        assert ids.find(["b", "z", "a"]).tolist() == [2, -1, 1]
        assert ids.decode([2, 1]) == ["b", "a"]

    def test_integers_are_found_by_their_text(self) -> None:
        assert IdMap([7, 8], first=0).find(["8", "x"]).tolist() == [1, -1]

    @pytest.mark.parametrize("text", ["007", " 7 ", "7 ", "+7", "1_04", "７", "7.0", "-0", "0x7"])
    def test_text_that_no_integer_is_written_as_is_unknown_to_integers(self, text: str) -> None:
        """Somebody may mean another item by it: "007" is not 7."""
        assert IdMap([0, 7, 104], first=1).find([text, "7", "-5"]).tolist() == [-1, 2, -1]

    def test_text_keeps_integers_beyond_64_bits(self) -> None:
        assert IdMap([str(2**70), "7"], first=1).find([2**70, 7, 8]).tolist() == [1, 2, -1]

    @pytest.mark.parametrize("many", [1, 2000])
    def test_what_is_no_id_is_unknown_and_never_another(self, many: int) -> None:
        """Cut to an integer, 1.9 would be answered as item 1, and so would True."""
        numbers, text = IdMap([1, 2, 3], first=1), IdMap(["1", "True", "1.9"], first=1)
        odd: list[Any] = [1.9, True, 2.0, 2**70, float("nan"), "3", "\ud800"]
        assert numbers.find(odd * many).tolist() == [-1, -1, 2, -1, -1, 3, -1] * many
        mixed: list[Any] = [1.9, True, 1, "True", "\ud800"]
        assert text.find(mixed * many).tolist() == [-1, -1, 1, 2, -1] * many
        assert numbers.find(pl.Series([1.9, 2.0, None])).tolist() == [-1, 2, -1]
        assert numbers.find(pl.Series([True])).tolist() == [-1]

    def test_ids_of_numpy_are_found(self) -> None:
        ids: list[Any] = [np.array([3, 9]), list(np.array([3, 9])), np.array([3.0, 3.5]), np.array(["3", "x"])]
        assert [IdMap([1, 2, 3], first=1).find(some).tolist() for some in ids] == [[3, -1]] * 4

    @pytest.mark.parametrize("ids", ["12", b"12", [[1, 2]], [None], [b"1"], np.array([[1, 2]])])
    def test_what_cannot_be_an_id_is_refused(self, ids: Any) -> None:
        with pytest.raises(DataError, match=r"list of ids was expected|must be an integer or a text"):
            IdMap([1, 2, 3], first=1).find(ids)

    def test_an_unknown_id_is_refused_with_the_kind_of_those_known(self) -> None:
        with pytest.raises(DataError, match=r"1 of 2 item ids are unknown, for example \['x'\].*integers like 7"):
            IdMap([7], first=1).encode(["7", "x"])

    def test_an_id_must_not_occur_twice(self) -> None:
        with pytest.raises(DataError, match="twice"):
            IdMap([1, 1], first=0)


def test_an_item_without_a_title_is_called_by_its_id() -> None:
    assert [dataset().title(item) for item in (1, 2, 3)] == ["Ten", "20", "Thirty"]
    assert dataset(titled=False).title(1) == "10"
