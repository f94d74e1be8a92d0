"""Models of the library Cornac, as teachers through a function and behind Cornac's own HTTP server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cornac.data
import cornac.models
import numpy as np
import polars as pl
import pytest

import recdistill as rd
from recdistill.data.dataset import IdMap, RawId
from recdistill.errors import SettingsError
from recdistill.runs.execute import run_distillation
from recdistill.runs.file import Run
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher

from .conftest import Piece


@dataclass(frozen=True)
class Server:
    """Cornac's own server, in a process of its own."""

    url: str
    log: Path

    def statuses(self, user: str) -> list[int]:
        """Return what it answered each time that it was asked about a user, as its own log has it."""
        return [int(status) for status in re.findall(rf"GET /recommend\?uid={user}&.* (\d+) -", self.log.read_text())]

    def teacher(self, piece: Piece, users: IdMap) -> rd.HttpTeacher:
        values = {"server": self.url}
        return rd.HttpTeacher(piece.split.dataset.items, users=users, preset="cornac", values=values, first_wait=0.01)


@pytest.fixture(scope="module")
def server(piece: Piece, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A BPR, trained on the training part, saved, and served as Cornac's documentation says."""
    folder = tmp_path_factory.mktemp("cornac")
    bought = [(user, item, 1.0) for user, item in piece.pairs()]
    model = cornac.models.BPR(k=16, max_iter=100, learning_rate=0.05, lambda_reg=0.005, seed=0)
    model.fit(cornac.data.Dataset.from_uir(bought, seed=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to be closed by chance
        saved = model.save(str(folder), save_trainset=True)
    settings = {"MODEL_PATH": saved, "MODEL_CLASS": "cornac.models.BPR", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "flask", "--app", "cornac.serving.app", "run", "--port", "0"]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield Server(address(process, log), log)
    finally:
        process.terminate()
        process.wait(timeout=30)


def address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until a server says where it listens."""
    deadline = time.monotonic() + 60
    while (said := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"Cornac's server did not start:\n{log.read_text()}")
        time.sleep(0.05)
    return said[1]


def test_its_server_is_extracted_by_what_it_answers_about_users(piece: Piece, server: Server, tmp_path: Path) -> None:
    train, users = piece.split.train, piece.split.dataset.users
    teacher = server.teacher(piece, users)
    before = len(server.statuses(r"\w+"))
    student = piece.distill(teacher, tmp_path, budget=len(train))
    assert server.statuses(r"\w+")[before:] == [200] * len(train)  # each user once

    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        kept = LedgerTeacher(teacher, ledger)
        lists = kept.rank(train, piece.top_k, users=np.arange(len(train))).items
        stats = kept.stats()
    assert (stats.answers, stats.spent, stats.calls) == (len(train), len(train), len(train))
    piece.check(student, lists, train)


def test_a_run_file_is_enough_to_extract_its_server(piece: Piece, server: Server, tmp_path: Path) -> None:
    bought = pl.DataFrame(piece.pairs(), schema=["user_id", "item_id"], orient="row")
    bought.write_csv(tmp_path / "bought.csv")
    run = Run.parse(
        {
            "data": {"path": str(tmp_path / "bought.csv"), "time": ""},
            "student": {"name": "sasrec", "dim": 8, "n_blocks": 1, "max_len": 8},
            "method": {"name": "kd", "top_k": 10},
            "teacher": {"kind": "http", "preset": "cornac", "values": {"server": server.url}, "budget": 1000},
            "training": {"epochs": 1},
        }
    )
    result = run_distillation(run, tmp_path / "run")
    assert result.facts["queries"][0]["answers"] == len(piece.split.train)


def test_a_user_that_its_server_does_not_know_is_asked_about_once(piece: Piece, server: Server, tmp_path: Path) -> None:
    """It answers 500 with a page of HTML, which would be sent again if it were a passing error."""
    users = IdMap([*piece.split.dataset.users.raw[:2], "nobody"], first=0)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        teacher = LedgerTeacher(server.teacher(piece, users), ledger)
        _, answered = teacher.rank_within_budget(piece.split.train.take(slice(3)), 5, users=np.arange(3))
        stats = teacher.stats()
    assert answered.tolist() == [True, True, False]
    assert server.statuses("nobody") == [500]
    assert (stats.answers, stats.failures, stats.spent) == (2, 1, 2)


def test_its_server_cannot_be_probed(piece: Piece, server: Server, tmp_path: Path) -> None:
    """BAHSD asks about parts of a history, which a server that knows the user alone cannot be told."""
    before = len(server.statuses(r"\w+"))
    teacher = server.teacher(piece, piece.split.dataset.users)
    with pytest.raises(SettingsError, match="use method 'kd'"):
        rd.distill(teacher, piece.split, method=rd.BAHSD(), folder=tmp_path)
    assert len(server.statuses(r"\w+")) == before


def test_its_sasrec_answers_one_history_at_a_time(piece: Piece, tmp_path: Path) -> None:
    visits = [(user, user, item, time) for time, (user, item) in enumerate(piece.pairs())]
    model = cornac.models.SASRec(embedding_dim=32, num_blocks=1, max_len=20, n_epochs=4, n_sample=256, seed=0)
    model.fit(cornac.data.SequentialDataset.from_usit(visits, seed=0))

    def recommend(history: list[RawId], k: int) -> list[RawId]:
        seen = [model.iid_map[item] for item in history if item in model.iid_map]
        ranked, _ = model.rank(0, history_items=seen)
        return [model.item_ids[item] for item in ranked[~np.isin(ranked, seen)][:k]]

    items = piece.split.dataset.items
    teacher = rd.CallableTeacher(recommend, identity="cornac-sasrec", ids=items, batched=False)
    student = piece.distill(teacher, tmp_path, budget=len(piece.split.train))
    histories = piece.split.test.histories
    piece.check(student, teacher.rank(histories, 10).items, histories)
