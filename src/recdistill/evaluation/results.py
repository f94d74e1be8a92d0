"""What an evaluation found: ranks of every case, and the means, strata, intervals and comparisons made from them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from recdistill.arrays import Bools, Floats, Ints, Items
from recdistill.errors import ArtefactError, DataError, SettingsError
from recdistill.evaluation import metrics
from recdistill.evaluation.metrics import METRICS, Ranks
from recdistill.evaluation.significance import bootstrap_interval, by_user, sign_flip_test
from recdistill.files import replacing
from recdistill.settings import nearest


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The rank of each target of C cases among all items that are not masked.

    Every value is made from the ranks, so that strata, intervals and tests need no second pass over the model.
    """

    users: Ints
    """``(C,)`` dense user of each case."""
    targets: Items
    """``(T,)`` target items, case after case."""
    offsets: Ints
    """``(C+1,)``: the targets of case c are ``targets[offsets[c]:offsets[c+1]]``."""
    ranks: Ranks
    """``(T,)`` place of each target, from 1; `metrics.MISS` where it is not ranked."""
    n_items: int
    ks: tuple[int, ...]
    """The depths to report."""
    protocol: str
    """How the cases were cut, in words."""
    lists: Items | None = None
    """``(C, K)`` what was recommended, best first, 0 is padding, K at most N; ``None`` if not kept."""
    depth: int | None = None
    """To which place ranks are known, where they were read from lists; ``None`` for all."""

    def __len__(self) -> int:
        return len(self.users)

    @property
    def n_users(self) -> int:
        """Number of different users."""
        return len(np.unique(self.users))

    def values(self, metric: str, k: int) -> Floats:
        """The metric of each case, ``(C,)``; ``metric`` is hr, ndcg, mrr or recall.

        Raises:
            SettingsError: for an unknown metric.
            DataError: for a k beyond the lists that the ranks were read from.
        """
        if metric not in METRICS:
            raise SettingsError(f"unknown metric {metric!r}{nearest(metric, list(METRICS))}")
        if self.depth is not None and min(k, self.n_items) > self.depth:
            raise DataError(f"ranks were read from lists of {self.depth}, top {k} was asked; evaluate with that k")
        return METRICS[metric](self.ranks, self.offsets, min(k, self.n_items))

    def mean(self, metric: str, k: int) -> float:
        """Mean of the metric over all cases; NaN where there are none."""
        return float(self.values(metric, k).mean()) if len(self) else float("nan")

    def intervals(
        self, *, level: float = 0.95, n_resamples: int = 1000, seed: int = 0
    ) -> dict[tuple[str, int], tuple[float, float]]:
        """Bootstrap interval over users of each reported mean, by metric and k."""
        names = [(metric, k) for metric in METRICS for k in self.ks]
        values = np.column_stack([self.values(metric, k) for metric, k in names])
        low, high = bootstrap_interval(values, self.users, level=level, n_resamples=n_resamples, seed=seed)
        return {name: (float(low[n]), float(high[n])) for n, name in enumerate(names)}

    def coverage(self, k: int) -> float:
        """Share of the catalogue that is in the top ``k`` of at least one case."""
        return metrics.coverage(self._top(k), self.n_items)

    def gini(self, k: int) -> float:
        """Gini coefficient of the items' exposure in the top ``k``: 0 is equal, near 1 is a few items only."""
        return metrics.gini(self._top(k), self.n_items)

    def of_users(self, chosen: Bools) -> Evaluation:
        """Only the cases of chosen users; ``chosen (U,)`` by dense user."""
        if len(self) and len(chosen) <= self.users.max():
            raise DataError(f"a group of {len(chosen):,} users cannot hold user {self.users.max()}; give one for all")
        return self._pick(np.repeat(chosen[self.users], np.diff(self.offsets)))

    def of_items(self, chosen: Bools) -> Evaluation:
        """Only the targets among chosen items, ``chosen (N+1,)``; a case without one is left out.

        Places do not change: they still are among all items. |targets| counts the chosen ones.
        """
        if len(chosen) != self.n_items + 1:
            raise DataError(f"a group of items needs {self.n_items + 1:,} entries, items 0…N; this has {len(chosen):,}")
        return self._pick(chosen[self.targets])

    def save(self, path: Path) -> None:
        """Write everything to one ``.npz`` file, whole or not at all."""
        about = json.dumps({"n_items": self.n_items, "ks": self.ks, "protocol": self.protocol, "depth": self.depth})
        arrays = {name: getattr(self, name) for name in ("users", "targets", "offsets", "ranks")}
        if self.lists is not None:
            arrays["lists"] = self.lists
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, about=np.array(about), **arrays)

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            ArtefactError: when there is no such file or it is not an evaluation.
        """
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                about: dict[str, Any] = json.loads(str(file["about"]))
                arrays = {name: file[name] for name in file.files if name != "about"}
            return cls(**{**about, **arrays, "ks": tuple(about["ks"])})
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
            raise ArtefactError(
                f"{path} cannot be read as an evaluation ({error}); evaluate the run again to write it anew"
            ) from error

    def _top(self, k: int) -> Items:
        if self.lists is None:
            raise DataError("the recommended lists were not kept; evaluate with keep_lists=True")
        if min(k, self.n_items) > self.lists.shape[1]:
            raise DataError(f"lists of {self.lists.shape[1]} items were kept, top {k} was asked; evaluate with that k")
        return self.lists[:, :k]

    def _pick(self, kept: Bools) -> Evaluation:
        """Keep some targets, ``kept (T,)``, and the cases that have one left."""
        case = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        counts = np.bincount(case[kept], minlength=len(self))
        cases = counts > 0
        return replace(
            self,
            users=self.users[cases],
            targets=self.targets[kept],
            offsets=np.concatenate([[0], np.cumsum(counts[cases])]),
            ranks=self.ranks[kept],
            lists=None if self.lists is None else self.lists[cases],
        )


def strata(
    evaluation: Evaluation,
    *,
    head_users: Bools | None = None,
    length_bands: npt.NDArray[np.integer] | None = None,
    head_items: Bools | None = None,
) -> dict[str, Evaluation]:
    """Split an evaluation by kinds of user and item; the parts are evaluations themselves.

    Args:
        evaluation: the whole; it is the stratum ``all``.
        head_users: ``(U,)`` gives ``head`` and ``tail``.
        length_bands: ``(U,)`` numbers 1…5 give ``length-1`` to ``length-5``.
        head_items: ``(N+1,)`` gives ``item-head`` and ``item-tail``, see `Evaluation.of_items`.

    Returns:
        The strata by name, without those that hold no case.
    """
    parts = {"all": evaluation}
    if head_users is not None:
        parts |= {"head": evaluation.of_users(head_users), "tail": evaluation.of_users(~head_users)}
    if length_bands is not None:
        for band in range(1, 6):
            parts[f"length-{band}"] = evaluation.of_users(length_bands == band)
    if head_items is not None:
        parts |= {"item-head": evaluation.of_items(head_items), "item-tail": evaluation.of_items(~head_items)}
    return {name: part for name, part in parts.items() if len(part)}


def table(parts: Mapping[str, Evaluation], *, intervals: bool = False) -> list[dict[str, str | int | float]]:
    """One row a figure: stratum, metric, k, value, users; with ``intervals`` also low and high, the 95 % interval."""
    rows: list[dict[str, str | int | float]] = []
    for stratum, part in parts.items():
        ends = part.intervals() if intervals else {}
        for metric in METRICS:
            for k in part.ks:
                row: dict[str, str | int | float] = {
                    "stratum": stratum,
                    "metric": metric,
                    "k": k,
                    "value": part.mean(metric, k),
                    "users": part.n_users,
                }
                if intervals:
                    row["low"], row["high"] = ends[metric, k]
                rows.append(row)
    return rows


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two systems on the same cases."""

    metric: str
    k: int
    first: float
    """Mean of the first system."""
    second: float
    """Mean of the second."""
    difference: float
    """First minus second."""
    low: float
    high: float
    """Ends of the 95 % bootstrap interval of the difference, over users."""
    p_value: float
    """Two-sided, from `significance.sign_flip_test` on the users' differences."""
    users: int


def compare(first: Evaluation, second: Evaluation, metric: str, k: int, *, seed: int = 0) -> Comparison:
    """Test two systems against each other, user by user.

    Raises:
        DataError: when the two did not evaluate the same cases.
        SettingsError: for an unknown metric.
    """
    _same_cases(first, second)
    differences = first.values(metric, k) - second.values(metric, k)
    low, high = bootstrap_interval(differences[:, None], first.users, seed=seed)
    return Comparison(
        metric=metric,
        k=k,
        first=first.mean(metric, k),
        second=second.mean(metric, k),
        difference=float(differences.mean()),
        low=float(low[0]),
        high=float(high[0]),
        p_value=sign_flip_test(by_user(differences, first.users), seed=seed),
        users=first.n_users,
    )


def _same_cases(first: Evaluation, second: Evaluation) -> None:
    checks = {
        "numbers of cases": (len(first), len(second)),
        "numbers of items": (first.n_items, second.n_items),
        "protocols": (first.protocol, second.protocol),
    }
    for what, (one, other) in checks.items():
        if one != other:
            raise DataError(f"two evaluations with different {what} ({one!r} and {other!r}) cannot be compared")
    if len(first) == 0:
        raise DataError("two evaluations without cases cannot be compared")
    for name in ("users", "offsets", "targets"):
        if not np.array_equal(getattr(first, name), getattr(second, name)):
            raise DataError(
                f"two evaluations with different {name} cannot be compared; evaluate both on the same cases"
            )
