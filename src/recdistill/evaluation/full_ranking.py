"""Full ranking: where each target stands among all items that are not masked.

The rank of a target is the number of unmasked items that score at least as much as it does: ties count against it, and
the best rank is 1. Several targets of one case stand in one list, so no two may take the same place: where m targets
tie with each other, everything else of that score comes first and they take the last m places, in order of their
numbers. With one target the two sentences say the same.

A target that is itself masked, or that the model scores −∞, is a miss. It still counts in |targets|. So are all targets
of a user whom a model that reads the user does not know, as no interaction of theirs was trained on (after a time cut,
for example): every model is measured on the same users.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from recdistill.arrays import Ints, Items
from recdistill.data.dataset import Sequences
from recdistill.data.splits import Cases
from recdistill.errors import DataError, SettingsError, TeacherError
from recdistill.evaluation.metrics import MISS, Ranks
from recdistill.evaluation.results import Evaluation
from recdistill.models.base import Model
from recdistill.models.scoring import best, score_blocks
from recdistill.rankings import Ranking
from recdistill.teachers.base import Teacher


def evaluate(
    source: Model | Teacher | Ranking,
    cases: Cases,
    *,
    n_items: int,
    ks: Sequence[int] = (5, 10, 20),
    protocol: str = "",
    keep_lists: bool = False,
) -> Evaluation:
    """Rank all items for each case and find its targets.

    A model is scored block by block, never users × items at once. A teacher is asked once for lists as long as the
    greatest k, and a stored ranking is read as such lists: masked items are taken out of them, the rest moves up, and
    what is not listed is a miss. Where lists carry scores, ties count against the target there too, as far as the list
    shows them.

    Args:
        source: what ranks; of a stored ranking, row c answers case c.
        cases: whom to rank for, the targets, and what is masked.
        n_items: number of items N.
        ks: the depths to report.
        protocol: the cut in words, from the split; goes with every number.
        keep_lists: keep a model's lists to the greatest k, for coverage and exposure. Lists of a teacher or a stored
            ranking are always kept.

    Raises:
        DataError: when the cases do not fit the source.
        SettingsError: when a k is not positive.
        TeacherError: when a list makes no sense, or is shorter than the greatest k.
        TrainingError: when a model scores an item as NaN; names the user.
    """
    if not ks or min(ks) < 1:
        raise SettingsError(f"ks is {tuple(ks)}; give at least one depth, each at least 1")
    targets, offsets = targets_of(cases, n_items)
    depth = max(ks)
    lists: Items | None
    known_to: int | None = None
    if isinstance(source, Model):
        ranks, lists = _rank_by_model(source, cases, targets, offsets, n_items, depth if keep_lists else 0)
    else:
        if isinstance(source, Teacher):
            source = source.rank(cases.histories, depth, users=cases.users)
        ranks, lists = _rank_in_lists(source, cases.masked, targets, offsets, n_items, depth)
        known_to = lists.shape[1]
    ranks = _own_places(ranks, offsets)
    return Evaluation(cases.users, targets, offsets, ranks, n_items, tuple(ks), protocol, lists, known_to)


def targets_of(cases: Cases, n_items: int) -> tuple[Items, Ints]:
    """Each case's targets in the order of an evaluation's ranks: rising, an item named twice once; flat, with offsets.

    Raises:
        DataError: when there are no cases, one has no target, or a target is not among the items.
    """
    if len(cases) == 0:
        raise DataError("there are no cases to evaluate; check that the split left some")
    if cases.targets.lengths.min() == 0:
        raise DataError("a case has no target, so nothing can be found in its ranking; leave it out of the cases")
    items, _ = cases.targets.flat()
    if items.min() < 1 or items.max() > n_items:
        raise DataError(f"a target is not among the items 1…{n_items}; cases and source must share ids")
    keys = np.unique(cases.targets.pairs(n_items))
    counts = np.bincount(keys // (n_items + 1), minlength=len(cases))
    return (keys % (n_items + 1)).astype(np.int32), np.concatenate([[0], np.cumsum(counts)])


@torch.no_grad()
def _rank_by_model(
    model: Model, cases: Cases, targets: Items, offsets: Ints, n_items: int, depth: int
) -> tuple[Ranks, Items | None]:
    """Count the scores that reach each target's; ``(T,)``. Also the lists ``(C, depth)``, none for depth 0.

    Lists end with the catalogue, so that they are ``(C, N)`` where the depth is beyond it.
    """
    depth = min(depth, n_items)
    if model.n_items != n_items:
        raise DataError(f"the model knows {model.n_items:,} items and the cases {n_items:,}; use those of one data set")
    ranks = np.full(len(targets), MISS, np.int32)
    lists = np.zeros((len(cases), depth), np.int32) if depth else None
    for rows, scores in score_blocks(model, cases.histories, cases.masked, users=cases.users):
        for nth in range(int(np.diff(offsets)[rows].max())):
            having = np.flatnonzero(np.diff(offsets)[rows] > nth)
            place = offsets[rows[having]] + nth
            some = scores if len(having) == len(rows) else scores[torch.from_numpy(having).to(scores.device)]
            own = some.gather(1, torch.from_numpy(targets[place].astype(np.int64)).to(scores.device)[:, None])
            reached = (some >= own).sum(1, dtype=torch.int32)
            ranks[place] = reached.masked_fill_(own[:, 0] == -torch.inf, MISS).cpu().numpy()
        if lists is not None:
            lists[rows], _ = best(scores, depth)
    return ranks, lists


def _rank_in_lists(
    ranking: Ranking, masked: Sequences, targets: Items, offsets: Ints, n_items: int, depth: int
) -> tuple[Ranks, Items]:
    """Find each target in its case's list once masked items are out of it; ``(T,)``, and those lists ``(C, K)``."""
    n_cases = len(offsets) - 1
    if len(ranking) != n_cases:
        raise DataError(f"the ranking has {len(ranking)} lists for {n_cases} cases; give one for each, in their order")
    if ranking.items.shape[1] < min(depth, n_items):
        raise TeacherError(
            f"the lists are {ranking.items.shape[1]} items long, too short for k = {depth}: "
            "ask for longer lists, or report smaller ks."
        )
    ranking.check(n_items)
    list_keys = np.arange(n_cases)[:, None] * (n_items + 1) + ranking.items
    out = (ranking.items == 0) | np.isin(list_keys, masked.pairs(n_items))
    order = np.argsort(out, axis=1, kind="stable")
    lists: Items = np.take_along_axis(np.where(out, 0, ranking.items), order, axis=1)

    keys = np.arange(n_cases)[:, None] * (n_items + 1) + lists
    case = np.repeat(np.arange(n_cases), np.diff(offsets))
    by_key = np.argsort(keys, axis=None, kind="stable")
    wanted = Sequences.from_offsets(targets, offsets).pairs(n_items)
    at = by_key[np.minimum(np.searchsorted(keys.ravel(), wanted, sorter=by_key), keys.size - 1)]
    found = keys.ravel()[at] == wanted
    ranks = np.where(found, at - case * keys.shape[1] + 1, MISS).astype(np.int32)
    if ranking.scores is not None:
        scores = np.take_along_axis(np.where(out, -np.inf, ranking.scores), order, axis=1)
        reached = (scores[case[found]] >= scores.ravel()[at[found], None]).sum(1)
        ranks[found] = reached
    return ranks, lists


def _own_places(ranks: Ranks, offsets: Ints) -> Ranks:
    """Give targets of one case that share a rank r, m of them, the places r−m+1…r; misses stay."""
    case = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((np.arange(len(ranks)), ranks, case))
    sorted_ranks, sorted_case = ranks[order], case[order]
    fresh = np.ones(len(ranks), bool)
    fresh[1:] = (sorted_ranks[1:] != sorted_ranks[:-1]) | (sorted_case[1:] != sorted_case[:-1])
    starts = np.flatnonzero(fresh)
    sizes = np.diff(np.append(starts, len(ranks)))
    later = np.repeat(starts + sizes, sizes) - 1 - np.arange(len(ranks))
    places = np.empty_like(ranks)
    places[order] = np.where(sorted_ranks == MISS, MISS, sorted_ranks - later)
    return places
