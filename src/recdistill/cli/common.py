"""What several commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from recdistill.cli.progress import Reporter

RunFile: TypeAlias = Annotated[
    Path, typer.Argument(help="What to run: a TOML file, or the run.json of an earlier run.", show_default=False)
]
Out: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the run; started again there, it goes on.",
        show_default="runs/ and the file's name; the folder of a run.json",
    ),
]
Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Override a setting, e.g. --set training.epochs=20 --set student.dim=32; may be repeated.",
        show_default=False,
    ),
]


def folder_for(file: Path, out: Path | None) -> Path:
    """Return where a run goes: ``out``, else the folder of a ``run.json``, else one in ``runs/`` with the file's name.

    An earlier run thus goes on where its answers are, which are not paid for again.
    """
    from recdistill.runs.folder import RUN

    if out is not None:
        return out
    return file.parent if file.name == RUN else Path("runs") / file.stem


@contextmanager
def reporting(folder: Path) -> Iterator[Reporter]:
    """Give a reporter for the length of a run; after Ctrl-C say how it goes on."""
    from recdistill.cli.progress import Reporter

    try:
        with Reporter() as reporter:
            yield reporter
    except KeyboardInterrupt:
        typer.echo(f"stopped; what is done is kept in {folder}, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None
