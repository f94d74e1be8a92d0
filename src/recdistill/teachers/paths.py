"""Where something lies in a JSON reply, as a path like ``results[*].metadata.score``.

A path is read from left to right: ``name`` is that member of an object, ``[*]`` every entry of a list, ``[0]`` the one
at that place, and ``[name=text]`` the first object of a list whose member ``name`` is that text. ``.`` alone is the
value itself; otherwise a leading dot changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator

from recdistill.errors import TeacherError

Step: TypeAlias = str | int | tuple[str, str]
"""A member, a place in a list (`_EACH` for all of them), or the member and its text that choose an entry."""

_EACH = -1
_STEP = re.compile(
    r"\.?(?P<member>[^.\[\]=]+)|\[(?:(?P<each>\*)|(?P<place>\d+)|(?P<key>[^\[\]=]+)=(?P<text>[^\[\]]+))\]"
)
_NAMES = 5
"""Members of an object that an error names."""


@dataclass(frozen=True, slots=True)
class Path:
    """A path that was understood."""

    text: str
    """As it was written."""
    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str) -> Path:
        """Understand a path.

        Raises:
            ValueError: for text that is no path.
        """
        if text.startswith("$"):
            raise ValueError(f"{text!r} begins with the $ of JSONPath; leave it out: {text.lstrip('$.') or '.'!r}")
        steps: list[Step] = []
        place = len(text) if text == "." else 0
        while place < len(text):
            found = _STEP.match(text, place)
            if found is None:
                raise ValueError(
                    f"{text!r} is no path, from {text[place:]!r} on; write one like items[*] or metadata.score"
                )
            steps.append(_step(found))
            place = found.end()
        return cls(text, tuple(steps))

    @property
    def leads_to_many(self) -> bool:
        """Whether it leads to a list of values instead of one."""
        return _EACH in self.steps

    def one(self, value: Any) -> Any:
        """Return what lies there; ``None`` where a member is null.

        Raises:
            TeacherError: when there is nothing; names the path and what was found instead.
        """
        return self.all(value)[0]

    def all(self, value: Any, *, or_empty: bool = False) -> list[Any]:
        """Return everything that lies there, in its order.

        Args:
            value: where to look.
            or_empty: whether a list that is null, or no member where it should be one, is taken for an empty one.

        Raises:
            TeacherError: when there is nothing; names the path and what was found instead. An empty list is something.
        """
        found = [value]
        for place, step in enumerate(self.steps):
            may_be_missing = or_empty and _EACH in self.steps[place : place + 2]
            found = [inner for outer in found for inner in self._take(step, outer, may_be_missing)]
        return found

    def _take(self, step: Step, value: Any, may_be_missing: bool) -> list[Any]:
        if isinstance(step, str):
            if isinstance(value, dict) and (may_be_missing or step in value):
                return [value.get(step)]
            raise self._missing(f"an object with {step!r}", value)
        if step == _EACH and may_be_missing and value is None:
            return []
        if not isinstance(value, list):
            raise self._missing("a list", value)
        if step == _EACH:
            return value
        if isinstance(step, int):
            if step < len(value):
                return [value[step]]
            raise self._missing(f"a list of more than {step}", value)
        key, text = step
        for entry in value:
            if isinstance(entry, dict) and entry.get(key) == text:
                return [entry]
        raise self._missing(f"a list with an object whose {key!r} is {text!r}", value)

    def _missing(self, wanted: str, found: Any) -> TeacherError:
        return TeacherError(f"nothing at {self.text!r}: there should be {wanted}, but it is {describe(found)}")


def _checked(path: str) -> str:
    Path.parse(path)
    return path


OnePath: TypeAlias = Annotated[str, AfterValidator(_checked)]
"""A path, as settings hold it."""


def describe(value: Any) -> str:
    """Say what kind of value it is, without what it says: that may be long, or private.

    >>> describe({"id": 3, "score": 0.5}), describe([1, 2]), describe(None)
    ("an object with 'id', 'score'", 'a list of 2', 'null')
    """
    match value:
        case None:
            return "null"
        case dict():
            return f"an object with {_listed(value)}" if value else "an empty object"
        case list():
            return f"a list of {len(value)}" if value else "an empty list"
        case str():
            return "text"
        case bool():
            return "true or false"
        case _:
            return "a number"


def _listed(value: dict[str, Any]) -> str:
    names = [repr(name) for name in value]
    return ", ".join(names[:_NAMES]) + (", …" if len(names) > _NAMES else "")


def _step(found: re.Match[str]) -> Step:
    if found["member"] is not None:
        return found["member"]
    if found["each"] is not None:
        return _EACH
    return int(found["place"]) if found["place"] is not None else (found["key"], found["text"])
