"""``recdistill data``: look at interaction data before anything is trained on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from recdistill.data.describe import Description
    from recdistill.data.interactions import Interactions

app = typer.Typer(no_args_is_help=True, help="Look at interaction data.")
_N_SHOWN = 20


@app.callback()
def _data() -> None:
    """Look at interaction data."""


@app.command()
def describe(
    file: Annotated[str, typer.Argument(help="A CSV, TSV or Parquet file, or a quoted pattern such as 'logs/*.csv'.")],
    user: Annotated[str, typer.Option(help="Column of user ids.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of item ids.")] = "item_id",
    time: Annotated[str, typer.Option(help="Column of times.")] = "timestamp",
    no_time: Annotated[bool, typer.Option("--no-time", help="Rows have no times but are in order.")] = False,
    separator: Annotated[str | None, typer.Option(help="What separates fields, e.g. ; or \\t.")] = None,
    text_ids: Annotated[bool, typer.Option("--text-ids", help="Keep ids as strings even if all are integers.")] = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and name them, instead of refusing the file.")
    ] = False,
) -> None:
    """Print size, density, lengths, equal times, repeats, and what each split would leave."""
    from recdistill.consoles import result_console
    from recdistill.data.describe import describe as figures
    from recdistill.data.interactions import read_interactions

    interactions = read_interactions(
        file,
        user=user,
        item=item,
        time=None if no_time else time,
        separator=separator,
        text_ids=text_ids,
        skip_bad_rows=skip_bad_rows,
    )
    console = result_console()
    _print_skipped(console, interactions)
    _print(console, figures(interactions.dataset()))


def _print_skipped(console: Console, interactions: Interactions) -> None:
    from recdistill.data.interactions import name_bad_row

    skipped = interactions.skipped
    if skipped.height == 0:
        return
    console.print(f"{skipped.height:,} bad rows were left out:")
    for row in skipped.head(_N_SHOWN).iter_rows(named=True):
        console.print(f"  {row['file']}: {name_bad_row(row)}", soft_wrap=True)
    if skipped.height > _N_SHOWN:
        console.print(f"  and {skipped.height - _N_SHOWN:,} more")
    console.print()


def _print(console: Console, description: Description) -> None:
    from rich.table import Table

    figures = Table(box=None, show_header=False, pad_edge=False)
    figures.add_column(style="bold")
    figures.add_column()
    lengths = ", ".join(f"{name} {value:,.10g}" for name, value in description.lengths.items())
    equal = "no times" if description.equal_times is None else f"{description.equal_times:.1%} of interactions"
    for name, value in (
        ("users", f"{description.n_users:,}"),
        ("items", f"{description.n_items:,}"),
        ("interactions", f"{description.n_interactions:,}"),
        ("density", f"{description.density:.4%}"),
        ("length", f"mean {description.mean_length:.2f}; {lengths}"),
        ("equal times", equal),
        ("repeats", f"{description.repeats:.1%} of interactions"),
    ):
        figures.add_row(name, value)
    console.print(figures)
    console.print()

    splits = Table(box=None, pad_edge=False, title="What each split would leave", title_justify="left")
    splits.add_column("split", style="bold")
    for heading in ("train interactions", "validation cases", "test cases", "test targets seen before"):
        splits.add_column(heading, justify="right")
    notes = []
    for name, outcome in description.splits.items():
        if isinstance(outcome, str):
            splits.add_row(name, "-", "-", "-", "-")
            notes.append(f"{name}: {outcome}")
        else:
            counts = (outcome.train_interactions, outcome.valid_cases, outcome.test_cases)
            splits.add_row(name, *(f"{count:,}" for count in counts), f"{outcome.seen_targets:.1%}")
            notes.append(f"{name}: {outcome.protocol}")
    console.print(splits)
    console.print()
    for note in notes:
        console.print(note, soft_wrap=True)
    if any(not isinstance(outcome, str) and outcome.seen_targets for outcome in description.splits.values()):
        console.print(
            "Targets seen before cannot be hit while seen items are masked; for such data use mask_seen=False."
        )
