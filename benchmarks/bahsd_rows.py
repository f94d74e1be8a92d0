"""The rows of BAHSD's tables: cells, variants, and what each is trained with."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.experiments import SMOOTHING, Recipe, Values, changed, find_recipe, path_of

from recdistill.runs.file import Run

STUDENT_SEED = 100
"""Added to a student's seed, so that it shares neither first weights nor order of users with its teacher."""
OPINION = "with a second opinion"
"""The variant that learns what the teacher and rules counted in the training histories say together."""
HALF = f"{OPINION}, half from rules"
"""The same with `SHARE` where another share is chosen; its rows are compared with, and are not made any more."""
TENTH = f"{OPINION}, a tenth from rules"
"""The same with a tenth, beside labels; its rows are compared with, and are not made any more."""
PLAIN = f"{OPINION}, plain rules"
"""The same where rules reached five items and had no prior; its rows are compared with, and are not made any more."""

SMOOTHED = "with smoothed labels"
"""The variant whose labels are shared with what followed the same items in other histories, in both stages."""

DATASETS, MODELS, SEEDS = ("amazon-beauty", "ml-1m"), ("sasrec", "bert4rec"), (0, 1, 2)
METHODS = {"assisted": ("kd", "bahsd"), "pure": ("kd", "rrd", "extraction", "bahsd")}
OF_SCORES = {"assisted": ("kd", "ckd", "bahsd"), "pure": ("kd", "bahsd")}
"""Methods by what the teacher gives, lists or scores; ``ckd`` asks for scores of what it chooses, and learns labels."""

_OUTLINE: Values = {
    "target": "answer",
    "ranking": "margin",
    "quorum": 0.5,
    "reliable_temperature": 4.0,
    "gate": "hard",
    "contrast_weight": 0.1,
}
_EITHER: dict[str, Values] = {
    "without probing": {"scales": [1.0]},
    "with gate": {"target": "answer"},
    "with gate, unreliable answers at half weight": {"target": "answer", "ranking_weight": 0.5},
    "with sharper reliable answers": {"reliable_temperature": 0.5},
    "with softer reliable answers": {"reliable_temperature": 2.0},
    "with ranking consistency": {"ranking": "margin", "quorum": 0.5},
}
_NO_PREFIXES: Values = {"prefixes": 0, "view_weight": 0}
ABLATIONS: dict[str, dict[str, Values]] = {
    "assisted": {
        **_EITHER,
        "with views": {"view_weight": 1.0},
        "with prefixes": {"prefixes": 4, "view_weight": 1.0},
        "with InfoNCE": {"contrast_weight": 0.1},
        "outline to the letter": _OUTLINE,
    },
    "pure": {
        **_EITHER,
        "without prefixes": _NO_PREFIXES,
        "without prefixes, with InfoNCE": {**_NO_PREFIXES, "contrast_weight": 0.1},
        "without probing, without prefixes": {**_NO_PREFIXES, "scales": [1.0]},
        "outline to the letter": {**_NO_PREFIXES, **_OUTLINE},
    },
}
"""BAHSD with a part switched off, or one of the outline's parts that are off switched on; the last follows the public
outline as closely as our formulas can."""
QUERIES = {"amazon-beauty": 115_633, "ml-1m": 153_798}
"""What BAHSD asks in the pure regime where its budget has no end: two queries a history, or a window of a long one, and
one for each of four prefixes, on `ml-1m` sixteen, of those that have as many."""
HISTORIES = {"amazon-beauty": 22_363, "ml-1m": 8_641}
"""Histories, or windows of them."""
EQUAL = "equal budget"
"""The variant of extraction that asks as much as BAHSD."""
EXTRACTIONS = {EQUAL: 1, "four times the budget": 4, "real histories": 0}
"""How many times as many queries the extraction baseline may walk; 0 lets it ask about the users' own histories."""
RULES = "rules"
"""The row of the rules that second opinions come from, which learn nothing."""
FIRST = "first stage"
"""The variant of ``labels`` that all students begin with who see labels."""
SMALL, ONE_NEGATIVE, ALSO_SMOOTHED = "quarter width", "sasrec-bce", "sasrec-smoothed"
FAITHFUL = "faithful"
"""The variant of pure BAHSD that copies its teacher as closely as it can: each answer for itself, order and all."""
BUDGETS = tuple(f"{budget:,} queries" for budget in (1_000, 5_000, 20_000))
"""Batches are smaller by as much as there are fewer answers, so that all budgets take as many steps; not where rules
answer what the budget does not buy."""
NOTHING = "0 queries"
"""The budget of a student that hears rules alone."""
QUARTER = f"{QUERIES['amazon-beauty'] // 4:,} queries"
"""A quarter of what extraction's best walk."""
SLOWLY = 4
"""How many times as many epochs a few walks take: their margins are learned slowly."""


@dataclass(frozen=True, slots=True)
class Row:
    """One student, or a teacher itself."""

    dataset: str
    teacher: str
    student: str
    method: str
    regime: str = ""
    """``assisted`` or ``pure``; empty for what is not distilled."""
    access: str = ""
    """``lists`` or ``scores``."""
    variant: str = ""
    seed: int = 0

    @property
    def key(self) -> Values:
        """Its columns in the result file."""
        return {
            "dataset": self.dataset,
            "split": "leave-one-out",
            "teacher": self.teacher,
            "student": self.student,
            "regime": self.regime,
            "access": self.access,
            "method": self.method,
            "variant": self.variant,
            "seed": self.seed,
        }

    @property
    def name(self) -> str:
        """For people and folders."""
        return path_of(self.dataset, self.teacher, self.student, self.regime, self.access, self.method, self.variant)

    @property
    def budget(self) -> int | None:
        """Of queries; ``None`` where all that the method asks are paid for."""
        found = re.search(r"([\d,]+) queries", self.variant)
        return None if found is None else int(found[1].replace(",", ""))

    @property
    def share(self) -> float:
        """How much rules count where they have a say; beside a teacher itself as much as its assisted students hear."""
        return SHARES.get((self.dataset, self.teacher, self.student, self.regime or "assisted"), SHARE)

    @property
    def recipe(self) -> Recipe:
        """How it learns labels."""
        return self.taught_by if self.method == "teacher" else find_recipe(self.dataset, self.student)

    @property
    def taught_by(self) -> Recipe:
        """What its teacher is trained by: ``sasrec``, or ``sasrec-bce`` where that has another loss than the best."""
        model, _, loss = self.teacher.partition("-")
        return find_recipe(self.dataset, model, loss or "softmax")

    @property
    def first(self) -> Row | None:
        """The student that this one starts from, if it does."""
        if self.method == "teacher" or self.regime == "pure" or FIRST in self.variant:
            return None
        variant = f"{self.variant}, {FIRST}" if self.variant in (SMALL, SMOOTHED) else FIRST
        return Row(self.dataset, self.student, self.student, "labels", variant=variant, seed=self.seed)

    def run(self, changes: Mapping[str, object] | None = None) -> Run:
        """Return the settings that the student is trained with."""
        recipe = self.recipe
        values = recipe.run(self.seed + (STUDENT_SEED if self.method != "teacher" else 0)).dump()
        sections = {**values, "method": values["method"] if not self.regime else self._method(recipe, values["method"])}
        if SMALL in self.variant:
            sections["student"] = {**values["student"], "dim": values["student"]["dim"] // 4}
        staged = SECOND_STAGE[self.dataset, self.student] if self.first else {}
        if self.regime == "pure":
            staged = PURE[self.dataset]
        if self.budget is not None and self.regime == "pure" and OPINION not in self.variant:
            staged = {**staged, **self._for_few_answers(self.budget, values["training"]["batch_size"], staged)}
        tuned = TUNED.get((self.dataset, self.student, self.regime, self.access, self.method), {})
        if self.access == "scores":  # which say themselves what a place in the list is worth
            tuned = {name: value for name, value in tuned.items() if name != "method.rank_decay"}
        if FAITHFUL in self.variant:
            tuned = {**tuned, **COPYING}
        if OPINION in self.variant and self.regime:
            tuned = {**tuned, "method.second_opinion": self.share}
        if SMOOTHED in self.variant:
            tuned = {**tuned, f"method.{'label_loss.' if self.regime else ''}smoothing": SMOOTHING}
        ablation = ABLATIONS.get(self.regime, {}).get(self.variant, {})
        ablated = {f"method.{name}": value for name, value in ablation.items()}
        return Run.parse(changed(sections, {**staged, **tuned, **ablated, **(changes or {})}))

    def _for_few_answers(self, budget: int, batch_size: int, staged: Values) -> Values:
        """Return what lets a small budget's answers be learned for as long as it takes."""
        fewer: Values = {"training.batch_size": math.ceil(batch_size * min(1.0, budget / HISTORIES[self.dataset]))}
        if self.method != "extraction":
            return fewer
        longer = {f"training.{name}": SLOWLY * staged[f"training.{name}"] for name in ("epochs", "patience")}
        return {**fewer, **longer, "training.validate_every": SLOWLY}

    def _method(self, recipe: Recipe, labels: Values) -> Values:
        settings: Values = {"name": self.method}
        if self.method == "extraction":
            settings["walk_len"] = recipe.model["max_len"]
            if self.variant == "real histories":
                settings["queries"] = "histories"
            else:
                times = EXTRACTIONS.get(self.variant, 1)
                settings["n_queries"] = self.budget or times * QUERIES[self.dataset]
        else:
            if self.method != "ckd":
                settings["labels"] = self.regime == "assisted"
            settings["label_loss"] = {key: value for key, value in labels.items() if key != "name"}
        if self.method in ("kd", "bahsd"):
            settings["values"] = "ranks" if self.access == "lists" else "scores"
            settings["second_opinion"] = 0.0
        return settings


_SHORTENED: Values = {"training.shorten": 0.5}
_FALLING: Values = {**_SHORTENED, "training.learning_rate": 3e-4, "training.schedule": "cosine"}
SECOND_STAGE: dict[tuple[str, str], Values] = {
    (dataset, model): {**_FALLING, "training.epochs": epochs, "training.patience": epochs}
    for dataset, model, epochs in (
        ("amazon-beauty", "sasrec", 20),
        ("amazon-beauty", "bert4rec", 30),
        ("ml-1m", "sasrec", 10),
        ("ml-1m", "bert4rec", 10),
    )
}
"""How students that see labels go on from what labels alone have taught them, by data set and student."""
_TO_THE_END: Values = {"training.schedule": "cosine", "training.epochs": 60, "training.patience": 60}
PURE: dict[str, Values] = {
    "amazon-beauty": {**_SHORTENED, **_TO_THE_END},
    "ml-1m": {
        **_SHORTENED,
        "training.epochs": 100,
        "training.patience": 100,
        "training.validate_every": 5,
    },
}
"""How the others are trained: at a falling rate to its end, not until they have learned the validation histories."""
COPYING: Values = {
    **{"method.scales": [1.0], "method.view_weight": 1.0, "method.rank_decay": 1.0, "method.order_weight": 10.0},
    **{"student.dropout": 0.1, "training.shorten": 0.0},
}
"""What makes a student of answers alone faithful: nothing that makes it recommend otherwise than its teacher. On
`ml-1m`, where students of answers alone do not reach their teacher, that recommends best, too."""
_BAHSD: dict[str, Values] = {
    "assisted": {"method.view_weight": 0, "method.scales": [0.25, 0.5, 0.75, 1.0]},
    "pure": {"method.prefixes": 4, "method.view_weight": 4},
}
"""Histories are shortened for everybody, so that shortened views of its own would be a second way to the same."""
SHARE = 0.5
"""How much rules count beside the teacher, where they do."""
SHARES = {
    **{("amazon-beauty", "bert4rec", "bert4rec", regime): 0.7 for regime in METHODS},
    ("amazon-beauty", ONE_NEGATIVE, "sasrec", "pure"): 0.85,
    ("ml-1m", "sasrec", "sasrec", "pure"): 0.1,
}
"""The same by data set, teacher, student and regime, where another was chosen on validation data."""
TUNED: dict[tuple[str, str, str, str, str], Values] = {
    **{
        (dataset, model, regime, access, "bahsd"): changes
        for dataset, model, access in itertools.product(DATASETS, MODELS, ("lists", "scores"))
        for regime, changes in _BAHSD.items()
    },
    **{
        ("amazon-beauty", "sasrec", "pure", access, method): {
            "student.dropout": 0.2,
            **(_BAHSD["pure"] if method == "bahsd" else {}),
        }
        for access, method in itertools.product(("lists", "scores"), METHODS["pure"])
    },
    **{
        ("ml-1m", model, "pure", access, "bahsd"): {**_BAHSD["pure"], "method.prefixes": 16, **changes}
        for (model, changes), access in itertools.product(
            {"sasrec": {**_TO_THE_END, **COPYING}, "bert4rec": {}}.items(), ("lists", "scores")
        )
    },
    **{
        (dataset, "bert4rec", "assisted", "lists", "bahsd"): {
            **_BAHSD["assisted"],
            "method.prefixes": prefixes,
            "method.view_weight": 1,
        }
        for dataset, prefixes in (("amazon-beauty", 4), ("ml-1m", 16))
    },
    ("amazon-beauty", "bert4rec", "pure", "lists", "extraction"): {
        f"training.{name}": 120 for name in ("epochs", "patience")
    },
}
"""Settings chosen on validation data, by data set, student, regime, access and method: ``section.key`` and value.

Those of the first cell hold for all, and prefixes on `ml-1m` are those that SASRec has there, for BERT4Rec as well;
what was tried elsewhere is in ``bahsd_search.csv``.
"""


def core() -> Iterator[Row]:
    """Yield the core table: cheapest cells first, one seed through the table before the others."""
    for seed, dataset, model in itertools.product(SEEDS, DATASETS, MODELS):
        yield Row(dataset, model, model, "teacher", seed=seed)
        for variant in (FIRST, ""):
            yield Row(dataset, model, model, "labels", variant=variant, seed=seed)
        for access, by_regime in (("lists", METHODS), *((("scores", OF_SCORES),) if model == "sasrec" else ())):
            for regime, methods in by_regime.items():
                for method in methods:
                    variant = EQUAL if method == "extraction" else ""
                    yield Row(dataset, model, model, method, regime, access, variant, seed)


def ablation() -> Iterator[Row]:
    """Yield BAHSD on Beauty with one part switched off or on at a time, and what extraction gains from more queries."""
    for seed, regime in itertools.product(SEEDS, METHODS):
        for variant in ABLATIONS[regime]:
            yield Row("amazon-beauty", "sasrec", "sasrec", "bahsd", regime, "lists", variant, seed)
    for variant in EXTRACTIONS:
        yield Row("amazon-beauty", "sasrec", "sasrec", "extraction", "pure", "lists", variant)


def side() -> Iterator[Row]:
    """Yield a smaller student, a weaker teacher, another architecture, and smaller budgets."""
    for method, regime in itertools.product(("kd", "bahsd"), METHODS):
        yield Row("amazon-beauty", "sasrec", "sasrec", method, regime, "lists", SMALL)
    yield Row("amazon-beauty", "sasrec", "sasrec", "labels", variant=SMALL)
    yield Row("amazon-beauty", ONE_NEGATIVE, "sasrec", "teacher")
    for regime, teacher in itertools.product(METHODS, (ONE_NEGATIVE, "bert4rec")):
        for method in ("kd", "bahsd"):
            yield Row("amazon-beauty", teacher, "sasrec", method, regime, "lists")
            yield Row("amazon-beauty", teacher, "sasrec", method, regime, "lists", OPINION)
    for teacher in (ONE_NEGATIVE, "bert4rec"):
        yield Row("amazon-beauty", teacher, "sasrec", "extraction", "pure", "lists", EQUAL)
    for budget in BUDGETS:
        for method in ("kd", "extraction", "bahsd"):
            yield Row("amazon-beauty", "sasrec", "sasrec", method, "pure", "lists", budget)
        yield Row("amazon-beauty", "sasrec", "sasrec", "bahsd", "assisted", "lists", budget)
    for budget in (NOTHING, *BUDGETS):
        yield Row("amazon-beauty", "sasrec", "sasrec", "bahsd", "pure", "lists", f"{OPINION}, {budget}")
    for budget in (*BUDGETS, QUARTER):
        yield Row("amazon-beauty", "sasrec", "sasrec", "bahsd", "pure", "lists", f"{FAITHFUL}, {budget}")
    yield Row("amazon-beauty", "sasrec", "sasrec", "bahsd", "pure", "lists", FAITHFUL)


def opinion() -> Iterator[Row]:
    """Yield the cells with a second opinion, the rules by themselves, and what students of both are told.

    In the pure regime, too, what the rules count are the training histories: those that are asked about.
    """
    for seed, dataset, model in itertools.product(SEEDS, DATASETS, MODELS):
        if seed == 0:
            yield Row(dataset, model, model, RULES)
        yield Row(dataset, model, model, "teacher", variant=OPINION, seed=seed)
        for regime, method in itertools.product(METHODS, ("kd", "bahsd")):
            yield Row(dataset, model, model, method, regime, "lists", OPINION, seed)


def smoothed() -> Iterator[Row]:
    """Yield the first assisted cell with smoothed labels, and with a teacher that was so trained, too."""
    for seed in SEEDS:
        for variant in (f"{SMOOTHED}, {FIRST}", SMOOTHED):
            yield Row("amazon-beauty", "sasrec", "sasrec", "labels", variant=variant, seed=seed)
        yield Row("amazon-beauty", ALSO_SMOOTHED, "sasrec", "teacher", seed=seed)
        for teacher, method in itertools.product(("sasrec", ALSO_SMOOTHED), METHODS["assisted"]):
            yield Row("amazon-beauty", teacher, "sasrec", method, "assisted", "lists", SMOOTHED, seed)


TABLES = {"core": core, "ablation": ablation, "side": side, "opinion": opinion, "smoothed": smoothed}
