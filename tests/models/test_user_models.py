"""What every model that reads the user must do."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.data.dataset import Sequences
from recdistill.data.splits import Cases
from recdistill.errors import DataError, SettingsError
from recdistill.evaluation.full_ranking import evaluate
from recdistill.methods.base import Setting, build_method
from recdistill.models.base import Batch, Model, build_model
from recdistill.registry import import_all
from recdistill.teachers.local import LocalTeacher
from recdistill.training.loop import fit
from recdistill.training.settings import TrainerSettings

N_ITEMS = 12
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("mf", {}),
    ("mf", {"item_bias": True}),
    ("lightgcn", {}),
    ("lightgcn", {"n_layers": 1}),
]
NAMES = sorted({name for name, _ in SHAPES})
_DRAW = np.random.default_rng(0)
CHECKERBOARD = Sequences.from_lists(
    _DRAW.choice(np.arange(1 + user % 2, N_ITEMS + 1, 2), size=4, replace=False) for user in range(60)
)
"""Even users take only odd items, odd users only even ones, two thirds of them."""


def _name(shape: tuple[str, dict[str, Any]]) -> str:
    return "-".join([shape[0], *(f"{k}={v}" for k, v in shape[1].items())])


@pytest.fixture(params=SHAPES, ids=[_name(shape) for shape in SHAPES])
def model(request: pytest.FixtureRequest) -> Model:
    name, settings = request.param
    return build_model(name, N_ITEMS, {"dim": 4, "init_std": 0.1, **settings}, train=CHECKERBOARD).eval()


def asking(users: list[int]) -> Batch:
    """Return a batch of these users, each with a history of its own length that no model is to read."""
    return Batch.from_sequences(Sequences.from_lists([[1] * (n + 1) for n in range(len(users))]), users=np.array(users))


def scores(model: Model, users: list[int]) -> Tensor:
    with torch.no_grad():
        return model.scores(asking(users))


def _train(model: Model, epochs: int, **method: Any) -> None:
    setting = Setting(CHECKERBOARD, np.arange(len(CHECKERBOARD)), N_ITEMS)
    settings = TrainerSettings(epochs=epochs, batch_size=10, learning_rate=0.02, validate_every=epochs)
    fit(model, build_method("supervised", {"precision": "fp32"} | method), setting, settings, validate=lambda _: 0.0)


@pytest.mark.parametrize("std", [0.05, 0.3])
@pytest.mark.parametrize("name", ["mf", "lightgcn"])
def test_first_weights_are_as_large_as_the_setting_says(name: str, std: float) -> None:
    items = build_model(name, 2000, {"init_std": std}, train=CHECKERBOARD).get_parameter("embedding.weight")[1:]
    assert items.std().item() == pytest.approx(std, rel=0.02)


def test_a_bias_is_added_to_the_product() -> None:
    model = build_model("mf", N_ITEMS, {"dim": 4, "init_std": 0.1, "item_bias": True}, train=CHECKERBOARD).eval()
    with torch.no_grad():
        bias = model.get_parameter("item_bias").copy_(torch.arange(N_ITEMS + 1.0))
        users, items = model.get_parameter("user_embedding.weight"), model.get_parameter("embedding.weight")
        expected = users[[3, 0]] @ items.T + bias
    torch.testing.assert_close(scores(model, [3, 0])[:, 1:], expected[:, 1:])


def test_no_model_is_left_out() -> None:
    import_all("recdistill.models")
    assert sorted(name for name, model in Model.registry.items() if model.reads == "user") == NAMES


def test_scores_are_products_and_leave_out_padding(model: Model) -> None:
    with torch.no_grad():
        queries, table = model.encode(asking([3, 0, 59])), model.item_embeddings()
    assert queries.shape == (3, table.shape[1])
    assert table.shape[0] == N_ITEMS + 1
    torch.testing.assert_close(scores(model, [3, 0, 59])[:, 1:], queries @ table[1:].T)
    assert (scores(model, [3])[:, 0] == -torch.inf).all()


def test_only_the_user_decides(model: Model) -> None:
    together = scores(model, [7, 2, 7, 41])
    torch.testing.assert_close(together[0], together[2])
    torch.testing.assert_close(together[[3, 1]], scores(model, [41, 2]))


@pytest.mark.parametrize("user", [-1, 60])
def test_unknown_users_are_refused(model: Model, user: int) -> None:
    with pytest.raises(DataError, match=f"user {user} is unknown to this model, which knows users 0…59"):
        model.encode(asking([0, user]))


def test_a_batch_that_names_no_users_is_refused(model: Model) -> None:
    with pytest.raises(DataError, match="answers for users, but the batch does not say whose it is"):
        model.encode(Batch.from_lists([[1, 2]]))


@pytest.mark.parametrize("name", NAMES)
def test_without_training_data_there_are_no_users(name: str) -> None:
    with pytest.raises(SettingsError, match=f"model '{name}' answers for the users of its training data: give train"):
        build_model(name, N_ITEMS)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    first, second, other = (build_model(name, N_ITEMS, train=CHECKERBOARD, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(scores(first, [0, 1]), scores(second, [0, 1]))
    assert not torch.equal(scores(first, [0, 1]), scores(other, [0, 1]))


def test_weights_alone_give_the_same_scores(model: Model) -> None:
    """Whatever the answers depend on is in the weights, so that a saved model needs no training data."""
    settings = model.config.model_dump()
    empty = build_model(model.name, N_ITEMS, settings, train=Sequences.empty(len(CHECKERBOARD)), seed=5)
    before = scores(empty, [0, 1, 2])
    empty.load_state_dict(model.state_dict())
    assert not torch.equal(scores(empty, [0, 1, 2]), before)
    assert torch.equal(scores(empty, [0, 1, 2]), scores(model, [0, 1, 2]))


def test_a_copy_goes_its_own_way(model: Model) -> None:
    before = scores(model, [0, 1])
    student = copy.deepcopy(model)
    assert torch.equal(scores(student, [0, 1]), before)
    _train(student, epochs=1)
    assert not torch.equal(scores(student, [0, 1]), before)
    assert torch.equal(scores(model, [0, 1]), before)


def test_padding_stays_zero_in_training(model: Model) -> None:
    student = copy.deepcopy(model)
    _train(student, epochs=2, loss="bpr")
    assert (student.item_embeddings()[0] == 0).all()


@pytest.mark.parametrize("loss", ["bpr", "softmax", "sampled_softmax", "gbce", "bce"])
def test_every_loss_teaches_a_checkerboard(model: Model, loss: str) -> None:
    """A user's two items of the right colour that it has not taken come before all six of the other."""
    student = copy.deepcopy(model)
    _train(student, epochs=10, loss=loss)
    all_scores = scores(student, list(range(len(CHECKERBOARD))))
    for user, taken in enumerate(CHECKERBOARD):
        all_scores[user, taken.astype(np.int64)] = -torch.inf
    top = all_scores.topk(2).indices
    right = (top % 2 == 1 - torch.arange(len(CHECKERBOARD))[:, None] % 2).float().mean()
    assert right > 0.95


def test_evaluation_asks_for_the_users_of_the_cases(model: Model) -> None:
    """Row c of the cases is not user c; the target that each user ranks first is found only for the right one."""
    users = np.array([41, 7, 2])
    best = scores(model, users.tolist()).argmax(1)
    cases = Cases(
        users, CHECKERBOARD.take(users), Sequences.from_lists(best[:, None].tolist()), Sequences.empty(len(users))
    )
    assert evaluate(model, cases, n_items=N_ITEMS).ranks.tolist() == [1, 1, 1]


def test_as_a_teacher_it_is_asked_for_users(model: Model) -> None:
    teacher = LocalTeacher(model, exclude_history=False)
    assert teacher.takes == "user"
    listed = teacher.rank(CHECKERBOARD.take(slice(3)), 1, users=np.array([9, 8, 7])).items[:, 0]
    assert listed.tolist() == scores(model, [9, 8, 7]).argmax(1).tolist()
