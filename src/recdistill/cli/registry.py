"""``recdistill methods``, ``models``, ``settings``, ``presets``: what can be chosen, each setting with its default."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Annotated

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
    show("method", {each: (cls.__doc__, [cls.Config]) for each, cls in Method.registry.items()}, name)


def models(name: Name = None) -> None:
    """List the models with their settings."""
    from recdistill.models.base import Model
    from recdistill.registry import import_all
    from recdistill.runs.sections import StartSettings

    import_all("recdistill.models")
    show("model", {each: (cls.__doc__, [cls.Config, StartSettings]) for each, cls in Model.registry.items()}, name)


def settings(
    section: Annotated[
        str | None,
        typer.Argument(help="Show only this one: `teacher` for all kinds, `teacher.http`.", metavar="SECTION"),
    ] = None,
) -> None:
    """List what the sections of a run file hold, but for those of methods and students: see `methods`, `models`."""
    from recdistill.runs.sections import TEACHERS, DataSettings, EvaluationSettings, SplitSettings
    from recdistill.teachers.signing import SIGNATURES
    from recdistill.training.settings import TrainerSettings

    sections: dict[str, type[Settings]] = {
        "data": DataSettings,
        "split": SplitSettings,
        "training": TrainerSettings,
        "evaluation": EvaluationSettings,
        **{f"teacher.{kind}": teacher for kind, teacher in TEACHERS.items()},
        **{f"signature.{kind}": signature for kind, signature in SIGNATURES.items()},
    }
    show("section", {each: (cls.__doc__, [cls]) for each, cls in sections.items()}, section)


def presets() -> None:
    """List the APIs whose shape is known by name: what `preset` of a teacher may be."""
    from rich.table import Table
    from rich.text import Text

    from recdistill.consoles import plain_console
    from recdistill.teachers.presets import presets as known

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, about in known().items():
        table.add_row(Text(name, style="bold"), Text(about))
    plain_console().print(table)


def show(kind: str, choices: Mapping[str, tuple[str | None, Sequence[type[Settings]]]], name: str | None) -> None:
    """Print what can be chosen, each with its settings in a run file.

    Args:
        kind: what they are.
        choices: what each is, and its settings, by name.
        name: of the only one that is shown, or what comes before the dot in several; all without it.

    Raises:
        SettingsError: for an unknown name.
    """
    from rich.table import Table
    from rich.text import Text

    from recdistill.consoles import plain_console
    from recdistill.errors import SettingsError
    from recdistill.settings import nearest

    shown = [each for each in sorted(choices) if name in (None, each, each.partition(".")[0])]
    if not shown:
        raise SettingsError(f"unknown {kind} {name!r}{nearest(str(name), list(choices))}")
    console = plain_console()
    for each in shown:
        about, sections = choices[each]
        console.print(Text.assemble((each, "bold"), "  ", _first_line(about)))
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(max_width=_WIDEST_DEFAULT)
        table.add_column()
        for setting, default, what in chain.from_iterable(map(_settings, sections)):
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
