"""Who is told how a run goes."""

from __future__ import annotations

from typing import Protocol

from recdistill.training.progress import Progress, Silent


class Report(Progress, Protocol):
    """Who is told how a run goes; a terminal, for example."""

    def say(self, text: str) -> None:
        """Take note of a sentence."""

    def preparing(self, what: str, done: int, total: int, note: str = "") -> None:
        """Take note of a preparation, such as probing a teacher."""


class Quiet(Silent):
    """Tells nobody."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def preparing(self, what: str, done: int, total: int, note: str = "") -> None:
        """Do nothing."""
