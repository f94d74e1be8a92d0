"""``recdistill distill``."""

from __future__ import annotations

from recdistill.cli.common import Out, Overrides, RunFile, folder_for, reporting


def distill(run: RunFile, out: Out = None, overrides: Overrides = None) -> None:
    """Train a student from a teacher, an API, a model of your own or stored scores, and evaluate it."""
    from recdistill.runs.execute import run_distillation
    from recdistill.runs.file import Run
    from recdistill.tables import print_result
    from recdistill.training.processes import announced

    folder = folder_for(run, out)
    with reporting(folder) as reporter:
        result = run_distillation(Run.read(run, overrides or ()), folder, reporter)
    if announced()[0] == 0:
        print_result(result)
