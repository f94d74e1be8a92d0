"""ICLRec: intents, who is whose negative, and what is read when."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.augmentations import two_views
from recdistill.clustering import k_means
from recdistill.data.dataset import Sequences
from recdistill.methods.base import Setting, TrainingBatch, build_method
from recdistill.methods.contrast import Pooling, Similarity, encode_all, encode_views, nt_xent, pool
from recdistill.methods.iclrec import ICLRec, intent_loss
from recdistill.models.base import Batch, Model, build_model
from recdistill.training.batches import Batches

from .training import passes

N = 12
ROWS = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10], [], [11, 12, 1]]
TRAIN = Sequences.from_lists(ROWS)
LEARNED_FROM = [0, 1, 3, 5]
"""Histories with a next item."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def student(name: str = "sasrec", *, dropout: float = 0.0) -> Model:
    return build_model(name, N, {"dim": 8, "max_len": 3, "dropout": dropout, "init_std": 0.3}, seed=0)


def ready(learner: Model, **settings: Any) -> ICLRec:
    method = build_method("iclrec", {"n_clusters": 2} | settings)
    assert isinstance(method, ICLRec)
    method.prepare(Setting(TRAIN, np.arange(len(TRAIN)), N))
    method.fit_to(learner)
    method.start_epoch(learner, 0, generator())
    return method


def batch(rows: list[int]) -> TrainingBatch:
    return TrainingBatch(
        *Batches(TRAIN, batch_size=len(rows), max_len=3, reads_last=False).of(np.array(rows)), generator()
    )


FIRST, SECOND = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 0.0]])
CENTRES, INTENTS = torch.tensor([[0.0, 5.0], [4.0, 0.0], [9.0, 9.0]]), torch.tensor([1, 0, 1])
"""Histories 0 and 2 have the same intent. Cut to length 1, the centres are (0, 1) and (1, 0)."""


@pytest.mark.parametrize("exclude_same", [True, False])
def test_the_contrast_with_intents_by_hand(exclude_same: bool) -> None:
    expected = 0.0
    scores = [(x, y, x) for x, y in [*FIRST.tolist(), *SECOND.tolist()]]  # with the centres of histories 0, 1 and 2
    for row, of_centres in enumerate(scores):
        own = row % 3
        rivals = [n for n in range(3) if n == own or not exclude_same or INTENTS[n] != INTENTS[own]]
        expected -= math.log(math.exp(of_centres[own] / 2) / sum(math.exp(of_centres[n] / 2) for n in rivals))
    loss = intent_loss(FIRST, SECOND, CENTRES, INTENTS, temperature=2.0, similarity="dot", exclude_same=exclude_same)
    assert loss.item() == pytest.approx(expected / 6)


def test_cosines_do_not_see_how_long_a_view_is() -> None:
    short, long = (
        intent_loss(scale * FIRST, SECOND, CENTRES, INTENTS, temperature=0.5, similarity="cosine", exclude_same=True)
        for scale in (1.0, 7.0)
    )
    torch.testing.assert_close(short, long)


def test_one_intent_for_all_teaches_nothing() -> None:
    loss = intent_loss(
        FIRST, SECOND, CENTRES, torch.zeros(3).long(), temperature=1.0, similarity="dot", exclude_same=True
    )
    assert loss.item() == 0


@pytest.mark.parametrize("how", ["mean", "last"])
def test_all_histories_are_encoded_as_they_are_learned_from(how: Any) -> None:
    learner = student(dropout=0.5)
    encoded = encode_all(learner, TRAIN, how)
    assert learner.training
    learner.eval()
    histories = Batch.from_lists([ROWS[row][:-1] for row in LEARNED_FROM])
    torch.testing.assert_close(encoded, pool(learner.encode_positions(histories), histories, how))


def test_a_model_that_sees_both_sides_reads_whole_histories() -> None:
    learner = student("bert4rec").eval()
    encoded = encode_all(learner, TRAIN, "mean")
    histories = Batch.from_lists([row for row in ROWS if row]).newest(3)
    torch.testing.assert_close(encoded, pool(learner.encode_positions(histories), histories, "mean"))


def test_intents_are_found_before_each_epoch() -> None:
    learner = student()
    method = ready(learner)
    before = method.intents
    assert before.shape == (2, 8)
    assert not before.requires_grad
    with torch.no_grad():
        learner.get_parameter("embedding.weight").add_(torch.randn(N + 1, 8, generator=generator()))
    method.start_epoch(learner, 1, generator())
    assert not torch.equal(method.intents, before)


def test_a_history_has_the_intent_that_is_nearest_to_its_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []

    def noted(first: Tensor, second: Tensor, centres: Tensor, intents: Tensor, **settings: Any) -> Tensor:
        asked.append(intents)
        return intent_loss(first, second, centres, intents, **settings)

    monkeypatch.setattr("recdistill.methods.iclrec.intent_loss", noted)
    learner = student()
    method = ready(learner, n_clusters=3)
    method.loss(learner, batch(LEARNED_FROM))
    vectors = encode_all(learner, TRAIN, "mean")
    expected = (vectors[:, None] - method.intents).square().sum(2).argmin(1)
    assert asked[0].tolist() == expected.tolist()
    assert len(set(asked[0].tolist())) == 3


@pytest.mark.parametrize(("pooling", "similarity"), [("mean", "cosine"), ("last", "dot")])
def test_every_part_reads_its_vectors_by_its_settings(pooling: Pooling, similarity: Similarity) -> None:
    learner = student()
    method = ready(
        learner,
        pooling=pooling,
        intent_weight=1.0,
        contrast_weight=1.0,
        exclude_same_intent=False,
        augmentation={"kinds": ["insert"], "insert_share": 0.6},
        temperature=0.5,
        similarity=similarity,
    )
    got, again = method.loss(learner, batch(LEARNED_FROM)), batch(LEARNED_FROM)
    centres = k_means(encode_all(learner, TRAIN, pooling), 2, generator=generator())
    z = pool(learner.encode_positions(again.batch), again.batch, pooling)
    views = two_views(again.batch, method.config.augmentation, again.generator, max_len=3)
    first, second = encode_views(learner, views, pooling)
    nearest = torch.cdist(z, centres).argmin(1)
    intent = intent_loss(first, second, centres, nearest, temperature=0.5, similarity=similarity, exclude_same=False)
    torch.testing.assert_close(got["intent"], intent)
    torch.testing.assert_close(got["contrast"], nt_xent(first, second, temperature=0.5, similarity=similarity))


def test_the_parts_are_weighted_and_share_their_views() -> None:
    learner = student()
    once = ready(learner, intent_weight=1.0, contrast_weight=1.0).loss(learner, batch(LEARNED_FROM))
    weighted = ready(learner, intent_weight=0.5, contrast_weight=2.0).loss(learner, batch(LEARNED_FROM))
    assert list(once) == ["label", "intent", "contrast"]
    for part, weight in (("label", 1.0), ("intent", 0.5), ("contrast", 2.0)):
        torch.testing.assert_close(weighted[part], weight * once[part])


@pytest.mark.parametrize(
    ("settings", "parts", "read"),
    [
        ({}, {"label", "intent", "contrast"}, [4, 8]),
        ({"intent_weight": 0.0}, {"label", "contrast"}, [4, 8]),
        ({"contrast_weight": 0.0}, {"label", "intent"}, [4, 8]),
        ({"intent_weight": 0.0, "contrast_weight": 0.0}, {"label"}, [4]),
    ],
)
def test_a_weight_of_0_leaves_out_a_part_and_what_only_it_reads(
    settings: dict[str, Any], parts: set[str], read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = student()
    method = ready(learner, **settings)
    encoded = passes(learner, monkeypatch)
    assert set(method.loss(learner, batch(LEARNED_FROM))) == parts
    assert encoded == read


def test_without_intents_there_is_no_k_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recdistill.methods.iclrec.k_means", None)
    learner = student()
    assert ready(learner, intent_weight=0.0).loss(learner, batch(LEARNED_FROM))["contrast"].isfinite()


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "bert4rec", "hstu"])
def test_every_model_that_reads_histories_can_be_the_student(name: str, pooling: str) -> None:
    learner = student(name)
    parts = ready(learner, pooling=pooling).loss(learner, batch(LEARNED_FROM))
    assert all(part.isfinite() for part in parts.values())
