"""What RCE-KD is compared with: data sets and how they are cut, teachers, students, methods and where tuning begins."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from benchmarks.experiments import Recipe, Values, changed, find_recipe, path_of

from recdistill.runs.file import Run

STUDENT_SEED = 100
"""Added to a student's seed, so that it shares neither first weights nor order of users with its teacher."""
CELL = ("dataset", "split", "teacher", "student", "method", "variant")

FILE_ORDER, SHUFFLED, LEAVE_ONE_OUT = "8:1:1 in file order", "8:1:1 shuffled", "leave-one-out"
SPLITS: dict[str, Values] = {
    FILE_ORDER: {"protocol": "random", "file_order": True},
    SHUFFLED: {"protocol": "random"},
    LEAVE_ONE_OUT: {},
}
"""The section ``[split]`` of each."""
SEEDS = (0, 1, 2)

_BPR: Values = {
    **{"batch_size": 128, "epochs": 1000, "validate_every": 3, "patience": 20},
    **{"learning_rate": 2e-3, "weight_decay": 1e-6, "decay": "l2"},
}
"""128 users have about as many interactions as the authors' batches on CiteULike. Each user is seen once an epoch,
where the authors' rows show it in many a batch, so the rate is twice theirs. They wait for 30 epochs; by then some
students have not left the ranking by popularity, with which all begin, so it is 60 here."""
_WHOLE_GRAPH: Values = {**_BPR, "batch_size": 1024, "learning_rate": 5e-3}
"""A step of LightGCN costs the same for few users as for many."""
_HSTU: Values = {"batch_size": 128, "epochs": 300, "patience": 10}


def _mf(dataset: str, dim: int) -> Recipe:
    return Recipe(dataset, "mf", "bpr", model={"dim": dim}, training=_BPR)


def _lightgcn(dataset: str, dim: int, n_layers: int, training: Values) -> Recipe:
    return Recipe(dataset, "lightgcn", "bpr", model={"dim": dim, "n_layers": n_layers}, training=training)


def _hstu(n_blocks: int, n_heads: int) -> Recipe:
    size: Values = {"dim": 64, "max_len": 100, "n_blocks": n_blocks, "n_heads": n_heads}
    size |= {"attention_dim": 8, "linear_dim": 16, "temperature": 0.05}
    return Recipe("citeulike-t", "hstu", "sampled_softmax", model=size, method={"n_negatives": 512}, training=_HSTU)


_NARROWER: dict[str, Values] = {
    "amazon-beauty": {"model.dropout": 0.2},
    "ml-1m": {"model.dropout": 0.0, "training.learning_rate": 0.03},
}
"""What is set otherwise for a SASRec of 16 or fewer dimensions: it drops less of what little it holds, and on ML-1M,
where the number of epochs is given, learns faster. Chosen on validation cases for labels alone."""

RECIPES: dict[tuple[str, str], Recipe] = {
    ("citeulike-t", "mf-400"): _mf("citeulike-t", 400),
    ("citeulike-t", "mf-20"): _mf("citeulike-t", 20),
    ("citeulike-t", "lightgcn-2000"): _lightgcn("citeulike-t", 2000, 3, _WHOLE_GRAPH),
    ("citeulike-t", "lightgcn-20"): _lightgcn("citeulike-t", 20, 3, _BPR),
    ("citeulike-t", "hstu-8-blocks"): _hstu(8, 4),
    ("citeulike-t", "hstu-1-block"): _hstu(1, 2),
    ("gowalla", "mf-300"): _mf("gowalla", 300),
    ("gowalla", "mf-20"): _mf("gowalla", 20),
    ("gowalla", "lightgcn-2000"): _lightgcn("gowalla", 2000, 4, _WHOLE_GRAPH),
    **{
        (dataset, f"sasrec-{dim}"): find_recipe(dataset, "sasrec").varied({"model.dim": dim, **changes})
        for dataset, narrower in _NARROWER.items()
        for dim, changes in ((64, {}), (16, narrower), (8, narrower))
    },
}
"""Teachers and students by data set and name; sizes are the authors', those of SASRec a quarter and an eighth."""

EVERY = ("ce", "cd", "rrd", "de", "dcd", "hetcomp", "unkd", "htd", "rcekd", "ckd")
CORE = ("ce", "rrd", "dcd", "hetcomp", "rcekd", "ckd")
ON_ALL = "on all items"
"""The variant of cross-entropy that learns the teacher's scores of all items."""
ON_OTHERS = {"on the student's list": "student", "on both lists": "union"}
"""The variants that learn them of other lists than the teacher's."""
OPINION = "with a second opinion"
"""The variant that learns what the teacher and rules counted in the training histories say together."""
APART = (ON_ALL, *ON_OTHERS, OPINION)
"""Variants that are tuned and compared as methods of their own."""
RULES = "rules"
"""The row of the rules that second opinions come from, which learn nothing."""
ADVISED = ("rrd", "rcekd", "ckd")
"""The methods that are looked at with a second opinion, too."""
SHARE = 0.3
"""How much rules count beside the teacher, where they do."""

START: dict[str, Values] = {
    "ce": {"weight": 1.0, "top_k": 50, "temperature": 1.0},
    "cd": {"weight": 0.5, "score_scale": 1.0},
    "rrd": {"weight": 200.0, "top_k": 500, "n_interesting": 100, "n_uninteresting": 200, "rank_temperature": 10.0},
    "de": {"weight": 0.05},
    "dcd": {"weight": 1.0, "top_k": 500, "n_corrected": 100, "rank_temperature": 10.0},
    "hetcomp": {"weight": 0.25},
    "unkd": {"weight": 0.5},
    "htd": {"weight": 0.5},
    "ckd": {"weight": 10.0, "top_k": 200, "temperature": 1.0},
    "rcekd": {"weight": 500.0, "top_k": 50, "n_sampled": 50, "depth": 200, "fusion_rate": 3.0, "temperature": 1.0},
}
"""What tuning begins with: the authors' settings for MF on CiteULike, weights converted as each method's file says.

What is not named here (experts, checkpoints, groups) is each method's default, which is the authors' as well.
"""
_RCEKD: dict[tuple[str, str, str], Values] = {
    ("citeulike-t", "lightgcn-2000", "mf-20"): {"weight": 100.0, "fusion_rate": 5.0, "temperature": 10.0},
    ("citeulike-t", "lightgcn-2000", "lightgcn-20"): {"n_sampled": 100, "fusion_rate": 10.0},
    ("citeulike-t", "hstu-8-blocks", "mf-20"): {
        **{"weight": 50_000.0, "top_k": 100, "n_sampled": 100, "depth": 500, "fusion_rate": 5.0}
    },
    ("citeulike-t", "hstu-8-blocks", "hstu-1-block"): {"weight": 5.0, "top_k": 100, "n_sampled": 100},
    ("gowalla", "mf-300", "mf-20"): {"weight": 10.0, "top_k": 100, "depth": 100, "fusion_rate": 5.0},
    ("gowalla", "lightgcn-2000", "mf-20"): {"weight": 1e4, "top_k": 100, "n_sampled": 100, "fusion_rate": 5.0},
}
"""Where the authors set RCE-KD otherwise."""
_SEQUENCES = {"ce": 0.1, "dcd": 0.1, "hetcomp": 0.1}
"""The weight that tuning begins with on sequences, for which no published one is known, where it is not 1: with 1 the
student is, or while it was trained was, below labels alone on validation cases, but for cross-entropy on all items. The
second trial has a third of it, the third three times as much."""

WEIGHTS, OTHERS = 30.0, 10.0
"""How many times lower and higher than they start weights and the one other setting of a method are tried."""
KNOBS = {
    "ce": "temperature",
    "cd": "score_scale",
    "rrd": "rank_temperature",
    "dcd": "rank_temperature",
    "ckd": "temperature",
    "rcekd": "temperature",
}
"""The one setting of a method that is tuned beside its weight, where it has a scale."""

ABLATIONS: dict[str, Values] = {
    "without S": {"name": "ce", "on": "teacher"},
    "without T": {"name": "ce", "on": "student"},
    "without separation": {"name": "ce", "on": "union"},
    "constant γ": {"fusion": "constant"},
    "full cross-entropy": {"name": "ce", "on": "all"},
    "the paper's γ": {"fusion": "paper"},
    "the paper's γ and z": {"fusion": "paper", "closure": "paper"},
    "without seen items": {"seen_items": False},
}
"""RCE-KD with one part changed and all else as tuned."""
SENSITIVITY: dict[str, Values] = {
    f"{letter} = {value}": {key: value}
    for letter, key in (("K", "top_k"), ("L", "n_sampled"))
    for value in (10, 20, 100, 200)
}


@dataclass(frozen=True, slots=True)
class Row:
    """One student, or a teacher itself (``student`` is empty), or a student alone (``teacher`` is empty)."""

    dataset: str
    split: str
    teacher: str
    student: str
    method: str
    variant: str = ""
    seed: int = 0

    @property
    def key(self) -> Values:
        """Its columns in the result file."""
        return {**{name: getattr(self, name) for name in CELL}, "seed": self.seed}

    @property
    def name(self) -> str:
        """For people and folders."""
        return path_of(self.dataset, self.split, self.teacher, self.student, self.method, self.variant)

    @property
    def recipe(self) -> Recipe:
        """What is trained, without a teacher."""
        return RECIPES[self.dataset, self.student or self.teacher]

    @property
    def folder_name(self) -> str:
        """Under which the trained model is kept; models without a teacher share theirs with ``quality``."""
        return self.name if self.distilled else self.recipe.name

    @property
    def distilled(self) -> bool:
        """Whether it learns from a teacher."""
        return bool(self.teacher and self.student)

    @property
    def taught_by(self) -> Row:
        """The row of its teacher."""
        return Row(self.dataset, self.split, self.teacher, "", "teacher")

    @property
    def tuned_as(self) -> Row:
        """The row whose trials say how this one is trained."""
        return replace(self, variant=self.variant if self.variant in APART else "", seed=0)

    @property
    def tuned_before(self) -> bool:
        """Whether there is nothing to tune, or its recipe was chosen on validation data in ``quality``."""
        return self.method == RULES or (self.method == "teacher" and self.split == LEAVE_ONE_OUT)

    def start(self) -> Values:
        """Return the settings that its first trial has, as ``section.key``; all later ones change these alone.

        A dropout of 0 is not among them: it has no scale.
        """
        sections = self.run({}).dump()
        names = ["training.weight_decay" if self.recipe.student in ("mf", "lightgcn") else "student.dropout"]
        if self.distilled:
            names += ["method.weight", *(f"method.{knob}" for knob in [KNOBS.get(self.method)] if knob)]
        else:
            names.append("training.learning_rate")
        start = {name: sections[name.split(".")[0]][name.split(".")[1]] for name in names}
        return {name: value for name, value in start.items() if name != "student.dropout" or value}

    @property
    def first(self) -> list[Values]:
        """Return the settings of the trials that are not drawn."""
        start = self.start()
        if not self.distilled or self.split != LEAVE_ONE_OUT:
            return [start]
        return [start, *({**start, "method.weight": short(start["method.weight"] * factor)} for factor in (1 / 3, 3))]

    def space(self) -> dict[str, tuple[float, float]]:
        """Return the lowest and the highest value of each setting that is tuned; logarithms are drawn evenly."""
        bounds: dict[str, tuple[float, float]] = {}
        for name, value in self.start().items():
            if name == "training.weight_decay":
                bounds[name] = (1e-8, 1e-5)
            elif name == "student.dropout":
                bounds[name] = (0.02, 0.6)
            else:
                factor = WEIGHTS if name == "method.weight" else OTHERS
                bounds[name] = (short(value / factor), short(value * factor))
        return bounds

    def run(self, settings: Mapping[str, object]) -> Run:
        """Return what it is trained with, some ``section.key`` set."""
        values = self.recipe.run(self.seed + (STUDENT_SEED if self.student else 0)).dump()
        sections: dict[str, Values] = {**values, "split": SPLITS[self.split]}
        if self.distilled:
            sections["method"] = self._method(values["method"])
        sections = changed(sections, settings)
        changes = {**ABLATIONS, **SENSITIVITY}.get(self.variant, {})
        if "name" in changes:  # another method, with what it shares
            shared = {key: sections["method"][key] for key in ("label_loss", "weight", "top_k", "temperature")}
            sections["method"] = {**shared, **changes}
        elif changes:
            sections["method"] = {**sections["method"], **changes}
        return Run.parse(sections)

    def _method(self, labels: Values) -> Values:
        settings: Values = {"name": self.method, **START[self.method]}
        if self.method == "rcekd":
            settings |= _RCEKD.get((self.dataset, self.teacher, self.student), {})
        if self.split == LEAVE_ONE_OUT:
            settings["weight"] = _SEQUENCES.get(self.method, 1.0)
        if on := {ON_ALL: "all", **ON_OTHERS}.get(self.variant):
            settings["on"] = on
        if self.method in ADVISED:
            settings["second_opinion"] = SHARE if self.variant == OPINION else 0.0
        settings["label_loss"] = {key: value for key, value in labels.items() if key != "name"}
        return settings


@dataclass(frozen=True, slots=True)
class Cell:
    """A data set, how it is cut, a teacher and a student: what methods are compared on."""

    dataset: str
    split: str
    teacher: str
    student: str
    methods: tuple[str, ...] = CORE

    def rows(self, seed: int) -> Iterator[Row]:
        """Yield the teacher, the student alone and all methods."""
        if seed == 0:
            yield Row(self.dataset, self.split, self.teacher, "", "teacher")
            yield Row(self.dataset, self.split, "", self.student, RULES)
        yield Row(self.dataset, self.split, "", self.student, "labels", seed=seed)
        for method in self.methods:
            yield Row(self.dataset, self.split, self.teacher, self.student, method, seed=seed)
            if method == "ce":
                for variant in (ON_ALL, *(ON_OTHERS if self.methods == EVERY else ())):
                    yield Row(self.dataset, self.split, self.teacher, self.student, method, variant, seed)
            if method in ADVISED:
                yield Row(self.dataset, self.split, self.teacher, self.student, method, OPINION, seed)


CITEULIKE = Cell("citeulike-t", SHUFFLED, "mf-400", "mf-20", EVERY)
CELLS = {
    "core": [
        CITEULIKE,
        replace(CITEULIKE, split=FILE_ORDER),
        Cell("amazon-beauty", LEAVE_ONE_OUT, "sasrec-64", "sasrec-16"),
        Cell("ml-1m", LEAVE_ONE_OUT, "sasrec-64", "sasrec-16"),
        *(Cell("citeulike-t", split, "lightgcn-2000", "mf-20") for split in (SHUFFLED, FILE_ORDER)),
        *(Cell("gowalla", split, "mf-300", "mf-20") for split in (SHUFFLED, FILE_ORDER)),
    ],
    "further": [
        Cell("citeulike-t", SHUFFLED, "lightgcn-2000", "lightgcn-20"),
        Cell("citeulike-t", SHUFFLED, "hstu-8-blocks", "hstu-1-block"),
        Cell("citeulike-t", SHUFFLED, "hstu-8-blocks", "mf-20"),
        Cell("gowalla", SHUFFLED, "lightgcn-2000", "mf-20"),
        *(Cell(dataset, LEAVE_ONE_OUT, "sasrec-64", "sasrec-8") for dataset in ("amazon-beauty", "ml-1m")),
    ],
}
"""Cheapest first."""


def core() -> Iterator[Row]:
    """Yield the core table: one seed through the table before the others."""
    yield from _distinct(row for seed in SEEDS for cell in CELLS["core"] for row in cell.rows(seed))


def further() -> Iterator[Row]:
    """Yield other students, teachers and data, as compute allows."""
    yield from _distinct(row for seed in SEEDS for cell in CELLS["further"] for row in cell.rows(seed))


def ablation() -> Iterator[Row]:
    """Yield RCE-KD for MF on CiteULike with one part changed at a time."""
    yield from _changed(ABLATIONS)


def sensitivity() -> Iterator[Row]:
    """Yield it with other lengths of the lists."""
    yield from _changed(SENSITIVITY)


def overlap() -> Iterator[Row]:
    """Yield the rows whose lists are followed over training."""
    cell = CITEULIKE
    for method in ("rcekd", "ce"):
        yield Row(cell.dataset, cell.split, cell.teacher, cell.student, method)


def _changed(variants: Mapping[str, Values]) -> Iterator[Row]:
    cell = CITEULIKE
    for seed, variant in itertools.product(SEEDS, variants):
        yield Row(cell.dataset, cell.split, cell.teacher, cell.student, "rcekd", variant, seed)


def _distinct(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield each row once; cells share teachers and students without one."""
    yield from dict.fromkeys(rows)


TABLES = {"core": core, "ablation": ablation, "sensitivity": sensitivity, "overlap": overlap, "further": further}


def short(value: float) -> float:
    """Round to three digits, so that what is written is what was tried."""
    return float(f"{value:.3g}")
