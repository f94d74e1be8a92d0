"""``recdistill compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs; the others are tested against the first.")
    ],
    metric: Annotated[list[str] | None, typer.Option(help="hr, ndcg, mrr or recall; may be repeated.")] = None,
    k: Annotated[int, typer.Option("-k", help="Length of the lists that are looked at.", min=1)] = 10,
) -> None:
    """Show runs side by side: all, head and tail users, 95 % intervals, and paired tests against the first run."""
    from recdistill.runs.execute import Result
    from recdistill.tables import print_comparison

    print_comparison([Result.load(run) for run in runs], metrics=metric or ["ndcg", "hr"], k=k)
