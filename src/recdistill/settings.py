"""The base of everything that can be configured: frozen, typed, and strict about names."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from recdistill.errors import SettingsError


def _absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111 - leaves ~name alone where nobody is called so


Location: TypeAlias = Annotated[str, AfterValidator(_absolute)]
"""A file, folder or glob, in a run file as seen from it; ``~`` is the home folder.

It is made absolute, so that a finished run can be read from anywhere.
"""


class Settings(BaseModel):
    """Plain values that are saved with every result; unknown names are refused with the nearest right one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True, allow_inf_nan=False
    )
    never_shown: ClassVar[frozenset[str]] = frozenset()
    """Settings whose values no error repeats, as they may be secret."""

    def unread(self) -> dict[str, str]:
        """Return the settings that nothing reads as the others stand, each with what it would take to be read.

        They are refused where they were given and are no defaults, which would be a mistake that nobody notices. A 0 is
        not refused, as it only leaves out what is left out anyway; and what belongs to a part that a weight of 0 leaves
        out is not among them: to leave a part out is to say so.
        """
        return {}

    @model_validator(mode="after")
    def _refuse_unread(self) -> Self:
        for name, needed in self.unread().items():
            value, default = getattr(self, name), type(self).model_fields[name].default
            if name in self.model_fields_set and value not in (default, 0):
                raise ValueError(f"{name} is read only with {needed}: set that, or leave {name} out")
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str = "settings") -> Self:
        """Check ``values`` and return the settings.

        Args:
            values: names and values as read from a TOML file or the command line.
            where: what the values belong to, for the error message.

        Raises:
            SettingsError: for an unknown name (the nearest right one is suggested) or a value of the wrong kind.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(_explain(error, cls, where)) from error


def nearest(name: str, known: list[str]) -> str:
    """Return ``'; did you mean X?'`` for the closest known name, else the list of all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; choose one of: {', '.join(sorted(known))}"


def _explain(error: ValidationError, model: type[Settings], where: str) -> str:
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        name = ".".join(path)
        if problem["type"] == "extra_forbidden":
            known = _fields_at(model, path[:-1])
            lines.append(f"{where}: unknown setting {name!r}{nearest(path[-1], known)}")
        else:
            hidden = isinstance(problem["input"], Mapping) or not model.never_shown.isdisjoint(path)
            got = "" if hidden else f" (got {problem['input']!r})"
            said = problem["msg"].removeprefix("Value error, ")  # ours, which pydantic calls so
            lines.append(": ".join(filter(None, [where, name, f"{said}{got}"])))
    return "\n".join(lines)


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """Return the names that are allowed at ``path`` inside nested settings."""
    for part in path:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        inner = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)
