from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from recdistill.augmentations import join
from recdistill.data.dataset import Sequences
from recdistill.methods.base import Method, Setting, TrainingBatch, build_method
from recdistill.methods.contrast import encode_views, nt_xent
from recdistill.methods.duorec import Prefixes
from recdistill.models.base import Batch, Model, build_model
from recdistill.training.batches import Batches

N = 9
ROWS = [[1, 2, 9], [3, 4, 9, 5], [6], [], [7, 9, 8, 9], [2, 3], [1, 5]]
"""9 comes after [1, 2], [3, 4], [7] and [7, 9, 8]; 5 after [3, 4, 9] and [1]; 3 after [2]; nothing after [6]."""
TRAIN = Sequences.from_lists(ROWS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filed(train: Sequences = TRAIN) -> Prefixes:
    return Prefixes(Setting(train, np.arange(len(train)), N))


def partners(rows: list[int], seed: int = 0) -> list[list[int]]:
    return [part.tolist() for part in filed().with_same_target(np.array(rows), generator(seed))]


# Prefixes by what follows them


def test_the_target_is_the_last_training_item_if_anything_comes_before_it() -> None:
    assert filed().targets(np.array([0, 1, 2, 4, 5, 6])).tolist() == [9, 5, 0, 9, 3, 5]


def test_the_longest_prefix_is_all_before_the_target() -> None:
    longest = filed().longest(np.array([4, 2, 1]))
    assert [part.tolist() for part in longest] == [[7, 9, 8], [6], [3, 4, 9]]


def test_every_other_prefix_with_the_same_target_is_as_likely_as_any_other() -> None:
    """Also one of the history itself that ends earlier; never the very same place."""
    n = 3000
    found = Counter(map(tuple, partners([0] * n)))
    assert found.keys() == {(3, 4), (7,), (7, 9, 8)}
    assert all(abs(count - n / 3) < 5 * (n / 3) ** 0.5 for count in found.values())
    assert Counter(map(tuple, partners([4] * n))).keys() == {(1, 2), (3, 4), (7,)}


def test_one_other_is_always_it() -> None:
    assert partners([1, 6]) == [[1], [3, 4, 9]]


def test_without_another_a_history_is_its_own_partner() -> None:
    assert partners([2, 5]) == [[6], [2]]


def test_partners_are_those_of_a_search_through_all_prefixes() -> None:
    random = np.random.default_rng(1)
    rows = [random.integers(1, 6, length).tolist() for length in random.integers(0, 7, 40)]
    followed = [(row, end) for row, items in enumerate(rows) for end in range(1, len(items))]
    asked = [row for row, items in enumerate(rows) if items]
    prefixes = filed(Sequences.from_lists(rows))
    for seed in range(20):
        drawn = prefixes.with_same_target(np.array(asked), generator(seed))
        for row, partner in zip(asked, drawn, strict=True):
            items = rows[row]
            others = [rows[r][:e] for r, e in followed if rows[r][e] == items[-1] and (r, e) != (row, len(items) - 1)]
            own = items[:-1] or items
            assert partner.tolist() in (others if len(items) > 1 and others else [own])


def test_an_earlier_state_of_a_history_has_other_occurrences_of_its_target_for_partners_and_never_its_own() -> None:
    train, users = Sequences.from_lists([[1, 2, 3, 1, 4, 5, 1], [6, 1], [7, 8, 7, 4], [9, 5]]).with_windows(3)
    prefixes, shown = Prefixes(Setting(train, users, N)), np.arange(len(train))
    assert [row.tolist() for row in train][4:] == [[1, 2, 3, 1, 4], [1, 2, 3], [7, 8]]
    assert prefixes.targets(shown).tolist() == [1, 1, 4, 5, 4, 3, 8]
    before_1 = {(1, 2, 3), (1, 2, 3, 1, 4, 5), (6,)}
    expected: list[set[tuple[int, ...]]] = [
        {*before_1} - {(1, 2, 3, 1, 4, 5)},
        {*before_1} - {(6,)},
        {(1, 2, 3, 1)},
        {(1, 2, 3, 1, 4)},
        {(7, 8, 7)},
        {(1, 2)},  # itself, as nobody else took 3
        {(7,)},
    ]
    drawn = [[tuple(part) for part in prefixes.with_same_target(shown, generator(seed))] for seed in range(60)]
    assert [{*parts} for parts in zip(*drawn, strict=True)] == expected


def test_training_data_of_single_items_has_no_prefixes() -> None:
    drawn = filed(Sequences.from_lists([[3], [3]])).with_same_target(np.array([0, 1]), generator())
    assert [part.tolist() for part in drawn] == [[3], [3]]


# The method


def ready(name: str = "duorec", **settings: Any) -> Method:
    method = build_method(name, settings)
    method.prepare(Setting(TRAIN, np.arange(len(TRAIN)), N))
    return method


def student(name: str = "sasrec", dropout: float = 0.0) -> Model:
    return build_model(name, N, {"dim": 8, "max_len": 3, "dropout": dropout, "init_std": 0.3})


def batch(model: Model, rows: list[int], seed: int = 0) -> TrainingBatch:
    batches = Batches(TRAIN, batch_size=len(rows), max_len=model.max_len, reads_last=not model.causal)
    return TrainingBatch(*batches.of(np.array(rows)), generator(seed))


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "gru4rec", "hstu"])
def test_the_contrast_is_that_of_histories_and_their_partners(name: str) -> None:
    """Whatever the model reads for the labels, the item that is to be guessed is not shown."""
    model = student(name)
    method = ready(contrast_weight=0.3, temperature=0.5, similarity="cosine")
    # 5 follows both histories, once each, so that each is the other's partner; 3 follows one alone.
    own, other = Batch.from_lists([[3, 4, 9], [1], [2]]), Batch.from_lists([[1], [3, 4, 9], [2]])
    first, second = model.encode(join(own, other)).tensor_split(2)
    expected = nt_xent(first, second, temperature=0.5, similarity="cosine", same=torch.tensor([5, 5, 3]))
    found = method.loss(model, batch(model, [1, 6, 5]))["contrast"]
    assert found.item() == pytest.approx(0.3 * expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_of_histories_that_are_read_from_later_on_no_more_is_contrasted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `training.shorten` shows them; their partners begin at a random item, too, and other pairs are whole."""
    model, method = student(name), ready()
    seen: list[list[list[int]]] = []

    def note(model: Model, views: Batch, how: Any) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append([part.tolist() for part in views.items.split(views.lengths.tolist())])
        return encode_views(model, views, how)

    monkeypatch.setattr("recdistill.methods.duorec.encode_views", note)
    batches = Batches(TRAIN, batch_size=3, max_len=model.max_len, reads_last=not model.causal)
    for seed in range(40):
        # One item before the target of [3, 4, 9, 5] is shown; [1, 5] and [2, 3] are as they are.
        shown = np.array([1, 1, 1]) + (not model.causal)
        method.loss(model, TrainingBatch(*batches.of(np.array([1, 6, 5]), shown), generator(seed)))
        method.loss(model, TrainingBatch(*batches.of(np.array([6, 1, 5])), generator(seed)))
    shortened, whole = seen[::2], seen[1::2]
    assert all(views[:3] == [[9], [1], [2]] for views in shortened)
    assert all(views[3:] == [[1], [3, 4, 9], [2]] for views in shortened), "what [1] is like is not shown shortened"
    assert all(views == [[1], [3, 4, 9], [2], [3, 4, 9], [1], [2]] for views in whole)


def test_the_partner_of_a_shortened_history_begins_at_any_item() -> None:
    model, method = student(), ready()
    batches = Batches(TRAIN, batch_size=1, max_len=model.max_len, reads_last=False)
    found = set()
    for seed in range(80):
        one = TrainingBatch(*batches.of(np.array([0]), np.array([1])), generator(seed))  # [2] of [1, 2, 9]
        views, _ = method._pairs(one, model)  # type: ignore[operator]
        own, other = (part.tolist() for part in views.items.split(views.lengths.tolist()))
        assert own == [2]
        found.add(tuple(other))
    assert found == {(3, 4), (4,), (7,), (7, 9, 8), (9, 8), (8,)}


def test_a_shortened_history_without_another_is_its_own_partner_as_it_is_shown() -> None:
    train = Sequences.from_lists([[1, 2, 3, 4], [5, 6]])
    method, model = build_method("duorec"), student()
    method.prepare(Setting(train, np.arange(2), N))
    batches = Batches(train, batch_size=1, max_len=model.max_len, reads_last=False)
    views, _ = method._pairs(TrainingBatch(*batches.of(np.array([0]), np.array([2])), generator()), model)  # type: ignore[operator]
    assert views.items.tolist() == [2, 3, 2, 3]


def test_with_dropout_alone_each_history_is_its_own_positive_and_all_others_are_negatives() -> None:
    model = student()
    own = model.encode(Batch.from_lists([[3, 4, 9], [1], [2]]))
    expected = 0.1 * nt_xent(own, own, temperature=1.0)
    found = ready(positives="dropout").loss(model, batch(model, [1, 6, 5]))["contrast"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_dropout_makes_the_two_passes_differ() -> None:
    """With the same vectors twice, histories with orthogonal vectors would have nothing left to learn."""
    losses = [
        ready(positives="dropout", similarity="cosine").loss(model, batch(model, [1, 6, 5]))["contrast"].item()
        for model in (student(dropout=0.0), student(dropout=0.5))
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_users_without_a_target_are_each_others_negatives() -> None:
    """BERT4Rec is also shown histories of one item; nothing says that two of them are alike."""
    model, train = student("bert4rec"), Sequences.from_lists([[6], [7]])
    method = build_method("duorec")
    method.prepare(Setting(train, np.arange(2), N))
    batches = Batches(train, batch_size=2, max_len=3, reads_last=True)
    own = model.encode(Batch.from_lists([[6], [7]]))
    expected = 0.1 * nt_xent(own, own, temperature=1.0)
    found = method.loss(model, TrainingBatch(*batches.of(np.arange(2)), generator()))["contrast"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected.item() > 0


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_without_contrast_it_is_supervised_learning(loss: str) -> None:
    """The ablation ends at the baseline, draw for draw."""
    model, rows = student(), [0, 1, 4]
    parts = ready(contrast_weight=0, label_loss={"loss": loss}).loss(model, batch(model, rows))
    expected = ready("supervised", loss=loss).loss(model, batch(model, rows))
    assert parts.keys() == {"label"}
    assert parts["label"].item() == expected["label"].item()


def test_it_brings_histories_together_that_lead_to_the_same_item() -> None:
    model, method = student(), ready(contrast_weight=1.0, similarity="cosine", temperature=0.5)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    rows = [1, 6, 0, 4, 5]
    histories = Batch.from_lists([ROWS[row][:-1] for row in rows])

    def lead() -> float:
        """How much closer two histories before the same item are than two others, as cosines."""
        vectors = torch.nn.functional.normalize(model.encode(histories).detach(), dim=1)
        alike: dict[bool, list[float]] = {True: [], False: []}
        for a, b in itertools.combinations(range(len(rows)), 2):
            alike[ROWS[rows[a]][-1] == ROWS[rows[b]][-1]].append(float(vectors[a] @ vectors[b]))
        return float(np.mean(alike[True]) - np.mean(alike[False]))

    before = lead()
    for seed in range(80):
        loss = method.loss(model, batch(model, rows, seed))["contrast"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert lead() > before + 0.5
