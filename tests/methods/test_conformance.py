"""What every registered method must do, whatever it learns from."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError
from recdistill.losses import precision
from recdistill.methods.base import Method, Setting, TrainingBatch, build_method
from recdistill.methods.labels import LabelLossConfig
from recdistill.models.base import Batch, Model, build_model
from recdistill.registry import import_all
from recdistill.settings import Settings
from recdistill.teachers.base import Teacher
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.local import LocalTeacher
from recdistill.training.batches import Batches
from recdistill.training.loop import fit
from recdistill.training.progress import Progress
from recdistill.training.settings import TrainerSettings

from ..far import FAR, far_device
from .training import assert_stopping_changes_nothing

import_all("recdistill.methods")

N = 9
TRAIN = Sequences.from_lists(
    [(start + step) % N + 1 for step in range(length)] for start in range(N) for length in (2, 3, 4)
)
"""Walks around the circle on which `FakeTeacher` answers: labels and teacher say the same, the next item."""
NAMES = sorted(Method.registry)
AFTER_LABELS = [
    name
    for name in NAMES
    if "label_loss" in Method.registry[name].Config.model_fields and Method.registry[name].reads_last
]
"""Methods that learn labels, and read the state after the last of them: that of a history of one item, too."""
PURE = [name for name in NAMES if "labels" in Method.registry[name].Config.model_fields]


SMALL: dict[str, dict[str, Any]] = {
    "extraction": {"walk_len": 4, "n_queries": 400},
    "de": {"n_experts": 3, "n_items": 8, "weight": 0.1},
    "htd": {"n_experts": 3, "n_items": 8},
    "hetcomp": {"look_every": 1},
    "s4rec": {"head_share": 0.4},
}
"""Settings of what would ask the little teacher too much, take too long to begin, or outweigh the labels. As a third
of the users have the longest histories, at the default there would be no head.
"""
LOOKED_INTO = [name for name in NAMES if Method.registry[name].needs - {"rankings"}]
"""Methods whose teacher must give more than lists."""


class Circle(Model):
    """Answers as `FakeTeacher` does, but as a model that can be looked into: the next item scores highest."""

    name = "circle"

    def __init__(self, n_items: int, *, confidence: float) -> None:
        super().__init__(Settings(), n_items)
        items = torch.arange(n_items)
        steps = (items[None, :] - items[:, None] - 1) % n_items
        self.after = torch.nn.Parameter(torch.cat([torch.zeros(1, n_items), -confidence * steps]))
        self.items = torch.nn.Parameter(torch.cat([torch.zeros(1, n_items), torch.eye(n_items)]))

    def encode(self, batch: Batch) -> torch.Tensor:
        return self.after[batch.items[batch.last]]

    def item_embeddings(self) -> torch.Tensor:
        return self.items


def teacher(name: str, *, gives_scores: bool) -> Teacher:
    if name not in LOOKED_INTO:
        return FakeTeacher(N, gives_scores=gives_scores)
    return LocalTeacher(Circle(N, confidence=1.0), earlier=[Circle(N, confidence=0.1)])


def setting(name: str, *, gives_scores: bool = False) -> Setting:
    return Setting(TRAIN, np.arange(len(TRAIN)), N, teacher(name, gives_scores=gives_scores))


def ready(name: str, learner: Model, *, gives_scores: bool = False, **settings: Any) -> Method:
    method = build_method(name, SMALL.get(name, {}) | settings)
    method.prepare(setting(name, gives_scores=gives_scores))
    method.fit_to(learner)
    return method


def student(name: str = "sasrec", *, dropout: float = 0.0, seed: int = 0) -> Model:
    reads = {} if name == "mf" else {"max_len": 5, "dropout": dropout}
    return build_model(name, N, {"dim": 16, "init_std": 0.1, **reads}, train=TRAIN, seed=seed)


def batch(rows: list[int], method: Method, model: Model, seed: int = 0, *, shown: int | None = None) -> TrainingBatch:
    whole = method.reads_last or not model.causal
    batches = Batches(TRAIN, batch_size=len(rows), max_len=model.max_len, reads_last=whole)
    lengths = None if shown is None else np.full(len(rows), shown)
    return TrainingBatch(*batches.of(np.array(rows), lengths), torch.Generator().manual_seed(seed))


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


TAUGHT = [(name, scores) for name in NAMES for scores in (False, True) if scores or name not in LOOKED_INTO]
"""Methods, and whether the teacher's lists come with scores."""
OF_USERS = [name for name in NAMES if not Method.registry[name].parts_of_histories]
"""Methods that can teach a model that reads who asks: they show it nothing but the users' own histories."""
STUDENTS = [(name, model) for name in NAMES for model in ("sasrec", "bert4rec")] + [(name, "mf") for name in OF_USERS]


@pytest.mark.parametrize("name", ["cl4srec", "duorec", "iclrec", "s4rec", "supervised"])
def test_what_learns_labels_alone_never_shows_a_causal_student_the_newest_item(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the last label, and known to nobody's history when that is guessed."""
    train, newest = Sequences.from_lists([*range(1, 2 + length), N] for length in (1, 2, 3, 4)), N
    learner, shown = student(), set[int]()
    pack: Any = learner._pack

    def noted(histories: Batch) -> Any:
        shown.update(histories.items.tolist())
        return pack(histories)

    monkeypatch.setattr(learner, "_pack", noted)
    told, settings = Setting(train, np.arange(4), N), TrainerSettings(epochs=2, batch_size=2)
    fit(learner, build_method(name, SMALL.get(name, {})), told, settings, validate=lambda model: 0.0)
    assert {1, 2} <= shown
    assert newest not in shown


@pytest.mark.parametrize("gives_scores", [False, True])
@pytest.mark.parametrize(("name", "model"), STUDENTS)
def test_every_part_is_a_finite_scalar(name: str, model: str, gives_scores: bool) -> None:
    learner = student(model)
    values = parts(ready(name, learner, gives_scores=gives_scores), learner, [0, 1, 2, 7])
    assert values
    for part in values.values():
        assert part.shape == ()
        assert part.isfinite()


@pytest.mark.parametrize(("name", "model"), [*STUDENTS, *((name, "gru4rec") for name in NAMES)])
def test_the_gradient_reaches_every_weight_of_the_student(name: str, model: str) -> None:
    learner = student(model)
    total = torch.stack(list(parts(ready(name, learner), learner, [0, 1, 2, 7]).values())).sum()
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
    model = student()
    method = ready(name, model)
    rows = list(range(len(TRAIN)))
    small, large = parts(method, model, rows), parts(method, model, rows * 4)
    for part in small:  # a sum over users would be 4 times as large; more negatives in the batch may cost a little
        assert large[part].item() < 2.5 * small[part].item() + 1e-6


@pytest.mark.parametrize("name", ["kd", "bahsd", "rrd"])
def test_answers_do_not_grow_with_the_batch_where_labels_are_few(name: str) -> None:
    """Every history has one item, after which there is no label to count answers by."""
    once = Sequences.from_lists([[user + 1] for user in range(N)])
    learner = student()
    method = build_method(name, {"label_loss": {"precision": "fp32"}, "top_k": 3, "second_opinion": 0})
    method.prepare(Setting(once, np.arange(N), N, FakeTeacher(N)))

    def answers(rows: list[int]) -> float:
        histories = Batch.from_lists([[row + 1] for row in rows])
        empty = torch.zeros(len(rows), dtype=torch.int64)
        batch = TrainingBatch(histories, empty, torch.tensor(rows), torch.Generator().manual_seed(0))
        return sum(part.item() for name, part in method.loss(learner, batch).items() if name != "label")

    assert answers([0] * 8) == pytest.approx(answers([0]), rel=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_one_user_alone_can_be_learned_from(name: str) -> None:
    learner = student()
    assert all(part.isfinite() for part in parts(ready(name, learner), learner, [3]).values())


@pytest.mark.parametrize("loss", get_args(LabelLossConfig.model_fields["loss"].annotation))
@pytest.mark.parametrize("name", AFTER_LABELS)
def test_a_batch_without_labels_can_be_learned_from(name: str, loss: str) -> None:
    """After a history's only item nothing comes next, and where users came once a batch may hold nobody else."""
    learner = student()
    method = ready(name, learner, label_loss={"loss": loss})
    method.start_epoch(learner, 0, torch.Generator().manual_seed(0))
    given = batch([0, 4, 8], method, learner, shown=1)
    assert not given.labels.any()
    values = method.loss(learner, given)
    assert values["label"].item() == 0
    total = torch.stack(list(values.values())).sum()
    assert total.isfinite()
    gradients = torch.autograd.grad(total, list(learner.parameters()), allow_unused=True)
    assert any(gradient is not None for gradient in gradients)
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seeds_give_the_same_weights(name: str) -> None:
    settings = TrainerSettings(epochs=2, batch_size=6, learning_rate=0.01)
    weights = []
    for _ in range(2):
        learner = student(dropout=0.2, seed=3)
        fit(learner, build_method(name, SMALL.get(name)), setting(name), settings, validate=hit_rate)
        weights.append(learner.state_dict())
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_stopped_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    """Whatever a method found out about the student before the epoch that was lost must be in the checkpoint."""
    settings = TrainerSettings(epochs=4, batch_size=6, learning_rate=0.01)
    seldom: dict[str, Any] = {}
    if "refresh_every" in Method.registry[name].Config.model_fields:
        seldom = {"refresh_every": 3, **({"on": "union"} if name == "ce" else {})}
    rising = itertools.count()  # without improvement an early epoch would be kept, and nothing compared

    def run(folder: Path | None, progress: Progress) -> dict[str, torch.Tensor]:
        learner, method = student(), build_method(name, SMALL.get(name, {}) | seldom)
        fit(
            learner,
            method,
            setting(name),
            settings,
            validate=lambda _: float(next(rising)),
            folder=folder,
            progress=progress,
        )
        return learner.state_dict()

    assert_stopping_changes_nothing(run, tmp_path)


ELSEWHERE: list[tuple[str, str, dict[str, Any]]] = [
    *((name, "sasrec", {}) for name in NAMES),
    *(("kd", model, {}) for model in ("bert4rec", "gru4rec", "hstu", "mf")),
    ("bahsd", "sasrec", {"target": "answer", "ranking": "margin", "contrast_weight": 0.1}),
    ("bahsd", "bert4rec", {"prefixes": 2}),
    ("ce", "sasrec", {"on": "union"}),
    ("ce", "sasrec", {"on": "all"}),
    ("extraction", "sasrec", {"queries": "histories"}),
    ("kd", "sasrec", {"intents": {"queue_size": 4, "adversary": "reversal", "head_share": 0.4}}),
    ("s4rec", "sasrec", {"clustering": "kmeans"}),
]
"""What moves other tensors than its neighbours."""


@pytest.mark.parametrize(("name", "model", "settings"), ELSEWHERE)
def test_it_learns_the_same_on_another_device(
    name: str, model: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All draws but dropout's are those of the CPU, so that nothing but the order of sums may differ."""
    monkeypatch.setattr(precision, "_multiplies_bf16", lambda device: False)
    trainer = TrainerSettings(epochs=2, batch_size=14)

    def parts_of_epochs(device: torch.device) -> list[dict[str, float]]:
        small = {} if "queries" in settings else SMALL.get(name, {})
        learner, method = student(model).to(device), build_method(name, small | settings)
        return [row.parts for row in fit(learner, method, setting(name), trainer, validate=lambda _: 0.5).rows]

    here = parts_of_epochs(torch.device("cpu"))
    with far_device(monkeypatch):
        there = parts_of_epochs(FAR)
    for near, far in zip(here, there, strict=True):
        assert far == pytest.approx(near, rel=1e-3, abs=1e-6)


SHORT_LISTS = {
    name: {"top_k": 1}
    for name in NAMES
    if "top_k" in Method.registry[name].Config.model_fields and name not in LOOKED_INTO
}
"""The first item of a longer list leads by so little that learning it takes minutes, not seconds."""
LEARNERS: list[tuple[str, bool, dict[str, Any]]] = [(*taught, {}) for taught in TAUGHT] + [
    (name, gives_scores, {"labels": False}) for name in PURE for gives_scores in (False, True)
]


@pytest.mark.parametrize(("name", "gives_scores", "settings"), LEARNERS)
def test_it_learns_what_comes_next_on_a_circle(name: str, gives_scores: bool, settings: dict[str, Any]) -> None:
    learner = student()
    assert hit_rate(learner) < 0.5
    trainer = TrainerSettings(epochs=15, batch_size=9, learning_rate=0.01, validate_every=5)
    fit(
        learner,
        build_method(name, SMALL.get(name, {}) | settings | SHORT_LISTS.get(name, {})),
        setting(name, gives_scores=gives_scores),
        trainer,
        validate=hit_rate,
    )
    assert hit_rate(learner) == 1.0


@pytest.mark.parametrize("name", [name for name in NAMES if Method.registry[name].needs])
def test_without_the_teacher_it_needs_a_method_says_so(name: str) -> None:
    with pytest.raises(SettingsError, match="teacher"):
        build_method(name).prepare(Setting(TRAIN, np.arange(len(TRAIN)), N))


@pytest.mark.parametrize("name", LOOKED_INTO)
def test_a_teacher_of_lists_is_refused_by_name_with_what_it_lacks(name: str) -> None:
    with pytest.raises(SettingsError, match=r"'fake' does not give|fake.* does not give"):
        build_method(name).prepare(Setting(TRAIN, np.arange(len(TRAIN)), N, FakeTeacher(N, gives_scores=True)))


@pytest.mark.parametrize("name", NAMES)
def test_settings_round_trip_through_json(name: str) -> None:
    config = build_method(name).config
    assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("name", "settings", "unread", "needed"),
    [
        ("supervised", {"n_negatives": 64}, "n_negatives", r"loss = 'sampled_softmax' or 'gbce'"),
        ("supervised", {"loss": "gbce", "negatives": "popularity"}, "negatives", r"loss = 'sampled_softmax'"),
        ("supervised", {"loss": "sampled_softmax", "calibration": 0.5}, "calibration", r"loss = 'gbce'"),
        ("supervised", {"smoothing_depth": 9}, "smoothing_depth", r"smoothing above 0"),
        ("kd", {"margin": 0.3}, "margin", r"order_weight above 0"),
        ("kd", {"values": "scores", "rank_decay": 1.0}, "rank_decay", r"values = 'ranks' or 'auto'"),
        ("rrd", {"labels": False, "weight": 9.0}, "weight", r"labels = true"),
        (
            "rrd",
            {"labels": False, "label_loss": {"loss": "bce"}},
            "label_loss",
            r"labels = true, but for its precision",
        ),
        ("bahsd", {"contrast_temperature": 0.1}, "contrast_temperature", r"contrast_weight above 0"),
        ("bahsd", {"gate": "hard", "gate_width": 2.0}, "gate_width", r"gate = 'soft'"),
        ("ce", {"refresh_every": 5}, "refresh_every", r"on = 'student' or 'union'"),
        ("ce", {"on": "all", "top_k": 9}, "top_k", r"on = 'teacher', 'student' or 'union'"),
        ("rcekd", {"constant_fusion": 0.2}, "constant_fusion", r"fusion = 'constant'"),
        ("rcekd", {"fusion": "constant", "fusion_rate": 1.0}, "fusion_rate", r"fusion = 'paper' or 'code'"),
        ("extraction", {"queries": "histories", "walk_len": 9}, "walk_len", r"queries = 'random_walks'"),
        ("s4rec", {"clustering": "kmeans", "epsilon": 0.1}, "epsilon", r"clustering = 'online'"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(name: str, settings: dict[str, Any], unread: str, needed: str) -> None:
    """It would be a mistake that nobody notices; where it is the default, or left out, there is none."""
    with pytest.raises(SettingsError, match=rf"{unread} is read only with {needed}: set that, or leave {unread} out"):
        build_method(name, settings)
    config = Method.registry[name].Config
    others = {key: value for key, value in settings.items() if key != unread}
    assert config(**others, **{unread: getattr(config(), unread)}) == config(**others)


def test_a_margin_is_read_by_pairs_as_well_as_by_the_order() -> None:
    for settings in ({"ranking": "margin"}, {"order_weight": 1.0}):
        build_method("bahsd", {"margin": 0.3, **settings})


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_explained(name: str) -> None:
    unexplained = [key for key, field in Method.registry[name].Config.model_fields.items() if not field.description]
    assert unexplained == []
