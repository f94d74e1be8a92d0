"""The main job on real data: a shop's recommender is only reachable as an API; a small model learns from its answers.

Everything is a plain run, in a folder that ``evaluate``, ``compare`` and ``recommend`` read. There are two rounds, cut
in two ways. Leave-one-out mostly asks for the rest of a basket of which the history shows a part; last basket asks for
the next visit, which is harder and closer to what a shop wants.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from recdistill.consoles import result_console
from recdistill.data.splits import Split
from recdistill.errors import TeacherError
from recdistill.evaluation.footprint import footprint
from recdistill.runs.data import load_split
from recdistill.runs.execute import Result, run_distillation, run_training
from recdistill.runs.file import Run
from recdistill.runs.reports import Report
from recdistill.runs.sections import Values
from recdistill.serving.artefact import CARD, WEIGHTS, find
from recdistill.serving.student import Student
from recdistill.tables import comparison_table, difference_table, size_and_speed_table

TEACHER, FIRST, LABELS, KD, BAHSD = "teacher", "first-stage", "labels", "kd", "bahsd"


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings of the demo's runs; its own test makes them smaller.

    Every student is trained alike but for its method: the same model, and two stages. The first, purchases alone, is
    trained once for all of them; in the second each goes on at a falling rate, with answers or without. Histories are
    shortened there for all, so that BAHSD's own views would be a second way to the same.
    """

    protocols: tuple[str, ...] = ("leave-one-out", "last-basket")
    data: Values = field(default_factory=lambda: {"path": "shop"})
    teacher: Values = field(default_factory=lambda: {"name": "sasrec", "dim": 64, "n_blocks": 2, "max_len": 50})
    student: Values = field(default_factory=lambda: {"name": "sasrec", "dim": 16, "n_blocks": 1, "max_len": 50})
    teacher_training: Values = field(
        default_factory=lambda: {"epochs": 14, "patience": 3, "batch_size": 64, "learning_rate": 3e-3}
    )
    first_stage: Values = field(
        default_factory=lambda: {"epochs": 8, "patience": 3, "batch_size": 64, "learning_rate": 1e-2}
    )
    second_stage: Values = field(
        default_factory=lambda: {
            "epochs": 12,
            "patience": 12,
            "batch_size": 64,
            "learning_rate": 1e-2,
            "schedule": "cosine",
            "shorten": 0.5,
        }
    )
    budget: int = 12_000
    """Queries that may be spent on the teacher in each round."""
    customers: int = 3
    """For how many the lists are shown."""


def run_demo(folder: Path, report: Report, plan: Plan | None = None) -> None:
    """Run what is not finished yet, then print what came out."""
    plan = plan or Plan()
    began = time.monotonic()
    rounds = {protocol: _round(folder / protocol, protocol, plan, report) for protocol in plan.protocols}
    console = result_console()
    for protocol, results in rounds.items():
        _print_round(console, protocol, results, plan.budget)
    last = rounds[plan.protocols[-1]]
    split = load_split(last[BAHSD].run)
    _print_cost(console, last, split)
    _print_customers(console, last, split, plan.customers)
    first = folder / plan.protocols[0]
    console.print(f"\nThis took {time.monotonic() - began:.0f} s. All runs are in {folder}; go on with, for example:")
    console.print(f"  recdistill compare {first / TEACHER} {first / LABELS} {first / KD} {first / BAHSD}")
    console.print(f"  recdistill evaluate {first / BAHSD}")
    console.print(f"  recdistill recommend {first / BAHSD} --history 183,181,23 -k 5")


def _round(folder: Path, protocol: str, plan: Plan, report: Report) -> dict[str, Result]:
    """Train the teacher, serve it, and train the three students."""
    common = {"data": plan.data, "split": {"protocol": protocol}}
    report.say(f"{protocol}: the shop's own model, the teacher")
    teacher = run_training(
        Run.parse(common | {"model": plan.teacher, "training": plan.teacher_training}), folder / TEACHER, report
    )

    results = {TEACHER: teacher}
    report.say(f"{protocol}: a student, first from the shop's purchases alone")
    first = Run.parse(common | {"student": plan.student, "training": plan.first_stage})
    start = {"start": str(run_training(first, folder / FIRST, report).folder)}
    student = common | {"student": plan.student | start, "training": plan.second_stage}
    with serve(teacher.folder, report) as url:
        api = {
            "kind": "http",
            "url": url,
            "identity": _identity(teacher.folder),
            "budget": plan.budget,
            "ledger": str(folder / "ledger.sqlite"),
        }
        report.say(f"{protocol}: the student goes on by BAHSD, with the API's answers and the purchases")
        run = Run.parse(student | {"method": {"name": BAHSD, "view_weight": 0}, "teacher": api})
        results[BAHSD] = run_distillation(run, folder / BAHSD, report)
        report.say(f"{protocol}: or by uniform distillation, with answers that are already paid for")
        run = Run.parse(student | {"method": {"name": KD}, "teacher": api})
        results[KD] = run_distillation(run, folder / KD, report)
    report.say(f"{protocol}: or with purchases alone")
    results[LABELS] = run_training(Run.parse(student), folder / LABELS, report)
    return {name: results[name] for name in (TEACHER, LABELS, KD, BAHSD)}


@contextmanager
def serve(folder: Path, report: Report) -> Iterator[str]:
    """Serve a run's model from a process of its own, as an API that gives lists only; yields where it listens.

    Raises:
        TeacherError: when it does not start.
    """
    command = [sys.executable, "-m", "recdistill.serving.blackbox", "--student", str(find(folder)), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().strip() if server.stdout is not None else ""
            if not url:
                raise TeacherError(f"the API did not start: `{' '.join(command)}` ended with {server.wait()}")
            report.say(f"  serving it at {url}: histories in, product numbers out, nothing else")
            yield url
        finally:
            server.terminate()


def _identity(folder: Path) -> str:
    """Name the teacher by its weights: retrained, it is another one, whose answers are not those in the ledger."""
    card = json.loads((find(folder) / CARD).read_text(encoding="utf-8"))
    return f"demo teacher {card['sha256'][WEIGHTS][:12]}"


def _print_round(console: Console, protocol: str, results: Mapping[str, Result], budget: int) -> None:
    strata = {name: result.strata() for name, result in results.items()}
    facts = results[BAHSD].facts
    _heading(console, protocol)
    console.print(f"{facts['protocol']}; full ranking over {results[BAHSD].evaluation.n_items:,} products")
    for stratum in ("head", "tail"):
        console.print(f"{stratum}: {facts['strata'][stratum]}")
    console.print(f"queries spent: {facts['queries'][0]['spent']:,} of {budget:,} allowed\n")
    for metric in ("ndcg", "hr"):
        console.print(comparison_table(strata, metric, 10))
        console.print()
    for pair in ((LABELS, KD, BAHSD), (KD, BAHSD)):
        console.print(difference_table({name: strata[name] for name in pair}, "ndcg", 10))
        console.print()


def _heading(console: Console, text: str) -> None:
    console.print(f"\n{text}\n{'─' * len(text)}", style="bold")


def _print_cost(console: Console, results: Mapping[str, Result], split: Split) -> None:
    rows = [
        {"model": name, **asdict(footprint(Student.load(results[run].folder).model, split.test))}
        for name, run in (("teacher", TEACHER), ("student", BAHSD))
    ]
    _heading(console, "size and speed")
    console.print(size_and_speed_table(rows))


def _print_customers(console: Console, results: Mapping[str, Result], split: Split, n: int) -> None:
    """Show customers with a short, a middling and a long history, and what both models would offer them."""
    teacher, student = (Student.load(results[name].folder) for name in (TEACHER, BAHSD))
    dataset, cases = split.dataset, split.test
    by_length = np.argsort(cases.histories.lengths, kind="stable")
    for place in np.linspace(0.1, 0.9, n):
        case = int(by_length[int(place * (len(by_length) - 1))])
        history, bought = cases.histories[case], set(dataset.items.decode(cases.targets[case]))
        _heading(console, f"customer {dataset.users.decode([cases.users[case]])[0]}")
        recent = "; ".join(dataset.title(int(item)) for item in reversed(history[-5:]))
        console.print(f"bought {len(history):,} products, the newest first: {recent}{' …' if len(history) > 5 else ''}")
        table = Table(box=None, pad_edge=False)
        for column in ("", "teacher", "student (BAHSD)"):
            table.add_column(column)
        raw = [dataset.items.decode(history)]
        lists = [model.recommend(raw, 5)[0] for model in (teacher, student)]
        for rank, pair in enumerate(zip(*lists, strict=True), 1):
            table.add_row(str(rank), *(f"{entry.title}{' ✓' if entry.item in bought else ''}" for entry in pair))
        console.print(table)
    console.print("✓ marks what the customer really bought next.")
