from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError
from recdistill.methods.base import Setting, TrainingBatch, build_method
from recdistill.methods.kd import KD
from recdistill.models.base import Batch, Model, build_model
from recdistill.teachers.fake import FakeTeacher

N = 6
ROWS = [[1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("name", ["kd", "bahsd"])
def test_scores_cannot_be_had_from_a_teacher_of_lists(name: str) -> None:
    with pytest.raises(SettingsError, match="set values to 'ranks'"):
        build_method(name, {"values": "scores"}).check_teacher(FakeTeacher(N))


def batch(rows: list[int], seed: int = 0) -> TrainingBatch:
    histories = Batch.from_lists([ROWS[row] for row in rows])
    labels = torch.cat([histories.items[1:], torch.zeros(1, dtype=torch.int64)])
    labels[histories.last] = 0
    return TrainingBatch(histories, labels, torch.tensor(rows), torch.Generator().manual_seed(seed))


def ready(teacher: FakeTeacher | None = None, **settings: object) -> KD:
    method = build_method("kd", {"label_loss": {"precision": "fp32"}} | settings)
    assert isinstance(method, KD)
    method.prepare(Setting(Sequences.from_lists(ROWS), np.arange(len(ROWS)), N, teacher or FakeTeacher(N)))
    return method


def sasrec() -> Model:
    return build_model("sasrec", N, {"dim": 8, "max_len": 4, "dropout": 0.0})


def test_one_answer_a_user_is_asked_for() -> None:
    teacher = FakeTeacher(N)
    ready(teacher)
    assert sorted(teacher.asked) == sorted(ROWS)


def test_assisted_learns_labels_and_answers_pure_learns_answers_alone() -> None:
    assert set(ready().loss(sasrec(), batch([0, 1]))) == {"label", "answer"}
    assert set(ready(labels=False).loss(sasrec(), batch([0, 1]))) == {"answer"}


def test_the_answer_to_the_whole_history_is_the_target_at_its_end() -> None:
    model, method = sasrec(), ready(labels=False, top_k=2, rank_decay=1.0)
    states, embeddings = model.encode(batch([1]).batch), model.item_embeddings()
    # After 3, 4, 5 the circle goes on with 6 and 1, ranks 1 and 2: weights 1/2 and 1/3.
    log_probs = (states @ embeddings[1:].T).log_softmax(1)[0]
    expected = 0.6 * (math.log(0.6) - log_probs[5]) + 0.4 * (math.log(0.4) - log_probs[0])
    assert method.loss(model, batch([1]))["answer"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_order_of_each_list_is_learned_beside_its_soft_target() -> None:
    model = sasrec()
    orders: list[dict[str, Any]] = [{}, {"order_weight": 2.0, "margin": 0.3}]
    alone, both = (ready(labels=False, top_k=3, **order).loss(model, batch([1]))["answer"].item() for order in orders)
    scores = model.scores(batch([1]).batch)[0]
    leads = scores[[6, 1]] - scores[[1, 2]]  # after 3, 4, 5 the circle goes on with 6, 1 and 2
    assert both - alone == pytest.approx(2 * (0.3 - leads).clamp_min(0).mean().item(), rel=1e-3)


def test_an_answer_counts_as_many_labels_as_its_weight_says() -> None:
    """Three labels, two users: 4/3 of the answers' sum when assisted, half of it when there are answers alone."""
    model = sasrec()
    assisted, pure = ready(weight=4.0).loss(model, batch([0, 1])), ready(labels=False).loss(model, batch([0, 1]))
    assert assisted["answer"].item() / (4 / 3) == pytest.approx(pure["answer"].item() / (1 / 2), rel=1e-4)


def test_the_weight_scales_the_answers_only() -> None:
    model = sasrec()
    plain, double = ready().loss(model, batch([0, 1])), ready(weight=6.0).loss(model, batch([0, 1]))
    assert double["answer"].item() == pytest.approx(2 * plain["answer"].item(), rel=1e-5)
    assert double["label"].item() == pytest.approx(plain["label"].item())


def test_users_without_an_answer_count_in_the_mean_and_add_nothing() -> None:
    """An answer must weigh the same whoever it shares a batch with."""
    teacher = FakeTeacher(N, rule=lambda history, k: [] if history.tolist() == [6] else [1, 2][:k])
    model, method = sasrec(), ready(teacher, labels=False)
    alone, shared = method.loss(model, batch([1]))["answer"], method.loss(model, batch([1, 2]))["answer"]
    assert shared.item() == pytest.approx(alone.item() / 2, rel=1e-4)


def test_without_a_teacher_it_says_what_to_use_instead() -> None:
    method = build_method("kd")
    with pytest.raises(SettingsError, match="supervised"):
        method.prepare(Setting(Sequences.from_lists(ROWS), np.arange(3), N))
