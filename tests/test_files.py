"""Files that are there whole or not at all."""

import os
from pathlib import Path

import numpy as np
import pytest

from recdistill.evaluation.results import Evaluation
from recdistill.files import replacing, write_whole


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_a_file_is_as_open_as_the_user_lets_files_be(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_a_write_that_is_killed_leaves_one_file_that_the_next_one_replaces(tmp_path: Path) -> None:
    killed = [replacing(tmp_path / "file") for _ in range(2)]
    for writing in killed:  # none of which comes to its end
        writing.__enter__().write_bytes(b"half, and longer than what comes next")
    assert [path.name for path in tmp_path.iterdir()] == [".file.partial"]
    write_whole(tmp_path / "file", b"whole")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"whole"}


def test_what_cannot_be_written_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError("no space left")

    write_whole(tmp_path / "file", b"old")
    none = np.zeros(0, np.int64)
    evaluation = Evaluation(none, none.astype(np.int32), np.zeros(1, np.int64), none.astype(np.int32), 3, (1,), "")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(tmp_path / "file", b"new")
    with pytest.raises(OSError, match="no space left"):
        evaluation.save(tmp_path / "evaluation.npz")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}
