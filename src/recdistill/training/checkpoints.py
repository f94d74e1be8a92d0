"""What a run leaves on disk, so that it can be taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from recdistill.errors import TrainingError
from recdistill.files import replacing

CHECKPOINT, METRICS = "checkpoint.pt", "metrics.jsonl"


class Store:
    """Checkpoint and metrics in a folder, each replaced in one instant."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / CHECKPOINT

    def load(self) -> dict[str, Any] | None:
        """Return what was saved last, if anything was.

        Raises:
            TrainingError: for a file that is no checkpoint.
        """
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a file that is not its own
            raise TrainingError(f"{self.path} cannot be read as a checkpoint; delete it to train anew") from error
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint.

        Raises:
            TrainingError: when the folder cannot be written; the last checkpoint stays.
        """
        self._replace(self.path, lambda path: torch.save(state, path))

    def write_metrics(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write a line of JSON an epoch."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self._replace(self.folder / METRICS, lambda path: path.write_text(text))

    def _replace(self, path: Path, write: Callable[[Path], object]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                write(partial)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise TrainingError(
                f"cannot write {path}: {error}. Free the disk or choose another folder; "
                "the last state that was written whole is kept."
            ) from error
