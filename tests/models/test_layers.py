"""Packed rows hold every item once, and dropout drops what it says."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill.models.base import Batch
from recdistill.models.layers import Attention, Block, Dropout, pack_rows

from ..far import far_device


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_rows_hold_each_item_once_beside_its_own_history(lengths: list[int], causal: bool, newest_first: bool) -> None:
    histories = [[100 * h + i + 1 for i in range(n)] for h, n in enumerate(lengths)]
    batch = Batch.from_lists(histories)
    rows = pack_rows(batch, min_len=16, causal=causal, newest_first=newest_first)
    n_rows, row_len = rows.items.shape
    assert rows.items.flatten()[rows.slots].tolist() == batch.items.tolist()
    assert int((rows.items > 0).sum()) == sum(lengths)
    assert n_rows <= max(1, 2 * sum(lengths) // row_len + 1)  # best fit wastes less than half
    attends = rows.attends[:, 0]
    for history, slots in zip(histories, rows.slots.split(lengths), strict=True):
        places = range(len(history))
        expected = reversed(places) if newest_first else places
        assert rows.positions.flatten()[slots].tolist() == list(expected)
        row, columns = int(slots[0]) // row_len, slots % row_len
        assert torch.equal(slots // row_len, torch.full_like(slots, row))
        for index, column in enumerate(columns.tolist()):
            seen = attends[row, column].nonzero().squeeze(1)
            assert torch.equal(seen, columns[: index + 1] if causal else columns)


def test_short_histories_leave_hardly_any_padding() -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 9, (256,), generator=draw).tolist()
    rows = pack_rows(Batch.from_lists([[1] * n for n in lengths]), min_len=64, causal=True)
    assert (rows.items > 0).float().mean() > 0.95


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_expectation(rate: float) -> None:
    dropout = Dropout(rate)
    dropout.generator = torch.Generator().manual_seed(0)
    out = dropout(torch.ones(1000, 333))
    assert (out == 0).float().mean().item() == pytest.approx(rate, abs=0.004)  # 1/512 from rounding, the rest chance
    assert out.mean().item() == pytest.approx(1, abs=0.005)


def test_the_highest_rate_of_dropout_still_keeps_something() -> None:
    """Rounded up to all, it would divide by nothing."""
    dropout = Dropout(0.999)
    dropout.generator = torch.Generator().manual_seed(0)
    assert dropout(torch.ones(1000, 100)).unique().tolist() == [0, 256]


def test_dropout_sends_gradients_where_values_went() -> None:
    dropout = Dropout(0.5)
    x = torch.ones(50, 7, requires_grad=True)
    out = dropout(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())


def test_dropout_follows_its_generator_and_rests_in_evaluation() -> None:
    dropout, x = Dropout(0.5), torch.ones(64, 3)
    draws = []
    for seed in (1, 1, 2):
        dropout.generator = torch.Generator().manual_seed(seed)
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert dropout.eval()(x) is x


def test_dropout_on_another_device_drops_and_follows_its_generator_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    dropout, draws = Dropout(0.25), []
    with far_device(monkeypatch) as far:
        x = torch.ones(500, 40).to(far).requires_grad_()
        for seed in (1, 1, 2):
            dropout.generator = torch.Generator().manual_seed(seed)
            draws.append(dropout(x))
        draws[0].sum().backward()
        assert x.grad is not None
        first, again, other, gradient = (tensor.detach().cpu() for tensor in (*draws, x.grad))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(gradient, first)
    assert (first == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert first.max().item() == pytest.approx(1 / 0.75)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_blocks_matches_torch(causal: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = [70, 3, 20, 41, 1, 7]
    rows = pack_rows(Batch.from_lists([[1] * n for n in lengths]), min_len=90, causal=causal)
    n_rows, row_len = rows.items.shape
    qkv = torch.randn(n_rows, row_len, 3, 2, 4, generator=draw, requires_grad=True)
    ours = Attention.apply(qkv, rows.attends, causal)  # type: ignore[no-untyped-call]
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=rows.attends).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn(ours.shape, generator=draw)
    for a, b in zip(*(torch.autograd.grad((out * weight).sum(), qkv) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_low_precision_is_for_training_alone_and_close_to_full(norm: Any) -> None:
    batch = Batch.from_lists([[1] * n for n in (70, 3, 20, 41, 1, 7)])
    attends = pack_rows(batch, min_len=90, causal=True).attends
    x = torch.randn(*attends.shape[:1], attends.shape[-1], 16, generator=torch.Generator().manual_seed(0))

    def block(precision: Any) -> Block:
        torch.manual_seed(0)
        return Block(16, n_heads=2, inner_dim=32, dropout=0.0, norm=norm, causal=True, precision=precision)

    full, low = block("fp32"), block("bf16")
    assert torch.equal(full.eval()(x, attends), low.eval()(x, attends))
    outs = [each.train()(x, attends) for each in (full, low)]
    assert [out.dtype for out in outs] == [torch.float32] * 2
    assert not torch.equal(*outs)
    torch.testing.assert_close(*outs, rtol=0.03, atol=0.03)
    wanted, got = (
        [g.flatten() for g in torch.autograd.grad(o.cumsum(2).sum(), list(b.parameters()))]
        for o, b in zip(outs, (full, low), strict=True)
    )
    for one, other in zip(wanted, got, strict=True):
        assert (one - other).norm() < 0.03 * one.norm() + 1e-3


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30))
@settings(max_examples=60)
def test_the_newest_items_of_all_histories_are_found(lengths: list[int]) -> None:
    batch = Batch.from_lists([[100 * h + i + 1 for i in range(n)] for h, n in enumerate(lengths)])
    rows = pack_rows(batch, min_len=16, causal=True)
    places, where = rows.newest(batch)
    newest = rows.items.gather(1, places).flatten()[where]
    assert newest.tolist() == [100 * h + n for h, n in enumerate(lengths)]
    assert places.numel() <= rows.items.numel()
