"""The command line: one file, one command. Heavy parts are imported when a command runs, not before."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from recdistill import __version__
from recdistill.cli.compare import compare
from recdistill.cli.data import app as data_app
from recdistill.cli.demo import demo
from recdistill.cli.distill import distill
from recdistill.cli.evaluate import evaluate
from recdistill.cli.ledger import app as ledger_app
from recdistill.cli.probe import probe
from recdistill.cli.recommend import recommend
from recdistill.cli.registry import methods, models, presets, settings
from recdistill.cli.train import train
from recdistill.errors import RecDistillError

app = typer.Typer(
    name="recdistill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"recdistill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True, callback=_print_version),
) -> None:
    """Distil any recommender, yours or one behind an API, into a small model that you own."""


app.command()(demo)
app.add_typer(data_app, name="data")
app.add_typer(ledger_app, name="ledger")
for command in (train, distill, probe, evaluate, compare, recommend, methods, models, settings, presets):
    app.command()(command)


_SPINS = "1000"
"""How often a thread looks for its next piece of work before it sleeps; OpenMP's own default is 300,000.

With the default, threads that are done spin on the core that the slowest of them waits for: one other busy process on
a machine of two cores makes training many times slower. With this it is about half as fast then, and as fast as ever
alone.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; errors of ours are one line each on stderr and exit code 2."""
    if "OMP_WAIT_POLICY" not in os.environ:  # OpenMP reads this when torch is imported, which is not yet
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    try:
        app(args=argv)
    except RecDistillError as error:
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        sys.exit(2)
