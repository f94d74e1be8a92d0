"""Averaging over the graph: by hand, its gradient, and when it is done."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.data.dataset import Sequences
from recdistill.methods.base import Setting, build_method
from recdistill.models import lightgcn
from recdistill.models.base import Batch, Model, build_model
from recdistill.models.lightgcn import LightGCN, normalised_adjacency, propagate
from recdistill.training.loop import fit
from recdistill.training.settings import TrainerSettings

TRAIN = Sequences.from_lists([[1, 2, 2], [2]])
"""Two users and two items: u0 took 1 and 2 (2 twice, which is one edge), u1 took 2."""
BOTH = Batch.from_sequences(TRAIN, users=np.arange(2))


def model(n_layers: int = 2) -> LightGCN:
    built = build_model("lightgcn", 2, {"dim": 3, "n_layers": n_layers}, train=TRAIN)
    assert isinstance(built, LightGCN)
    return built


@pytest.fixture
def averaged(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grow by one each time that vectors are averaged (True) or a gradient is (False)."""
    calls: list[bool] = []

    def counted(embeddings: Tensor, adjacency: Tensor, n_layers: int) -> Tensor:
        calls.append(embeddings.requires_grad)
        return propagate(embeddings, adjacency, n_layers)

    monkeypatch.setattr(lightgcn, "propagate", counted)
    return calls


def test_edges_weigh_by_the_degrees_of_their_ends() -> None:
    adjacency = normalised_adjacency(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), n_users=2, n_items=2)
    expected = torch.zeros(5, 5)  # padding, items 1 and 2, users 0 and 1
    expected[1, 3] = expected[3, 1] = 1 / math.sqrt(1 * 2)
    expected[2, 3] = expected[3, 2] = 1 / math.sqrt(2 * 2)
    expected[2, 4] = expected[4, 2] = 1 / math.sqrt(2 * 1)
    torch.testing.assert_close(adjacency.to_dense(), expected)


def test_two_steps_by_hand() -> None:
    student = model(n_layers=2)
    start = torch.tensor([0.0, 8.0, 4.0, 2.0, 6.0])  # padding, items 1 and 2, users 0 and 1
    with torch.no_grad():
        student.embedding.weight.copy_(start[:, None].expand(-1, 3))
    r = math.sqrt(1 / 2)
    item_1 = [8, r * 2]
    item_2 = [4, 2 / 2 + r * 6]
    user_0 = [2, r * 8 + 4 / 2]
    user_1 = [6, r * 4]
    item_1.append(r * user_0[1])
    item_2.append(user_0[1] / 2 + r * user_1[1])
    user_0.append(r * item_1[1] + item_2[1] / 2)
    user_1.append(r * item_2[1])
    with torch.no_grad():
        items, users = student.item_embeddings()[:, 0].tolist(), student.encode(BOTH)[:, 0].tolist()
    assert items == pytest.approx([0, sum(item_1) / 3, sum(item_2) / 3])
    assert users == pytest.approx([sum(user_0) / 3, sum(user_1) / 3])


def test_the_gradient_is_that_of_the_dense_product() -> None:
    student = model(n_layers=3).double()
    weight = student.embedding.weight
    adjacency = normalised_adjacency(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), n_users=2, n_items=2).to_dense()
    layers = [weight]
    for _ in range(3):
        layers.append(adjacency.double() @ layers[-1])
    wanted = torch.autograd.grad((torch.stack(layers).mean(0) ** 3).sum(), weight)
    table = torch.cat([student.item_embeddings(), student.encode(BOTH)])
    torch.testing.assert_close(torch.autograd.grad((table**3).sum(), weight), wanted)


def test_a_training_step_averages_once_each_way(averaged: list[bool]) -> None:
    """However many pairs, users and calls there are."""
    rows = [[1 + user % 2, 2] for user in range(32)]
    student = build_model("lightgcn", 2, {"dim": 3}, train=Sequences.from_lists(rows))
    setting = Setting(Sequences.from_lists(rows), np.arange(32), 2)
    settings = TrainerSettings(epochs=1, batch_size=8)
    averaged.clear()
    fit(student, build_method("supervised", {"loss": "bpr"}), setting, settings, validate=lambda _: 0.0)
    assert len(averaged) == 2 * 4


def test_asking_again_averages_only_once(averaged: list[bool]) -> None:
    student = model().eval()
    with torch.no_grad():
        for _ in range(3):
            student.scores(BOTH)
        student.eval()
        student.scores(BOTH)
    assert len(averaged) == 1


def _fresh(student: LightGCN) -> Tensor:
    """Return scores that were averaged anew."""
    twin = model(student.config.n_layers)
    twin.load_state_dict(student.state_dict())
    with torch.no_grad():
        return twin.scores(BOTH)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_of_the_optimiser_is_seen(fused: bool, training: bool) -> None:
    student = model().train(training)
    optimiser = torch.optim.AdamW(student.parameters(), lr=0.1, fused=fused)
    for _ in range(3):
        with torch.no_grad():
            student.scores(BOTH)  # before the gradient, as a method does that refreshes its lists
        student.scores(BOTH)[:, 1:].sum().backward()
        optimiser.step()
        with torch.no_grad():
            torch.testing.assert_close(student.scores(BOTH), _fresh(student))
        torch.testing.assert_close(student.scores(BOTH).detach(), _fresh(student))


def test_validation_between_steps_sees_the_new_weights() -> None:
    student = model().train()
    optimiser = torch.optim.AdamW(student.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        student.eval()
        with torch.no_grad():
            torch.testing.assert_close(student.scores(BOTH), _fresh(student))
        student.train()
        student.scores(BOTH)[:, 1:].sum().backward()
        optimiser.step()


@pytest.mark.parametrize("training", [True, False])
def test_what_is_asked_between_gradient_and_step_is_forgotten(training: bool) -> None:
    student = model().train()
    optimiser = torch.optim.AdamW(student.parameters(), lr=0.1, fused=True)
    student.scores(BOTH)[:, 1:].sum().backward()
    with torch.no_grad():
        student.train(training).scores(BOTH)
        student.train()
        optimiser.step()
        torch.testing.assert_close(student.scores(BOTH), _fresh(student))
        torch.testing.assert_close(student.eval().scores(BOTH), _fresh(student))


def test_weights_changed_in_place_are_seen() -> None:
    student = model().eval()
    with torch.no_grad():
        student.scores(BOTH)
        student.embedding.weight.mul_(2)
        torch.testing.assert_close(student.scores(BOTH), _fresh(student))


def test_the_running_mean_of_the_weights_is_seen_in_every_epoch() -> None:
    """It stays in evaluation mode, and no gradient ever flows through it."""
    student = model()
    settings = TrainerSettings(epochs=3, average=0.5, learning_rate=0.1)
    seen = []

    def validate(mean: Model) -> float:
        assert isinstance(mean, LightGCN)
        with torch.no_grad():
            seen.append((mean.scores(BOTH), _fresh(mean)))
        return 0.0

    fit(
        student,
        build_method("supervised", {"loss": "bpr"}),
        Setting(TRAIN, np.arange(2), 2),
        settings,
        validate=validate,
    )
    for scored, fresh in seen:
        torch.testing.assert_close(scored, fresh)
    assert not torch.equal(seen[0][0], seen[2][0])


def test_loaded_weights_are_seen() -> None:
    student, other = model().eval(), model().eval()
    with torch.no_grad():
        other.embedding.weight.mul_(2)
        student.scores(BOTH)
        student.load_state_dict(other.state_dict())
        assert torch.equal(student.scores(BOTH), other.scores(BOTH))


def test_a_loaded_graph_is_seen() -> None:
    student = model().eval()
    other = build_model("lightgcn", 2, {"dim": 3, "n_layers": 2}, train=Sequences.from_lists([[1], [1]])).eval()
    with torch.no_grad():
        before = student.scores(BOTH)
        student.set_extra_state(other.get_extra_state())
        assert torch.equal(student.scores(BOTH), other.scores(BOTH))
        assert not torch.equal(student.scores(BOTH), before)


def test_a_copy_in_the_middle_of_a_step_has_its_own_vectors() -> None:
    student = model().train()
    loss = student.scores(BOTH)[:, 1:].sum()
    twin = copy.deepcopy(student)
    with torch.no_grad():
        twin.embedding.weight.copy_(2 * student.embedding.weight)
        torch.testing.assert_close(twin.scores(BOTH), _fresh(twin))
    loss.backward()
    assert twin.embedding.weight.grad is None


def test_another_precision_is_seen() -> None:
    student = model().eval()
    with torch.no_grad():
        single = student.scores(BOTH)
        double = student.double().scores(BOTH)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double)


def test_scores_without_a_gradient_are_not_learned_from() -> None:
    """What was kept without a gradient must not serve a call that wants one."""
    student = model().eval()
    with torch.no_grad():
        student.scores(BOTH)
    assert student.scores(BOTH).requires_grad
    with torch.no_grad():
        assert not student.item_embeddings().requires_grad
