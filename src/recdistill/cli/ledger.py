"""``recdistill ledger``: look at the answers that were paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

app = typer.Typer(no_args_is_help=True, help="Look at the answers that were paid for.")

File: TypeAlias = Annotated[Path, typer.Argument(help="The ledger, such as a run's ledger.sqlite.", show_default=False)]


@app.command()
def stats(file: File) -> None:
    """Print for each teacher what its answers have cost."""
    from recdistill.teachers.ledger import Ledger

    with Ledger(file, create=False) as ledger:
        every = [ledger.stats(teacher) for teacher in ledger.teachers()]
    for stats in every:
        typer.echo(stats.teacher)
        for name, figure in stats.figures().items():
            typer.echo(f"  {name:<9} {figure}")
    if not every:
        typer.echo(f"{file}: no teacher has been asked yet")


@app.command()
def export(
    file: File,
    to: Annotated[Path, typer.Argument(help="A .parquet, .csv or .jsonl file.", show_default=False)],
) -> None:
    """Write every answer: teacher, k, round, user or history, items, scores, time."""
    from recdistill.teachers.ledger import Ledger
    from recdistill.teachers.ledger_export import export as write

    with Ledger(file, create=False) as ledger:
        write(ledger, to)


@app.command()
def forget(file: File) -> None:
    """Let questions be asked again that teachers refused for good, such as users they did not know."""
    from recdistill.teachers.ledger import Ledger

    with Ledger(file, create=False) as ledger:
        forgotten = ledger.forget_refusals()
    typer.echo(f"{file}: questions that may be asked again: {forgotten:,}")


@app.command()
def verify(file: File) -> None:
    """Check that a ledger is whole and its figures add up; exit code 1 if not."""
    from recdistill.teachers.ledger import Ledger
    from recdistill.teachers.ledger_check import verify as check

    with Ledger(file, create=False) as ledger:
        findings = check(ledger)
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise typer.Exit(1)
    typer.echo(f"{file}: sound")
