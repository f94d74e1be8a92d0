"""A ledger and its file."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from recdistill.teachers.ledger import Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as ledger:
        yield ledger
