import asyncio
import functools
import gc
import signal
import threading
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recdistill.data.dataset import IdMap, RawId, Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.teachers.answers import Answer, Failure, Outcome, Request, Take
from recdistill.teachers.callable import CallableTeacher
from recdistill.teachers.dispatcher import interrupts_postponed
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher

IDS = IdMap(["a", "b", "c"], first=1)
HISTORIES = Sequences.from_lists([[1], [2, 3]])


def returning(value: Any, **settings: Any) -> CallableTeacher:
    return CallableTeacher(lambda histories, k: value, identity="mine", ids=IDS, **settings)


def handing_out(teacher: CallableTeacher, n: int) -> Take:
    """Hand out requests about a history of ``a``, n times."""
    waiting = iter(teacher.requests(Sequences.from_lists([[1]] * n)))
    return lambda most: list(islice(waiting, most))


def told(blocks: Iterable[list[Outcome]]) -> list[list[RawId] | str]:
    """Items of each answer, and why there is none."""
    return [
        outcome.items if isinstance(outcome, Answer) else outcome.reason for block in blocks for _, outcome in block
    ]


class Shift:
    """An asynchronous function that answers ``b``; each call goes on until ``crew`` of them are at work."""

    def __init__(self, crew: int = 1) -> None:
        self.crew = crew
        self.at_work = self.most_at_work = self.calls = 0
        self.loops: set[asyncio.AbstractEventLoop] = set()

    async def __call__(self, history: list[RawId], k: int) -> list[str]:
        self.loops.add(asyncio.get_running_loop())
        self.calls += 1
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        while self.most_at_work < self.crew:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.at_work -= 1
        return ["b"]


def test_the_function_is_given_raw_ids_and_k() -> None:
    given = []

    def fn(histories: list[list[int | str]], k: int) -> list[list[str]]:
        given.append((histories, k))
        return [["b"], ["a"]]

    ranking = CallableTeacher(fn, identity="mine", ids=IDS).rank(HISTORIES, 2)
    assert given == [([["a"], ["b", "c"]], 2)]
    assert ranking.items.tolist() == [[2, 0], [1, 0]]


def test_without_ids_the_function_speaks_dense_ids_and_zero_is_padding() -> None:
    teacher = CallableTeacher(lambda histories, k: np.array([[2, 3], [1, 0]]), identity="mine", n_items=3)
    assert teacher.rank(HISTORIES, 2).items.tolist() == [[2, 3], [1, 0]]
    assert not teacher.dropped.total()


def test_a_dense_id_outside_the_items_is_unknown() -> None:
    teacher = CallableTeacher(lambda histories, k: [[4, 2], [-1, "a", 1]], identity="mine", n_items=3)
    assert teacher.rank(HISTORIES, 3).items.tolist() == [[2, 0, 0], [1, 0, 0]]
    assert teacher.dropped["unknown"] == 3


def test_the_function_is_given_at_most_a_batch_at_a_time() -> None:
    sizes = []

    def fn(histories: list[list[int | str]], k: int) -> list[list[str]]:
        sizes.append(len(histories))
        return [["a"]] * len(histories)

    CallableTeacher(fn, identity="mine", ids=IDS, batch_size=2).rank(Sequences.from_lists([[2]] * 5), 1)
    assert sizes == [2, 2, 1]


def test_scores_come_with_the_lists() -> None:
    ranking = returning(([["b"], ["a"]], [[0.5], [2]]), gives_scores=True).rank(HISTORIES, 1)
    assert ranking.scores is not None
    assert ranking.scores.tolist() == [[0.5], [2.0]]


def test_tensors_are_taken_as_lists() -> None:
    value = (torch.tensor([[2, 3], [1, 1]]), torch.tensor([[2.0, 1.0], [4.0, 3.0]]))
    teacher = CallableTeacher(lambda histories, k: value, identity="mine", n_items=3, gives_scores=True)
    assert teacher.rank(HISTORIES, 2).items.tolist() == [[2, 3], [1, 0]]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([["b"]], "returned 1 lists for 2 histories"),
        ([["b"], ["a", "b", "c"]], "returned 3 items for a top-2 request"),
        (None, "must return lists, but returned a NoneType"),
        (["b", "a"], "a list for each history, but one is 'b'"),
        ([["b"], [None]], "integers or strings, but one is None"),
        (([["b"], ["a"]], [[1.0], [1.0]]), "set gives_scores to true"),
    ],
)
def test_what_was_not_agreed_is_refused(value: Any, what: str) -> None:
    with pytest.raises(TeacherError, match=f"'mine'.*{what}"):
        returning(value).rank(HISTORIES, 2)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([["b"], ["a"]], r"must return \(lists, scores\), but returned a list"),
        (([["b"], ["a"]], [[1.0]]), "returned 1 rows of scores for 2 histories"),
        (([["b"], ["a"]], [[1.0], [float("nan")]]), "finite"),
        (([["b"], ["a"]], None), "must return rows of scores, but returned a NoneType"),
    ],
)
def test_scores_that_were_not_agreed_are_refused(value: Any, what: str) -> None:
    with pytest.raises(TeacherError, match=f"'mine'.*{what}"):
        returning(value, gives_scores=True).rank(HISTORIES, 2)


def test_what_the_function_raises_is_named() -> None:
    def fn(histories: list[list[int | str]], k: int) -> None:
        raise KeyError("model")

    with pytest.raises(TeacherError, match=r"'mine' raised KeyError when asked about 2 histories: 'model'"):
        CallableTeacher(fn, identity="mine", ids=IDS).rank(HISTORIES, 1)


@pytest.mark.parametrize("settings", [{}, {"ids": IDS, "n_items": 3}])
def test_it_must_be_said_which_ids_the_function_speaks(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="give either ids"):
        CallableTeacher(lambda histories, k: [], identity="mine", **settings)


def test_a_function_may_answer_one_history_at_a_time() -> None:
    given = []

    def fn(history: list[RawId], k: int) -> list[str]:
        given.append((history, k))
        return ["a", "b", "c"][:k]

    ranking = CallableTeacher(fn, identity="mine", ids=IDS, batched=False).rank(HISTORIES, 2)
    assert given == [(["a"], 2), (["b", "c"], 2)]
    assert ranking.items.tolist() == [[2, 0], [1, 0]]  # what is in the history is dropped


def test_one_history_at_a_time_with_scores() -> None:
    ranking = returning((["c"], np.array([0.5])), batched=False, gives_scores=True).rank(HISTORIES.take(slice(1)), 1)
    assert ranking.scores is not None
    assert (ranking.items.tolist(), ranking.scores.tolist()) == ([[3]], [[0.5]])


@pytest.mark.parametrize(("batched", "expected"), [(True, [["bob", "ann"]]), (False, ["bob", "ann"])])
def test_a_function_may_take_users(batched: bool, expected: list[Any]) -> None:
    given = []

    def fn(who: Any, k: int) -> Any:
        given.append(who)
        return [["c"], ["a"]] if batched else ["c"]

    users = IdMap(["ann", "bob"], first=0)
    teacher = CallableTeacher(fn, identity="mine", ids=IDS, takes="user", users=users, batched=batched)
    teacher.rank(HISTORIES, 1, users=np.array([1, 0]))
    assert given == expected


def test_a_failed_call_about_one_history_is_that_ones_failure(tmp_path: Path) -> None:
    """The others are answered and kept; asked again, the failed one alone is asked."""
    given = []

    def fn(history: list[RawId], k: int) -> list[str]:
        given.append(history)
        if given == [["a"], ["b"]]:
            raise ConnectionError("gone")
        return ["c"]

    teacher = CallableTeacher(fn, identity="mine", ids=IDS, batched=False, exclude_history=False)
    histories = Sequences.from_lists([[1], [2], [3]])
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        kept = LedgerTeacher(teacher, ledger)
        with pytest.raises(TeacherError, match="'mine' raised ConnectionError when asked about 1 history: gone"):
            kept.rank(histories, 1)
        assert kept.rank(histories, 1).items.tolist() == [[3], [3], [3]]
    assert given == [["a"], ["b"], ["c"], ["b"]]


@pytest.mark.parametrize("returned", [None, "b", ["b", None], ["a", "b", "c"], ([["b"]], [[1.0]])])
def test_one_answer_that_was_not_agreed_is_a_failure(returned: Any) -> None:
    answers = iter([returned, ["b"]])
    teacher = CallableTeacher(lambda history, k: next(answers), identity="mine", ids=IDS, batched=False)
    reason, items = told(teacher.answers(handing_out(teacher, 2), 2))
    assert str(reason).startswith("teacher 'mine'")
    assert items == ["b"]


def test_failed_calls_in_a_row_end_the_walk() -> None:
    calls = []

    def fn(history: list[RawId], k: int) -> list[str]:
        calls.append(history)
        if len(calls) == 3:
            return ["b"]
        raise KeyError("model")

    teacher = CallableTeacher(fn, identity="mine", ids=IDS, batched=False, give_up_after=3)
    blocks: list[list[Outcome]] = []
    with pytest.raises(
        TeacherError, match=r"gave up after 3 failed calls in a row \(give_up_after\).*'model'"
    ) as error:
        blocks.extend(teacher.answers(handing_out(teacher, 9), 1))
    assert len(told(blocks)) == len(calls) == 6  # two, then an answer, then three in a row
    assert isinstance(error.value.__cause__, KeyError)


def test_a_failed_batch_stops_the_asking() -> None:
    calls = []

    def fn(histories: list[list[RawId]], k: int) -> None:
        calls.append(histories)
        raise KeyError("model")

    teacher = CallableTeacher(fn, identity="mine", ids=IDS, batch_size=2)
    with pytest.raises(TeacherError):
        list(teacher.answers(handing_out(teacher, 6), 1))
    assert len(calls) == 1


async def coroutine_function(history: list[RawId], k: int) -> list[str]:
    return ["b"]


@pytest.mark.parametrize(
    "fn", [coroutine_function, functools.partial(coroutine_function), Shift()], ids=["function", "partial", "object"]
)
def test_an_asynchronous_function_is_awaited(fn: Any) -> None:
    teacher = CallableTeacher(fn, identity="mine", ids=IDS, batched=False)
    assert teacher.rank(Sequences.from_lists([[1], [3]]), 1).items.tolist() == [[2], [2]]


def test_a_function_that_hides_an_asynchronous_one_is_refused() -> None:
    teacher = CallableTeacher(lambda histories, k: coroutine_function([], k), identity="mine", ids=IDS)
    with pytest.raises(TeacherError, match="returned a coroutine; give the async function itself"):
        teacher.rank(HISTORIES, 1)


def test_asynchronous_calls_run_at_once_up_to_the_limit() -> None:
    shift = Shift(crew=3)
    teacher = CallableTeacher(shift, identity="mine", ids=IDS, batched=False, concurrency=3)
    teacher.rank(Sequences.from_lists([[1]] * 8), 1)
    assert (shift.most_at_work, shift.calls) == (3, 8)


def test_asynchronous_batches_run_at_once() -> None:
    sizes = []
    together = asyncio.Barrier(2)

    async def fn(histories: list[list[RawId]], k: int) -> list[list[str]]:
        sizes.append(len(histories))
        await together.wait()
        return [["b"]] * len(histories)

    teacher = CallableTeacher(fn, identity="mine", ids=IDS, batch_size=3, concurrency=2)
    assert teacher.rank(Sequences.from_lists([[1]] * 5), 1).items.tolist() == [[2]] * 5
    assert sizes == [3, 2]


def test_no_more_is_taken_than_can_be_asked_at_once() -> None:
    """What is taken is booked as spent."""
    teacher = CallableTeacher(Shift(), identity="mine", ids=IDS, batched=False, concurrency=3)
    hand_out, taken = handing_out(teacher, 5), 0

    def take(most: int) -> list[Request]:
        nonlocal taken
        requests = hand_out(most)
        taken += len(requests)
        return requests

    answered = 0
    for block in teacher.answers(take, 1):
        assert taken - answered <= 3
        answered += len(block)
    assert answered == 5


def test_what_is_in_flight_when_a_batch_fails_is_still_yielded() -> None:
    """It has been paid for."""

    async def fn(histories: list[list[RawId]], k: int) -> list[list[str]]:
        if histories == [["a"]]:
            raise KeyError("model")
        for _ in range(3):
            await asyncio.sleep(0)
        return [["a"]]

    teacher = CallableTeacher(fn, identity="mine", ids=IDS, batch_size=1, concurrency=2)
    waiting = iter(teacher.requests(Sequences.from_lists([[1], [2], [3]])))
    blocks: list[list[Outcome]] = []
    with pytest.raises(TeacherError, match="'model'"):
        blocks.extend(teacher.answers(lambda n: list(islice(waiting, n)), 1))
    assert told(blocks)[1:] == [["a"]]
    assert [request.history for request in waiting] == [["c"]]


def test_a_function_that_is_cancelled_from_within_fails_and_spoils_no_other() -> None:
    """As where a library of the function's cancels what takes too long."""

    async def fn(history: list[RawId], k: int) -> list[RawId]:
        if history == ["a"]:
            raise asyncio.CancelledError
        await asyncio.sleep(0.01)
        return ["b"]

    teacher = CallableTeacher(fn, identity="mine", ids=IDS, batched=False, concurrency=2)
    waiting = iter(teacher.requests(Sequences.from_lists([[1], [2]])))
    failed, answered = told(teacher.answers(lambda n: list(islice(waiting, n)), 1))
    assert "raised CancelledError when asked about 1 history" in failed
    assert answered == ["b"]


def test_on_ctrl_c_what_is_in_flight_is_still_yielded() -> None:
    async def fn(history: list[RawId], k: int) -> list[RawId]:
        if history == ["a"]:
            signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0)
        return ["b"]

    teacher = CallableTeacher(fn, identity="mine", ids=IDS, batched=False, concurrency=2)
    waiting = iter(teacher.requests(Sequences.from_lists([[1], [2], [3]])))
    blocks: list[list[Outcome]] = []
    with pytest.raises(KeyboardInterrupt):
        blocks.extend(teacher.answers(lambda n: list(islice(waiting, n)), 1))
    assert told(blocks) == [["b"], ["b"]]
    assert [request.history for request in waiting] == [["c"]]


def test_ctrl_c_while_an_answer_is_written_down_waits_until_it_is() -> None:
    teacher = returning([["b"]], batch_size=1)
    waiting = iter(teacher.requests(Sequences.from_lists([[1], [2], [3]])))
    blocks: list[list[Outcome]] = []

    def write_down() -> None:
        for block in teacher.answers(lambda n: list(islice(waiting, n)), 1):
            signal.raise_signal(signal.SIGINT)
            blocks.append(block)

    with pytest.raises(KeyboardInterrupt):
        write_down()
    assert told(blocks) == [["b"]]
    assert [request.history for request in waiting] == [["b"], ["c"]]


def test_a_second_ctrl_c_does_not_wait() -> None:
    reached = []

    def write_down() -> None:
        with interrupts_postponed():
            for which in ("first", "second"):
                signal.raise_signal(signal.SIGINT)
                reached.append(which)

    with pytest.raises(KeyboardInterrupt):
        write_down()
    assert reached == ["first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_in_flight_is_still_yielded_when_no_more_can_be_taken() -> None:
    """A ledger that cannot book any more may still be able to keep what was bought."""
    refused = asyncio.Event()

    async def fn(history: list[RawId], k: int) -> list[str]:
        if history == ["c"]:
            await refused.wait()
        return ["b"]

    teacher = CallableTeacher(fn, identity="mine", ids=IDS, batched=False, concurrency=2)
    waiting = teacher.requests(HISTORIES.newest(1))

    def take(most: int) -> list[Request]:
        if not waiting:
            refused.set()
            raise OSError("disk full")
        return [waiting.pop() for _ in range(most)]

    blocks: list[list[Outcome]] = []
    with pytest.raises(OSError, match="disk full"):
        blocks.extend(teacher.answers(take, 1))
    assert told(blocks) == [["b"], ["b"]]


def test_what_is_in_flight_is_cancelled_when_nobody_listens_any_more() -> None:
    cancelled = []

    async def fn(history: list[RawId], k: int) -> list[str]:
        if history == ["b"]:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(history)
                raise
        return ["c"]

    teacher = CallableTeacher(fn, identity="mine", ids=IDS, batched=False, concurrency=2)
    waiting = iter(teacher.requests(Sequences.from_lists([[1], [2]])))
    for _ in teacher.answers(lambda n: list(islice(waiting, n)), 1):
        break
    assert cancelled == [["b"]]


def test_all_calls_run_on_one_loop_wherever_they_come_from() -> None:
    """Connections that a function keeps open belong to the loop on which they were made."""
    shift = Shift()
    teacher = CallableTeacher(shift, identity="mine", ids=IDS, batched=False)

    async def cell() -> None:
        teacher.rank(HISTORIES, 1)  # as in a notebook, whose own loop is running

    teacher.rank(HISTORIES, 1)
    asyncio.run(cell())
    threads = [threading.Thread(target=teacher.rank, args=(HISTORIES, 1)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(shift.loops), shift.calls) == (1, 8)


def test_the_loop_ends_with_its_teacher() -> None:
    shift = Shift()
    teacher = CallableTeacher(shift, identity="mine", ids=IDS, batched=False)
    teacher.rank(HISTORIES, 1)
    del teacher
    gc.collect()
    assert [loop.is_closed() for loop in shift.loops] == [True]


def test_calls_that_failed_in_an_earlier_run_do_not_end_the_next() -> None:
    """They are all that is left to ask."""

    def fn(history: list[str], k: int) -> list[str]:
        if history == ["b"]:
            raise KeyError("model")
        return ["a"]

    teacher = CallableTeacher(fn, identity="mine", ids=IDS, batched=False, give_up_after=1)
    waiting = iter([Request(0, ["b"], failed_before=True), Request(1, ["c"]), Request(2, ["b"])])
    asking = teacher.answers(lambda n: list(islice(waiting, n)), 1)
    assert [type(outcome) for block in islice(asking, 3) for _, outcome in block] == [Failure, Answer, Failure]
    with pytest.raises(TeacherError, match="gave up after 1 failed calls"):
        next(asking)


@pytest.mark.parametrize("name", ["batch_size", "concurrency", "give_up_after"])
def test_settings_that_would_ask_nothing_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"'mine': {name} is 0; it must be at least 1"):
        returning([], **{name: 0})
