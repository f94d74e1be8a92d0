"""How far to believe a teacher, and how far the logs: both together on validation cases, by the share of the logs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from recdistill.data.splits import Cases
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.results import compare
from recdistill.rankings import Ranking
from recdistill.teachers.ensemble import fuse

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of the logs in every answer: 0 is the teacher alone, 1 the logs alone."""
DEPTH = 10
"""How far down lists are looked at."""


@dataclass(frozen=True, slots=True)
class Belief:
    """What a teacher and the logs reach together."""

    ndcg_10: dict[float, float]
    """By share of the logs, the mean NDCG@10 over cases."""
    cases: int
    """How many there are."""
    p_value: float
    """Of a paired test of the best share with the teacher alone; 1 where that is the best. It is too small, as the best
    was chosen on the same cases."""

    @property
    def best(self) -> float:
        """The share that reaches most; of equal ones the least."""
        return self._best_of(self.ndcg_10)

    @property
    def advice(self) -> float:
        """The best share that leaves the teacher a say."""
        return self._best_of(share for share in self.ndcg_10 if share < 1)

    def share(self, least: float) -> float:
        """Return the share to learn with, ``least`` at least where rules add anything: 0 where they do not."""
        return max(self.advice, least) if self.advice else 0.0

    def figures(self) -> dict[str, object]:
        """Return what the advice rests on, as it is written down."""
        ndcg = {f"{share:g}": value for share, value in self.ndcg_10.items()}
        return {"cases": self.cases, "p_value": self.p_value, "ndcg_10": ndcg}

    def _best_of(self, shares: Iterable[float]) -> float:
        return max(shares, key=lambda share: (self.ndcg_10[share], -share))


def weigh(rank: Callable[[float], Ranking], cases: Cases, *, n_items: int) -> Belief:
    """Rank cases by a teacher and the logs together, at every share of the logs.

    The share that is best here was also the one that students learned best with, where both were searched
    (``benchmarks/bahsd.md``); this takes no training.

    Args:
        rank: given the share, the lists for the cases.
        cases: held out from both.
        n_items: number of items N.

    Raises:
        DataError: when there are no cases.
    """
    found = {share: evaluate(rank(share), cases, n_items=n_items, ks=(DEPTH,)) for share in SHARES}
    reached = Belief({share: each.mean("ndcg", DEPTH) for share, each in found.items()}, len(cases), 1.0)
    if not reached.best:
        return reached
    return Belief(reached.ndcg_10, len(cases), compare(found[reached.best], found[0.0], "ndcg", DEPTH).p_value)


def weigh_lists(teacher: Ranking, logs: Ranking, cases: Cases, *, n_items: int) -> Belief:
    """Do `weigh` for a teacher's lists, fused with those of the logs as `EnsembleTeacher` does.

    Args:
        teacher: its list for each case.
        logs: what rules counted in the training histories list for each case, with their scores.
        cases: held out from both.
        n_items: number of items N.

    Raises:
        DataError: when there are no cases.
    """
    by_score = teacher.scores is not None
    return weigh(
        lambda share: fuse([teacher, logs], [1 - share, share], DEPTH, by_score=by_score), cases, n_items=n_items
    )
