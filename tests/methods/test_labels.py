"""What a student learns from labels: each loss by hand, masks, negatives."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.labels import (
    LabelLoss,
    LabelLossConfig,
    as_lists,
    bce_loss,
    bpr_loss,
    distinct_pairs,
    draw_untaken,
    gbce_loss,
    mask_items,
)
from recdistill.models.base import Batch, Model, build_model

from ..far import far_device

LOSSES = get_args(LabelLossConfig.model_fields["loss"].annotation)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_bce_by_hand_leaves_out_a_negative_that_is_the_label() -> None:
    states, embeddings = torch.ones(2, 1), torch.tensor([[9.0], [1.0], [-2.0]])
    loss = bce_loss(states, embeddings, torch.tensor([1, 1]), torch.tensor([2, 1]))
    first = -math.log(_sigmoid(1)) - math.log(1 - _sigmoid(-2))
    second = -math.log(_sigmoid(1))
    assert loss.item() == pytest.approx((first + second) / 2)


def test_bpr_by_hand_leaves_out_what_is_no_negative() -> None:
    states, embeddings = torch.ones(3, 1), torch.tensor([[9.0], [1.0], [-2.0]])
    loss = bpr_loss(states, embeddings, torch.tensor([1, 1, 2]), torch.tensor([2, 1, 0]))
    assert loss.item() == pytest.approx(-math.log(_sigmoid(1 - -2)) / 3)


def test_bpr_stays_finite_at_extreme_scores() -> None:
    states, embeddings = torch.tensor([[1e4]]), torch.tensor([[0.0], [-1.0], [1.0]])
    loss = bpr_loss(states, embeddings, torch.tensor([1]), torch.tensor([2]))
    assert loss.item() == pytest.approx(2e4)


def test_gbce_by_hand() -> None:
    states, embeddings = torch.ones(1, 1), torch.tensor([[9.0], [1.0], [-2.0], [0.5], [0.1]])
    loss = gbce_loss(states, embeddings, torch.tensor([1]), torch.tensor([2, 1]), calibration=0.75, precision="fp32")
    alpha = 2 / (4 - 1)
    beta = alpha * (0.75 * (1 - 1 / alpha) + 1 / alpha)
    start = math.log(2 / beta)
    expected = -beta * math.log(_sigmoid(1 - start)) - math.log(1 - _sigmoid(-2 - start))  # the second is the label
    assert loss.item() == pytest.approx(expected)


def test_gbce_without_calibration_keeps_the_positive_whole() -> None:
    states, embeddings = torch.ones(1, 1), torch.tensor([[9.0], [1.0], [-2.0], [0.5], [0.1]])
    loss = gbce_loss(states, embeddings, torch.tensor([1]), torch.tensor([2]), calibration=0, precision="fp32")
    assert loss.item() == pytest.approx(-math.log(_sigmoid(1)) - math.log(1 - _sigmoid(-2)))


def test_gbce_begins_in_balance() -> None:
    """At equal scores nothing pushes all items down, or up."""
    shift = torch.zeros(1, 1, requires_grad=True)  # the one coordinate of a state, on items that all are 1
    embeddings, negatives = torch.ones(60, 1), torch.arange(2, 52)
    gbce_loss(shift, embeddings, torch.tensor([1]), negatives, calibration=0.75, precision="fp32").backward()
    assert shift.grad is not None
    assert shift.grad.item() == pytest.approx(0, abs=1e-6)


def _labels(config: LabelLossConfig, rows: list[list[int]], n_items: int) -> LabelLoss:
    return LabelLoss(config, Setting(Sequences.from_lists(rows), np.arange(len(rows)), n_items))


def test_windows_of_a_long_history_do_not_make_its_items_more_popular() -> None:
    rows, users = Sequences.from_lists([[1, 2, 3, 4], [4]]).with_windows(2)
    assert len(rows) == 4
    popularity = LabelLoss(LabelLossConfig(), Setting(rows, users, 4)).popularity
    assert popularity.tolist() == pytest.approx([0, 1 / 5, 1 / 5, 1 / 5, 2 / 5])


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_negatives_estimate_the_sum_over_the_catalogue_without_bias(by: str) -> None:
    """The logQ correction: on average the weighted negatives stand for every item that is ever drawn."""
    rows = [[1, 1, 1, 1, 2, 2, 3, 4]]
    labels = _labels(LabelLossConfig(loss="sampled_softmax", n_negatives=2), rows, n_items=4)
    generator, total = torch.Generator().manual_seed(0), torch.zeros(5)
    for _ in range(4000):
        negatives, log_weights = labels._negatives(by, 4, generator)
        assert len(set(negatives.tolist())) == len(negatives)
        total[negatives] += log_weights.exp()
    torch.testing.assert_close(total[1:] / 4000, torch.ones(4), rtol=0, atol=0.12)


def test_masks_hide_at_least_one_item_of_each_history_and_label_it() -> None:
    batch = Batch.from_lists([[1, 2, 3], [4], [5, 6]])
    for seed in range(20):
        masked, labels = mask_items(batch, 99, share=0.1, last_share=0.0, generator=torch.Generator().manual_seed(seed))
        hidden = masked.items == 99
        assert torch.equal(torch.where(hidden, labels, masked.items), batch.items)
        assert torch.equal(labels > 0, hidden)
        assert all(part.any() for part in hidden.split(batch.lengths.tolist()))


def test_last_share_hides_only_the_newest_item() -> None:
    batch = Batch.from_lists([[1, 2, 3], [4], [5, 6]])
    masked, labels = mask_items(batch, 99, share=0.9, last_share=1.0, generator=torch.Generator().manual_seed(0))
    assert masked.items.tolist() == [1, 2, 99, 99, 5, 99]
    assert labels.tolist() == [0, 0, 3, 4, 0, 6]


TAKEN = [[2, 1, 2], [3], [4, 3, 1, 2], [1, 4]]
"""Four users and four items; user 2 took all of them, user 0 one of them twice."""


def test_pairs_are_counted_once_and_in_order() -> None:
    rows, items = distinct_pairs(Batch.from_lists(TAKEN), n_items=4)
    assert rows.tolist() == [0, 0, 1, 2, 2, 2, 2, 3, 3]
    assert items.tolist() == [1, 2, 3, 1, 2, 3, 4, 1, 4]
    assert as_lists(rows, items, 4).tolist() == [[1, 2, 0, 0], [3, 0, 0, 0], [1, 2, 3, 4], [1, 4, 0, 0]]


def test_negatives_are_what_the_user_has_not_taken_each_alike() -> None:
    rows, items = distinct_pairs(Batch.from_lists(TAKEN), n_items=4)
    generator, n = torch.Generator().manual_seed(0), 3000
    drawn = torch.stack([draw_untaken(rows, items, 4, generator) for _ in range(n)])
    counts = torch.stack([(drawn == item).sum(0) for item in range(5)], 1) / n
    left = {0: [3, 4], 1: [1, 2, 4], 2: [0], 3: [2, 3]}
    expected = torch.zeros(len(rows), 5)
    for pair, row in enumerate(rows.tolist()):
        expected[pair, left[row]] = 1 / len(left[row])
    torch.testing.assert_close(counts, expected, rtol=0, atol=0.05)


def test_the_last_item_of_a_large_catalogue_can_be_drawn() -> None:
    """Rounding must neither reach beyond the catalogue nor spare its end."""
    items = torch.arange(1, 999_999)  # all of a million but two
    drawn = draw_untaken(torch.zeros_like(items), items, 1_000_000, torch.Generator().manual_seed(0))
    assert drawn.unique().tolist() == [999_999, 1_000_000]


def test_the_labels_of_a_model_that_sees_both_sides_are_the_items_it_masks() -> None:
    student = build_model("bert4rec", 4, {"dim": 4, "n_heads": 1, "dropout": 0.0})
    labels = _labels(LabelLossConfig(last_share=1.0), TAKEN, n_items=4)
    _, queries, n_labels = labels.with_queries(student, _batch([3, 0, 1]))
    assert n_labels == len(queries) == 3


class _BothWays(Model):
    """A user's own model whose state at an item depends on all the others."""

    name = "both_ways"
    causal = False

    def __init__(self, mask_item: int | None) -> None:
        super().__init__(LabelLossConfig(), n_items=4)
        self.table = torch.nn.Embedding(6, 2)
        self.hides_by = mask_item
        self.shown: list[int] = []

    @property
    def mask_item(self) -> int | None:
        return self.hides_by

    def encode(self, batch: Batch) -> torch.Tensor:
        return self.encode_positions(batch)[batch.last]

    def encode_positions(self, batch: Batch) -> torch.Tensor:
        self.shown = batch.items.tolist()
        states: torch.Tensor = self.table(batch.items)
        return states

    def item_embeddings(self) -> torch.Tensor:
        return self.table.weight[:5]


def test_a_model_of_ones_own_that_sees_both_sides_is_not_shown_its_labels() -> None:
    """The next item is among what it reads, so that it would learn to repeat it."""
    labels = _labels(LabelLossConfig(last_share=1.0), TAKEN, n_items=4)
    student = _BothWays(mask_item=5)
    assert labels(student, _batch([3])).isfinite()
    assert student.shown == [1, 5]
    for learn in (labels, labels.with_queries, labels.with_states):
        with pytest.raises(SettingsError, match=r"model 'both_ways' sees both sides .* give it a mask_item"):
            learn(_BothWays(mask_item=None), _batch([3]))


def test_states_come_from_the_pass_that_learns_the_labels() -> None:
    student = build_model("sasrec", 4, {"dim": 4, "dropout": 0.5})
    histories = Batch.from_lists([[1, 2], [3]])
    batch = TrainingBatch(histories, torch.tensor([2, 3, 1]), torch.arange(2), torch.Generator())
    labels = _labels(LabelLossConfig(precision="fp32"), TAKEN, n_items=4)
    loss, states, _ = labels.with_states(student, batch)
    expected = torch.nn.functional.cross_entropy(states @ student.item_embeddings()[1:].T, batch.labels - 1)
    torch.testing.assert_close(loss, expected)  # another pass would have other dropout


def test_states_of_a_model_that_sees_both_sides_are_not_masked() -> None:
    student = build_model("bert4rec", 4, {"dim": 4, "n_heads": 1, "dropout": 0.0})
    batch = _batch([3, 0, 1])
    loss, states, _ = _labels(LabelLossConfig(), TAKEN, n_items=4).with_states(student, batch)
    assert loss.isfinite()
    torch.testing.assert_close(states, student.encode_positions(batch.batch))


@pytest.mark.parametrize("settings", [*({"loss": loss} for loss in LOSSES), {"smoothing": 0.3}])
@pytest.mark.parametrize("model", ["sasrec", "gru4rec", "hstu"])
def test_a_batch_without_labels_costs_nothing(model: str, settings: dict[str, Any]) -> None:
    """Nothing comes next in a history of one item, and the last batch of an epoch may hold no other."""
    student = build_model(model, 4, {"dim": 4})
    labels = _labels(LabelLossConfig.parse(settings), TAKEN, n_items=4)
    batch = TrainingBatch(
        Batch.from_lists([[3]]), torch.zeros(1, dtype=torch.int64), torch.tensor([1]), torch.Generator().manual_seed(0)
    )
    for loss, n_labels in (
        (labels(student, batch), 0),
        labels.with_queries(student, batch)[::2],
        labels.with_states(student, batch)[::2],
    ):
        assert (loss.item(), n_labels) == (0, 0)
        gradients = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
        assert any(gradient is not None for gradient in gradients)
        assert not any(gradient.any() for gradient in gradients if gradient is not None)


def _user_model(n_items: int = 4) -> Model:
    return build_model("mf", n_items, {"dim": 3, "init_std": 1.0}, train=Sequences.from_lists(TAKEN))


def _batch(users: list[int]) -> TrainingBatch:
    rows = Sequences.from_lists([TAKEN[user] for user in users])
    batch = Batch.from_sequences(rows, users=np.array(users))
    return TrainingBatch(batch, torch.zeros_like(batch.items), torch.tensor(users), torch.Generator().manual_seed(0))


def test_users_learn_all_that_they_took_by_softmax_as_if_each_pair_were_alone() -> None:
    student, batch = _user_model(), _batch([3, 0, 1])
    labels = _labels(LabelLossConfig(precision="fp32"), TAKEN, n_items=4)
    scores = student.scores(batch.batch)[:, 1:].log_softmax(1)
    pairs = [(0, 1), (0, 4), (1, 1), (1, 2), (2, 3)]  # row of the batch and item
    expected = -sum(scores[row, item - 1] for row, item in pairs) / len(pairs)
    assert isinstance(expected, torch.Tensor)
    loss, queries, n_labels = labels.with_queries(student, batch)
    assert n_labels == len(pairs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(labels(student, batch), expected)
    torch.testing.assert_close(queries, student.encode(batch.batch))
    wanted, got = (torch.autograd.grad(x, list(student.parameters()), retain_graph=True) for x in (expected, loss))
    torch.testing.assert_close(got, wanted)


def test_users_learn_by_bpr_against_what_is_left() -> None:
    """User 0 has items 3 and 4 left; where these score alike, the draw does not matter. User 2 has nothing left."""
    student, batch = _user_model(), _batch([0, 2])
    table = student.item_embeddings()
    with torch.no_grad():
        table[4] = table[3]
    scores = student.scores(batch.batch)[0].detach()
    lead = [float(scores[item] - scores[3]) for item in (1, 2)]
    expected = -sum(math.log(_sigmoid(x)) for x in lead) / 6  # six pairs in the batch, four of them without a negative
    loss = _labels(LabelLossConfig(loss="bpr"), TAKEN, n_items=4)(student, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_histories_learn_by_bpr_too() -> None:
    student = build_model("sasrec", 4, {"dim": 4, "dropout": 0.0}).eval()
    batch = Batch.from_lists([[1, 2], [3]])
    training = TrainingBatch(batch, torch.tensor([2, 3, 0]), torch.arange(2), torch.Generator().manual_seed(3))
    negatives = torch.randint(1, 5, (2,), generator=torch.Generator().manual_seed(3))
    states, table = student.encode_positions(batch)[:2], student.item_embeddings()
    expected = bpr_loss(states, table, torch.tensor([2, 3]), negatives)
    torch.testing.assert_close(_labels(LabelLossConfig(loss="bpr"), TAKEN, n_items=4)(student, training), expected)


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("softmax", {"smoothing": 0.3}),
        ("sampled_softmax", {"n_negatives": 4}),
        ("sampled_softmax", {"n_negatives": 4, "negatives": "popularity"}),
        ("gbce", {"n_negatives": 4}),
        ("bce", {}),
        ("bpr", {}),
    ],
)
@pytest.mark.parametrize("model", ["sasrec", "mf"])
def test_every_loss_is_the_same_on_another_device(
    model: str, loss: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = Sequences.from_lists([[1, 2, 3], [4, 5, 1]])
    config = LabelLossConfig.parse({"loss": loss, "precision": "fp32"} | settings)
    learned = LabelLoss(config, Setting(histories, np.arange(2), 6))
    student = build_model(model, 6, {"dim": 4}, train=histories).eval()
    batch = Batch.from_sequences(histories, users=np.arange(2))
    labels = torch.tensor([2, 3, 0, 5, 1, 0])

    def value(device: torch.device | str) -> float:
        rows, generator = torch.arange(2, device=device), torch.Generator().manual_seed(0)
        return learned(student.to(device), TrainingBatch(batch.to(device), labels.to(device), rows, generator)).item()

    here = value("cpu")
    with far_device(monkeypatch) as far:
        assert value(far) == pytest.approx(here, rel=1e-5)
