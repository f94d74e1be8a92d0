"""``recdistill evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)],
) -> None:
    """Evaluate the saved student of a run anew, on the run's own test cases."""
    from recdistill.runs.execute import evaluate_run
    from recdistill.tables import print_result

    print_result(evaluate_run(run), every_stratum=True)
