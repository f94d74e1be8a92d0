"""What tests of runs share beside fixtures: who is told how a run goes, and an API that teaches."""

from typing import Any

from recdistill.runs.reports import Quiet
from recdistill.serving.blackbox import BlackBox
from recdistill.training.progress import EpochRow
from recdistill.training.settings import TrainerSettings

Sections = dict[str, Any]


class Listener(Quiet):
    """Remembers what it is told; stops the run after an epoch if asked to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.said: list[str] = []
        self.epochs: list[int] = []
        self.stop_after = stop_after

    def say(self, text: str) -> None:
        self.said.append(text)

    def epoch(self, row: EpochRow, settings: TrainerSettings) -> None:
        self.epochs.append(row.epoch)
        if row.epoch == self.stop_after:
            raise KeyboardInterrupt


def ask(box: BlackBox, **settings: Any) -> Sections:
    return {"teacher": {"kind": "http", "url": box.url, "identity": "little shop"} | settings, "method": {"top_k": 4}}
