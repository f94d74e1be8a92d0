"""What every registered method must do, whatever it learns from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError
from recdistill.methods.base import Method, Setting, TrainingBatch, build_method
from recdistill.models.base import Batch, Model, build_model
from recdistill.registry import import_all
from recdistill.teachers.fake import FakeTeacher
from recdistill.trainer import Batches, TrainerSettings, fit

import_all("recdistill.methods")

N = 9
TRAIN = Sequences.from_lists(
    [(start + step) % N + 1 for step in range(length)] for start in range(N) for length in (2, 3, 4)
)
"""Walks around the circle on which `FakeTeacher` answers: labels and teacher say the same, the next item."""
NAMES = sorted(Method.registry)
PURE = [name for name in NAMES if "labels" in Method.registry[name].Config.model_fields]


SMALL: dict[str, dict[str, Any]] = {"extraction": {"walk_len": 4, "n_queries": 400}}
"""Settings of what would ask the little teacher too much."""


def setting(*, gives_scores: bool = False) -> Setting:
    return Setting(TRAIN, np.arange(len(TRAIN)), N, FakeTeacher(N, gives_scores=gives_scores))


def ready(name: str, *, gives_scores: bool = False, **settings: Any) -> Method:
    method = build_method(name, SMALL.get(name, {}) | settings)
    method.prepare(setting(gives_scores=gives_scores))
    return method


def student(name: str = "sasrec") -> Model:
    return build_model(name, N, {"dim": 16, "max_len": 5, "dropout": 0.0, "init_std": 0.1})


def batch(rows: list[int], method: Method, model: Model, seed: int = 0) -> TrainingBatch:
    whole = method.reads_last or not model.causal
    batches = Batches(TRAIN, batch_size=len(rows), max_len=model.max_len, reads_last=whole)
    return TrainingBatch(*batches.of(np.array(rows)), torch.Generator().manual_seed(seed))


def parts(method: Method, model: Model, rows: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    method.start_epoch(model, 0, generator)
    return method.loss(model, batch(rows, method, model, seed))


def hit_rate(model: Model) -> float:
    """Share of the walks after which the right item comes first, items of the walk left out."""
    walks = Sequences.from_lists([(start + step) % N + 1 for step in range(3)] for start in range(N))
    with torch.no_grad():
        scores = model.scores(Batch.from_sequences(walks))
    for row, walk in enumerate(walks):
        scores[row, torch.from_numpy(walk).long()] = -torch.inf
    expected = torch.tensor([int(walk[-1]) % N + 1 for walk in walks])
    return float((scores.argmax(1) == expected).float().mean())


@pytest.mark.parametrize("gives_scores", [False, True])
@pytest.mark.parametrize("model", ["sasrec", "bert4rec"])
@pytest.mark.parametrize("name", NAMES)
def test_every_part_is_a_finite_scalar(name: str, model: str, gives_scores: bool) -> None:
    values = parts(ready(name, gives_scores=gives_scores), student(model), [0, 1, 2, 7])
    assert values
    for part in values.values():
        assert part.shape == ()
        assert part.isfinite()


@pytest.mark.parametrize("model", ["sasrec", "bert4rec", "gru4rec"])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_every_weight_of_the_student(name: str, model: str) -> None:
    learner = build_model(model, N, {"dim": 16, "max_len": 5, "dropout": 0.0})
    total = torch.stack(list(parts(ready(name), learner, [0, 1, 2, 7]).values())).sum()
    gradients = torch.autograd.grad(total, list(learner.parameters()), allow_unused=True)
    untouched = [
        weight
        for (weight, _), gradient in zip(learner.named_parameters(), gradients, strict=True)
        if gradient is None or not gradient.any()
    ]
    assert untouched == []


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_does_not_grow_with_the_batch(name: str) -> None:
    """A learning rate found at one batch size would not hold at another."""
    method, model = ready(name), student()
    rows = list(range(len(TRAIN)))
    small, large = parts(method, model, rows), parts(method, model, rows * 4)
    for part in small:  # a sum over users would be 4 times as large; more negatives in the batch may cost a little
        assert large[part].item() < 2.5 * small[part].item() + 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_one_user_alone_can_be_learned_from(name: str) -> None:
    assert all(part.isfinite() for part in parts(ready(name), student(), [3]).values())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seeds_give_the_same_weights(name: str) -> None:
    settings = TrainerSettings(epochs=2, batch_size=6, learning_rate=0.01)
    weights = []
    for _ in range(2):
        learner = build_model("sasrec", N, {"dim": 16, "max_len": 5, "dropout": 0.2}, seed=3)
        fit(learner, build_method(name, SMALL.get(name)), setting(), settings, validate=hit_rate)
        weights.append(learner.state_dict())
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


SHORT_LISTS = {name: {"top_k": 1} for name in NAMES if "top_k" in Method.registry[name].Config.model_fields}
"""The first item of a longer list leads by so little that learning it takes minutes, not seconds."""
LEARNERS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in NAMES] + [
    (name, {"labels": False}) for name in PURE
]


@pytest.mark.parametrize("gives_scores", [False, True])
@pytest.mark.parametrize(("name", "settings"), LEARNERS)
def test_it_learns_what_comes_next_on_a_circle(name: str, settings: dict[str, Any], gives_scores: bool) -> None:
    learner = student()
    assert hit_rate(learner) < 0.5
    trainer = TrainerSettings(epochs=15, batch_size=9, learning_rate=0.01, validate_every=5)
    fit(
        learner,
        build_method(name, SMALL.get(name, {}) | settings | SHORT_LISTS.get(name, {})),
        setting(gives_scores=gives_scores),
        trainer,
        validate=hit_rate,
    )
    assert hit_rate(learner) == 1.0


@pytest.mark.parametrize("name", [name for name in NAMES if Method.registry[name].needs])
def test_without_the_teacher_it_needs_a_method_says_so(name: str) -> None:
    with pytest.raises(SettingsError, match="teacher"):
        build_method(name).prepare(Setting(TRAIN, np.arange(len(TRAIN)), N))


@pytest.mark.parametrize("name", NAMES)
def test_settings_round_trip_through_json(name: str) -> None:
    config = build_method(name).config
    assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_explained(name: str) -> None:
    unexplained = [key for key, field in Method.registry[name].Config.model_fields.items() if not field.description]
    assert unexplained == []
