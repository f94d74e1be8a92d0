"""How large a model is, and how fast it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass

from recdistill.data.splits import Cases
from recdistill.models.base import Model
from recdistill.models.scoring import top_k

_CASES = 1000
"""Cases that speed is measured on."""
_PASSES = 3
"""How often it is measured; other programs can only make a pass slower."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Size and speed of a model."""

    parameters: int
    """Number of trained values."""
    weight_bytes: int
    """What they take in memory."""
    users_per_second: float
    """For how many users a top 10 of all items is found in a second, on the machine at hand."""


def footprint(model: Model, cases: Cases) -> Footprint:
    """Measure a model on the first cases: the best of a few passes, after one that only warms up."""
    some = slice(0, _CASES)
    users, histories, masked = cases.users[some], cases.histories.take(some), cases.masked.take(some)
    seconds = []
    for _ in range(1 + _PASSES):
        began = time.perf_counter()
        top_k(model, histories, 10, masked, users=users)
        seconds.append(time.perf_counter() - began)
    return Footprint(
        parameters=sum(p.numel() for p in model.parameters()),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        users_per_second=len(users) / min(seconds[1:]),
    )
