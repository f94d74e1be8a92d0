"""Does S4Rec serve users with short histories better than its rivals, and which of its parts earn what?

A row is one SASRec: a data set, a method, a base loss by which labels are learned, a variant and a seed. Leave-one-out,
all items ranked. Labels alone are learned by the recipes of ``quality``, on Toys and Sports by that of Beauty, and
ML-1M is read 50 items at a time, as in the paper. Methods' settings are chosen on validation data (``--search``, rows
in ``s4rec_search.csv``), rivals' with as many tries as S4Rec's, and stand in `TUNED`; the test cases are looked at
once. Rows are on disk as soon as they are known, and what was stopped goes on where it was. ``--compare`` makes the
paired tests of what is there, and sets it against the paper's figures.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.comparisons import Kept, renew
from benchmarks.experiments import (
    SMOOTHED,
    Recipe,
    Values,
    after_last_epoch,
    changed,
    chosen,
    commit,
    figures,
    find_recipe,
    folder_of,
    grid,
    path_of,
    record,
    search_figures,
    search_key,
    table_parser,
    train,
)
from benchmarks.results import FOLDER, QUALITY, ResultTable
from torch import Tensor

from recdistill.checkpoints import CHECKPOINT
from recdistill.data.benchmark_data import load_benchmark
from recdistill.data.dataset import Ints
from recdistill.data.groups import Mask, head_users
from recdistill.data.splits import Cases, Split, leave_one_out
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.metrics import Floats
from recdistill.evaluation.results import Evaluation
from recdistill.methods.contrast import encode_all
from recdistill.methods.iclrec import ICLRec
from recdistill.methods.s4rec import S4Rec
from recdistill.run import set_up
from recdistill.runfile import Run
from recdistill.serving.artefact import Student

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

DATASETS, SEEDS = ("amazon-toys", "amazon-beauty", "ml-1m", "amazon-sports"), (0, 1, 2)
"""Cheapest first."""
OURS = "s4rec"
FAMILY = ("labels", "cl4srec", "duorec", "iclrec", OURS)
METHODS = {"softmax": FAMILY, SMOOTHED: FAMILY, "bce": ("labels", "iclrec", OURS)}
"""What is compared on each base loss, cheapest first; ``bce``, one negative a label, is that of the paper's rivals,
``smoothed`` a softmax whose labels are shared with what followed the same items in other histories."""
STUDIED, BETTER = "amazon-beauty", "softmax"
"""The data set of ablations and side tables, and their base loss: the better of the two."""
SHORT: Values = {"model.max_len": 50, "training.batch_size": 128}
"""How ML-1M is read otherwise than in ``quality``: in windows of 50 instead of 200, and as many items a step."""
LONG = "length 200"
"""The variant that reads ML-1M as ``quality`` does."""
QUEUE = 480
"""What S4Rec remembers there: with a batch of 32, as many histories are assigned together as in the paper's 512."""

KMEANS = "CSD by K-means"
ABLATIONS: dict[str, Values] = {
    f"{KMEANS} without GR": {"method.clustering": "kmeans", "method.adversary_weight": 0.0},
    KMEANS: {"method.clustering": "kmeans"},
    "without CSD": {"method.contrast_weight": 0.0, "method.distillation_weight": 0.0},
    "without GR": {"method.adversary_weight": 0.0},
    "without SCL": {"method.contrast_weight": 0.0},
    "without CKD": {"method.distillation_weight": 0.0},
}
"""In the paper's words: GR is the adversary, SCL the contrast of views, CKD the distillation, and CSD both of these."""
CLUSTER_NUMBERS: dict[str, Values] = {f"K = {n}": {"method.n_clusters": n} for n in (32, 64, 128, 256, 512)}
SENSITIVITY: dict[str, Values] = {
    f"{letter} = {value:g}": {f"method.{part}_weight": value}
    for letter, part in (("α", "cluster"), ("β1", "contrast"), ("β2", "distillation"), ("λ", "adversary"))
    for value in (0.0, 0.01, 0.1, 1.0)
}
VARIANTS: dict[str, Values] = {**ABLATIONS, **CLUSTER_NUMBERS, **SENSITIVITY}

TUNED: dict[tuple[str, str, str], Values] = {}
"""``section.key`` that were chosen on validation data, by data set, base loss and method (``labels`` among them)."""

PUBLISHED_FIGURES = (("hr", 5), ("hr", 20), ("ndcg", 5), ("ndcg", 20))
IN_PAPER: dict[tuple[str, str, str], tuple[float, float, float, float]] = {
    ("amazon-beauty", "labels", ""): (0.0374, 0.0901, 0.0241, 0.0387),
    ("amazon-beauty", "cl4srec", ""): (0.0423, 0.0994, 0.0281, 0.0441),
    ("amazon-beauty", "iclrec", ""): (0.0475, 0.1050, 0.0316, 0.0478),
    ("amazon-beauty", OURS, ""): (0.0519, 0.1071, 0.0348, 0.0505),
    ("amazon-beauty", OURS, f"{KMEANS} without GR"): (0.0499, 0.1041, 0.0332, 0.0485),
    ("amazon-beauty", OURS, KMEANS): (0.0517, 0.1044, 0.0349, 0.0497),
    ("amazon-beauty", OURS, "without CSD"): (0.0382, 0.0922, 0.0258, 0.0397),
    ("amazon-beauty", OURS, "without GR"): (0.0487, 0.1035, 0.0329, 0.0480),
    ("amazon-sports", "labels", ""): (0.0206, 0.0497, 0.0135, 0.0216),
    ("amazon-sports", "cl4srec", ""): (0.0217, 0.0540, 0.0137, 0.0227),
    ("amazon-sports", "iclrec", ""): (0.0267, 0.0644, 0.0177, 0.0283),
    ("amazon-sports", OURS, ""): (0.0284, 0.0656, 0.0181, 0.0292),
    ("amazon-toys", "labels", ""): (0.0463, 0.0941, 0.0306, 0.0441),
    ("amazon-toys", "cl4srec", ""): (0.0526, 0.1038, 0.0362, 0.0506),
    ("amazon-toys", "iclrec", ""): (0.0571, 0.1110, 0.0392, 0.0545),
    ("amazon-toys", OURS, ""): (0.0586, 0.1148, 0.0407, 0.0565),
    ("ml-1m", "labels", ""): (0.1444, 0.3337, 0.0939, 0.1476),
    ("ml-1m", "cl4srec", ""): (0.1520, 0.3537, 0.0969, 0.1539),
    ("ml-1m", "iclrec", ""): (0.1482, 0.3431, 0.0964, 0.1513),
    ("ml-1m", OURS, ""): (0.1557, 0.3547, 0.1012, 0.1570),
}
"""Tables 2 and 3 of the paper, by data set, method and variant: `PUBLISHED_FIGURES`."""

MAP_USERS = 1000
"""Users on a map, drawn once for all methods."""


@dataclass(frozen=True, slots=True)
class Row:
    """One student."""

    dataset: str
    method: str
    """A registered method, or ``labels``."""
    loss: str = BETTER
    """By which labels are learned."""
    variant: str = ""
    seed: int = 0

    @property
    def key(self) -> Values:
        """Its columns in the result file."""
        return {
            "dataset": self.dataset,
            "split": "leave-one-out",
            "student": "sasrec",
            "method": self.method,
            "variant": " ".join(filter(None, (self.loss, self.variant))),
            "seed": self.seed,
        }

    @property
    def name(self) -> str:
        """For people and files."""
        return path_of(self.dataset, self.method, self.loss, self.variant)

    @property
    def recipe(self) -> Recipe:
        """How labels alone are learned."""
        if self.dataset != "ml-1m":
            return replace(find_recipe("amazon-beauty", "sasrec", self.loss), dataset=self.dataset)
        recipe = find_recipe("ml-1m", "sasrec", self.loss)
        return recipe if self.variant == LONG else recipe.varied(SHORT)

    @property
    def folder_name(self) -> str:
        """Under which the trained model is kept; labels alone share theirs with ``quality``."""
        return self.recipe.name if self.method == "labels" else f"{self.recipe.name}/{self.method}"

    def run(self, changes: Mapping[str, object] | None = None) -> Run:
        """Return what it is trained with, some ``section.key`` changed."""
        sections = self.recipe.run(self.seed).dump()
        if self.method != "labels":
            labels = {key: value for key, value in sections["method"].items() if key != "name"}
            sections["method"] = {"name": self.method, "label_loss": labels}
        settings = {**TUNED.get((self.dataset, self.loss, self.method), {}), **VARIANTS.get(self.variant, {})}
        if self.variant == LONG and self.method == OURS:
            settings["method.queue_size"] = QUEUE
        return Run.parse(changed(sections, {**settings, **(changes or {})}))


def core() -> Iterator[Row]:
    """Yield the core table: one seed through the table before the others, which BCE has on Beauty alone."""
    for seed, (loss, methods), dataset in itertools.product(SEEDS, METHODS.items(), DATASETS):
        if seed == SEEDS[0] or loss != "bce" or dataset == STUDIED:
            for method in methods:
                yield Row(dataset, method, loss, seed=seed)


def ablation() -> Iterator[Row]:
    """Yield the paper's Table 3, labels alone and the whole method among its rows, and SCL and CKD apart."""
    for seed in SEEDS:
        yield Row(STUDIED, "labels", seed=seed)
        for variant in (*ABLATIONS, ""):
            yield Row(STUDIED, OURS, variant=variant, seed=seed)


def side() -> Iterator[Row]:
    """Yield other numbers of clusters, weights and kinds of clustering, and ML-1M at length 200."""
    rows = [Row(STUDIED, OURS, variant=variant) for variant in (*CLUSTER_NUMBERS, *SENSITIVITY)]
    whole = Row(STUDIED, OURS).run()
    yield from (row for row in rows if row.run() != whole)
    yield from (Row(dataset, OURS, variant=KMEANS) for dataset in DATASETS)
    yield from (Row("ml-1m", method, variant=LONG) for method in ("labels", "iclrec", OURS))


def pictures() -> Iterator[Row]:
    """Yield the rows whose intents are drawn."""
    for dataset, method in itertools.product(DATASETS, ("iclrec", OURS)):
        yield Row(dataset, method)


TABLES = {"core": core, "ablation": ablation, "side": side, "pictures": pictures}


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
    is_head: Mask
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
