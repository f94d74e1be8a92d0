"""``recdistill demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recdistill.cli.common import reporting


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demo's runs; started again there, it goes on.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Distil a shop's recommender from behind an API: the main job, on real data, in minutes."""
    from recdistill.demo import run_demo

    with reporting(out) as reporter:
        run_demo(out, reporter)
