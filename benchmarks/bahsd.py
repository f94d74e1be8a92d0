"""Is BAHSD the best way to use a black box's answers? The core table, the ablation and the side tables.

A row is one student: a data set, a teacher, the student's own architecture, whether it sees labels (assisted) or
answers alone (pure), lists or scores, a method and a seed (``bahsd_rows``). Teachers are trained to convergence by the
recipes of ``quality``. So are students that see labels, on these alone; then they go on at a falling rate, with answers
or, for a fair comparison, without. Methods' settings were chosen on validation items (``--search``, rows in
``bahsd_search.csv``), and the test cases are looked at once. Rows are on disk as soon as they are known; ``--compare``
makes the paired tests of what is there.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from benchmarks.bahsd_rivals import rivals
from benchmarks.bahsd_rows import OPINION, RULES, SEEDS, TABLES, Row
from benchmarks.comparisons import Kept, renew
from benchmarks.experiments import (
    EARLIER,
    Values,
    by_stratum,
    chosen,
    figures,
    grid,
    one_earlier,
    record,
    search_figures,
    search_key,
    table_parser,
    train,
)
from benchmarks.results import FOLDER, QUALITY, ResultTable

from recdistill.data.benchmark_data import load_benchmark
from recdistill.data.splits import Split, leave_one_out
from recdistill.evaluation.fidelity import agreement
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.results import Evaluation
from recdistill.models.base import Model
from recdistill.runs.file import Run
from recdistill.runs.teachers import local_teacher
from recdistill.serving.student import Student
from recdistill.teachers.base import Teacher
from recdistill.teachers.ensemble import EnsembleTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.teachers.rules import RulesTeacher

RESULTS, SEARCH, PAIRED = (FOLDER / f"bahsd{part}.csv" for part in ("", "_search", "_paired"))
KEPT = Kept.of("bahsd")
"""The rank of every test target by every student, for the paired tests."""


def main() -> None:
    """Run the rows of a table whose name contains ``--only``, search among settings, or compare what is there."""
    parser = table_parser(__doc__, TABLES, seeds=SEEDS, example="amazon-beauty/sasrec/sasrec/pure")
    arguments = parser.parse_args()
    rows = chosen(TABLES, arguments)
    if arguments.compare:
        compare()
    elif arguments.search is not None:
        for row, changes in itertools.product(rows, grid(arguments.search)):
            search(row, changes)
    else:
        for row in rows:
            measure(row)


def measure(row: Row) -> None:
    """Train one student and write its figures on the test cases, if they are not written yet."""
    results = ResultTable(RESULTS, QUALITY)
    if results.already_done(**row.key):
        return
    split = leave_one_out(load_benchmark(row.dataset))
    found, reference, minutes = _compared(row, {}, split)
    KEPT.keep(found, row)
    fidelity = _fidelity(found, reference, split)
    record(results, row.key, itertools.chain(figures(found, split), fidelity), minutes=minutes)
    print(f"== {row.name}: test NDCG@10 {found.mean('ndcg', 10):.4f}", flush=True)


def search(row: Row, changes: Values) -> None:
    """Train with other settings as of one item ago, and write the figures on the validation items."""
    results = ResultTable(SEARCH, QUALITY)
    key = search_key(row.key, changes, cases="one earlier")
    if results.already_done(**key):
        return
    split = one_earlier(load_benchmark(row.dataset))
    found, reference, minutes = _compared(row, changes, split)
    fidelity = _fidelity(found, reference, split)
    record(results, key, itertools.chain(search_figures(found, split), fidelity), minutes=minutes)
    print(f"== {row.name} {changes}: validation NDCG@10 {found.mean('ndcg', 10):.4f}", flush=True)


def _compared(row: Row, changes: Values, split: Split) -> tuple[Evaluation, Evaluation, float]:
    """Return how a row's student and its teacher rank the test cases, and the minutes of the student's training."""
    teacher = _teacher(row, split)
    untaught = _untaught(row, split, teacher)
    if untaught is not None:
        return _evaluate(untaught, split), _evaluate(teacher.model, split), 0.0
    taught, minutes = _train(row, row.run(changes), split, teacher)
    return _evaluate(taught.model, split), _evaluate(teacher.model, split), minutes


def _untaught(row: Row, split: Split, teacher: Student) -> Teacher | None:
    """Return the rules by themselves, or what students are told where rules have a say, if the row is about these."""
    advised = row.method == "teacher" and row.variant == OPINION
    if not advised and row.method != RULES:
        return None
    rules = RulesTeacher(split.train, split.dataset.n_items, exclude_history=split.masks_seen)
    if not advised:
        return rules
    return EnsembleTeacher(
        [local_teacher(teacher, split, gives_scores=False), rules], weights=[1 - row.share, row.share]
    )


def _teacher(row: Row, split: Split) -> Student:
    recipe = row.taught_by
    return train(split, recipe.run(row.seed), _folder(recipe.name, split))[0]


def _folder(name: str, split: Split) -> str:
    """Return the folder's name of a model without a teacher; those with one are told apart by it."""
    return f"{name}/one-earlier" if EARLIER in split.protocol else name


def _train(row: Row, run: Run, split: Split, teacher: Student) -> tuple[Student, float]:
    """Return the student and the minutes of its training, both stages where there are two."""
    start, minutes = None, 0.0
    if row.first is not None:
        start, minutes = _train(row.first, row.first.run(), split, teacher)
    print(f"== {row.name}, seed {row.seed}", flush=True)
    if not row.regime:
        taught, fitted = train(split, run, _folder(row.recipe.name, split), start=start)
    else:
        with _asked(row, split, teacher) as asked:
            taught, fitted = train(split, run, row.name, teacher=asked, start=start)
    return taught, minutes + fitted.seconds / 60


@contextmanager
def _asked(row: Row, split: Split, teacher: Student) -> Iterator[Teacher]:
    """Give the teacher as the row's student meets it."""
    black_box = local_teacher(teacher, split, gives_scores=row.access == "scores")
    if row.budget == 0:
        yield RulesTeacher(split.train, split.dataset.n_items, exclude_history=split.masks_seen)
    elif row.budget is not None and row.method != "extraction":  # which keeps to its budget by itself
        with tempfile.TemporaryDirectory() as folder, Ledger(f"{folder}/ledger.sqlite") as ledger:
            yield LedgerTeacher(black_box, ledger, budget=row.budget)
    else:
        yield black_box


def _evaluate(source: Model | Teacher, split: Split) -> Evaluation:
    return evaluate(source, split.test, n_items=split.dataset.n_items, protocol=split.protocol, keep_lists=True)


def _fidelity(found: Evaluation, reference: Evaluation, split: Split) -> Iterator[Values]:
    """Yield Agreement@10 with the teacher, which is no metric of one model alone, by users' strata."""
    whole = by_stratum(found, split), by_stratum(reference, split)
    for stratum in ("all", "head", "tail"):
        ours, theirs = whole[0][stratum], whole[1][stratum]
        if ours.lists is None or theirs.lists is None:
            continue
        value = float(agreement(ours.lists, theirs.lists, 10).mean())
        yield {"stratum": stratum, "metric": "agreement", "k": 10, "value": value, "users": ours.n_users}


def compare() -> None:
    """Test BAHSD against every other row of its cell, user by user, means over the seeds that both have."""
    renew(PAIRED, tests())


def tests() -> Iterator[Values]:
    """Yield a test of every two rivals whose ranks are kept."""
    splits = cache(lambda dataset: leave_one_out(load_benchmark(dataset)))
    for ours, other in rivals():
        if seeds := KEPT.seeds_of_both(ours, other, SEEDS):
            yield from KEPT.paired(ours, other, seeds, splits(ours.dataset), strata=("all", "head", "tail"))


if __name__ == "__main__":
    main()
