"""Head and tail users and items, and bands of history length: the strata behind every number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recdistill.arrays import Bools, Ints
from recdistill.data.dataset import Sequences

HEAD_SHARE = 0.2
"""The head is the largest set of the longest histories (or most popular items) that is at most this share of all."""
N_BANDS = 5


def head_cut(counts: npt.NDArray[np.integer], share: float = HEAD_SHARE) -> int:
    """Return the bound of the head, which is everyone with this count or more.

    The head is the largest set of highest counts that is at most ``share`` of all. Equal counts stay together: where
    the bound falls between equals, all of them go to the tail.

    >>> head_cut(np.array([9, 7, 7, 5, 4, 3, 3, 2, 1, 1]))  # two of ten would fit, but the second is one of two equals
    8
    """
    ordered = np.sort(np.asarray(counts))[::-1]
    n_head = int(share * len(ordered) + 1e-9)  # 0.6 × 5 must not become 2
    if n_head >= len(ordered):
        return int(ordered.min(initial=0))
    return int(ordered[n_head]) + 1


def head_users(train_lengths: Ints) -> Bools:
    """Return ``(U,)`` True for head users: the largest set of longest training histories that is at most 20 %."""
    return np.asarray(train_lengths) >= head_cut(train_lengths)


def band_cuts(train_lengths: Ints) -> tuple[int, ...]:
    """Return the smallest length in each of bands 2, 3, 4 and 5.

    Bands would be equal in users, but users of equal length stay together: bands 5, 5–4, 5–3 and 5–2 are the largest
    sets of longest histories that are at most 20, 40, 60 and 80 % of all users, so ties go to the shorter band, band 5
    is the head, and a band is empty where one length alone is more than a fifth.
    """
    return tuple(head_cut(train_lengths, (N_BANDS - band) / N_BANDS) for band in range(1, N_BANDS))


def length_bands(train_lengths: Ints) -> npt.NDArray[np.int64]:
    """Return ``(U,)`` the band of each user, 1 (shortest) to 5 (longest training history), cut at ``band_cuts``."""
    return np.searchsorted(band_cuts(train_lengths), train_lengths, side="right").astype(np.int64) + 1


def item_counts(train: Sequences, n_items: int) -> Ints:
    """Return ``(N+1,)`` the number of training interactions of each item; entry 0 (padding) is 0."""
    return np.bincount(train.flat()[0], minlength=n_items + 1)


def head_items(train: Sequences, n_items: int) -> Bools:
    """Return ``(N+1,)`` True for head items: the largest set of most popular items that is at most 20 % of all N.

    Equal counts stay together and go to the tail at the cut; entry 0 (padding) is False.
    """
    counts = item_counts(train, n_items)
    head = counts >= head_cut(counts[1:])
    head[0] = False
    return head


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """All strata of a split, with the cuts that go with every number."""

    head_users: Bools
    """``(U,)`` True for head users."""
    bands: npt.NDArray[np.int64]
    """``(U,)`` length band of each user, 1…5."""
    head_items: Bools
    """``(N+1,)`` True for head items; entry 0 (padding) is False."""
    user_cut: int
    """Smallest training length of a head user."""
    band_cuts: tuple[int, ...]
    """Smallest training length in each of bands 2…5."""
    item_cut: int
    """Smallest number of training interactions of a head item."""

    @classmethod
    def from_train(cls, train: Sequences, n_items: int) -> Groups:
        """Group all users (rows) and all N items by their training interactions."""
        lengths = train.lengths
        return cls(
            head_users=head_users(lengths),
            bands=length_bands(lengths),
            head_items=head_items(train, n_items),
            user_cut=head_cut(lengths),
            band_cuts=band_cuts(lengths),
            item_cut=head_cut(item_counts(train, n_items)[1:]),
        )

    def labels(self) -> dict[str, str]:
        """Say in words what each stratum is: head, tail, length-1…5, item-head and item-tail."""
        head, n_users = int(self.head_users.sum()), len(self.head_users)
        popular, n_items = int(self.head_items.sum()), len(self.head_items) - 1
        labels = {
            "head": f"{head:,} of {n_users:,} users, with {self.user_cut:,} or more training interactions",
            "tail": f"{n_users - head:,} of {n_users:,} users, with fewer than {self.user_cut:,} training interactions",
        }
        for band in range(1, N_BANDS + 1):
            lower = f"{self.band_cuts[band - 2]:,} or more" if band > 1 else ""
            upper = f"fewer than {self.band_cuts[band - 1]:,}" if band < N_BANDS else ""
            size = int((self.bands == band).sum())
            bounds = " and ".join(bound for bound in (lower, upper) if bound)
            labels[f"length-{band}"] = f"{size:,} of {n_users:,} users, with {bounds} training interactions"
        at_least = f"{self.item_cut:,} or more training interactions"
        labels["item-head"] = f"{popular:,} of {n_items:,} items, with {at_least}"
        labels["item-tail"] = f"{n_items - popular:,} of {n_items:,} items, with fewer than {self.item_cut:,}"
        return labels
