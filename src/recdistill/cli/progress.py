"""How a run goes: a live bar on a terminal, plain lines elsewhere; always on stderr, results go to stdout."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from recdistill.consoles import plain_console

if TYPE_CHECKING:
    from recdistill.training.progress import EpochRow
    from recdistill.training.settings import TrainerSettings

_SILENCE = 10.0
"""Seconds after which a plain line is printed even in the middle of an epoch."""


class Reporter:
    """Tells of preparation, steps and epochs; what the training calls ``Progress``."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or plain_console(stderr=True)
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._what = ""
        self._spoke = time.monotonic()
        self._first_epoch = self._last_epoch = 0
        self._first_began = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._forget()
        self._print(text)

    def preparing(self, what: str, done: int, total: int, note: str = "") -> None:
        """Take note of a preparation, such as probing a teacher."""
        self._show(what, done, total, note)
        if done >= total:
            self.say(f"  {what}: {total:,}")

    def step(self, epoch: int, step: int, n_steps: int, parts: dict[str, float], sequences_per_second: float) -> None:
        """Take note of a training step."""
        if step == 1 and (epoch == 1 or epoch != self._last_epoch + 1):  # another run has begun
            self._first_epoch, self._first_began = epoch, time.monotonic()
        self._last_epoch = epoch
        self._show(f"epoch {epoch}", step, n_steps, f"{_parts(parts)}  {sequences_per_second:,.0f} sequences/s")

    def epoch(self, row: EpochRow, settings: TrainerSettings) -> None:
        """Take note of an epoch: one line that stays."""
        validation = "" if row.validation is None else f"  validation NDCG@10 {row.validation:.4f}"
        self.say(
            f"  epoch {row.epoch}/{settings.epochs}  {_parts(row.parts)}{validation}"
            f"  {row.sequences_per_second:,.0f} sequences/s{self._left(row.epoch, settings.epochs)}"
        )

    def _left(self, epoch: int, epochs: int) -> str:
        """Say how long the other epochs take, from those seen; early stopping may end it sooner."""
        if epoch == epochs:
            return ""
        seconds = round((time.monotonic() - self._first_began) / (epoch - self._first_epoch + 1) * (epochs - epoch))
        return f"  at most {seconds // 60}:{seconds % 60:02} left"

    def _show(self, what: str, done: int, total: int, note: str) -> None:
        if not self.console.is_terminal:
            if time.monotonic() - self._spoke > _SILENCE and done < total:
                self._print(f"  {what}: {done:,}/{total:,}  {note}".rstrip())
            return
        if self._task is None or what != self._what:
            self._forget()
            self._task, self._what = self._bar.add_task(what, total=total, note=note), what
        self._bar.update(self._task, completed=done, total=total, note=note)

    def _forget(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def _print(self, text: str) -> None:
        self._spoke = time.monotonic()
        self.console.print(Text(text), soft_wrap=not self.console.is_terminal)


def _parts(parts: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in parts.items())
