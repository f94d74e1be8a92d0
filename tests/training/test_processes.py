"""Several processes that train one student."""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from recdistill.errors import SettingsError
from recdistill.runs.execute import Result, run_training
from recdistill.runs.file import Run
from recdistill.serving.student import Student
from recdistill.training.processes import announced, joined, one_after_the_first, wait

RUN = """
[data]
path = "{}"
[model]
name = "sasrec"
dim = 8
n_blocks = 1
max_len = 8
dropout = 0.0
precision = "fp32"
[method]
precision = "fp32"
[training]
epochs = 2
batch_size = 8
learning_rate = 0.01
"""


def test_one_process_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):  # without an address nothing is announced
        monkeypatch.setenv(name, "2")
    assert announced() == (0, 1)
    with joined("cpu"), one_after_the_first():
        wait()
    assert not torch.distributed.is_initialized()


def test_one_gpu_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    announcement = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in announcement.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=r"each of 2 processes needs a GPU of its own: set it to 'cuda'"):
        joined("cuda:0").__enter__()


def test_two_processes_train_one_student_in_one_folder(tmp_path: Path) -> None:
    """One process alone comes to the same student, which neither half of the batches would teach.

    Histories are equally long, so that the mean over two halves of a batch is that over the whole.
    """
    clicks = [(user, (user * 5 + step) % 12, step) for user in range(16) for step in range(6)]
    schema = ["user_id", "item_id", "timestamp"]
    pl.DataFrame(clicks, schema=schema, orient="row").write_csv(tmp_path / "clicks.csv")
    file = tmp_path / "run.toml"
    file.write_text(RUN.format(tmp_path / "clicks.csv"))
    launcher = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    ended = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "recdistill", "train", str(file), "--out", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("epoch 2/2") == 1
    assert ended.stdout.count("NDCG@10") == 1

    alone, both = run_training(Run.read(file), tmp_path / "one"), Result.load(tmp_path / "two")
    assert {path.name for path in both.folder.iterdir()} == {path.name for path in alone.folder.iterdir()}
    assert [result.facts["computed_with"][0]["processes"] for result in (alone, both)] == [1, 2]
    one, two = (Student.load(result.folder).model.item_embeddings() for result in (alone, both))
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)  # of which an epoch moves each by a hundredth or two
