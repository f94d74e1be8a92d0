"""What tests of methods share: the passes that a student makes, and runs that are stopped and taken up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recdistill.models.base import Batch, Model
from recdistill.training.progress import Progress, Silent


def passes(transformer: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that from now on is told how many histories each pass reads."""
    read: list[int] = []
    pack: Any = transformer._pack

    def counted(histories: Batch) -> Any:
        read.append(len(histories))
        return pack(histories)

    monkeypatch.setattr(transformer, "_pack", counted)
    return read


class _Stop(Exception):
    pass


class _StopsInEpoch3(Silent):
    def step(self, epoch: int, step: int, n_steps: int, parts: dict[str, float], sequences_per_second: float) -> None:
        if epoch == 3:
            raise _Stop


def assert_stopping_changes_nothing(run: Callable[[Path | None, Progress], Mapping[str, Tensor]], folder: Path) -> None:
    """Stop a run of four epochs in its third, take it up again, and compare the weights that it returns in the end."""
    undisturbed = run(None, Silent())
    with pytest.raises(_Stop):
        run(folder, _StopsInEpoch3())
    for key, value in run(folder, Silent()).items():
        assert torch.equal(value, undisturbed[key]), key
