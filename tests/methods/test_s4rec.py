"""S4Rec: its parts by their weights, on every model, stopped and gone on with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recdistill.augmentations import two_views
from recdistill.clustering import sinkhorn
from recdistill.errors import SettingsError
from recdistill.methods.base import TrainingBatch, build_method
from recdistill.methods.contrast import Pooling, encode_views, pool
from recdistill.methods.intents import (
    IntentConfig,
    IntentParts,
    cluster_distillation_loss,
    clustering_loss,
    intent_contrast,
)
from recdistill.methods.s4rec import S4Rec
from recdistill.models.base import Model
from recdistill.training.batches import Batches
from recdistill.training.loop import fit
from recdistill.training.progress import Progress
from recdistill.training.settings import TrainerSettings

from .intents import OFF, TRAIN, N, generator, setting, student
from .training import assert_stopping_changes_nothing, passes


def ready(learner: Model, **settings: Any) -> S4Rec:
    method = build_method("s4rec", {"n_clusters": 4, "head_share": 0.3} | settings)
    assert isinstance(method, S4Rec)
    method.prepare(setting())
    method.fit_to(learner)
    method.start_epoch(learner, 0, generator())
    return method


def batch(rows: list[int], *, whole: bool = False) -> TrainingBatch:
    batches = Batches(TRAIN, batch_size=len(rows), max_len=8, reads_last=whole)
    return TrainingBatch(*batches.of(np.array(rows)), generator())


# What it adds up


def test_eq_14_adds_the_parts_by_their_weights() -> None:
    learner = student()
    plain = dict.fromkeys(OFF, 1.0)
    weights = {"cluster_weight": 0.5, "contrast_weight": 2.0, "distillation_weight": 3.0, "adversary_weight": 0.25}
    whole = ready(learner, **plain).loss(learner, batch([0, 1, 2, 3]))
    weighted = ready(learner, **weights).loss(learner, batch([0, 1, 2, 3]))
    assert list(whole) == ["label", "cluster", "contrast", "distillation", "adversary"]
    for name, weight in zip(whole, [1.0, *weights.values()], strict=True):
        torch.testing.assert_close(weighted[name], weight * whole[name])


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_every_part_reads_its_vectors_by_its_settings(pooling: Pooling) -> None:
    """None of the settings has its default, so that one that is not passed on shows; and no view outgrows the model."""
    learner, given = student(max_len=5), batch([3, 5, 7, 10])
    method = ready(
        learner,
        **dict.fromkeys(OFF, 1.0),
        pooling=pooling,
        epsilon=0.2,
        sinkhorn_iterations=1,
        assignment_temperature=0.3,
        contrast_temperature=0.4,
        distillation_temperature=0.5,
        positive_in_denominator=False,
        augmentation={"kinds": ["insert"], "insert_share": 0.6},
    )
    got = method.loss(learner, given)
    again = batch([3, 5, 7, 10])
    z = pool(learner.encode_positions(again.batch), again.batch, pooling)
    views = two_views(again.batch, method.config.augmentation, again.generator, max_len=5)
    first, second = (F.normalize(view, dim=1) for view in encode_views(learner, views, pooling))
    prototypes, of_batch = method.intents.prototypes, torch.tensor([True, False, True, False])
    scores = F.normalize(z, dim=1) @ prototypes.T
    intents = scores.argmax(1)
    targets = sinkhorn(scores, epsilon=0.2, n_iterations=1)
    contrast = intent_contrast(first, second, prototypes, intents, temperature=0.4, positive_in_denominator=False)
    distilled = sum(cluster_distillation_loss(view, prototypes[intents], temperature=0.5) for view in (first, second))
    expected = {
        "cluster": clustering_loss(scores, targets, temperature=0.3),
        "contrast": contrast,
        "distillation": distilled,
        "adversary": method.intents(z, None, of_batch)["adversary"],
    }
    for part, value in expected.items():
        torch.testing.assert_close(got[part], value, rtol=1e-4, atol=1e-5)


# Who learns from what


@pytest.mark.parametrize("part", ["cluster", "contrast", "distillation", "adversary"])
def test_a_weight_of_0_leaves_a_part_out(part: str) -> None:
    learner = student()
    method = ready(learner, **{f"{part}_weight": 0.0})
    expected = {"label", "cluster", "contrast", "distillation", "adversary"} - {part}
    assert set(method.loss(learner, batch([0, 1, 2]))) == expected


@pytest.mark.parametrize(
    ("settings", "causal", "bidirectional"),
    [
        ({}, [3, 6], [3, 3, 6]),
        ({"contrast_weight": 0.0, "distillation_weight": 0.0}, [3], [3, 3]),
        (OFF, [3], [3]),
    ],
)
def test_nothing_is_encoded_that_no_part_reads(
    settings: dict[str, Any], causal: list[int], bidirectional: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that sees both sides reads the histories once masked, for the labels, and once as they are."""
    for name, expected in (("sasrec", causal), ("bert4rec", bidirectional)):
        learner = student(name)
        method, read = ready(learner, **settings), passes(learner, monkeypatch)
        method.loss(learner, batch([0, 1, 2], whole=not learner.causal))
        assert read == expected, name


def test_without_its_parts_it_is_supervised_learning() -> None:
    learner = student()
    supervised = build_method("supervised")
    supervised.prepare(setting())
    expected = supervised.loss(learner, batch([0, 5, 7]))
    assert ready(learner, **OFF).loss(learner, batch([0, 5, 7])) == expected


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "bert4rec", "hstu"])
def test_every_model_that_reads_histories_can_be_the_student(name: str, pooling: str) -> None:
    learner = student(name)
    parts = ready(learner, pooling=pooling).loss(learner, batch([0, 1, 2], whole=not learner.causal))
    assert len(parts) == 5
    assert all(part.isfinite() for part in parts.values())


def test_k_means_finds_intents_before_each_epoch_that_stand_still_in_it() -> None:
    learner = student()
    method = ready(learner, clustering="kmeans", n_clusters=3)
    assert learner.training
    assert method.intents.prototypes.shape == (3, 8)
    parts = method.loss(learner, batch([0, 1, 2]))
    assert set(parts) == {"label", "contrast", "distillation", "adversary"}
    assert not method.intents.prototypes.requires_grad
    before = method.intents.prototypes
    with torch.no_grad():
        learner.get_parameter("embedding.weight").add_(torch.randn(N + 1, 8, generator=generator()))
    method.start_epoch(learner, 1, generator())
    assert not torch.equal(method.intents.prototypes, before)


# As a whole


@pytest.mark.parametrize("settings", [{"queue_size": 7}, {"clustering": "kmeans"}])
def test_a_run_that_was_stopped_ends_with_the_same_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    """The queue is in the checkpoint; what K-means finds follows from the student and the epoch."""
    trainer = TrainerSettings(epochs=4, batch_size=5, learning_rate=0.01, validate_every=4)

    def run(folder: Path | None, progress: Progress) -> dict[str, Tensor]:
        learner, method = student(dropout=0.2), build_method("s4rec", {"n_clusters": 4} | settings)
        fit(learner, method, setting(), trainer, validate=lambda _: 1.0, folder=folder, progress=progress)
        return learner.state_dict() | {f"method.{name}": value for name, value in method.state_dict().items()}

    assert_stopping_changes_nothing(run, tmp_path)


def test_prototypes_and_classifier_are_saved_and_begin_alike_for_the_same_seed() -> None:
    """Whatever was drawn before they were made."""
    states = []
    for drawn_before in range(2):
        torch.manual_seed(drawn_before)
        states.append(ready(student()).state_dict())
    assert {"intents.prototypes", "intents.classifier.weight", "intents.queue"} <= set(states[0])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_another_seed_begins_with_other_prototypes() -> None:
    first, other = (
        IntentParts.for_student(student(), IntentConfig(), setting(seed=seed), reads_last=False) for seed in (0, 1)
    )
    assert not torch.equal(first.prototypes, other.prototypes)


def test_one_cluster_is_refused() -> None:
    with pytest.raises(SettingsError, match="n_clusters"):
        build_method("s4rec", {"n_clusters": 1})
