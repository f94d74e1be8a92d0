"""A labelling run that is killed again and again loses nothing, and asks nothing twice that it has kept."""

import multiprocessing
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from recdistill.data.dataset import IdMap, Sequences
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher

from .raw_api import Body, RawApi, response

N_ITEMS, CONCURRENCY, N_QUERIES, N_KILLS = 20, 16, 20_000, 100


def label(url: str, path: Path) -> None:
    """Label every history, as a process of its own."""
    rows = [[1 + row // N_ITEMS**place % N_ITEMS for place in range(4)] for row in range(N_QUERIES)]
    with Ledger(path) as ledger:
        teacher = HttpTeacher(IdMap(list(range(N_ITEMS)), first=1), url=url, identity="api", concurrency=CONCURRENCY)
        LedgerTeacher(teacher, ledger, budget=2 * N_QUERIES).rank(Sequences.from_lists(rows), 1)


@pytest.fixture(scope="module")
def start() -> ForkServerContext:
    """Start processes from one that has imported everything, so that a run begins in milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["recdistill.teachers.http", "recdistill.teachers.ledger_teacher"])
    return context


def test_labelling_does_without_torch() -> None:
    """So that a process that only labels starts in half a second."""
    code = "import sys, recdistill.teachers.http, recdistill.teachers.ledger_teacher; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Killer:
    """An API that kills whoever asks it after some more answers."""

    def __init__(self, rng: random.Random, longest: int) -> None:
        self.rng = rng
        self.longest = longest
        self.left = 0
        self.due = threading.Event()
        self.answered: Counter[str] = Counter()

    def aim(self) -> None:
        """Choose the next instant."""
        self.due.clear()
        self.left = self.rng.randrange(self.longest)

    def answer(self, body: Body) -> bytes:
        """Answer, and let the axe fall when it is time."""
        self.answered[str(body["history"])] += 1
        self.left -= 1
        if self.left <= 0:
            self.due.set()
        return response({"items": [body["history"][-1]]})


def run_and_kill(start: ForkServerContext, path: Path) -> tuple[Killer, int]:
    """Label to the end, with kills on the way; returns the API and how often the axe fell before a run had ended."""
    killer = Killer(random.Random(0), longest=round(1.8 * N_QUERIES / N_KILLS))
    kills = 0
    with RawApi(killer.answer).serve() as api:
        for _ in range(N_KILLS):
            killer.aim()
            process = start.Process(target=label, args=(api.url, path))
            process.start()
            while process.is_alive() and not killer.due.wait(0.01):
                pass
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
        process = start.Process(target=label, args=(api.url, path))
        process.start()
        process.join()
        assert process.exitcode == 0
    return killer, kills


def test_killed_at_a_hundred_instants_every_query_is_answered_once(start: ForkServerContext, tmp_path: Path) -> None:
    """What was served beyond the ledger was in flight at a kill, and is booked as lost."""
    path = tmp_path / "ledger.sqlite"
    killer, kills = run_and_kill(start, path)
    assert kills == N_KILLS
    with Ledger(path) as ledger:
        stats = ledger.stats("api")
    db = sqlite3.connect(path)
    (kept, once) = db.execute("SELECT count(*), count(DISTINCT request) FROM answers").fetchone()
    db.close()
    assert kept == once == len(killer.answered) == stats.answers == N_QUERIES
    assert killer.answered.total() <= stats.spent == N_QUERIES + stats.lost
    assert stats.lost <= kills * CONCURRENCY
