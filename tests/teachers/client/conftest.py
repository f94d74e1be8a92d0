"""An API that answers everything, and a ledger."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from recdistill.teachers.ledger import Ledger

from ..raw_api import RawApi
from .paying import GOOD


@pytest.fixture
def api() -> Iterator[RawApi]:
    with RawApi(lambda body: GOOD).serve() as api:
        yield api


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger
