"""Scores of all items for many histories, block by block, and the best k of them.

Nothing here ever holds a score for every user and item at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recdistill.arrays import Ints
from recdistill.data.dataset import Sequences
from recdistill.errors import DataError, TrainingError
from recdistill.models.base import Batch, Model
from recdistill.rankings import Ranking, Scores

GROUP = 32
"""Items whose greatest score is found first: of 16, 32 and 64, what makes top-200 of 25,181 items fastest on CPU."""
_TOKENS = 16_384
"""History items encoded at once."""
_SCORES, _CACHED_SCORES = 1 << 28, 3 << 20
"""Scores held at once; on CPU only what stays in the cache, 12 MiB: more is up to 1.3 times slower."""


@torch.no_grad()
def top_k(
    model: Model,
    histories: Sequences,
    k: int,
    masked: Sequences | None,
    *,
    users: npt.NDArray[np.integer] | None = None,
) -> Ranking:
    """Rank all items for each history and keep the best ``k``.

    The order is fully determined: score falling, then item number rising. An item scored −∞ is not listed.

    Args:
        model: any model; it is put into evaluation mode and back.
        histories: B rows of items, oldest first; what the model reads.
        k: length of the lists.
        masked: B rows of items that are left out, usually ``histories``; ``None`` to rank all items.
        users: ``(B,)`` dense users, for models that read the user; also names the user in errors.

    Returns:
        Lists ``(B, k)`` with scores, padded with 0 and −∞ where fewer than k items are ranked: none for users whom the
        model does not know.

    Raises:
        TrainingError: when a score is NaN.
        DataError: when a history is empty, or an item is none of the model's.
    """
    if k < 1:
        raise DataError(f"a list of {k} items was asked for; ask for at least 1")
    items = np.zeros((len(histories), k), np.int32)
    scores = np.full((len(histories), k), -np.inf, np.float32)
    filled = min(k, model.n_items)
    for rows, block in score_blocks(model, histories, masked, users=users):
        items[rows, :filled], scores[rows, :filled] = best(block, filled)
    return Ranking(items, scores)


@torch.no_grad()
def score_blocks(
    model: Model,
    histories: Sequences,
    masked: Sequences | None,
    *,
    users: npt.NDArray[np.integer] | None = None,
) -> Iterator[tuple[Ints, Tensor]]:
    """Score all items for a few histories at a time, those of similar length together.

    Takes what `top_k` takes and raises what it raises.

    Yields:
        ``rows (b,)`` of the histories, each of which comes once, and their ``scores (b, W)`` in float32: column i is
        item i, W is N+1 rounded up to whole groups, and whatever is not ranked (masked items, padding, all items for a
        user whom the model does not know) is −∞. The next block overwrites the scores.
    """
    if len(histories) == 0:
        return
    if masked is not None and len(masked) != len(histories):
        raise DataError(f"{len(histories)} histories came with {len(masked)} rows of masked items; give one for each")
    was_training = model.training
    model.eval()
    try:
        embeddings = model.item_embeddings().float()
        n_columns, dim = embeddings.shape
        width = -(-n_columns // GROUP) * GROUP
        table = embeddings.new_zeros(dim, width)
        table[:, 1:n_columns] = embeddings[1:].T
        largest = float(table.abs().max())
        height = max(1, (_CACHED_SCORES if table.device.type == "cpu" else _SCORES) // width)
        buffer = table.new_empty(min(height, len(histories)), width)
        for rows in _of_similar_length(model, histories):
            some = None if users is None else users[rows]
            batch = Batch.from_sequences(histories.take(rows), users=some, max_len=model.max_len)
            queries = model.encode(batch.to(table.device)).float()
            # Below this bound no partial sum overflows, so that no score can be NaN. NaN itself fails the comparison.
            safe = dim * float(queries.abs().max()) * largest < torch.finfo(torch.float32).max
            for start in range(0, len(rows), height):
                block = rows[start : start + height]
                scores = torch.mm(queries[start : start + height], table, out=buffer[: len(block)])
                if not safe:
                    _refuse_nan(scores[:, 1:n_columns], block, users)
                scores[:, 0] = -torch.inf
                scores[:, n_columns:] = -torch.inf
                if users is not None and not (known := model.knows(users[block])).all():
                    scores[torch.from_numpy(~known).to(scores.device)] = -torch.inf
                if masked is not None:
                    _mask(scores, masked.take(block), n_columns - 1)
                yield block, scores
    finally:
        model.train(was_training)


def best(scores: Tensor, k: int) -> tuple[Ints, Scores]:
    """Return the ``k`` best columns of ``scores (b, W)`` and their scores, both ``(b, k)``; W is whole groups.

    The k-th greatest of the groups' maxima is at most the k-th best score. So only what reaches it is a candidate, some
    k columns in few groups, and only they are sorted. Equal scores are ordered by column; −∞ is never returned, its
    place is column 0.
    """
    n_rows, n_groups = len(scores), scores.shape[1] // GROUP
    maxima = scores.view(n_rows, n_groups, GROUP).amax(2).cpu().numpy()
    bound = _kth_greatest(maxima if 2 * k <= n_groups else scores.cpu().numpy(), k)

    group = np.flatnonzero(maxima >= bound[:, None])  # numbered over all rows
    row = group // n_groups
    inside = scores.view(-1, GROUP).index_select(0, torch.from_numpy(group).to(scores.device)).cpu().numpy()
    hit = np.flatnonzero(inside >= bound[row, None])
    at = hit // GROUP
    row, column = row[at], group[at] % n_groups * GROUP + hit % GROUP

    counts = np.bincount(row, minlength=n_rows)
    slot = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    nothing = _sort_keys(np.array([-np.inf], np.float32), np.zeros(1, np.int64))
    keys = np.full((n_rows, max(k, int(counts.max()))), nothing)
    keys[row, slot] = _sort_keys(inside.ravel()[hit], column)
    return _from_keys(np.sort(keys, axis=1)[:, :k])


def _kth_greatest(values: Scores, k: int) -> Scores:
    """Return ``(b,)`` the k-th greatest of each row of ``values (b, n)``, finite; the least where n is smaller."""
    at = max(0, values.shape[1] - k)
    return np.maximum(np.partition(values, at, axis=1)[:, at], np.finfo(np.float32).min)


def _sort_keys(scores: Scores, columns: Ints) -> Ints:
    """Return numbers that rise as scores fall and, where these are equal, as columns rise.

    NumPy sorts 64-bit integers many times as fast as it orders floats stably. Read as integers, positive floats keep
    their order, and negative ones do once all their bits but the sign are flipped.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # −0 becomes 0, its equal
    return ~_flipped(bits).astype(np.int64) << 32 | columns


def _from_keys(keys: Ints) -> tuple[Ints, Scores]:
    """Return the columns and the scores of keys."""
    return keys & 0xFFFFFFFF, _flipped((~(keys >> 32)).astype(np.int32)).view(np.float32)


def _flipped(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return bits ^ (bits >> 31 & 0x7FFFFFFF)


def _of_similar_length(model: Model, histories: Sequences) -> list[Ints]:
    """Cut the rows, sorted by length, into batches of about the same number of items."""
    lengths = histories.lengths if model.max_len is None else np.minimum(histories.lengths, model.max_len)
    order = np.argsort(lengths, kind="stable")
    number = (np.cumsum(lengths[order]) - 1) // _TOKENS
    return np.split(order, np.flatnonzero(np.diff(number)) + 1)


def _mask(scores: Tensor, masked: Sequences, n_items: int) -> None:
    items, offsets = masked.flat()
    if items.max(initial=1) > n_items or items.min(initial=1) < 1:
        raise DataError(f"a masked item is not among the model's items 1…{n_items}; cases and model must share ids")
    cells = np.repeat(np.arange(len(masked)) * scores.shape[1], np.diff(offsets)) + items
    scores.view(-1).index_fill_(0, torch.from_numpy(cells).to(scores.device), -torch.inf)


def _refuse_nan(scores: Tensor, rows: Ints, users: npt.NDArray[np.integer] | None) -> None:
    broken = scores.isnan().any(1).nonzero().squeeze(1).cpu().numpy()
    if len(broken):
        row = rows[broken[0]]
        who = f"row {row}" if users is None else f"user {users[row]}"
        raise TrainingError(
            f"the model scored items for {who} (and {len(broken) - 1} more in its block) as NaN, not a number, so they "
            "cannot be ranked; its weights have diverged: go back to an earlier checkpoint or lower the learning rate."
        )
