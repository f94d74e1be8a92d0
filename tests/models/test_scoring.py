from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recdistill.data.dataset import Sequences
from recdistill.errors import DataError, TrainingError
from recdistill.models import scoring
from recdistill.models.base import Batch, Model
from recdistill.models.scoring import best, score_blocks, top_k
from recdistill.settings import Settings

Make = Callable[..., Model]


def rank(model: Model, k: int, masked: list[list[int]] | None = None, n: int = 1) -> list[list[int]]:
    rows = None if masked is None else Sequences.from_lists(masked)
    ranking = top_k(model, Sequences.from_lists([[1]] * n), k, rows, users=np.arange(n))
    lists: list[list[int]] = ranking.check(model.n_items).items.tolist()
    return lists


def test_lists_the_best_first(table_model: Make) -> None:
    assert rank(table_model([[3, 9, 1, 5]]), 3) == [[2, 4, 1]]


def test_leaves_masked_items_out(table_model: Make) -> None:
    assert rank(table_model([[3, 9, 1, 5]]), 3, [[2, 2]]) == [[4, 1, 3]]


def test_equal_scores_are_ordered_by_item(table_model: Make) -> None:
    assert rank(table_model([[0, 7, 0, 7, 0]]), 4) == [[2, 4, 1, 3]]


def test_a_list_is_padded_where_too_few_items_are_left(table_model: Make) -> None:
    model = table_model([[3, 9, 1]])
    ranking = top_k(model, Sequences.from_lists([[1]]), 5, Sequences.from_lists([[2]]), users=np.array([0]))
    assert ranking.items.tolist() == [[1, 3, 0, 0, 0]]
    assert ranking.scores is not None
    assert ranking.scores.tolist() == [[3, 1, -np.inf, -np.inf, -np.inf]]


def test_padding_is_never_listed_even_where_all_scores_are_negative(table_model: Make) -> None:
    assert rank(table_model([[-3, -1, -2]]), 5) == [[2, 3, 1, 0, 0]]


@given(
    seed=st.integers(0, 2**32), n_groups=st.integers(1, 4), k=st.integers(1, 80), levels=st.sampled_from([1, 3, 10**6])
)
@settings(max_examples=60)
def test_best_agrees_with_a_full_sort(seed: int, n_groups: int, k: int, levels: int) -> None:
    """Few levels make many ties, also across the end of the list; some columns are −∞."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=(3, 64 * n_groups)).astype(np.float32)
    scores[rng.random(scores.shape) < rng.choice([0.0, 0.5, 0.99])] = -np.inf
    columns, values = best(torch.from_numpy(scores), k)
    for row in range(3):
        expected = [(-s, c) for c, s in enumerate(scores[row]) if s > -np.inf]
        expected = sorted(expected)[:k]
        length = len(expected)
        assert list(zip(-values[row, :length], columns[row, :length], strict=True)) == expected
        assert (values[row, length:] == -np.inf).all()
        assert (columns[row, length:] == 0).all()


def test_both_zeros_are_equal_and_negative_scores_fall() -> None:
    """Scores are ordered by their bits, in which −0 differs from 0 and negative numbers rise as they fall."""
    scores = np.full((1, 64), -np.inf, np.float32)
    scores[0, [3, 5, 8, 9, 20]] = [-1.5, -0.0, 0.0, -2.5, 1e-45]
    columns, values = best(torch.from_numpy(scores), 6)
    assert columns.tolist() == [[20, 5, 8, 3, 9, 0]]
    assert values[0, 1:].tolist() == [0, 0, -1.5, -2.5, -np.inf]


class LastItem(Model):
    """The query is the vector of the newest item; counts how it is asked."""

    def __init__(self, vectors: npt.NDArray[np.float64]) -> None:
        super().__init__(Settings(), len(vectors) - 1)
        self.vectors = torch.from_numpy(vectors.astype(np.float32))
        self.batches: list[int] = []

    def encode(self, batch: Batch) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(len(batch))
        return self.vectors[batch.items[batch.last]]

    def item_embeddings(self) -> Tensor:
        return self.vectors


@pytest.fixture
def last_item() -> LastItem:
    return LastItem(np.random.default_rng(0).normal(size=(201, 8)))


@pytest.fixture
def histories() -> Sequences:
    rng = np.random.default_rng(1)
    return Sequences.from_lists([rng.integers(1, 201, size=n).tolist() for n in rng.integers(1, 30, size=50)])


def test_many_blocks_give_what_one_gives(
    last_item: LastItem, histories: Sequences, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = top_k(last_item, histories, 10, histories)
    monkeypatch.setattr(scoring, "_TOKENS", 40)
    monkeypatch.setattr(scoring, "_CACHED_SCORES", 256 * 3)
    last_item.batches.clear()
    parts = top_k(last_item, histories, 10, histories)
    assert len(last_item.batches) > 10
    assert sum(last_item.batches) == 50
    assert np.array_equal(whole.items, parts.items)


def test_every_row_is_scored_once_and_masked_as_its_own(last_item: LastItem, histories: Sequences) -> None:
    seen = []
    for rows, scores in score_blocks(last_item, histories, histories):
        seen += rows.tolist()
        for row, of_row in zip(rows, scores, strict=True):
            expected = last_item.vectors @ last_item.vectors[histories[row][-1]]
            expected[0] = -torch.inf
            expected[torch.from_numpy(histories[row].astype(np.int64))] = -torch.inf
            torch.testing.assert_close(of_row[:201], expected)
    assert sorted(seen) == list(range(50))


def test_the_model_goes_on_training_afterwards(last_item: LastItem, histories: Sequences) -> None:
    """Validation between two epochs must not switch dropout off for the next."""
    last_item.train()
    top_k(last_item, histories, 3, None)
    assert last_item.training


def test_no_histories_give_no_lists(last_item: LastItem) -> None:
    assert top_k(last_item, Sequences.empty(0), 3, None).items.shape == (0, 3)


def test_nan_names_the_user(table_model: Make) -> None:
    model = table_model([[1, 2], [1, np.nan]])
    with pytest.raises(TrainingError, match=r"user 1 .*NaN"):
        rank(model, 1, n=2)


def test_nan_without_users_names_the_row(last_item: LastItem) -> None:
    last_item.vectors[5] = torch.nan
    with pytest.raises(TrainingError, match="row 0"):
        top_k(last_item, Sequences.from_lists([[3]]), 1, None)


def test_nan_that_only_comes_up_in_the_product_is_found() -> None:
    """∞ − ∞: every number that goes in is finite."""
    model = LastItem(np.array([[0, 0], [1e30, 1e30], [1e30, -1e30]]))
    with pytest.raises(TrainingError, match="NaN"):
        top_k(model, Sequences.from_lists([[1]]), 1, None)


def test_nan_in_the_padding_vector_does_no_harm(last_item: LastItem) -> None:
    last_item.vectors[0] = torch.nan
    top_k(last_item, Sequences.from_lists([[3]]), 1, None)


def test_a_masked_item_beyond_the_catalogue_is_refused(last_item: LastItem) -> None:
    """It would fall into the scores of the next history."""
    with pytest.raises(DataError, match="1…200"):
        top_k(last_item, Sequences.from_lists([[3]]), 1, Sequences.from_lists([[201]]))


def test_masks_for_other_histories_are_refused(last_item: LastItem, histories: Sequences) -> None:
    with pytest.raises(DataError, match="50 histories came with 2 rows"):
        top_k(last_item, histories, 1, Sequences.empty(2))


def test_an_empty_list_is_refused(last_item: LastItem, histories: Sequences) -> None:
    with pytest.raises(DataError, match="at least 1"):
        top_k(last_item, histories, 0, None)
