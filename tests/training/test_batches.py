"""What is learned from is packed as it should be, and shared out."""

from itertools import pairwise

import numpy as np
import pytest

from recdistill.data.dataset import Sequences
from recdistill.training.batches import Batches


def test_batches_label_each_item_with_its_successor() -> None:
    train = Sequences.from_lists([[1, 2, 3], [4], [5, 6, 7, 8, 9]])
    without = Batches(train, batch_size=9, max_len=3, reads_last=False)
    assert without.rows.tolist() == [0, 2]
    batch, labels, rows = without.of(without.rows)
    assert (batch.items.tolist(), labels.tolist(), rows.tolist()) == ([1, 2, 6, 7, 8], [2, 3, 7, 8, 9], [0, 2])
    batch, labels, rows = Batches(train, batch_size=9, max_len=3, reads_last=True).of(np.array([2, 1]))
    assert (batch.items.tolist(), labels.tolist(), rows.tolist()) == ([7, 8, 9, 4], [8, 9, 0, 0], [2, 1])


def test_an_epoch_reads_every_user_once_in_a_fresh_order() -> None:
    batches = Batches(Sequences.from_lists([[1, 2, 3]] * 40), batch_size=16, max_len=5, reads_last=False)
    first, second = ([row for *_, rows in batches.epoch(0, epoch) for row in rows.tolist()] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


@pytest.mark.parametrize("reads_last", [False, True])
def test_shortened_histories_are_newest_parts_of_every_length(reads_last: bool) -> None:
    train = Sequences.from_lists([[1, 2, 3, 4, 5]] * 60)
    batches = Batches(train, batch_size=7, max_len=3, reads_last=reads_last, shorten=1.0)
    items, labels = ([3, 4, 5], [4, 5, 0]) if reads_last else ([2, 3, 4], [3, 4, 5])
    found = set()
    for batch, following, _ in batches.epoch(0, 0):
        for start, end in pairwise(batch.offsets.tolist()):
            n = end - start
            assert batch.items[start:end].tolist() == items[-n:]
            assert following[start:end].tolist() == labels[-n:]
            found.add(n)
    assert found == {1, 2, 3}


def test_a_share_of_the_histories_is_shortened_and_others_each_epoch() -> None:
    train = Sequences.from_lists([list(range(1, 21))] * 400)
    batches = Batches(train, batch_size=400, max_len=None, reads_last=True, shorten=0.5)

    def lengths(epoch: int) -> dict[int, int]:
        return {
            row: length
            for batch, _, rows in batches.epoch(0, epoch)
            for row, length in zip(rows.tolist(), batch.lengths.tolist(), strict=True)
        }

    assert lengths(0) == lengths(0) != lengths(1)
    assert 150 < sum(length < 20 for length in lengths(0).values()) < 230  # one of twenty draws is the whole


def test_each_process_has_a_share_of_a_batch_of_fewer_rows_than_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows by five, among four: the last batch is one of two."""
    batches = Batches(Sequences.from_lists([[1, 2, 3]] * 7), batch_size=5, max_len=5, reads_last=False)
    monkeypatch.setattr("recdistill.training.processes.world_size", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr("recdistill.training.processes.rank", lambda rank=rank: rank)
        shares.append([rows.tolist() for _, _, rows in batches.epoch(0, 0)])
    first, last = zip(*shares, strict=True)
    assert sorted(map(len, first)) == [1, 1, 1, 2]
    assert [len(rows) for rows in last] == [1, 1, 1, 1]
    assert {row for rows in (*first, *last) for row in rows} == set(range(7))
