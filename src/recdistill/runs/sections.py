"""The sections of a run file, each with its settings and their defaults."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from recdistill.settings import Location, Settings
from recdistill.teachers.http import HttpConfig

Values: TypeAlias = dict[str, Any]

SHOP = "shop"
"""Stands for the data of a real shop that ship with the package, instead of a file."""


class DataSettings(Settings):
    """``[data]``: where the interactions are, and what is kept of them."""

    path: Literal["shop"] | Location
    """CSV, TSV or Parquet file, or a glob of them; ``shop`` for the data that ship with the package."""
    user: str = "user_id"
    """Column of user ids."""
    item: str = "item_id"
    """Column of item ids."""
    time: str = "timestamp"
    """Column of times; empty where the rows are in order and have none."""
    separator: str | None = None
    """What separates fields; by default a tab in ``.tsv`` files, else a comma."""
    text_ids: bool = False
    """Keep ids as text even if all are integers, which else become integers, also those in text columns of Parquet."""
    skip_bad_rows: bool = False
    """Leave out rows that cannot be read instead of refusing the file."""
    duplicates: Literal["all", "first", "last", "collapse"] = "all"
    """What is kept when a user takes an item again."""
    min_user: PositiveInt = 1
    """Interactions that every user needs to be kept."""
    min_item: PositiveInt = 1
    """Interactions that every item needs to be kept."""
    titles: Location | None = None
    """File with a title for each item."""
    titles_item: str = "item_id"
    """Its column of item ids."""
    titles_title: str = "title"
    """Its column of titles."""


def _as_text(instant: Any) -> Any:
    return instant.isoformat() if isinstance(instant, date) else instant  # a datetime is a date as well


Instant: TypeAlias = Annotated[float | str, BeforeValidator(_as_text)]
"""A number like the data's times, ISO text, or a date or time of TOML, which is kept as ISO text."""


class SplitSettings(Settings):
    """``[split]``: what is learned from, and what is asked."""

    protocol: Literal["leave-one-out", "last-basket", "time-cut", "random"] = "leave-one-out"
    """How the data are cut."""
    mask_seen: bool = True
    """Whether items of the history are left out of every ranking; of data with repeats no repeat is found then."""
    at: Instant | None = None
    """For ``time-cut``: the instant, a number like the data's times, date or ISO text; by default after nine tenths."""
    valid_at: Instant | None = None
    """For ``time-cut``: the earlier instant from which on validation targets are taken."""
    seed: NonNegativeInt = 0
    """For ``random``: of the draws."""
    file_order: bool = False
    """For ``random``: draw nothing, and cut each sequence in its order."""

    def unread(self) -> dict[str, str]:
        """Each protocol reads its own."""
        readers = {"at": "time-cut", "valid_at": "time-cut", "seed": "random", "file_order": "random"}
        return {name: f"protocol = {reader!r}" for name, reader in readers.items() if self.protocol != reader}


class EvaluationSettings(Settings):
    """``[evaluation]``: what is reported."""

    ks: tuple[PositiveInt, ...] = Field(default=(5, 10, 20), min_length=1)
    """Lengths of the lists that metrics look at."""
    ask_teacher: NonNegativeInt = 0
    """Test cases that the teacher is asked about, before anything else: what it reaches on them is shown beside the
    student, and how alike the two list. An API charges them to its budget; runs that share a ledger ask the same."""


class StartSettings(Settings):
    """What ``[student]`` has besides the model's name and its settings."""

    start: Location | None = None
    """Folder of the run, or of a saved student of the same model and shape, whose weights the student begins with."""


class HttpTeacherSettings(HttpConfig):
    """``[teacher]`` with ``kind = "http"``: a recommender behind an API."""

    kind: Literal["http"] = "http"
    budget: PositiveInt | None = None
    """Most of what ``charge`` counts, over all runs that share the ledger; no limit where not given."""
    ledger: Location | None = None
    """File of paid answers; in the run's folder where not given. Runs that share it share the answers."""
    round: NonNegativeInt = 0
    """Another round asks everything anew, beside what is kept of the others: for an API whose answers vary. Two rounds
    as members of an ensemble are fused, so that what both list goes first; they share the budget."""


class RunTeacherSettings(Settings):
    """``[teacher]`` with ``kind = "run"``: a model of our own, from a run's folder or a saved student's."""

    kind: Literal["run"] = "run"
    folder: Location
    """Where it lies."""
    gives_scores: bool = True
    """Whether it shows its scores; without them it poses as a black box."""
    earlier: tuple[PositiveInt, ...] = ()
    """Epochs of that run, kept by its ``training.keep_epochs``, whose models teach as well, before the final one.

    Methods that follow the course of a teacher's training (``hetcomp``) need one or more.
    """


class FileTeacherSettings(Settings):
    """``[teacher]`` with ``kind = "file"``: scores that another library has stored, see `StoredTeacher`."""

    kind: Literal["file"] = "file"
    path: Location
    """Parquet, CSV or TSV file, or a glob of them, with a row for each user, item and score."""
    user: str = "user"
    """Column of user ids."""
    item: str = "item"
    """Column of item ids."""
    score: str = "score"
    """Column of scores, the best the highest."""
    separator: str | None = None
    """What separates fields; by default a tab in ``.tsv`` files, else a comma."""


class MatrixTeacherSettings(Settings):
    """``[teacher]`` with ``kind = "matrix"``: scores of all users and items as one array, see `MatrixTeacher`."""

    kind: Literal["matrix"] = "matrix"
    path: Location
    """``.npy`` file (``np.save``) of float16, float32 or float64, a row a user and a column an item."""
    row_users: Location
    """Text file with the user id of each row, one on each line and no line besides."""
    column_items: Location
    """Text file with the item id of each column, likewise."""


class RulesTeacherSettings(Settings):
    """``[teacher]`` with ``kind = "rules"``: what the training histories say by themselves, see `RulesTeacher`."""

    kind: Literal["rules"] = "rules"
    ordered: bool = True
    """Whether the order of histories counts."""
    window: PositiveInt = 10
    """How far apart two items may be that go together, in items; in ordered histories."""
    fade: NonNegativeFloat = 0.5
    """How much less an item counts that came later; 1 is half as much for twice as far; in ordered histories."""
    decay: float = Field(default=0.7, gt=0, le=1)
    """How much less the next older item of a history says; in ordered histories."""
    popularity: NonNegativeFloat | None = None
    """How far popular items are held down; by default 0.1 in ordered histories and 0.4 in others."""
    prior: NonNegativeFloat | None = None
    """How often others must have followed an item for it to be heard by half; by default 100 in ordered histories and 0
    in others."""

    def unread(self) -> dict[str, str]:
        """Where order does not count, nothing is near or far."""
        return {} if self.ordered else dict.fromkeys(("window", "fade", "decay"), "ordered = true")


class EnsembleTeacherSettings(Settings):
    """``[teacher]`` with ``kind = "ensemble"``: several teachers whose lists are fused, see `EnsembleTeacher`."""

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[HttpTeacherSettings | RunTeacherSettings | FileTeacherSettings | MatrixTeacherSettings, ...] = Field(
        min_length=2
    )
    """The teachers, each a ``[[teacher.members]]`` with what a ``[teacher]`` of its kind has."""
    weights: tuple[PositiveFloat, ...] | None = None
    """How much each of them counts, in their order; equally if left out."""

    @model_validator(mode="after")
    def _check_that_rounds_share_a_budget(self) -> Self:
        """Refuse members that would spend from one budget and differ in what that is."""
        told: dict[tuple[str, str | None], str] = {}
        for api in (member for member in self.members if isinstance(member, HttpTeacherSettings)):
            terms = f"{'any number' if api.budget is None else api.budget} of {api.charge}"
            first = told.setdefault((api.known_as, api.ledger), terms)
            if terms != first:
                raise ValueError(
                    f"members that are teacher {api.known_as!r} share a budget, but it is {first} to one and {terms} "
                    "to another; give them the same budget and charge, or another identity or ledger"
                )
        return self


TeacherSettings: TypeAlias = (
    HttpTeacherSettings
    | RunTeacherSettings
    | FileTeacherSettings
    | MatrixTeacherSettings
    | RulesTeacherSettings
    | EnsembleTeacherSettings
)
TEACHERS: dict[str, type[TeacherSettings]] = {
    "http": HttpTeacherSettings,
    "run": RunTeacherSettings,
    "file": FileTeacherSettings,
    "matrix": MatrixTeacherSettings,
    "rules": RulesTeacherSettings,
    "ensemble": EnsembleTeacherSettings,
}
FILES: dict[str, tuple[str, ...]] = {
    "data": ("path", "titles"),
    "model": ("start",),
    "student": ("start",),
    "teacher": ("ledger", "item_file", "folder", "path", "row_users", "column_items"),
}
"""The settings of each section that are a `Location`."""


class Sections(Settings):
    """The sections that a run file may have."""

    never_shown = frozenset({"teacher"})

    data: Values
    """Where the interactions are."""
    split: Values = Field(default_factory=dict)
    """What is learned from, and what is asked."""
    model: Values | None = None
    """What is trained; ``student`` is another name for it."""
    student: Values | None = None
    """What is trained; ``model`` is another name for it."""
    method: Values = Field(default_factory=dict)
    """How it is trained."""
    teacher: Values | None = None
    """Whom it is distilled from, if anybody."""
    training: Values = Field(default_factory=dict)
    """How long and how fast."""
    evaluation: Values = Field(default_factory=dict)
    """What is reported."""
