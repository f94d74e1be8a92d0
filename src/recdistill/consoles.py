"""Consoles that show text as it stands."""

from __future__ import annotations

from rich.console import Console

_AS_WIDE_AS_NEEDED = 10_000
"""Characters; tables take no more of them than they need."""


def plain_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console that shows every text as it stands: ids and titles may look like markup, or like an emoji."""
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)


def result_console() -> Console:
    """Return a console for results: as wide as they need where nobody looks."""
    console = plain_console()
    return console if console.is_terminal else plain_console(width=_AS_WIDE_AS_NEEDED)
