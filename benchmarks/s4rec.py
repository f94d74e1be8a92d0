"""Does S4Rec serve users with short histories better than its rivals, and which of its parts earn what?

A row is one SASRec: a data set, a method, a base loss by which labels are learned, a variant and a seed
(``s4rec_rows``). Leave-one-out, all items ranked. Labels alone are learned by the recipes of ``quality``, on Toys and
Sports by that of Beauty, and ML-1M is read 50 items at a time, as in the paper. Methods' settings are chosen on
validation data (``--search``, rows in ``s4rec_search.csv``) and stand in `s4rec_rows.TUNED`; the test cases are looked
at once. Rows are on disk as soon as they are known, and what was stopped goes on where it was. ``--compare`` makes the
paired tests of what is there, and sets it against the paper's figures.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.comparisons import Kept, renew
from benchmarks.experiments import (
    Values,
    after_last_epoch,
    chosen,
    commit,
    figures,
    folder_of,
    grid,
    record,
    search_figures,
    search_key,
    table_parser,
    train,
)
from benchmarks.results import FOLDER, QUALITY, ResultTable
from benchmarks.s4rec_rows import IN_PAPER, OURS, PUBLISHED_FIGURES, SEEDS, TABLES, Row, ablation, core
from torch import Tensor

from recdistill.arrays import Bools, Floats, Ints
from recdistill.data.benchmark_data import load_benchmark
from recdistill.data.groups import head_users
from recdistill.data.splits import Cases, Split, leave_one_out
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.results import Evaluation
from recdistill.methods.contrast import encode_all
from recdistill.methods.iclrec import ICLRec
from recdistill.methods.s4rec import S4Rec
from recdistill.runs.file import Run
from recdistill.runs.learning import set_up
from recdistill.serving.student import Student
from recdistill.training.checkpoints import CHECKPOINT

RESULTS, SEARCH, PAIRED, PUBLISHED, CLUSTERS, MAP = (
    FOLDER / f"s4rec{part}.csv" for part in ("", "_search", "_paired", "_published", "_clusters", "_map")
)
KEPT = Kept.of("s4rec")
"""The rank of every test target by every student, for the paired tests."""
CELL = ("dataset", "split", "student", "method", "variant")
PUBLISHED_COLUMNS = (*CELL, "metric", "k", "value", "published", "gain", "seeds")
"""``value``: mean over seeds; ``gain``: of it over the paper's figure, in per cent."""
CLUSTER_COLUMNS = (*CELL, "seed", "cluster", "users", "head_share", "commit")
"""A row an intent that has users; ``head_share``: of its users, those of the head."""
MAP_COLUMNS = (*CELL, "seed", "user", "x", "y", "cluster", "length", "stratum", "commit")
"""A row a user; ``length``: training interactions, ``stratum``: head or tail."""

MAP_USERS = 1000
"""Users on a map, drawn once for all methods."""


def main() -> None:
    """Run the rows of a table whose name contains ``--only``, search among settings, or compare what is there."""
    arguments = table_parser(__doc__, TABLES, seeds=SEEDS, example="amazon-beauty/s4rec/softmax").parse_args()
    rows = chosen(TABLES, arguments)
    if arguments.compare:
        compare()
    elif arguments.search is not None:
        for row, changes in itertools.product(rows, grid(arguments.search)):
            search(row, changes)
    else:
        for row in rows:
            (draw if arguments.table == "pictures" else measure)(row)


def measure(row: Row) -> None:
    """Train one student and write its figures on the test cases, if they are not written yet."""
    results = ResultTable(RESULTS, QUALITY)
    if results.already_done(**row.key):
        return
    split = cut(row.dataset)
    student, minutes = _train(row, row.run(), split)
    found = _evaluate(student, split, split.test)
    KEPT.keep(found, row)
    record(results, row.key, figures(found, split), minutes=minutes)
    print(f"== {row.name}: test NDCG@10 {found.mean('ndcg', 10):.4f}", flush=True)


def search(row: Row, changes: Values) -> None:
    """Train with other settings and write the figures on the validation cases, if they are not written yet."""
    results = ResultTable(SEARCH, QUALITY)
    key = search_key(row.key, changes)
    if results.already_done(**key):
        return
    split = cut(row.dataset)
    student, minutes = _train(row, row.run(changes), split)
    found = _evaluate(student, split, split.valid)
    record(results, key, search_figures(found, split), minutes=minutes)
    print(f"== {row.name} {changes}: validation NDCG@10 {found.mean('ndcg', 10):.4f}", flush=True)


@functools.lru_cache(maxsize=1)
def cut(dataset: str) -> Split:
    """Read a data set and cut it."""
    return leave_one_out(load_benchmark(dataset))


def _train(row: Row, run: Run, split: Split) -> tuple[Student, float]:
    """Return the student and the minutes of its training."""
    print(f"== {row.name}, seed {row.seed}", flush=True)
    student, fitted = train(split, run, row.folder_name)
    return student, fitted.seconds / 60


def _evaluate(student: Student, split: Split, cases: Cases) -> Evaluation:
    return evaluate(student.model, cases, n_items=split.dataset.n_items, protocol=split.protocol)


def compare() -> None:
    """Test S4Rec against every other row on the same data and base loss, and set all against the paper."""
    rows = list(dict.fromkeys(replace(row, seed=0) for row in (*core(), *ablation())))
    renew(PAIRED, tests(rows))
    PUBLISHED.unlink(missing_ok=True)
    ResultTable(PUBLISHED, PUBLISHED_COLUMNS).append(*against_paper(rows))


def tests(rows: list[Row]) -> Iterator[Values]:
    """Yield a test of every two rivals whose ranks are kept."""
    for ours in rows:
        if ours.method != OURS or ours.variant:
            continue
        for other in rows:
            same = (other.dataset, other.loss) == (ours.dataset, ours.loss)
            if same and other != ours and (seeds := KEPT.seeds_of_both(ours, other, SEEDS)):
                yield from KEPT.paired(ours, other, seeds, cut(ours.dataset), strata=("all", "head", "tail"))


def against_paper(rows: list[Row]) -> Iterator[Values]:
    """Yield what the paper has, too, with its figure."""
    known = ResultTable(RESULTS, QUALITY).find(stratum="all")
    for row in rows:
        published = IN_PAPER.get((row.dataset, row.method, row.variant), ())
        cell = {name: row.key[name] for name in CELL}
        own = [found for found in known if all(found[name] == value for name, value in cell.items())]
        for (metric, k), figure in zip(PUBLISHED_FIGURES, published, strict=False):
            values = [float(found["value"]) for found in own if (found["metric"], found["k"]) == (metric, str(k))]
            if values:
                value = mean(values)
                gain = 100 * (value / figure - 1)
                yield {
                    **{**cell, "metric": metric, "k": k, "value": value},
                    **{"published": figure, "gain": gain, "seeds": len(values)},
                }


@dataclass(frozen=True, slots=True)
class Intents:
    """Where a method has put U users, all who have two training interactions or more."""

    users: Ints
    """``(U,)`` dense users."""
    lengths: Ints
    """``(U,)`` training interactions."""
    is_head: Bools
    """``(U,)``"""
    vectors: Floats
    """``(U, D)`` of length 1."""
    clusters: Ints
    """``(U,)``"""


def draw(row: Row) -> None:
    """Train one student, and write what its intents look like, if it is not written yet."""
    tables = {
        head_shares: ResultTable(CLUSTERS, CLUSTER_COLUMNS),
        user_map: ResultTable(MAP, MAP_COLUMNS),
    }
    missing = {look: table for look, table in tables.items() if not table.already_done(**row.key)}
    if missing:
        split, run = cut(row.dataset), row.run()
        _train(row, run, split)
        intents = intents_of(split, run, folder_of(run, row.folder_name))
        for look, table in missing.items():
            table.append(*({**row.key, **figure, "commit": commit()} for figure in look(intents)))


def intents_of(split: Split, run: Run, folder: Path) -> Intents:
    """Return the intents as they are after the last epoch: they are not kept with the best weights."""
    student = after_last_epoch(split, run, folder)
    choices = (run.student, run.method, run.training)
    _, method, setting = set_up(split, *choices, teacher=None)
    method.prepare(setting)
    method.fit_to(student)
    method.load_state_dict(torch.load(folder / CHECKPOINT, weights_only=True)["method"])
    method.start_epoch(student, 0, torch.Generator().manual_seed(run.training.seed))
    assert isinstance(method, ICLRec | S4Rec)
    vectors = encode_all(student, split.train, method.config.pooling)
    users = np.flatnonzero(split.train.lengths > 1)
    return Intents(
        users=users,
        lengths=split.train.lengths[users],
        is_head=head_users(split.train.lengths)[users],
        vectors=F.normalize(vectors, dim=1).numpy(),
        clusters=assign(method, vectors).numpy(),
    )


@torch.no_grad()
def assign(method: ICLRec | S4Rec, vectors: Tensor) -> Tensor:
    """Return ``(U,)`` the intent of each vector ``(U, D)``, told as the method tells it in training."""
    if isinstance(method, ICLRec):
        return torch.cdist(vectors, method.intents).argmin(1)
    prototypes = method.intents.prototypes
    if method.config.similarity == "cosine":
        prototypes = F.normalize(prototypes, dim=1)
    return (vectors @ prototypes.T).argmax(1)


def head_shares(intents: Intents) -> Iterator[Values]:
    """Yield the users of every intent that has some, and the share of the head among them."""
    for cluster in np.unique(intents.clusters):
        inside = intents.clusters == cluster
        share = float(intents.is_head[inside].mean())
        yield {"cluster": int(cluster), "users": int(inside.sum()), "head_share": share}


def user_map(intents: Intents) -> Iterator[Values]:
    """Yield places of some users in two dimensions, by t-SNE, with their intents and lengths."""
    from sklearn.manifold import TSNE

    n_users = len(intents.users)
    some = np.sort(np.random.default_rng(0).permutation(n_users)[:MAP_USERS])
    neighbours = min(30.0, (len(some) - 1) / 3)  # t-SNE's usual number, and the most that few users allow
    places = TSNE(perplexity=neighbours, random_state=0).fit_transform(intents.vectors[some])
    for user, (x, y) in zip(some, places, strict=True):
        yield {
            "user": int(intents.users[user]),
            "x": float(x),
            "y": float(y),
            "cluster": int(intents.clusters[user]),
            "length": int(intents.lengths[user]),
            "stratum": "head" if intents.is_head[user] else "tail",
        }


if __name__ == "__main__":
    main()
