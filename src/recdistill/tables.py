"""Results as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from recdistill.consoles import result_console
from recdistill.errors import SettingsError
from recdistill.evaluation.results import Evaluation
from recdistill.evaluation.results import compare as compare_pair
from recdistill.evaluation.significance import bootstrap_interval
from recdistill.runs.execute import Result
from recdistill.serving.student import Recommendation

_NAMES = {"hr": "HR", "ndcg": "NDCG", "mrr": "MRR", "recall": "Recall"}
_STRATA = ("all", "head", "tail")


def print_result(result: Result, *, every_stratum: bool = False) -> None:
    """Print what one run reached, and where its student is."""
    console = result_console()
    parts = result.strata()
    table = Table(box=None, pad_edge=False)
    table.add_column("", style="bold")
    table.add_column("users", justify="right")
    figures = [("ndcg", 10), ("hr", 10), ("recall", 20), ("mrr", 10)]
    for metric, k in figures:
        table.add_column(f"{_NAMES[metric]}@{k}", justify="right")
    for name in parts if every_stratum else _STRATA:
        if (part := parts.get(name)) is not None:
            cells = [f"{part.mean(metric, k):.4f}" for metric, k in figures]
            table.add_row(name, f"{part.n_users:,}", *cells)
    console.print(f"\n{result.facts['protocol']}; full ranking over {result.evaluation.n_items:,} items\n")
    console.print(table)
    _print_cuts(console, result)
    if unknown := result.facts.get("unknown_users"):
        console.print(
            f"{unknown:,} of the users have no training interaction: {result.run.student.name} lists nothing for them"
        )
    if masked := result.facts.get("masked_targets"):
        console.print(
            f"{masked:,} of {result.facts['targets']:,} test targets are in their own history, which is masked: no "
            "model finds them (split.mask_seen)"
        )
    console.print(_cost(result))
    if asked := result.facts.get("beside_teacher"):
        _print_beside(console, asked)
    if rows := result.facts.get("side_by_side"):  # runs of earlier versions have none
        console.print()
        console.print(size_and_speed_table(rows))
    console.print(f"student: {result.folder / 'student'}", soft_wrap=True)


def print_comparison(results: Sequence[Result], *, metrics: Sequence[str], k: int) -> None:
    """Print runs side by side, and the test of each against the first.

    Raises:
        DataError: when they were not evaluated on the same cases.
        SettingsError: for an unknown metric.
    """
    console = result_console()
    named = dict(zip(names(results), results, strict=True))
    strata = {name: result.strata() for name, result in named.items()}
    console.print(f"{results[0].facts['protocol']}; full ranking over {results[0].evaluation.n_items:,} items")
    _print_cuts(console, results[0])
    for metric in metrics:
        console.print()
        console.print(comparison_table(strata, metric, k))
        if len(results) > 1:
            console.print()
            console.print(difference_table(strata, metric, k))
    console.print()
    for name, result in named.items():
        console.print(f"{name}: {_cost(result)}")


def comparison_table(runs: Mapping[str, Mapping[str, Evaluation]], metric: str, k: int) -> Table:
    """One row a run, one column a stratum: the mean with its 95 % interval over users."""
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{_label(metric)}@{k}", style="bold")
    for stratum in _STRATA:
        table.add_column(f"{stratum} [95 % interval]", justify="right")
    for name, parts in runs.items():
        table.add_row(name, *(_interval(parts.get(stratum), metric, k) for stratum in _STRATA))
    return table


def difference_table(runs: Mapping[str, Mapping[str, Evaluation]], metric: str, k: int) -> Table:
    """Each run but the first against the first, by stratum: gain, its 95 % interval, p of the paired test."""
    first, *others = runs
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{_label(metric)}@{k}, against {first}", style="bold")
    table.add_column("users")
    for heading in ("difference", "95 % interval", "p, paired by user"):
        table.add_column(heading, justify="right")
    for name in others:
        for stratum in _STRATA:
            if stratum in runs[name] and stratum in runs[first]:
                found = compare_pair(runs[name][stratum], runs[first][stratum], metric, k)
                interval = f"[{found.low:+.4f}, {found.high:+.4f}]"
                gain = _gain(found.difference, found.second)
                table.add_row(name, stratum, gain, interval, f"{found.p_value:.4f}")
    return table


def _gain(difference: float, base: float) -> str:
    """Return a difference, and how much that is of what it is over: ``-0.0024 (-5.7 %)``."""
    return f"{difference:+.4f}" + (f" ({100 * difference / base:+.1f} %)" if base else "")


def beside_table(rows: Sequence[Mapping[str, Any]], k: int) -> Table:
    """Teacher and student on the test cases that the teacher answered: a row for each metric and stratum.

    Args:
        rows: as `recdistill.evaluation.beside.beside` gives them.
        k: length of the lists that are looked at.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("", style="bold")
    table.add_column("users")
    for heading in ("teacher", "student", "difference", "95 % interval", "p, paired by user", f"agreement@{k}"):
        table.add_column(heading, justify="right")
    for row in (row for row in rows if row["k"] == k):
        table.add_row(
            f"{_label(row['metric'])}@{k}",
            f"{row['stratum']}, {row['users']:,}",
            *(f"{row[name]:.4f}" for name in ("teacher", "student")),
            _gain(row["difference"], row["teacher"]),
            f"[{row['low']:+.4f}, {row['high']:+.4f}]",
            f"{row['p']:.4f}",
            f"{row['agreement']:.3f}",
        )
    return table


def size_and_speed_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One row a model, or file of scores: how large it is, and how many users it answers in a second.

    Args:
        rows: as `recdistill.runs.teachers.side_by_side` gives them.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("", style="bold")
    for heading in ("parameters", "MB of weights", "users/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        if "seconds_an_answer" in row:
            table.add_row(row["model"], "-", "-", f"{1000 * row['seconds_an_answer']:,.0f} ms an answer")
        elif "file_bytes" in row:
            table.add_row(row["model"], "-", f"{row['file_bytes'] / 1e6:,.2f} in files", "-")
        else:
            size = (f"{row['parameters']:,}", f"{row['weight_bytes'] / 1e6:,.2f}")
            table.add_row(row["model"], *size, f"{row['users_per_second']:,.0f}")
    return table


def names(results: Sequence[Result]) -> list[str]:
    """Name each run by as much of its path as tells it from the others.

    Raises:
        SettingsError: when a run is given twice.
    """
    paths = [result.folder.resolve().parts for result in results]
    for depth in range(1, max(map(len, paths), default=0) + 1):
        short = ["/".join(path[-depth:]) for path in paths]
        if len(set(short)) == len(short):
            return short
    raise SettingsError("the same run is given twice")


def print_recommendations(recommendations: Sequence[Recommendation]) -> None:
    """Print one list, best first."""
    table = Table(box=None, pad_edge=False)
    table.add_column("item", justify="right", style="bold")
    table.add_column("score", justify="right")
    table.add_column("title")
    for item, score, title in recommendations:
        table.add_row(str(item), f"{score:.3f}", title or "")
    result_console().print(table)


def _interval(part: Evaluation | None, metric: str, k: int) -> str:
    if part is None:
        return "-"
    low, high = bootstrap_interval(part.values(metric, k)[:, None], part.users)
    return f"{part.mean(metric, k):.4f} [{low[0]:.4f}, {high[0]:.4f}]"


def _print_beside(console: Console, asked: Mapping[str, Any]) -> None:
    """Print what the teacher reached on test cases beside the student, or that it answered none of them."""
    said = f"the teacher was asked about {asked['asked']:,} test cases and answered {asked['answered']:,}"
    console.print(f"\n{said}{', on which:' if asked['rows'] else ''}\n")
    if rows := asked["rows"]:
        ks = sorted({row["k"] for row in rows})
        console.print(beside_table(rows, 10 if 10 in ks else ks[-1]))


def _print_cuts(console: Console, result: Result) -> None:
    for stratum in ("head", "tail"):
        console.print(f"{stratum}: {result.facts['strata'][stratum]}", style="dim")


def _cost(result: Result) -> str:
    facts, training = result.facts, result.run.training
    best = f"the best was {facts['best_epoch']}" if facts["best_epoch"] else "none as good as its start, which it is"
    if facts["best_epoch"] == training.epochs and training.schedule == "constant":
        best += ", its last: with more (training.epochs) it may get better"
    epochs = "1 epoch" if facts["epochs"] == 1 else f"{facts['epochs']} epochs"
    text = f"{facts['parameters']:,} parameters; {epochs}, {best}; {facts['training_seconds']:.0f} s of training"
    spent = [f"{asked['spent']:,} {asked['charge']} spent" for asked in facts["queries"]]
    return "; ".join([text, *spent, *_opinion(facts), *_start(result)])


def _opinion(facts: Mapping[str, Any]) -> list[str]:
    """Return how much of each answer is of rules, where that was chosen, and by what."""
    if (found := facts.get("second_opinion")) is None:
        return []
    share, ndcg = f"{found['share']:g}", found["ndcg_10"]
    teacher = f"on {found['cases']:,} validation cases the teacher's lists have an NDCG@10 of {ndcg['0']:.4f}"
    if share == "0":
        return [f"{teacher}, to which rules add nothing"]
    return [f"{share} of each answer is of rules: {teacher}, {ndcg[share]:.4f} with them"]


def _start(result: Result) -> list[str]:
    """Return what the student started from, if anything, and what came of it on validation cases."""
    if result.run.start is None:
        return []
    before, after = (result.facts.get(f"{when}_validation_ndcg_10") for when in ("start", "best"))
    course = "" if before is None else f", validation NDCG@10 {before:.4f}, now {after:.4f}"
    return [f"started from {result.run.start}{course}"]


def _label(metric: str) -> str:
    return _NAMES.get(metric, metric)
