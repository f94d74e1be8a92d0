"""``recdistill probe``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from recdistill.cli.common import Out, Overrides, RunFile, folder_for, reporting

if TYPE_CHECKING:
    from recdistill.labelling import Plan
    from recdistill.methods.believing import Belief


def probe(
    run: RunFile,
    out: Out = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be asked, and ask nothing.")] = False,
) -> None:
    """Ask a run's API what training will want to know, and keep the answers; trains nothing."""
    from recdistill.labelling import label, plan
    from recdistill.runs.file import Run

    folder, settings = folder_for(run, out), Run.read(run, overrides or ())
    if dry_run:
        _print_plans(plan(settings, folder))
        return
    with reporting(folder) as reporter:
        labelled = label(settings, folder, reporter, told=_print_plans)
    for stats in labelled.stats:
        if len(labelled.stats) > 1:
            typer.echo(stats.teacher)
        for name, figure in stats.figures().items():
            typer.echo(f"{name:<9} {figure}")
    if labelled.belief is not None:
        _print_belief(labelled.belief, labelled.least_share)


def _print_belief(belief: Belief, least: float) -> None:
    """Say what the answers and rules of the logs reach together, and which share of these to learn with."""
    best, share, ndcg = belief.best, belief.share(least), belief.ndcg_10
    typer.echo(
        f"validation NDCG@10, {belief.cases:,} cases: these answers {ndcg[0.0]:.4f}, rules counted in the logs "
        f"{ndcg[1.0]:.4f}"
    )
    typer.echo("with rules of a share of " + ", ".join(f"{share:g}: {each:.4f}" for share, each in ndcg.items()))
    if not best:
        typer.echo("the logs add nothing to these answers; learn with method.second_opinion = 0")
    elif best == 1:
        typer.echo('the answers add nothing to the logs; a teacher of kind = "rules" costs nothing')
    else:
        against = f"p {belief.p_value:.2g} against the answers alone"
        beside = f"; beside labels {least:g} is the least that is learned" if share > best else ""
        typer.echo(f"best with {best:g} ({against}){beside}: method.second_opinion = {share:g} learns from both so")


def _print_plans(plans: list[Plan]) -> None:
    """Say it of each API, by name where there are several."""
    for plan in plans:
        if len(plans) > 1:
            typer.echo(plan.stats.teacher)
        _print_plan(plan)


def _print_plan(plan: Plan) -> None:
    """Say how many questions there are, what the budget buys, and how long that takes."""
    from recdistill.labelling import duration

    stats = plan.stats
    refused = f"{plan.refused:,} refused for good, " if plan.refused else ""
    answered = plan.questions - plan.refused - plan.missing
    guessed = ", or others, as the answers turn out" if plan.guessed else ""
    typer.echo(f"{plan.questions:,} questions, {answered:,} answered before, {refused}{plan.missing:,} to ask{guessed}")
    if plan.left is not None:
        short = plan.missing - plan.affordable
        then = " by then" if plan.promised else ""
        each = f", at {plan.costs.mean():.3g} an answer" if plan.missing else ""
        buys = f"buys {plan.affordable:,}, {short:,} too few" if short else "enough"
        needed = f"; the first takes {math.ceil(plan.costs[0]):,}" if short and not plan.affordable else ""
        typer.echo(f"budget: {plan.left:,} of {stats.budget:,} {stats.charge} left{then}{each}: {buys}{needed}")
    took = "not known before the first answers" if plan.seconds is None else duration(plan.seconds)
    typer.echo(f"time: {took}")
