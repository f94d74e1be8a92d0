"""The layer by its formula, item by item."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recdistill.models.base import Batch, build_model
from recdistill.models.hstu import HSTU, HSTUConfig, Layer


def _silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def test_a_layer_by_hand() -> None:
    """One head with two values and a single query and key; the sums are so small that the norm's epsilon counts."""
    layer = Layer(HSTUConfig(dim=2, n_heads=1, linear_dim=2, attention_dim=1, max_len=4, dropout=0.0)).eval()
    with torch.no_grad():
        layer.gate_and_query.weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))  # U, U, Q
        layer.value_and_key.weight.copy_(torch.tensor([[0.02, 0.0], [-0.02, 0.0], [0.5, 0.0]]))  # V, V, K
        layer.distance_bias.copy_(torch.tensor([0.1, 0.7, -0.4, 9.0]))
        layer.out.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        layer.out.bias.copy_(torch.tensor([0.25, 0.0]))
    x = torch.tensor([[[3.0, 1.0], [1.0, 3.0], [4.0, 2.0]]])  # normed: (1, −1), (−1, 1) and (1, −1)
    attends = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]

    u, doubled_u, v, negative_v, q, k = (
        [_silu(weight * sign) for sign in (1, -1, 1)] for weight in (1.0, 2.0, 0.02, -0.02, 3.0, 0.5)
    )
    expected = []
    for asks in range(3):
        sums = [0.0, 0.0]
        for seen in range(asks + 1):
            share = _silu(q[asks] * k[seen] + [0.1, 0.7, -0.4][asks - seen]) / 4
            sums[0] += share * v[seen]
            sums[1] += share * negative_v[seen]
        mean, spread = (sums[0] + sums[1]) / 2, abs(sums[0] - sums[1]) / 2
        normed = [(value - mean) / math.sqrt(spread**2 + 1e-6) for value in sums]
        gated = [normed[0] * u[asks], normed[1] * doubled_u[asks]]
        expected.append([x[0, asks, 0].item() + gated[0] + 0.25, x[0, asks, 1].item() + gated[1]])
    torch.testing.assert_close(layer(x, attends)[0], torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_an_item_enters_with_its_position_and_long_enough_to_be_heard() -> None:
    model = _hstu(temperature=0.5, n_blocks=1).eval()
    (layer,) = model.layers
    assert isinstance(layer, Layer)
    with torch.no_grad():
        layer.out.weight.zero_()  # leaves the residual connection
        entered = model.embedding.weight[[3, 1]] * math.sqrt(8) + model.position.weight[:2]
        states = model.encode_positions(Batch.from_lists([[3, 1]]))
    torch.testing.assert_close(states, F.normalize(entered, dim=1) / 0.5)


def test_scores_are_cosines_over_the_temperature() -> None:
    batch = Batch.from_lists([[3, 1, 4], [1]])
    cosine = build_model("hstu", 5, {"dim": 8, "temperature": 0.1, "init_std": 0.3}).eval()
    with torch.no_grad():
        assert cosine.scores(batch)[:, 1:].abs().max() <= 10.0
        assert cosine.encode(batch).norm(dim=1).tolist() == pytest.approx([10.0, 10.0])
        assert cosine.item_embeddings()[1:].norm(dim=1).tolist() == pytest.approx([1.0] * 5)


def test_without_a_temperature_states_are_normed_and_scores_are_products() -> None:
    model = _hstu(temperature=None).eval()
    with torch.no_grad():
        states = model.encode(Batch.from_lists([[3, 1, 4], [1]]))
        assert states.mean(1).tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
        assert states.var(1, correction=0).tolist() == pytest.approx([1.0, 1.0], rel=1e-3)
        scores = model.scores(Batch.from_lists([[3, 1, 4], [1]]))
    torch.testing.assert_close(scores[:, 1:], states @ model.embedding.weight[1:].T)


def test_values_are_dropped_after_the_embedding_and_before_each_layers_output() -> None:
    model = _hstu(dropout=0.5, n_blocks=3).train()
    dropped: list[int] = []
    for module in (model, *model.layers):
        module.get_submodule("dropout").register_forward_hook(lambda *_: dropped.append(1))
    model.encode_positions(Batch.from_lists([[3, 1, 4]]))
    assert len(dropped) == 1 + 3
    assert all(module.get_submodule("dropout").rate == 0.5 for module in (model, *model.layers))


def test_heads_are_as_wide_as_the_settings_say() -> None:
    narrow = Layer(HSTUConfig(dim=8, n_heads=2, attention_dim=3, linear_dim=5))
    assert (narrow.attention_dim, narrow.linear_dim, narrow.out.in_features) == (6, 10, 10)
    plain = Layer(HSTUConfig(dim=8, n_heads=2))
    assert (plain.attention_dim, plain.linear_dim, plain.out.in_features) == (8, 8, 8)


def _hstu(**settings: object) -> HSTU:
    model = build_model("hstu", 20, {"dim": 8, "max_len": 16, "dropout": 0.0, "init_std": 0.3, **settings})
    assert isinstance(model, HSTU)
    return model.double()


def test_neighbours_in_a_row_do_not_see_each_other_through_the_bias() -> None:
    """Histories share packed rows; the distance between them must mean nothing."""
    model = _hstu().eval()
    with torch.no_grad():
        for layer in model.layers:
            assert isinstance(layer, Layer)
            layer.distance_bias.copy_(torch.linspace(-3, 3, 16))
        histories = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]
        together = model.encode(Batch.from_lists(histories))
        alone = torch.cat([model.encode(Batch.from_lists([history])) for history in histories])
    torch.testing.assert_close(together, alone)


def test_working_for_the_newest_items_alone_changes_nothing() -> None:
    model = _hstu()
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (40,), generator=draw).tolist()
    batch = Batch.from_lists([torch.randint(1, 21, (n,), generator=draw).tolist() for n in lengths])

    def gradients(states: Tensor) -> list[Tensor]:
        model.zero_grad()
        F.softplus(states.cumsum(1)).sum().backward()
        return [states.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    whole = gradients(model.encode_positions(batch)[batch.last])
    torch.testing.assert_close(gradients(model.encode(batch)), whole)
