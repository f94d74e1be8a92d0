"""What every model that reads histories must do."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from recdistill.data.dataset import Sequences
from recdistill.errors import DataError
from recdistill.methods.base import Setting, build_method
from recdistill.models.base import Batch, Model, build_model
from recdistill.models.layers import Dropout
from recdistill.models.transformer import Transformer
from recdistill.registry import import_all
from recdistill.training.loop import fit
from recdistill.training.settings import TrainerSettings

N_ITEMS = 12
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("sasrec", {}),
    ("sasrec", {"norm": "post", "positions": "oldest_first", "tied_embeddings": False, "n_heads": 1}),
    ("sasrec", {"positions": "none", "n_blocks": 1}),
    ("bert4rec", {}),
    ("bert4rec", {"norm": "post", "tied_embeddings": False}),
    ("gru4rec", {}),
    ("gru4rec", {"hidden_dim": 24, "n_layers": 2, "tied_embeddings": False}),
    ("hstu", {}),
    ("hstu", {"temperature": None, "n_blocks": 1, "n_heads": 4, "attention_dim": 3, "linear_dim": 5}),
]
NAMES = sorted({name for name, _ in SHAPES})
HISTORIES = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7], [9, 3]]


def _name(shape: tuple[str, dict[str, Any]]) -> str:
    return "-".join([shape[0], *(f"{k}={v}" for k, v in shape[1].items())])


@pytest.fixture(params=SHAPES, ids=[_name(shape) for shape in SHAPES])
def model(request: pytest.FixtureRequest) -> Model:
    name, settings = request.param
    return build_model(name, N_ITEMS, {"dim": 16, "max_len": 8, "init_std": 0.3, **settings}).eval()


def _states(model: Model, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(batch)


def test_no_model_is_left_out() -> None:
    import_all("recdistill.models")
    assert sorted(name for name, model in Model.registry.items() if model.reads == "history") == NAMES


@pytest.mark.parametrize("std", [0.05, 0.3])
@pytest.mark.parametrize("name", NAMES)
def test_first_weights_are_as_large_as_the_setting_says(name: str, std: float) -> None:
    items = build_model(name, 400, {"init_std": std}).get_parameter("embedding.weight")[1:401]
    assert items.std().item() == pytest.approx(std, rel=0.02)


def test_other_histories_of_the_batch_do_not_matter(model: Model) -> None:
    packed = _states(model, Batch.from_lists(HISTORIES))
    alone = torch.cat([_states(model, Batch.from_lists([history])) for history in HISTORIES])
    torch.testing.assert_close(alone, packed, rtol=1e-4, atol=1e-5)


def test_order_of_the_batch_does_not_matter(model: Model) -> None:
    forwards, backwards = _states(model, Batch.from_lists(HISTORIES)), _states(model, Batch.from_lists(HISTORIES[::-1]))
    torch.testing.assert_close(backwards.flip(0), forwards, rtol=1e-4, atol=1e-5)


def test_a_later_item_changes_an_earlier_state_only_in_bert4rec(model: Model) -> None:
    """In a causal model only positions counted from the newest item may know how long the history is."""
    if getattr(model.config, "positions", None) == "newest_first" and model.causal:
        pair = ([3, 1, 4, 1], [3, 1, 4, 7])
    else:
        pair = ([3, 1, 4], [3, 1, 4, 7])
    with torch.no_grad():
        first, second = (model.encode_positions(Batch.from_lists([history]))[:3] for history in pair)
    assert torch.allclose(first, second, rtol=1e-4, atol=1e-5) == model.causal


def test_only_the_newest_items_are_read(model: Model) -> None:
    long = [[7, 7, 7, *HISTORIES[2]]]
    torch.testing.assert_close(_states(model, Batch.from_lists(long)), _states(model, Batch.from_lists([HISTORIES[2]])))


def test_states_between_items_refuse_a_history_beyond_max_len(model: Model) -> None:
    with pytest.raises(DataError, match="at most 8"):
        model.encode_positions(Batch.from_lists([[1] * 9]))


@pytest.mark.parametrize("item", [0, -1, N_ITEMS + 1, N_ITEMS + 2])
def test_unknown_items_are_refused(model: Model, item: int) -> None:
    with pytest.raises(DataError, match="unknown"):
        model.encode(Batch(torch.tensor([1, item]), torch.tensor([0, 2])))


def test_a_hidden_item_is_read_in_training_as_a_zero_vector_at_its_place(model: Model) -> None:
    student = copy.deepcopy(model).train()
    for part in student.modules():
        if isinstance(part, Dropout):
            part.threshold = 0
    student.get_parameter("embedding.weight").data[5] = 0
    zero = Batch.from_lists([[3, 5, 4], [5]])
    hidden = Batch(torch.tensor([3, 0, 4, 0]), zero.offsets)
    torch.testing.assert_close(student.encode(hidden), student.encode(zero))


def test_item_0_is_refused_outside_training(model: Model) -> None:
    """Hiding is for augmentations; in an answer it would be a mistake."""
    hidden = Batch(torch.tensor([1, 0]), torch.tensor([0, 2]))
    assert copy.deepcopy(model).train().encode(hidden).isfinite().all()
    with pytest.raises(DataError, match="item 0 is unknown"):
        model.encode(hidden)


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        Batch.from_lists([[1], []])


def test_scores_are_products_and_leave_out_padding(model: Model) -> None:
    batch = Batch.from_lists(HISTORIES)
    with torch.no_grad():
        scores, table = model.scores(batch), model.item_embeddings()
    assert table.shape == (N_ITEMS + 1, 16)
    torch.testing.assert_close(scores[:, 1:], _states(model, batch) @ table[1:].T)
    assert (scores[:, 0] == -torch.inf).all()


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (build_model("sasrec", N_ITEMS, {"dim": 8}, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_padding_rows_stay_zero_in_training(model: Model) -> None:
    student = copy.deepcopy(model)
    _train(student, [[1, 2, 3, 4]] * 8, epochs=2)
    table: torch.Tensor = student.embedding.weight  # type: ignore[union-attr, assignment]
    assert (table[0] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_learns_a_cycle(name: str) -> None:
    """Users walk 1, 2, …, 12, 1, … from anywhere: the next item is certain."""
    walks = [[(start + step) % N_ITEMS + 1 for step in range(4 + n % 4)] for n in range(8) for start in range(N_ITEMS)]
    model = build_model(name, N_ITEMS, {"dim": 16, "max_len": 8, "dropout": 0.0, "init_std": 0.1})
    _train(model, walks, epochs=60)
    asked = [[(start + step) % N_ITEMS + 1 for step in range(4)] for start in range(N_ITEMS)]
    assert model.scores(Batch.from_lists(asked)).argmax(1).tolist() == [(s + 4) % N_ITEMS + 1 for s in range(N_ITEMS)]


@pytest.mark.parametrize("name", NAMES)
def test_learns_a_checkerboard(name: str) -> None:
    """Half of the users take only even items, half only odd ones, in random order."""
    draw = np.random.default_rng(0)
    users = [draw.choice(np.arange(1 + user % 2, N_ITEMS + 1, 2), size=6).tolist() for user in range(96)]
    model = build_model(name, N_ITEMS, {"dim": 16, "max_len": 8, "dropout": 0.0})
    _train(model, users, epochs=25)
    top = model.scores(Batch.from_lists([[1, 5], [2, 6], [9, 3, 7], [10, 4, 8]])).topk(3).indices
    assert (top % 2 == torch.tensor([[1], [0], [1], [0]])).all()


def _train(model: Model, rows: list[list[int]], epochs: int) -> None:
    setting = Setting(Sequences.from_lists(rows), np.arange(len(rows)), N_ITEMS)
    settings = TrainerSettings(epochs=epochs, batch_size=16, learning_rate=0.005, validate_every=epochs)
    fit(
        model,
        build_method("supervised", {"precision": "fp32", "last_share": 0.5}),
        setting,
        settings,
        validate=lambda student: 0.0,
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_working_for_the_newest_items_alone_changes_nothing(name: str, norm: str, training: bool) -> None:
    settings = {"dim": 8, "max_len": 16, "dropout": 0.0, "norm": norm, "precision": "fp32", "init_std": 0.3}
    model = build_model(name, 20, settings).double().train(training)
    assert isinstance(model, Transformer)
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (40,), generator=draw).tolist()
    batch = Batch.from_lists([torch.randint(1, 21, (n,), generator=draw).tolist() for n in lengths])

    def gradients(states: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        states.cumsum(1).square().sum().backward()
        return [states.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    whole = gradients(model.encode_positions(batch)[batch.last])
    torch.testing.assert_close(gradients(model._encode_newest(batch)), whole)
