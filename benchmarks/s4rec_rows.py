"""The rows of S4Rec's tables: data sets, methods, variants, what each is trained with, and the paper's figures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from benchmarks.experiments import SMOOTHED, Recipe, Values, changed, find_recipe, path_of

from recdistill.runs.file import Run

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
READINGS: dict[str, Values] = {
    "reversal": {"method.adversary": "reversal"},
    "denominator as printed": {"method.positive_in_denominator": False},
    "last state": {"method.pooling": "last"},
    "intents learn from all": {"method.prototypes_learn_from": "all"},
}
"""What the paper says otherwise, or leaves open, the other way round."""
AS_PUBLISHED = "the paper's weights"
"""The variant that has them where others were chosen."""
PUBLISHED_WEIGHTS: Values = {
    "method.cluster_weight": 0.01,
    "method.contrast_weight": 0.1,
    "method.distillation_weight": 0.1,
    "method.adversary_weight": 1.0,
}
VARIANTS: dict[str, Values] = {
    **{**ABLATIONS, **CLUSTER_NUMBERS, **SENSITIVITY, **READINGS},
    AS_PUBLISHED: PUBLISHED_WEIGHTS,
}

_OF_ASSIGNMENT = {"method.cluster_weight", "method.epsilon", "method.assignment_temperature"}
_BY_PRODUCTS: Values = {
    "method.similarity": "dot",
    **{f"method.{part}_temperature": 1.0 for part in ("assignment", "contrast", "distillation")},
    "method.epsilon": 1.0,
}
"""Vectors and intents compared by their products, all temperatures 1, and the paper's weights. Chosen on Toys."""
_A_TENTH: Values = {name: weight / 10 for name, weight in PUBLISHED_WEIGHTS.items()}
"""Of the paper's weights, for histories of many labels, beside whose mean the other parts would count too much; as do
those of its rivals."""
TUNED: dict[tuple[str, str, str], Values] = {
    **{(dataset, "bce", OURS): _BY_PRODUCTS for dataset in DATASETS},
    ("ml-1m", "softmax", OURS): _A_TENTH,
    ("ml-1m", "softmax", "iclrec"): {"method.contrast_weight": 0.01, "method.intent_weight": 0.01},
}
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
        if "method.clustering" in settings:  # K-means assigns without them
            settings = {name: value for name, value in settings.items() if name not in _OF_ASSIGNMENT}
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
    """Yield other numbers of clusters, weights, readings of the paper, kinds of clustering; ML-1M at length 200."""
    rows = [Row(STUDIED, OURS, variant=variant) for variant in (*CLUSTER_NUMBERS, *SENSITIVITY, *READINGS)]
    whole = Row(STUDIED, OURS).run()
    yield from (row for row in rows if row.run() != whole)
    yield from (Row(dataset, OURS, variant=KMEANS) for dataset in DATASETS)
    yield Row("ml-1m", OURS, variant=AS_PUBLISHED)
    yield from (Row("ml-1m", method, variant=LONG) for method in ("labels", "iclrec", OURS))


def pictures() -> Iterator[Row]:
    """Yield the rows whose intents are drawn."""
    for dataset, method in itertools.product(DATASETS, ("iclrec", OURS)):
        yield Row(dataset, method)


TABLES = {"core": core, "ablation": ablation, "side": side, "pictures": pictures}
