"""The losses over the whole catalogue agree with their plain definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recdistill.losses import softmax
from recdistill.losses.precision import Precision
from recdistill.losses.softmax import list_cross_entropy, sampled_softmax_loss, softmax_cross_entropy


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one short, in every test."""
    monkeypatch.setattr(softmax, "_ROUND", 4)
    monkeypatch.setattr(softmax, "_CHUNK_ELEMENTS", 12 * 30)


def _problem(n_rows: int = 31, n_items: int = 30, dim: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(n_rows, dim, generator=draw, requires_grad=True)
    embeddings = torch.randn(n_items + 1, dim, generator=draw, requires_grad=True)
    labels = torch.randint(1, n_items + 1, (n_rows,), generator=draw)
    return states, embeddings, labels


def _gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


def test_softmax_of_two_items_by_hand() -> None:
    states = torch.tensor([[1.0]])
    embeddings = torch.tensor([[100.0], [0.0], [math.log(3)]])  # row 0 is padding and must not count
    expected = -math.log(3 / (1 + 3))
    assert softmax_cross_entropy(states, embeddings, torch.tensor([2]), precision="fp32").item() == pytest.approx(
        expected
    )


def test_softmax_and_its_gradients_match_torch() -> None:
    states, embeddings, labels = _problem()
    ours = softmax_cross_entropy(states, embeddings, labels, precision="fp32")
    theirs = F.cross_entropy(states @ embeddings[1:].T, labels - 1)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(_gradients(ours, states, embeddings), _gradients(theirs, states, embeddings), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_bf16_stays_within_rounding_of_fp32() -> None:
    states, embeddings, labels = _problem()
    exact = softmax_cross_entropy(states, embeddings, labels, precision="fp32")
    rounded = softmax_cross_entropy(states, embeddings, labels, precision="bf16")
    assert rounded.item() == pytest.approx(exact.item(), rel=0.01)
    for a, b in zip(_gradients(rounded, states, embeddings), _gradients(exact, states, embeddings), strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


def test_list_matches_the_plain_formula_with_padding_weights_and_temperatures() -> None:
    states, embeddings, _ = _problem()
    draw = torch.Generator().manual_seed(1)
    items = torch.stack([torch.randperm(30, generator=draw)[:4] + 1 for _ in range(31)])
    items[:9, 2:] = 0
    items[9] = 0  # a row without any answer
    probs = torch.rand(31, 4, generator=draw)
    weights, temperature = torch.rand(31, generator=draw), torch.rand(31, generator=draw) + 0.5
    ours = list_cross_entropy(
        states, embeddings, items, probs, weights=weights, temperature=temperature, precision="fp32"
    )
    log_probs = F.log_softmax(states @ embeddings[1:].T / temperature[:, None], 1)
    listed = torch.where(items > 0, probs, 0.0) * log_probs.gather(1, (items - 1).clamp_min(0))
    theirs = -(weights * listed.sum(1)).sum()
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(_gradients(ours, states, embeddings), _gradients(theirs, states, embeddings), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_lists_of_nobody_cost_nothing() -> None:
    states, embeddings, _ = _problem()
    nobody = torch.zeros(0, 4)
    loss = list_cross_entropy(states[:0], embeddings, nobody.long(), nobody, weights=nobody[:, 0])
    assert loss.item() == 0
    assert all(not g.any() for g in _gradients(loss, states, embeddings))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_extreme_logits_stay_finite(precision: Precision) -> None:
    """A listed item whose softmax is 0 must not make the loss infinite."""
    states, embeddings, labels = _problem()
    loss = softmax_cross_entropy(states * 1e4, embeddings, labels, precision=precision)
    exact = F.cross_entropy((states * 1e4) @ embeddings[1:].T, labels - 1)
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    assert all(g.isfinite().all() for g in _gradients(loss, states, embeddings))


def test_no_gradient_is_kept_where_none_is_asked() -> None:
    states, embeddings, labels = _problem()
    loss = softmax_cross_entropy(states.detach(), embeddings.detach(), labels, precision="fp32")
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(states @ embeddings[1:].T, labels - 1).detach())


def test_sampled_softmax_over_every_item_is_the_full_softmax() -> None:
    states, embeddings, labels = _problem()
    everything = torch.arange(1, 31)
    ours = sampled_softmax_loss(states, embeddings, labels, everything, torch.zeros(30), precision="fp32")
    theirs = F.cross_entropy(states @ embeddings[1:].T, labels - 1)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(_gradients(ours, states, embeddings), _gradients(theirs, states, embeddings), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_sampled_softmax_matches_its_formula() -> None:
    states, embeddings, labels = _problem()
    negatives, bias = torch.tensor([3, 17, 5, 29]), torch.tensor([0.5, -1.0, 2.0, 0.0])
    ours = sampled_softmax_loss(states, embeddings, labels, negatives, bias, precision="fp32")
    logits = states @ embeddings[negatives].T + bias
    logits = logits.masked_fill(labels[:, None] == negatives, -torch.inf)
    positive = (states * embeddings[labels]).sum(1, keepdim=True)
    theirs = F.cross_entropy(torch.cat([positive, logits], 1), torch.zeros(31, dtype=torch.int64))
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(_gradients(ours, states, embeddings), _gradients(theirs, states, embeddings), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
