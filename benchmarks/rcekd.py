"""Is RCE-KD the best way to use a teacher's scores, and is CKD better? The core table, ablations and side cells.

A row is one student: a data set and how it is cut, a teacher, the student's own model, a method and a seed
(``rcekd_rows``). All students of a teacher learn from the same one, that of seed 0. First every method of a cell is
tuned on validation cases with the same number of trials (``--tune``, ``rcekd_tuning``); the best of them is what a row
of the table is trained with. The test cases are looked at once. What was stopped goes on where it was; ``--compare``
makes the paired tests of what is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from benchmarks.comparisons import Kept, renew
from benchmarks.experiments import (
    StoppedError,
    Values,
    after_last_epoch,
    chosen,
    commit,
    figures,
    folder_of,
    grid,
    record,
    table_parser,
    train,
)
from benchmarks.rcekd_rows import CELL, CELLS, FILE_ORDER, LEAVE_ONE_OUT, OPINION, RULES, SEEDS, SHUFFLED, TABLES, Row
from benchmarks.rcekd_tuning import best_settings, cut, evaluate_row, search, teacher_of, tune
from benchmarks.results import FOLDER, QUALITY, ResultTable

from recdistill.data.splits import Split
from recdistill.evaluation.fidelity import agreement
from recdistill.models.scoring import top_k
from recdistill.teachers.local import LocalTeacher
from recdistill.teachers.rules import RulesTeacher
from recdistill.training.progress import EpochRow

RESULTS, PAIRED, OVERLAP = (FOLDER / f"rcekd{part}.csv" for part in ("", "_paired", "_overlap"))
KEPT = Kept.of("rcekd")
"""The rank of every test target by every student, for the paired tests."""
OVERLAP_COLUMNS = (*CELL, "seed", "epoch", "k", "value", "commit")
"""``value``: share of the top k, seen items among them, that student and teacher have in common, mean over users."""
COMPARED = {FILE_ORDER: ("ndcg", 20), SHUFFLED: ("ndcg", 20), LEAVE_ONE_OUT: ("ndcg", 10)}
"""What the paired tests look at."""
OURS = (("rcekd", ""), ("ckd", ""), ("rcekd", OPINION), ("ckd", OPINION))
"""The paper's method and the library's own, by variant, each set against all others."""
STRATA = ("all", "head", "tail", "item-head", "item-tail")
MARKS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Epochs after which the lists are compared."""
OVERLAP_KS = (10, 50)


def main() -> None:
    """Run the rows of a table whose name contains ``--only``, tune or search, or compare what is there."""
    parser = table_parser(__doc__, TABLES, seeds=SEEDS, example="citeulike-t/8:1:1-shuffled/mf-400")
    parser.add_argument("--tune", action="store_true", help="look for the best settings of each row of seed 0")
    parser.add_argument("--trials", type=int, default=8, help="how many --tune makes of each, earlier ones included")
    arguments = parser.parse_args()
    rows = chosen(TABLES, arguments)
    if arguments.compare:
        compare()
    elif arguments.tune:
        for row in dict.fromkeys(row.tuned_as for row in rows if not row.tuned_before):
            tune(row, arguments.trials if row.student else 1)  # a teacher keeps the authors' settings
    elif arguments.search is not None:
        for row, changes in itertools.product(rows, grid(arguments.search)):
            search(row, changes)
    else:
        run = follow if arguments.table == "overlap" else measure
        for row in rows:
            run(row)


def measure(row: Row) -> None:
    """Train one student as tuned and write its figures on the test cases, if they are not written yet."""
    results = ResultTable(RESULTS, QUALITY)
    if results.already_done(**row.key):
        return
    split = cut(row.dataset, row.split)
    print(f"== {row.name}, seed {row.seed}", flush=True)
    if row.method == RULES:
        found, minutes = evaluate_row(rules_of(row, split), split, split.test, row), 0.0
    else:
        student, fitted = train(split, row.run(best_settings(row)), row.folder_name, teacher=teacher_of(row))
        found, minutes = evaluate_row(student.model, split, split.test, row), fitted.seconds / 60
    KEPT.keep(found, row)
    record(results, row.key, figures(found, split), minutes=minutes)
    print(f"== {row.name}: test NDCG@20 {found.mean('ndcg', 20):.4f}", flush=True)


def rules_of(row: Row, split: Split) -> RulesTeacher:
    """Return the rules that the row's students have their second opinion from."""
    ordered = row.split == LEAVE_ONE_OUT
    return RulesTeacher(split.train, split.dataset.n_items, ordered=ordered, exclude_history=split.masks_seen)


def follow(row: Row) -> None:
    """Train as tuned, and write after some epochs how much of the teacher's lists the student's share."""
    split, run, teacher = cut(row.dataset, row.split), row.run(best_settings(row)), teacher_of(row)
    assert isinstance(teacher, LocalTeacher)
    results = ResultTable(OVERLAP, OVERLAP_COLUMNS)
    name = f"{row.folder_name}/followed"
    folder = folder_of(run, name, teacher)
    users = np.flatnonzero(split.train.lengths)
    histories = split.train.take(users)
    theirs = top_k(teacher.model, histories, max(OVERLAP_KS), None, users=users).items

    def watch(epoch: EpochRow) -> None:
        key = {**row.key, "epoch": epoch.epoch}
        if epoch.epoch in MARKS and not results.already_done(**key):
            ours = top_k(after_last_epoch(split, run, folder), histories, max(OVERLAP_KS), None, users=users).items
            shares = ((k, float(agreement(ours, theirs, k).mean())) for k in OVERLAP_KS)
            results.append(*({**key, "k": k, "value": share, "commit": commit()} for k, share in shares))
        if epoch.epoch >= max(MARKS):
            raise StoppedError

    print(f"== {row.name}, followed", flush=True)
    with suppress(StoppedError):
        train(split, run, name, teacher=teacher, watch=watch)


def compare() -> None:
    """Test RCE-KD and CKD, as they are and advised, against the others of a cell, by users, over the seeds of both."""
    renew(PAIRED, tests())


def tests() -> Iterator[Values]:
    """Yield a test of every two rivals whose ranks are kept."""
    for cell, (method, variant) in itertools.product([*CELLS["core"], *CELLS["further"]], OURS):
        ours = Row(cell.dataset, cell.split, cell.teacher, cell.student, method, variant)
        metric, k = COMPARED[cell.split]
        for other in cell.rows(0):
            if other != ours and (seeds := KEPT.seeds_of_both(ours, other, SEEDS)):
                split = cut(cell.dataset, cell.split)
                yield from KEPT.paired(ours, other, seeds, split, strata=STRATA, metric=metric, k=k)


if __name__ == "__main__":
    main()
