"""One ledger, several threads and processes, some of which are killed."""

import os
import signal
import string
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from werkzeug import Response

from recdistill.data.dataset import IdMap, Sequences
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher

from ..conftest import Api


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


LETTERS = IdMap(list(string.ascii_lowercase), first=1)
LABELLER = """
import string, sys
import numpy as np
from werkzeug import Response

from recdistill.data.dataset import IdMap, Sequences
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher

url, path, charge, n, concurrency, budget = *sys.argv[1:4], *map(int, sys.argv[4:])
ids = IdMap(list(string.ascii_lowercase), first=1)
rows = Sequences.from_lists([[row // 26 + 1, row % 26 + 1] for row in range(n)])
with Ledger(path) as ledger:
    teacher = HttpTeacher(ids, url=url, identity="api", concurrency=concurrency, charge=charge, first_wait=0.01)
    keeper = LedgerTeacher(teacher, ledger, budget=budget)
    print(int(keeper.rank_within_budget(rows, 1)[1].sum()))
"""


def label(
    api: Api, path: Path, n: int, concurrency: int, budget: int, charge: str = "queries"
) -> subprocess.Popen[str]:
    """Start a process that labels the first n two-letter histories."""
    arguments = [api.url, str(path), charge, str(n), str(concurrency), str(budget)]
    return subprocess.Popen([sys.executable, "-c", LABELLER, *arguments], stdout=subprocess.PIPE, text=True)


def asked(api: Api) -> Counter[str]:
    return Counter("".join(body["history"]) for body in api.asked)


def slowly(body: dict[str, Any]) -> dict[str, Any]:
    time.sleep(0.01)
    return Api.next_letters(body)


def test_a_killed_process_is_resumed_and_nothing_it_kept_is_asked_again(api: Api, path: Path) -> None:
    killed = threading.Event()

    def kill_at_60(body: dict[str, Any]) -> dict[str, Any]:
        if len(api.asked) >= 60 and not killed.is_set():
            killed.set()
            first.send_signal(signal.SIGKILL)
        return slowly(body)

    api.answer = kill_at_60
    with label(api, path, 100, 4, 1000) as first:
        assert first.wait(60) == -signal.SIGKILL
    with Ledger(path) as ledger:
        kept = ledger.stats("api").answers
    assert 50 <= kept < 100
    with label(api, path, 100, 4, 1000) as second:
        out, _ = second.communicate(timeout=60)
    assert out == "100\n"
    with Ledger(path) as ledger:
        stats = ledger.stats("api")
    assert stats.answers == 100
    assert stats.lost <= 4  # no more than were in flight
    assert stats.spent == 100 + stats.lost
    assert len(asked(api)) == 100
    assert asked(api).total() <= stats.spent


def test_processes_share_one_budget_and_ask_nothing_twice(api: Api, path: Path) -> None:
    api.answer = slowly
    with label(api, path, 100, 4, 60) as first, label(api, path, 100, 4, 60) as second:
        outs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert outs == ["60\n", "60\n"]
    assert asked(api).total() == len(asked(api)) == 60


def test_processes_share_one_budget_of_calls(api: Api, path: Path) -> None:
    """Each fifth call has to be sent again, which costs as well: of 60 calls, 48 are answers."""
    api.answer = lambda body: Response("busy", 500) if len(api.asked) % 5 == 0 else slowly(body)
    with label(api, path, 100, 4, 60, "calls") as first, label(api, path, 100, 4, 60, "calls") as second:
        assert first.wait(60) == second.wait(60) == 0
    with Ledger(path) as ledger:
        stats = ledger.stats("api")
    assert (stats.spent, len(api.asked)) == (60, 60)
    assert stats.answers == 48


def hold(api: Api) -> tuple[threading.Event, threading.Event]:
    """Let the API keep its callers waiting; return what says that one has come, and what lets them go on."""
    arrived, go_on = threading.Event(), threading.Event()

    def held(body: dict[str, Any]) -> dict[str, Any]:
        arrived.set()
        go_on.wait(30)
        return Api.next_letters(body)

    api.answer = held
    return arrived, go_on


def test_what_another_process_is_just_asking_is_waited_for(api: Api, path: Path) -> None:
    arrived, go_on = hold(api)
    with label(api, path, 1, 1, 10) as other, Ledger(path) as ledger:
        assert arrived.wait(60)
        teacher = HttpTeacher(LETTERS, url=api.url, identity="api")
        threading.Timer(0.3, go_on.set).start()
        ranking = LedgerTeacher(teacher, ledger).rank(Sequences.from_lists([[1, 1]]), 1)
        assert other.wait(60) == 0
    assert ranking.items.tolist() == [[2]]
    assert asked(api).total() == 1


def test_what_a_dead_process_was_asking_is_asked_again(api: Api, path: Path) -> None:
    arrived, go_on = hold(api)
    with label(api, path, 1, 1, 10) as other:
        assert arrived.wait(60)
        other.kill()
        other.wait()
    go_on.set()
    with Ledger(path) as ledger:
        keeper = LedgerTeacher(HttpTeacher(LETTERS, url=api.url, identity="api"), ledger)
        assert keeper.rank(Sequences.from_lists([[1, 1]]), 1).items.tolist() == [[2]]
        assert (keeper.stats().lost, keeper.stats().spent) == (1, 2)


def test_a_query_in_flight_for_too_long_is_taken_for_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hung process must not hold up the others for ever."""
    monkeypatch.setattr("recdistill.teachers.liveness.STALE", -1.0)
    with Ledger(path) as ours, Ledger(path) as hung:
        nested, rows = LedgerTeacher(FakeTeacher(9), ours), Sequences.from_lists([[1]])

        def rule(history: Any, k: int) -> list[int]:
            nested.rank(rows, 1)
            return [9]

        LedgerTeacher(FakeTeacher(9, rule), hung).rank(rows, 1)
        assert (nested.stats().lost, nested.stats().spent, nested.stats().answers) == (1, 2, 1)


@pytest.mark.parametrize("renewed", [0.02, 60.0])
def test_what_another_container_asks_is_its_own_as_long_as_it_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, renewed: float
) -> None:
    """Its processes cannot be seen from here: the same number is another one here, or none."""
    monkeypatch.setattr("recdistill.teachers.liveness.LEASE", 0.2)
    monkeypatch.setattr("recdistill.teachers.ledger_session._RENEWED", renewed)
    rows, ours = Sequences.from_lists([[1]]), FakeTeacher(9)
    started = threading.Event()

    def elsewhere() -> None:
        with monkeypatch.context() as there:
            there.setattr("recdistill.teachers.ledger.here", lambda: "another container")
            theirs = Ledger(path)

        def slowly(history: Any, k: int) -> list[int]:
            started.set()
            time.sleep(0.6)
            return [9]

        with theirs:
            LedgerTeacher(FakeTeacher(9, slowly), theirs).rank(rows, 1)

    with Ledger(path) as ledger, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(elsewhere)
        assert started.wait(60)
        keeper = LedgerTeacher(ours, ledger)
        keeper.rank(rows, 1)
        asking.result()
        lost = int(renewed > 1)
        assert (len(ours.asked), keeper.stats().lost, keeper.stats().spent) == (lost, lost, 1 + lost)


def test_ctrl_c_keeps_what_was_in_flight(api: Api, path: Path) -> None:
    once = threading.Lock()  # two calls at once may each be the twentieth, and a second Ctrl-C does not wait

    def interrupt_at_20(body: dict[str, Any]) -> dict[str, Any]:
        if len(api.asked) == 20 and once.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return Api.next_letters(body)

    api.answer = interrupt_at_20
    rows = Sequences.from_lists([[row // 26 + 1, row % 26 + 1] for row in range(100)])
    with Ledger(path) as ledger:
        keeper = LedgerTeacher(HttpTeacher(LETTERS, url=api.url, concurrency=4), ledger)
        with pytest.raises(KeyboardInterrupt):
            keeper.rank(rows, 1)
        assert keeper.stats().lost == 0
        assert 20 <= keeper.stats().answers == len(api.asked) < 100
        keeper.rank(rows, 1)
    assert asked(api).total() == 100


def test_many_threads_may_make_a_file_at_once(tmp_path: Path) -> None:
    """Some of them look at it while others have made half of it."""

    def make(n: int) -> int:
        with Ledger(tmp_path / f"{n // 8}.sqlite") as ledger:
            return ledger.page("fake", 1, 0).teacher

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(make, range(160))) == {1}


def test_many_processes_may_make_the_file_at_once(path: Path) -> None:
    code = "import sys; from recdistill.teachers.ledger import Ledger; Ledger(sys.argv[1]).close()"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
