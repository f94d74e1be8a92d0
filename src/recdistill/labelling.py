"""Asking an API whatever a run will want to know, and planning that: no training, no evaluation."""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recdistill.arrays import Ints
from recdistill.data.dataset import Sequences
from recdistill.data.splits import Split
from recdistill.errors import SettingsError
from recdistill.methods.base import Method, Setting, default_method
from recdistill.methods.believing import Belief
from recdistill.methods.opinion import SecondOpinionConfig, rules_beside, weigh_answers
from recdistill.rankings import Ranking
from recdistill.runs.data import load_same_split, load_split
from recdistill.runs.execute import ask_about_test
from recdistill.runs.file import Run
from recdistill.runs.folder import alone, claim, note
from recdistill.runs.learning import set_up_run
from recdistill.runs.reports import Report
from recdistill.runs.sections import TeacherSettings
from recdistill.runs.teachers import keep_answers, open_teacher
from recdistill.teachers.answers import Answer, Outcome
from recdistill.teachers.base import Deputy, Teacher
from recdistill.teachers.http import HttpTeacher
from recdistill.teachers.ledger_records import Stats
from recdistill.teachers.ledger_teacher import LedgerTeacher

_REFRESH = 0.1
"""Least seconds between two reports of progress."""
_ROUNDING = 1 + 1e-9
"""How much more a sum of parts of a call may seem to be."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a run would ask, and what that takes."""

    questions: int
    """Different ones, over all that the method asks."""
    calls: Ints
    """``(m,)`` how many calls each takes that the ledger has no answer to, in the order in which they are asked: of a
    session exactly, of a list in pages at most, and together with others where a call carries several."""
    shares: npt.NDArray[np.float64]
    """``(m,)`` its part of each of these calls, which carry ``batch_size`` questions but for the last of those that are
    asked together."""
    depth: int
    """Length of the lists that most questions ask for."""
    batch_size: int
    """Most questions in one call."""
    stats: Stats
    """What was spent before."""
    concurrency: int
    rate: float | None
    """Most calls a second."""
    seconds_each: float | None
    """From booking a question to its answer, as measured before; ``None`` without any answer."""
    promised: int = 0
    """What other rounds of the same API, which are asked before, take from the same budget."""
    refused: int = 0
    """Questions that the API refused for good before, and that are not asked again."""
    guessed: bool = False
    """Whether what is still asked depends on answers that are not there yet, so that other questions may come up."""

    @property
    def missing(self) -> int:
        """How many questions the ledger has no answer to."""
        return len(self.calls)

    @property
    def costs(self) -> npt.NDArray[np.float64]:
        """``(m,)`` what each missing answer costs, in what the budget counts."""
        told = {"queries": np.ones_like(self.calls), "calls": self.calls * self.shares, "rows": self.calls}
        return self._measured(told[self.stats.charge], self.stats.spent)

    @property
    def affordable(self) -> int:
        """How many of the missing answers the budget buys."""
        if self.left is None:
            return self.missing
        return int(np.searchsorted(np.cumsum(self.costs), self.left * _ROUNDING, side="right"))

    @property
    def left(self) -> int | None:
        """What the budget allows by the time that these are asked; ``None`` where there is none."""
        return None if self.stats.left is None else max(0, self.stats.left - self.promised)

    @property
    def seconds(self) -> float | None:
        """How long these take; ``None`` while nothing was measured and no rate is set."""
        n, at_once = self.affordable, self.concurrency * self.batch_size
        calls = float(self._measured(self.calls * self.shares, self.stats.calls)[:n].sum())
        by_rate = 0.0 if self.rate is None else calls / self.rate
        by_latency = 0.0 if self.seconds_each is None else n * self.seconds_each / at_once
        return max(by_rate, by_latency) or (0.0 if not n else None)

    def _measured(self, told: npt.NDArray[np.number], total: int) -> npt.NDArray[np.float64]:
        """Return what answers took before, on average; before the first, or where they differ, what is told of each."""
        if not self.stats.answers or (self.calls != self.calls[:1]).any():
            return told.astype(np.float64)
        return np.full(len(told), total / self.stats.answers)


def plan(run: Run, folder: Path) -> list[Plan]:
    """Find out what a run would ask each of its APIs, and ask nothing.

    Test cases come first, then the method is led through its questions by made-up answers. One whose questions depend
    on the answers is given those of the ledger, as far as they go, and may ask others in earnest from there on.

    Raises:
        SettingsError: when the run has no teacher behind an API, or what it has does not fit.
    """
    settings = _teacher_of(run)
    split = load_split(run)
    teacher = open_teacher(settings, split)
    run = run.by_default(default_method(teacher))
    _, method, setting = set_up_run(run, split, teacher)
    with ExitStack() as ledgers, tempfile.TemporaryDirectory() as nowhere:
        asked = keep_answers(settings, teacher, folder, ledgers, instead=Path(nowhere))
        return _plan(run, split, method, replace(setting, teacher=asked))


@dataclass(frozen=True, slots=True)
class Labelled:
    """What asking has brought."""

    stats: list[Stats]
    """What each API was asked and what was spent on it, before included."""
    belief: Belief | None
    """How far the answers are to be believed against the logs, told from validation cases; ``None`` where fewer than a
    hundred of these were among the questions, as where they are asked about other histories than training reads.
    """
    least_share: float
    """Of rules in each answer, if they have any: see `SecondOpinionConfig`."""


def label(run: Run, folder: Path, report: Report, *, told: Callable[[list[Plan]], None]) -> Labelled:
    """Ask what a run's method will want to know, so that training later finds it in the ledger.

    Args:
        run: whose data, method and teacher.
        folder: the run's; the run itself may go on there.
        report: who is told how it goes.
        told: is given the plan for each API before anything is asked.

    Raises:
        SettingsError: when the run has no teacher behind an API, or what it has does not fit.
        ArtefactError: when another process is using the folder.
        TeacherError: when the API refuses the key, or seems dead; what was bought is in the ledger.
    """
    settings = _teacher_of(run)
    claim(folder, run)
    split = load_same_split(run, folder, report)
    teacher = open_teacher(settings, split)
    run = run.by_default(default_method(teacher))
    claim(folder, run)
    _, method, setting = set_up_run(run, split, teacher)
    with ExitStack() as held:
        held.enter_context(alone(folder))
        note(folder, run, split.dataset)
        teacher = keep_answers(settings, teacher, folder, held)
        setting = replace(setting, teacher=teacher)
        before, keepers = _plan(run, split, method, setting), _keepers(teacher)
        told(before)
        watch = _Watch(keepers, sum(each.affordable for each in before), report)
        for keeper in keepers:
            keeper.watch = watch
        ask_about_test(run, split, teacher)
        method.prepare(setting)
        watch.end()
        least = method.config.least_share if isinstance(method.config, SecondOpinionConfig) else 0.0
        belief = _believe(split, method, setting, before[0].depth)
        return Labelled([keeper.stats() for keeper in keepers], belief, least)


def _believe(split: Split, method: Method, setting: Setting, k: int) -> Belief | None:
    """Weigh what was answered about validation cases against the logs, if the method can; nothing is asked."""
    teacher = setting.teacher
    assert teacher is not None, "somebody was asked"
    if not isinstance(method.config, SecondOpinionConfig) or setting.train.lengths.max() < 2:  # no rules of one item
        return None
    asked = [keeper.has(split.valid.histories, k, users=split.valid.users) for keeper in _keepers(teacher)]
    cases = split.valid.take(np.flatnonzero(np.all(asked, axis=0)))
    answers = teacher.rank(cases.histories, k, users=cases.users)
    return weigh_answers(answers, rules_beside(teacher, setting), cases, n_items=split.dataset.n_items)


class _Watch:
    """Tells of progress, spend, rate, errors by class and time left, each time that something was settled."""

    def __init__(self, keepers: Sequence[LedgerTeacher], total: int, report: Report) -> None:
        self.keepers = keepers
        self.total = total
        self.report = report
        self.answered = 0
        self.began = self.told = time.monotonic()

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        self.answered += sum(isinstance(outcome, Answer) for _, outcome in outcomes)
        now = time.monotonic()
        if now - self.told >= _REFRESH:
            self.told = now
            self.report.preparing("labelling", self.answered, max(self.total, self.answered + 1), self._note(now))

    def end(self) -> None:
        """Say how much was answered; the total was a guess, where the budget counts more than answers."""
        if self.answered:
            self.report.preparing("labelling", self.answered, self.answered)

    def _note(self, now: float) -> str:
        rate = self.answered / max(now - self.began, 1e-9)
        left = max(0, self.total - self.answered) / rate if rate else math.inf
        spent = {
            keeper.identity: f"{keeper.ledger.spent(keeper.identity):,} {keeper.charge}" for keeper in self.keepers
        }
        parts = [f"spent {' and '.join(spent.values())}", f"{rate:,.0f}/s"]
        clients = [keeper.teacher.client for keeper in self.keepers if isinstance(keeper.teacher, HttpTeacher)]
        calls = sum((client.calls for client in clients), Counter[str]())
        parts += [f"{kind} ×{n:,}" for kind, n in sorted(calls.items()) if n and kind != "answered"]
        return "  ".join([*parts, f"{duration(left)} left"])


class _Rehearsal(Deputy):
    """Notes what a teacher would be asked, and makes answers up: all, or those alone that are not known."""

    def __init__(self, keeper: LedgerTeacher, questions_in_a_call: int, *, recalls: bool) -> None:
        super().__init__(keeper)
        self.keeper = keeper
        self.questions_in_a_call = questions_in_a_call
        self.recalls = recalls
        self.lengths: Counter[int] = Counter()
        """How many questions ask for lists of which length."""
        self.asked: dict[bytes, set[int]] = {}
        """How long a list each question is asked for, but for what a longer one contains."""
        self.calls: dict[tuple[int, bytes], tuple[int, float]] = {}
        """How many calls each of them takes that is missing, and its share of each."""
        self.refused: set[tuple[int, bytes]] = set()

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        """Return the first items of the catalogue, where the ledger has no answer, or none is needed."""
        known = self.keeper.look_up(histories, k, users=users)
        self.lengths[k] += len(known.asked)
        depth = self.keeper.depth(k)
        longer = {question for question in known.asked if depth > max(self.asked.get(question, ()), default=0)}
        for question in longer:
            self.asked.setdefault(question, set()).add(depth)
        self.refused |= {(depth, question) for question in longer & known.refused}
        together = [question for question in known.missing if question in longer]
        full, rest = divmod(len(together), self.questions_in_a_call)
        shares = [1 / self.questions_in_a_call] * (full * self.questions_in_a_call) + [1 / max(rest, 1)] * rest
        self.calls |= {
            (depth, question): (self.keeper.calls(known.missing[question], k), share)
            for question, share in zip(together, shares, strict=True)
        }
        items = np.tile(np.arange(1, k + 1, dtype=np.int32), (len(histories), 1))
        scores = -items.astype(np.float32) if self.gives_scores else None
        if self.recalls:
            rows = np.flatnonzero(self.keeper.has(histories, k, users=users))
            told = self.keeper.rank(histories.take(rows), k, users=None if users is None else users[rows])
            items[rows] = told.items
            if scores is not None and told.scores is not None:
                scores[rows] = told.scores
        return Ranking(items, scores)


def _plan(run: Run, split: Split, method: Method, setting: Setting) -> list[Plan]:
    """Lead a method through its questions; an API answers from its ledger, or makes it up."""
    teacher = setting.teacher
    assert teacher is not None, "there is somebody to ask"
    keepers = zip(_keepers(teacher), run.apis, strict=True)
    rehearsals = [
        _Rehearsal(keeper, settings.batch_size, recalls=method.follows_answers) for keeper, settings in keepers
    ]
    waiting = iter(rehearsals)
    rehearsed = teacher.with_members(
        [next(waiting) if isinstance(member, LedgerTeacher) else member for member in teacher.members]
    )
    ask_about_test(run, split, rehearsed)
    method.prepare(replace(setting, teacher=rehearsed, valid=None))  # made-up answers are not weighed
    plans: list[Plan] = []
    for rehearsal, settings in zip(rehearsals, run.apis, strict=True):
        keeper = rehearsal.keeper
        rounds = [made for made, other in zip(plans, rehearsals, strict=False) if other.keeper.shares_budget(keeper)]
        plans.append(
            Plan(
                questions=sum(map(len, rehearsal.asked.values())),
                calls=np.array([calls for calls, _ in rehearsal.calls.values()], np.int64),
                shares=np.array([share for _, share in rehearsal.calls.values()], np.float64),
                depth=rehearsal.lengths.most_common(1)[0][0] if rehearsal.asked else 0,
                batch_size=settings.batch_size,
                stats=keeper.stats(),
                concurrency=settings.concurrency,
                rate=settings.rate,
                seconds_each=keeper.ledger.seconds_each(keeper.identity),
                promised=sum(math.ceil(made.costs[: made.affordable].sum()) for made in rounds),
                refused=len(rehearsal.refused),
                guessed=bool(rehearsal.calls) and method.follows_answers,
            )
        )
    return plans


def _keepers(teacher: Teacher) -> list[LedgerTeacher]:
    """Return the teachers whose answers are kept, in the order of the APIs that a run names."""
    return [member for member in teacher.members if isinstance(member, LedgerTeacher)]


def _teacher_of(run: Run) -> TeacherSettings:
    if run.teacher is None or not run.apis:
        raise SettingsError('only an API is probed, and this run has none: add [teacher] with kind = "http"')
    return run.teacher


def duration(seconds: float) -> str:
    """Write a time as hours, minutes and seconds.

    >>> duration(75), duration(7384), duration(math.inf)
    ('1:15', '2:03:04', '?')
    """
    if math.isinf(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
