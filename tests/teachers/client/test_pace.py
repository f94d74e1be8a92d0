"""How hard the API is asked."""

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recdistill.errors import TeacherError
from recdistill.teachers.answers import Failure, Outcome
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_records import Terms
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.teachers.meter import Pace
from recdistill.teachers.window import Window

from ..raw_api import Body, RawApi, response
from .paying import BUSY, GOOD, Paged, Paying, bearing, collect, histories, rows_asked


def test_the_window_halves_once_for_each_wave_and_grows_by_one_for_each_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    window = Window(8)
    assert [window.shrink(sent_at=9.0), window.shrink(sent_at=9.5), window.free(0)] == [True, False, 4]
    now[0] = 11.0
    assert [window.shrink(sent_at=10.5), window.free(1), window.free(5)] == [True, 1, 0]
    for _ in range(10 * 2):  # for ten rounds of two it stays as it is
        window.grow()
    assert (window.size, window.free(0)) == (2.0, 2)
    for _ in range(3):  # 2 + 1/2 + 1/2.5 + 1/2.9 is more than 3
        window.grow()
    assert window.free(0) == 3
    for _ in range(100):
        window.grow()
    assert window.free(0) == 8


class Interrupted(float):
    """A number at whose use another thread cuts in, and is given time to do its own."""

    def __new__(cls, number: float, cut_in: Callable[[], object]) -> "Interrupted":
        made = super().__new__(cls, number)
        made.cut_in = threading.Thread(target=cut_in)
        return made

    cut_in: threading.Thread

    def _interrupt(self) -> None:
        if self.cut_in.ident is None:
            self.cut_in.start()
            self.cut_in.join(0.2)

    def __add__(self, other: float) -> float:
        self._interrupt()
        return float(self) + other

    def __ge__(self, other: float) -> bool:
        self._interrupt()
        return float(self) >= other


def test_threads_that_are_refused_at_once_are_one_wave() -> None:
    """Each of them would halve the window, down to one call at a time for a single burst of refusals."""
    window = Window(8)
    window._shrunk_at = last = Interrupted(-1.0, lambda: window.shrink(sent_at=0.0))
    assert window.shrink(sent_at=0.0)
    last.cut_in.join()
    assert window.free(0) == 4


def test_no_success_is_lost_between_threads() -> None:
    window = Window(8)
    window.size = size = Interrupted(4.0, window.grow)
    window.grow()
    size.cut_in.join()
    assert window.size == 4.25 + 1 / 4.25


def test_what_is_too_much_while_others_get_through_is_no_attempt(api: RawApi) -> None:
    """The API bears one call at once, and refuses any other, of which none is lost for that.

    The first refusals come while it has not answered anybody yet.
    """
    api.answer = bearing(1, seconds=0.02)
    teacher = Paying(Paged(api.url), concurrency=32, attempts=2)
    assert len(teacher.rank(histories(80), 1)) == 80
    assert teacher.client.calls["429"] < 32 + 16 + 8 + 4 + 2 + 80 // 10


def test_what_is_always_too_much_is_not_sent_for_ever(api: RawApi) -> None:
    """One question is, while all others are answered."""
    api.answer = lambda body: BUSY if body["rows"] == [0] else [0.005, GOOD]
    outcomes: list[Outcome] = []
    collect(Paying(Paged(api.url), concurrency=2, attempts=2, dead_after=0.3, longest_wait=0.01), 300, outcomes)
    assert [request.row for request, outcome in outcomes if isinstance(outcome, Failure)] == [0]
    assert len(outcomes) == 300


def test_the_window_never_closes() -> None:
    window = Window(4)
    for sent_at in range(10):
        window._shrunk_at = -math.inf
        window.shrink(sent_at=float(sent_at))
    assert window.free(0) == 1


def test_an_api_that_bears_less_is_asked_less_at_once(api: RawApi) -> None:
    """It bears two calls at once; of the first eight, six are too much, then the window finds out.

    Eight at once to the end would be three hundred refusals.
    """
    api.answer = bearing(2, seconds=0.01)
    teacher = Paying(Paged(api.url), concurrency=8)
    assert len(teacher.rank(histories(100), 1)) == 100
    assert teacher.client.calls["answered"] == 100
    assert teacher.client.calls["429"] < 120
    assert teacher.client.window.free(0) < 8


def test_one_refusal_holds_all_requests(api: RawApi) -> None:
    api.answer = lambda body: response(b"", "429 Too Many Requests", Retry_After="0.4") if len(api.asked) == 3 else GOOD
    Paying(Paged(api.url), concurrency=2).rank(histories(20), 1)
    gaps = [later - earlier for earlier, later in zip(api.times[2:], api.times[3:], strict=False)]
    assert max(gaps) >= 0.35
    assert sum(gap > 0.3 for gap in gaps) == 1


def test_the_rate_is_kept_after_a_wait_that_the_api_asked_for(api: RawApi) -> None:
    """Those whose turns came meanwhile take new ones, instead of going all at once when it is over."""
    api.answer = lambda body: response(b"", "429 Too Many Requests", Retry_After="0.3") if len(api.asked) == 1 else GOOD
    Paying(Paged(api.url), rate=20, concurrency=8).rank(histories(8), 1)
    held = [time for time in api.times if time - api.times[0] >= 0.25]
    assert len(api.times) == 9
    assert len(held) >= 4, "few went before the refusal was read"
    assert held[-1] - held[0] >= 0.9 * (len(held) - 1) / 20


def test_threads_share_one_rate(api: RawApi) -> None:
    teacher = Paying(Paged(api.url), rate=50)
    threads = [threading.Thread(target=teacher.rank, args=(histories(5), 1)) for _ in range(4)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(api.asked) == 20
    assert time.monotonic() - start >= 19 / 50


def test_threads_share_the_places_of_calls_in_flight(api: RawApi) -> None:
    in_flight, most = [0], [0]

    def count(body: Body) -> Iterator[bytes | float]:
        in_flight[0] += 1
        most[0] = max(most[0], in_flight[0])
        yield 0.01
        in_flight[0] -= 1
        yield GOOD

    api.answer = count
    teacher = Paying(Paged(api.url), concurrency=2)
    threads = [threading.Thread(target=teacher.rank, args=(histories(5), 1)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(api.asked), most[0]) == (20, 2)


def test_what_waits_long_for_its_turn_is_not_taken_for_lost(
    api: RawApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two labelling runs share a slow rate; each keeps what it has booked."""
    monkeypatch.setattr("recdistill.teachers.liveness.STALE", 0.3)
    monkeypatch.setattr("recdistill.teachers.ledger_session._RENEWED", 0.05)

    def label() -> None:
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            LedgerTeacher(Paying(Paged(api.url), rate=20, concurrency=6), ledger).rank(histories(12), 1)

    threads = [threading.Thread(target=label) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows_asked(api) == list(range(12))


def test_turns_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pace = Pace()
    assert [pace.turn(0.125) for _ in range(3)] == [0.0, 0.125, 0.25]
    assert [pace.turn(0.125) for _ in range(2)] == [0.375, 0.375], "too far off to be given to anybody"
    now[0] = 103.0
    pace.hold(5.0)
    assert (pace.held(), pace.turn(0.125)) == (5.0, 5.0)
    now[0] = 108.0
    assert (pace.held(), pace.turn(0.125), pace.turn(0.125)) == (0.0, 0.0, 0.125)
    now[0] = 120.0
    assert (pace.held(), pace.turn(2.0)) == (0.0, 0.0)


def test_processes_share_turns_and_waits_by_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two openings of one file stand for two processes."""
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    with Ledger(tmp_path / "ledger.sqlite") as one, Ledger(tmp_path / "ledger.sqlite") as two:
        page = one.page("api", 10, 0)
        assert [asked.turn(page, 0.125) for asked in (one, two, one)] == [0.0, 0.125, 0.25]
        assert [asked.turn(page, 0.125) for asked in (two, two)] == [0.375, 0.375]
        two.hold(page, 60.0)
        one.hold(page, 5.0)  # a shorter wait takes nothing from a longer one
        assert one.held(page) == 60.0
        assert one.turn(page, 0.125) == 60.0
        assert two.turn(page, 0.0) == 60.0  # without a rate as well


def test_turns_and_waits_are_forgotten_where_the_clock_is_set_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a clock that was a year ahead for a minute would keep everybody waiting for a year."""
    now = [2e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    page = ledger.page("api", 1, 0)
    ledger.book(page, [b"first"], Terms())
    ledger.turn(page, 60.0)
    ledger.hold(page, 30.0)
    ledger.book(page, [b"second"], Terms())
    assert ledger.held(page) == 30.0
    now[0] = 1e9
    ledger.book(page, [b"third"], Terms())
    assert (ledger.held(page), ledger.turn(page, 60.0)) == (0.0, 0.0)
    assert ledger.turn(page, 60.0) == 60.0


def test_whoever_is_stopped_leaves_no_turns_behind(api: RawApi, ledger: Ledger) -> None:
    """A rate that was set too low is set right: nobody waits for the turns of those who were stopped meanwhile."""
    api.answer = lambda body: response(b"", "401 Unauthorized")
    with pytest.raises(TeacherError, match="401"):
        LedgerTeacher(Paying(Paged(api.url), rate=1 / 60), ledger).rank(histories(8), 1)
    api.answer = lambda body: GOOD
    start = time.monotonic()
    LedgerTeacher(Paying(Paged(api.url), rate=50), ledger).rank(histories(8), 1)
    assert time.monotonic() - start < 10


def test_a_slow_rate_says_what_it_waits_for(
    api: RawApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("recdistill.teachers.client._LONG", 0.2)
    with caplog.at_level(logging.WARNING, logger="recdistill.teachers"):
        Paying(Paged(api.url), rate=2).rank(histories(2), 1)
    assert re.findall(r"the next call waits \d s for its turn", caplog.text)
