"""Other views of histories, for contrastive learning: cropped, masked, reordered, or with items put in.

All are functions of flat batches, without a loop over histories. Numbers are drawn on the CPU, so that a seed gives the
same views on every device.

Sources: Xie et al., "Contrastive Learning for Sequential Recommendation", ICDE 2022, for crop, mask and reorder; Wei et
al., "Leave No One Behind: Online Self-Supervised Self-Distillation for Sequential Recommendation", WWW 2024, appendix
A, for insert.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from recdistill.errors import SettingsError
from recdistill.models.base import Batch
from recdistill.settings import Settings

Kind = Literal["crop", "mask", "reorder", "insert"]
Kinds = Annotated[tuple[Kind, ...], Field(min_length=1)]
Share = Annotated[float, Field(gt=0, lt=1)]

_SLACK = 1e-9
"""Of rounding: 0.29 of 100 items must not become 28, nor 0.55 of 100 items 56."""
_ORDER: tuple[Kind, ...] = ("insert", "crop", "mask", "reorder")
"""In which operators are applied: what is put in comes from histories in which nothing is hidden yet."""


class AugmentationConfig(Settings):
    """How a view of a history is made. The defaults are S4Rec's; where its paper gives none, the setting says whose."""

    kinds: Kinds = ("crop", "mask", "reorder", "insert")
    """Operators, of which one is drawn for every history and view; one that stands here twice is drawn twice as often.
    """
    crop_share: Share = 0.2
    """Share of a history that a crop keeps, rounded up (1 − δ in the paper, which speaks of what is removed)."""
    mask_share: Share = 0.7
    """Share of a history's items that are hidden, rounded down. Not in the paper; that of ICLRec's code."""
    reorder_share: Share = 0.2
    """Share of a history that is shuffled, rounded down: of fewer than ten items, 0.2 leaves all as it was."""
    insert_share: Share = 0.3
    """Items put in as a share of those that are there, rounded up. Not in the paper; that of CoSeRec's code."""


def crop(batch: Batch, share: float, generator: torch.Generator) -> Batch:
    """Keep a random block of neighbours in each history.

    Args:
        batch: B histories.
        share: of each history that is kept, in (0, 1), rounded up: at least one item.
        generator: of the draws.

    Raises:
        SettingsError: for another share; so do the other operators.
    """
    return _crop(batch, _rounded_up(batch.lengths, share), generator)


def mask(batch: Batch, share: float, generator: torch.Generator) -> Batch:
    """Hide random items of each history behind item 0, which a model in training reads as a zero vector.

    Args:
        batch: B histories.
        share: of each history's items that are hidden, in (0, 1), rounded down: never all of them.
        generator: of the draws.
    """
    return _mask(batch, _rounded_down(batch.lengths, share), generator)


def reorder(batch: Batch, share: float, generator: torch.Generator) -> Batch:
    """Shuffle a random block of neighbours in each history.

    Args:
        batch: B histories.
        share: of each history that is shuffled, in (0, 1), rounded down.
        generator: of the draws.
    """
    return _reorder(batch, _rounded_down(batch.lengths, share), generator)


def insert(batch: Batch, share: float, generator: torch.Generator, *, max_len: int | None) -> Batch:
    """Put random items of the other histories of the batch into each history, at random places.

    An item is drawn as often as the other histories hold it. A history that is alone in its batch stays as it is.

    Args:
        batch: B histories.
        share: how many items are put in, as a share of those that are there, in (0, 1), rounded up.
        generator: of the draws.
        max_len: how many of the newest items are kept of each history; ``None`` for all.
    """
    return _insert(batch, _rounded_up(batch.lengths, share), generator, max_len)


def augment(batch: Batch, config: AugmentationConfig, generator: torch.Generator, *, max_len: int | None) -> Batch:
    """Change each history by one operator, drawn for every history on its own.

    Args:
        batch: B histories.
        config: of the operators.
        generator: of the draws.
        max_len: how many of a history's newest items the model reads; a history does not outgrow it by insertion.
    """
    codes = torch.tensor([_ORDER.index(kind) for kind in config.kinds])
    drawn = codes[torch.randint(len(codes), (len(batch),), generator=generator)].to(batch.offsets.device)

    def chosen(kind: Kind) -> Tensor:
        return drawn == _ORDER.index(kind)

    if "insert" in config.kinds:
        added = _rounded_up(batch.lengths, config.insert_share)
        batch = _insert(batch, added * chosen("insert"), generator, max_len)
    if "crop" in config.kinds:
        kept = _rounded_up(batch.lengths, config.crop_share)
        batch = _crop(batch, torch.where(chosen("crop"), kept, batch.lengths), generator)
    if "mask" in config.kinds:
        hidden = _rounded_down(batch.lengths, config.mask_share)
        batch = _mask(batch, hidden * chosen("mask"), generator)
    if "reorder" in config.kinds:
        shuffled = _rounded_down(batch.lengths, config.reorder_share)
        batch = _reorder(batch, shuffled * chosen("reorder"), generator)
    return batch


def two_views(batch: Batch, config: AugmentationConfig, generator: torch.Generator, *, max_len: int | None) -> Batch:
    """Make two views of each history, drawn independently.

    Returns:
        2B histories: the first views in the order of the batch, then the second ones, so that one pass encodes both.
    """
    first, second = (augment(batch, config, generator, max_len=max_len) for _ in range(2))
    return join(first, second)


def join(first: Batch, second: Batch) -> Batch:
    """Put the histories of one batch after those of another; users are kept where both have them."""
    users = None if first.users is None or second.users is None else torch.cat([first.users, second.users])
    offsets = torch.cat([first.offsets, first.offsets[-1] + second.offsets[1:]])
    return Batch(torch.cat([first.items, second.items]), offsets, users)


def _crop(batch: Batch, kept: Tensor, generator: torch.Generator) -> Batch:
    """Keep ``kept (B,)`` neighbours of each history."""
    return Batch(batch.items[_random_block(batch, kept, generator)[0]], _offsets(kept), batch.users)


def _mask(batch: Batch, hidden: Tensor, generator: torch.Generator) -> Batch:
    """Hide ``hidden (B,)`` items of each history."""
    return Batch(
        batch.items.masked_fill(_random_places(batch.offsets, hidden, generator), 0), batch.offsets, batch.users
    )


def _reorder(batch: Batch, shuffled: Tensor, generator: torch.Generator) -> Batch:
    """Shuffle ``shuffled (B,)`` neighbours of each history: sort by place, and inside the block by a draw within it."""
    inside, first = _random_block(batch, shuffled, generator)
    size = torch.repeat_interleave(shuffled, batch.lengths)
    within = first + size * _uniform(len(batch.items), generator, first.device)
    order = torch.where(inside, within, torch.arange(len(inside), device=first.device)).argsort(stable=True)
    return Batch(batch.items[order], batch.offsets, batch.users)


def _insert(batch: Batch, added: Tensor, generator: torch.Generator, max_len: int | None) -> Batch:
    """Put ``added (B,)`` items of other histories into each."""
    if len(batch) == 1:
        return batch
    offsets = _offsets(batch.lengths + added)
    new = _random_places(offsets, added, generator)
    history = torch.repeat_interleave(added)
    own_first, n_own = batch.offsets[history], batch.lengths[history]
    drawn = _below(len(batch.items) - n_own, generator)
    items = batch.items.new_empty(len(new))
    items[~new] = batch.items
    items[new] = batch.items[drawn + torch.where(drawn >= own_first, n_own, 0)]
    longer = Batch(items, offsets, batch.users)
    return longer if max_len is None else longer.newest(max_len)


def _random_block(batch: Batch, sizes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``sizes (B,)`` neighbours of each history.

    Returns:
        ``(T,)`` whether an item is in its history's block, and ``(T,)`` where that block begins in ``batch.items``.
    """
    lengths = batch.lengths
    starts = batch.offsets[:-1] + _below(lengths - sizes + 1, generator)
    first, end = torch.repeat_interleave(torch.stack([starts, starts + sizes]), lengths, dim=1)
    place = torch.arange(len(first), device=first.device)
    return (place >= first) & (place < end), first


def _random_places(offsets: Tensor, sizes: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``(T,)`` True at ``sizes (B,)`` random places of each history of a batch with these ``offsets (B+1,)``."""
    lengths = offsets.diff()
    history = torch.repeat_interleave(lengths)
    order = (history + _uniform(len(history), generator, history.device)).argsort(stable=True)
    rank = torch.arange(len(history), device=history.device) - offsets[history]
    return torch.zeros_like(history, dtype=torch.bool).index_copy_(0, order, rank < sizes[history])


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _below(bounds: Tensor, generator: torch.Generator) -> Tensor:
    """Draw an integer in 0…bound−1 for each bound."""
    return (bounds * _uniform(len(bounds), generator, bounds.device)).long()


def _uniform(n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64).to(device)


def _rounded_up(lengths: Tensor, share: float) -> Tensor:
    return (_checked(share) * lengths.double() - _SLACK).ceil().long().clamp_min(1)


def _rounded_down(lengths: Tensor, share: float) -> Tensor:
    return (_checked(share) * lengths.double() + _SLACK).floor().long()


def _checked(share: float) -> float:
    if not 0 < share < 1:
        raise SettingsError(f"the share of a history must be above 0 and below 1, not {share}")
    return share
