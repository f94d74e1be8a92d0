"""``recdistill methods``, ``models`` and ``presets``: what can be chosen, with every setting and its default."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from recdistill.settings import Settings

_WIDEST_DEFAULT = 20
"""Characters; longer lists take several lines, so that there is room for what settings are."""
Name = Annotated[str | None, typer.Argument(help="Show only this one.", show_default=False)]


def methods(name: Name = None) -> None:
    """List the training and distillation methods with their settings."""
    from recdistill.methods.base import Method
    from recdistill.registry import import_all

    import_all("recdistill.methods")
    show("method", Method.registry, name)


def models(name: Name = None) -> None:
    """List the models with their settings."""
    from recdistill.models.base import Model
    from recdistill.registry import import_all
    from recdistill.runfile import StartSettings

    import_all("recdistill.models")
    show("model", Model.registry, name, besides=StartSettings)


def presets() -> None:
    """List the APIs whose shape is known by name: what `preset` of a teacher may be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from recdistill.teachers.presets import presets as known

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, about in known().items():
        table.add_row(Text(name, style="bold"), Text(about))
    Console().print(table)


def show(kind: str, registry: Mapping[str, Any], name: str | None, *, besides: type[Settings] | None = None) -> None:
    """Print registered classes, each with the settings of its section in a run file.

    Args:
        kind: what they are.
        registry: the classes by name.
        name: of the only one that is shown; all without it.
        besides: settings that the section has whichever class it names.

    Raises:
        SettingsError: for an unknown name.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from recdistill.errors import SettingsError
    from recdistill.settings import nearest

    if name is not None and name not in registry:
        raise SettingsError(f"unknown {kind} {name!r}{nearest(name, list(registry))}")
    console = Console()
    for each in [name] if name else sorted(registry):
        cls = registry[each]
        console.print(Text.assemble((each, "bold"), "  ", _first_line(cls.__doc__)))
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(max_width=_WIDEST_DEFAULT)
        table.add_column()
        for setting, default, what in (*_settings(cls.Config), *(_settings(besides) if besides else ())):
            table.add_row(f"  {setting}", Text(default), Text(what))
        console.print(table)
        console.print()


def _settings(config: type[Settings], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield each setting's name as in a run file, its default and what it is; those of inner settings as well."""
    from recdistill.settings import Settings

    for name, field in config.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, Settings):
            yield from _settings(type(default), f"{prefix}{name}.")
        else:
            shown = "needed" if field.is_required() else json.dumps(default)
            yield f"{prefix}{name}", shown, _first_line(field.description)


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n\n")[0].replace("\n", " ")
