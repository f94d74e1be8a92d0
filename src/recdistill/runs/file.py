"""What a run is told: the sections of its TOML file, overrides from the command line, and every default filled in."""

from __future__ import annotations

import copy
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from recdistill.errors import SettingsError
from recdistill.methods.base import Method
from recdistill.models.base import Model
from recdistill.registry import import_all
from recdistill.runs.sections import (
    FILES,
    SHOP,
    TEACHERS,
    DataSettings,
    EnsembleTeacherSettings,
    EvaluationSettings,
    HttpTeacherSettings,
    Sections,
    SplitSettings,
    StartSettings,
    TeacherSettings,
    Values,
)
from recdistill.settings import Settings, nearest
from recdistill.teachers.transport_settings import TransportSettings
from recdistill.training.settings import TrainerSettings

_BARE = re.compile(r"[^\s\"'\[\]{},=#]+")
"""Text that may stand without quotes after ``--set name=``."""
_MAY_CHANGE = {
    "teacher": {"url", "headers", "signature", "budget", "identity", *TransportSettings.model_fields},
    "training": {"device"},
}
"""How an API is reached, what it may cost, and where to train: a run that is taken up again may do this otherwise, as
long as an API is still known by the same name."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A registered model or method with all its settings."""

    name: str
    config: Settings


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that decides what a run does, with every default filled in, but for a method that the teacher decides.

    That is the default of a run with a teacher: see `recdistill.methods.base.default_method`.
    """

    data: DataSettings
    split: SplitSettings
    student: Choice
    chosen: Choice | Values
    """How it is trained; the settings alone where ``[method]`` names none and there is a teacher, which decides."""
    teacher: TeacherSettings | None
    training: TrainerSettings
    evaluation: EvaluationSettings
    start: str | None = None
    """See `StartSettings`."""

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Self:
        """Read a TOML file, or the ``run.json`` of an earlier run, and apply ``section.key=value`` overrides.

        A file or folder that it names lies where it is seen from it, wherever the run is started: what was paid for is
        found again. Those of overrides are seen from the current folder.

        Raises:
            SettingsError: for a file that cannot be read, or anything in it that makes no sense.
        """
        return cls.parse(override(_beside_file(_read(path), path), overrides), where=str(path))

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str = "run") -> Self:
        """Check sections given as plain values, and fill in every default.

        Raises:
            SettingsError: for an unknown section or setting (the nearest right one is named), or a wrong value.
        """
        sections = Sections.parse(values, where=where)
        if sections.model is not None and sections.student is not None:
            raise SettingsError(f"{where}: [model] and [student] are two names for one section; keep one of them")
        student = dict(sections.model or sections.student or {})
        start = {name: student.pop(name) for name in StartSettings.model_fields if name in student}
        teacher = None if sections.teacher is None else _teacher(sections.teacher, f"{where}: [teacher]")
        return cls(
            data=DataSettings.parse(sections.data, where=f"{where}: [data]"),
            split=SplitSettings.parse(sections.split, where=f"{where}: [split]"),
            student=_choose(Model, student, default="sasrec", where=f"{where}: [student]"),
            chosen=(
                _choose(Method, sections.method, default="supervised", where=f"{where}: [method]")
                if teacher is None or "name" in sections.method
                else dict(sections.method)
            ),
            teacher=teacher,
            training=TrainerSettings.parse(sections.training, where=f"{where}: [training]"),
            evaluation=EvaluationSettings.parse(sections.evaluation, where=f"{where}: [evaluation]"),
            start=StartSettings.parse(start, where=f"{where}: [student]").start,
        )

    @property
    def method(self) -> Choice:
        """How it is trained, once that is known."""
        assert isinstance(self.chosen, Choice), "which method is the default is known once the teacher is open"
        return self.chosen

    def by_default(self, method: str) -> Self:
        """Return the run by this method, where ``[method]`` names none.

        Raises:
            SettingsError: when its settings are not those of the method.
        """
        if isinstance(self.chosen, Choice):
            return self
        return replace(self, chosen=_choose(Method, self.chosen, default=method, where="[method]"))

    def dump(self, *, defaults: bool = True) -> Values:
        """Return the sections as plain values, all or only those that are no defaults; `parse` makes the same run."""

        def plain(settings: Settings) -> Values:
            return settings.model_dump(mode="json", exclude_defaults=not defaults)

        values: Values = {
            "data": plain(self.data),
            "split": plain(self.split),
            "student": {"name": self.student.name, **plain(self.student.config)},
            "method": (
                {"name": self.chosen.name, **plain(self.chosen.config)}
                if isinstance(self.chosen, Choice)
                else dict(self.chosen)
            ),
            "training": plain(self.training),
            "evaluation": plain(self.evaluation),
        }
        if self.start is not None:
            values["student"]["start"] = self.start
        if self.teacher is not None:
            values["teacher"] = {"kind": self.teacher.kind, **plain(self.teacher)}
        return values

    @property
    def apis(self) -> list[HttpTeacherSettings]:
        """The teachers behind an API, the members of an ensemble included."""
        members = self.teacher.members if isinstance(self.teacher, EnsembleTeacherSettings) else [self.teacher]
        return [member for member in members if isinstance(member, HttpTeacherSettings)]

    def differences(self, other: Run) -> list[str]:
        """Say in what another run differs, such as ``training.epochs: 10 and 20``.

        How an API is reached and what it may cost is no difference while it is known by the same name. Nor is the
        device, or a default method that is not known yet.
        """
        mine, others = _flat(self._beside(other).dump()), _flat(other._beside(self).dump())
        found = [
            f"{'.'.join(name)}: {_show(mine.get(name))} and {_show(others.get(name))}"
            for name in {**mine, **others}
            if mine.get(name) != others.get(name) and not _may_change(name)
        ]
        for before, now in zip(self.apis, other.apis, strict=False):
            if before.known_as != now.known_as:
                found.append(
                    f"teacher.identity: {_show(before.known_as)} and {_show(now.known_as)}; "
                    "give the first as identity, if both answer alike"
                )
        return found

    def _beside(self, other: Run) -> Run:
        """Return the run by the method of another where it names none, as far as its settings allow."""
        try:
            return self.by_default(other.chosen.name) if isinstance(other.chosen, Choice) else self
        except SettingsError:
            return self


def override(values: Values, assignments: Sequence[str]) -> Values:
    """Return ``values`` with each ``section.key=value`` applied; a value is TOML, or a word that needs no quotes.

    >>> override({"training": {"epochs": 10}}, ["training.epochs=20", "student.name=gru4rec"])
    {'training': {'epochs': 20}, 'student': {'name': 'gru4rec'}}

    Raises:
        SettingsError: for something else than ``section.key=value``, or a value that is not TOML.
    """
    result = copy.deepcopy(values)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        *path, key = name.strip().split(".")
        if not (equals and path and key and all(path)):
            given = f"{name.strip()}=…" if equals else "…"  # a value may be a secret
            raise SettingsError(f"--set {given}: write section.key=value, for example training.epochs=20")
        inner = result
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"--set {name.strip()}=…: {part!r} is no section but has a value")
        inner[key] = _value(text.strip(), name.strip())
    return result


def _value(text: str, name: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if _BARE.fullmatch(text):
            return text
        raise SettingsError(
            f"--set {name}=…: that is no TOML value ({error}); numbers and true or false stand as they are, lists as "
            "[1, 2], and text with spaces in double quotes. A shell takes quotes away: --set 'name=\"a b\"' keeps them."
        ) from None


def _read(path: Path) -> Values:
    try:
        text = path.read_text(encoding="utf-8")
        values: Values = json.loads(text)["settings"] if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"cannot read the run file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is no run file: it is not UTF-8 text") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} is no run file: {error}") from error
    return values


def _beside_file(values: Values, path: Path) -> Values:
    """Return the sections of a run file with the files that they name as seen from its folder."""
    folder = path.absolute().parent
    if not isinstance(values, dict):
        return values
    return {
        name: _placed(section, FILES[name], folder) if name in FILES and isinstance(section, dict) else section
        for name, section in values.items()
    }


def _placed(section: Values, names: tuple[str, ...], folder: Path) -> Values:
    """Return a section, and the members of an ensemble in it, with the files of these settings named from a folder."""
    placed = dict(section)
    for name in names:
        if isinstance(file := section.get(name), str) and file != SHOP:
            placed[name] = os.path.normpath(folder / os.path.expanduser(file))  # noqa: PTH111 - see `Location`
    if isinstance(members := section.get("members"), list):
        placed["members"] = [
            _placed(member, names, folder) if isinstance(member, dict) else member for member in members
        ]
    return placed


def _choose(base: type[Model] | type[Method], values: Values, *, default: str, where: str) -> Choice:
    """Pick a registered class by ``name`` and check its settings."""
    import_all("recdistill.models" if base is Model else "recdistill.methods")
    settings = dict(values)
    name = settings.pop("name", default)
    if name not in base.registry:
        raise SettingsError(f"{where}: unknown name {name!r}{nearest(str(name), list(base.registry))}")
    return Choice(name, base.registry[name].Config.parse(settings, where=f"{where} {name}"))


def _teacher(values: Values, where: str) -> TeacherSettings:
    kind = values.get("kind")
    if kind not in TEACHERS:
        raise SettingsError(
            f'{where}: kind is missing, or none of these: write kind = "http" for an API, "run" for a folder, "file" '
            'for stored scores, "matrix" for an array of them, "rules" for your own histories, "ensemble" for several'
        )
    members = values.get("members")
    if kind == "ensemble" and isinstance(members, list) and all(isinstance(member, dict) for member in members):
        if any(member.get("kind") == "rules" for member in members):
            raise SettingsError(f"{where}: rules advise a teacher by second_opinion in [method]; leave that member out")
        parsed = [_teacher(member, f"{where} member {number}") for number, member in enumerate(members, 1)]
        values = {**values, "members": parsed}
    return TEACHERS[kind].parse(values, where=where)


def _flat(values: Values, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for key, value in values.items():
        if prefix == ("teacher",) and key == "members":
            value = {str(number): member for number, member in enumerate(value, 1)}
        flat |= _flat(value, (*prefix, key)) if isinstance(value, dict) else {(*prefix, key): value}
    return flat


def _may_change(name: tuple[str, ...]) -> bool:
    """Say whether a setting may be another where a run is taken up again; a member of an ensemble is a teacher."""
    setting = name[3] if name[:2] == ("teacher", "members") else name[1]
    return setting in _MAY_CHANGE.get(name[0], ())


def _show(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)
