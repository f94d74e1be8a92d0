"""S4Rec's parts beside a distillation: which come, who learns from them, what they cost, and who is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError
from recdistill.methods.base import Setting, TrainingBatch, build_method
from recdistill.methods.labels import LabelLoss, LabelLossConfig
from recdistill.methods.with_intents import WithIntents, learn_logs
from recdistill.models.base import Batch, Model, build_model
from recdistill.runs.file import Run
from recdistill.teachers.base import Teacher
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.local import LocalTeacher
from recdistill.training.batches import Batches
from recdistill.training.loop import fit
from recdistill.training.progress import Progress
from recdistill.training.settings import TrainerSettings

from .training import assert_stopping_changes_nothing, passes

N = 12
TRAIN = Sequences.from_lists([(start + step) % N + 1 for step in range(3 + start % 4)] for start in range(N))
NAMES = ("kd", "bahsd", "rcekd")
OF_INTENTS = {"cluster", "contrast", "distillation", "adversary"}
INTENTS: dict[str, Any] = {"n_clusters": 4, "head_share": 0.3}
"""Of the twelve users, the three longest are the head."""


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def student(name: str = "sasrec", *, dropout: float = 0.0, seed: int = 0) -> Model:
    return build_model(name, N, {"dim": 8, "max_len": 8, "dropout": dropout}, seed=seed)


def setting(name: str) -> Setting:
    teacher: Teacher = LocalTeacher(student(seed=1).eval()) if name == "rcekd" else FakeTeacher(N)
    return Setting(TRAIN, np.arange(len(TRAIN)), N, teacher)


def ready(name: str, learner: Model, intents: dict[str, Any] | None, **settings: Any) -> WithIntents:
    method = build_method(name, {"top_k": 4, "intents": intents} | settings)
    assert isinstance(method, WithIntents)
    method.prepare(setting(name))
    method.fit_to(learner)
    method.start_epoch(learner, 0, generator())
    return method


def batch(rows: list[int]) -> TrainingBatch:
    batches = Batches(TRAIN, batch_size=len(rows), max_len=8, reads_last=True)
    return TrainingBatch(*batches.of(np.array(rows)), generator())


@pytest.mark.parametrize("model", ["sasrec", "bert4rec", "gru4rec", "hstu"])
@pytest.mark.parametrize("name", NAMES)
def test_the_parts_come_to_those_of_the_method(name: str, model: str) -> None:
    learner = student(model)
    own = ready(name, learner, None).loss(learner, batch([0, 1, 2, 3]))
    parts = ready(name, learner, INTENTS).loss(learner, batch([0, 1, 2, 3]))
    assert parts.keys() == own.keys() | OF_INTENTS
    assert all(part.shape == () and part.isfinite() for part in parts.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_learned_beside_them_stays_the_same(name: str) -> None:
    """BAHSD draws its own views after theirs, so it has none here."""
    learner, settings = student(), {"view_weight": 0.0} if name == "bahsd" else {}
    own = ready(name, learner, None, **settings).loss(learner, batch([0, 1, 2, 3]))
    parts = ready(name, learner, INTENTS, **settings).loss(learner, batch([0, 1, 2, 3]))
    for part, value in own.items():
        torch.testing.assert_close(parts[part], value)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_those_of_s4rec(name: str) -> None:
    """But that whole histories are read, where S4Rec leaves out the newest item, which has no label."""
    learner, whole = student(), batch([0, 1, 2, 3])
    s4rec = build_method("s4rec", INTENTS)
    s4rec.prepare(setting(name))
    s4rec.fit_to(learner)
    expected = s4rec.loss(learner, whole)
    parts = ready(name, learner, INTENTS).loss(learner, batch([0, 1, 2, 3]))
    for part in OF_INTENTS:
        torch.testing.assert_close(parts[part], expected[part])


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("model", ["sasrec", "bert4rec"])
def test_without_them_passes_and_draws_are_those_of_the_label_loss(model: str, labels: bool) -> None:
    learner = student(model, dropout=0.3)
    loss = LabelLoss(LabelLossConfig(), setting("kd"))
    first, second = batch([0, 1, 2]), batch([0, 1, 2])
    torch.manual_seed(0)
    if labels:
        label, expected, n_labels = loss.with_queries(learner, first)
        wanted = {"label": label}
    else:
        expected, n_labels, wanted = learner.encode(first.batch), 0, {}
    torch.manual_seed(0)
    parts, queries, counted = learn_logs(learner, second, loss if labels else None, None)
    assert (parts, counted) == (wanted, n_labels)
    assert torch.equal(queries, expected)
    assert torch.equal(first.generator.get_state(), second.generator.get_state())


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize(
    ("intents", "causal", "bidirectional"),
    [
        (INTENTS, [3, 6], [3, 3, 3, 6]),
        (INTENTS | {"pooling": "last"}, [3, 6], [3, 3, 6]),
        (INTENTS | {"contrast_weight": 0.0, "distillation_weight": 0.0}, [3], [3, 3, 3]),
        (None, [3], [3, 3]),
    ],
)
def test_a_step_encodes_two_views_of_each_history_more_and_no_more_than_that(
    intents: dict[str, Any] | None,
    causal: list[int],
    bidirectional: list[int],
    labels: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model that sees both sides reads histories with masks for labels, and with one after them for answers."""
    for name, expected in (("sasrec", causal), ("bert4rec", bidirectional if labels else bidirectional[1:])):
        learner = student(name)
        method = ready("kd", learner, intents, labels=labels)
        read = passes(learner, monkeypatch)
        method.loss(learner, batch([0, 1, 2]))
        assert read == expected, name


@pytest.mark.parametrize("name", NAMES)
def test_prototypes_and_classifier_are_learned_and_saved(name: str) -> None:
    learner = student()
    method = ready(name, learner, INTENTS)
    assert method.intents is not None
    total = torch.stack(list(method.loss(learner, batch([0, 1, 2, 3])).values())).sum()
    learned = (method.intents.prototypes, method.intents.classifier.weight)
    assert all(bool(gradient.any()) for gradient in torch.autograd.grad(total, learned))
    assert {"intents.prototypes", "intents.classifier.weight", "intents.queue"} <= set(method.state_dict())
    assert not [key for key in ready(name, learner, None).state_dict() if key.startswith("intents")]


def test_k_means_looks_at_the_histories_that_are_learned_from() -> None:
    """A method that reads the state after the last training item learns from that item, too."""
    learner = student().eval()
    method = ready("kd", learner, {"clustering": "kmeans", "n_clusters": len(TRAIN), "pooling": "last"})
    assert method.intents is not None
    with torch.no_grad():
        whole = torch.nn.functional.normalize(learner.encode(Batch.from_sequences(TRAIN)), dim=1)
    assert torch.cdist(whole, method.intents.prototypes).amin(1).max() < 1e-3


def test_users_with_one_interaction_are_learned_from_as_well() -> None:
    """Their teacher's answer is, where S4Rec has no label for them; one of the four users is of the head."""
    train, learner = Sequences.from_lists([[1, 2, 3], [4], [5], [6]]), student()
    method = build_method("kd", {"top_k": 4, "intents": INTENTS})
    method.prepare(Setting(train, np.arange(4), N, FakeTeacher(N)))
    method.fit_to(learner)
    assert isinstance(method, WithIntents)
    assert method.intents is not None
    assert method.intents.share_of_head == 1 / 4


@pytest.mark.parametrize("model", ["mf", "lightgcn"])
@pytest.mark.parametrize("name", ["kd", "rcekd"])
def test_a_student_that_reads_the_user_has_no_history_to_learn_them_from(name: str, model: str) -> None:
    of_users, teacher = build_model(model, N, train=TRAIN), setting(name).teacher
    build_method(name).check(of_users, teacher)
    with pytest.raises(SettingsError, match=f"{model!r} reads the user instead: leave method.intents out"):
        build_method(name, {"intents": INTENTS}).check(of_users, teacher)


def test_two_contrasts_are_refused_as_they_have_one_name() -> None:
    with pytest.raises(SettingsError, match="make two contrasts; set one of them to 0"):
        build_method("bahsd", {"contrast_weight": 0.1, "intents": INTENTS})
    build_method("bahsd", {"contrast_weight": 0.1, "intents": INTENTS | {"contrast_weight": 0.0}})


@pytest.mark.parametrize("name", NAMES)
def test_a_run_file_switches_them_on_with_one_table(name: str) -> None:
    sections = {"data": {"path": "shop"}, "method": {"name": name, "intents": INTENTS}}
    run = Run.parse(sections | {"teacher": {"kind": "run", "folder": "somewhere"}})
    assert Run.parse(run.dump()) == run
    assert run.dump(defaults=False)["method"] == {"name": name, "intents": INTENTS}
    config = build_method(name, {"intents": INTENTS}).config
    assert type(config).model_validate_json(config.model_dump_json()) == config
    with pytest.raises(SettingsError, match=r"unknown setting 'intents\.clusters'; did you mean 'n_clusters'"):
        build_method(name, {"intents": {"clusters": 4}})


@pytest.mark.parametrize("intents", [INTENTS | {"queue_size": 7}, INTENTS | {"clustering": "kmeans"}])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_stopped_ends_with_the_same_weights(name: str, intents: dict[str, Any], tmp_path: Path) -> None:
    trainer = TrainerSettings(epochs=4, batch_size=5, learning_rate=0.01, validate_every=4)

    def run(folder: Path | None, progress: Progress) -> dict[str, Tensor]:
        learner, method = student(dropout=0.2), build_method(name, {"top_k": 4, "intents": intents})
        fit(learner, method, setting(name), trainer, validate=lambda _: 1.0, folder=folder, progress=progress)
        return learner.state_dict() | {f"method.{key}": value for key, value in method.state_dict().items()}

    assert_stopping_changes_nothing(run, tmp_path)
