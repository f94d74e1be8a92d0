"""Shapes of well-known APIs: one TOML file each, with settings and what they are for."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from recdistill.errors import SettingsError
from recdistill.settings import nearest


def presets() -> dict[str, str]:
    """Return what each preset is for, by name."""
    return {name: str(preset["about"]) for name, preset in sorted(_all().items())}


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put the settings of the preset that ``values`` names, if any, under ``values``; tables are merged.

    Raises:
        SettingsError: for an unknown preset.
    """
    given = dict(values)
    name = given.pop("preset", None)
    if name is None:
        return given
    if name not in _all():
        raise SettingsError(f"http teacher: unknown preset {name!r}{nearest(str(name), list(_all()))}")
    return _merge({key: value for key, value in _all()[name].items() if key != "about"}, given)


@cache
def _all() -> dict[str, dict[str, Any]]:
    return {
        file.name.removesuffix(".toml"): tomllib.loads(file.read_text(encoding="utf-8"))
        for file in files(__package__).iterdir()
        if file.name.endswith(".toml")
    }


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(under.get(name), Mapping)
        merged[name] = _merge(under[name], value) if both else value
    return merged
