"""A run reads the data that it names, cut as it says."""

from pathlib import Path

import numpy as np
import pytest

from recdistill.data.embedded import load_shop
from recdistill.errors import SettingsError
from recdistill.runs.data import load_dataset, load_split
from recdistill.runs.execute import evaluate_run, run_training
from recdistill.runs.file import Run
from recdistill.runs.folder import fingerprint

from .listener import Listener, Sections


def test_the_data_that_ship_are_filtered_like_a_file() -> None:
    whole = load_dataset(Run.parse({"data": {"path": "shop"}}))
    assert fingerprint(whole) == fingerprint(load_shop())
    kept = load_dataset(Run.parse({"data": {"path": "shop", "min_user": 5, "min_item": 40}}))
    assert kept.n_users < whole.n_users
    assert kept.sequences.lengths.min() >= 5
    assert np.bincount(kept.sequences.flat()[0])[1:].min() >= 40
    assert kept.title(1) == whole.title(int(whole.items.find([kept.items.raw[0]])[0]))
    assert kept.times is not None


def test_the_data_that_ship_are_not_read_like_a_file() -> None:
    """What would be passed over in silence."""
    with pytest.raises(SettingsError, match="and skip_bad_rows, user only say how a file is read; leave them out"):
        load_dataset(Run.parse({"data": {"path": "shop", "user": "customer", "skip_bad_rows": True}}))


def test_rows_that_are_left_out_are_told_and_counted(little_run: Sections, tmp_path: Path) -> None:
    clicks = tmp_path / "clicks.csv"
    clicks.write_text(Path(little_run["data"]["path"]).read_text() + "c0,,9999\n" * 7)
    listener = Listener()
    run = Run.parse(little_run | {"data": {"path": str(clicks), "skip_bad_rows": True}})
    result = run_training(run, tmp_path / "run", listener)
    said = listener.said[0]
    assert said.startswith("7 rows that cannot be used are left out: ")
    assert said.count("clicks.csv row 48") == 5
    assert "row 481 (line 482): column 'item_id'" in said
    assert said.endswith("; and 2 more")
    assert result.facts["skipped_rows"] == 7
    assert evaluate_run(tmp_path / "run").facts["skipped_rows"] == 7


@pytest.mark.parametrize("protocol", ["leave-one-out", "last-basket", "time-cut", "random"])
def test_every_protocol_can_be_asked_for(little_run: Sections, protocol: str) -> None:
    split = load_split(Run.parse(little_run | {"split": {"protocol": protocol, "mask_seen": False}}))
    assert split.protocol.startswith(protocol.replace("-basket", " basket").replace("-cut", " cut"))
    assert split.protocol.endswith("seen items not masked")
