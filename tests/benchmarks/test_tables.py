import json
from pathlib import Path

import polars as pl
import pytest
from benchmarks.comparisons import COLUMNS as PAIRED
from benchmarks.premise import COLUMNS as PREMISE
from benchmarks.rcekd import OVERLAP_COLUMNS
from benchmarks.rcekd_tuning import TRIAL_COLUMNS
from benchmarks.results import FOLDER, QUALITY, SPEED, ResultTable
from benchmarks.s4rec import CLUSTER_COLUMNS, PUBLISHED_COLUMNS
from benchmarks.table_cells import markdown
from benchmarks.tables import AS_CHOSEN, DOCUMENTS, fill, make

from benchmarks import tables
from recdistill.errors import DataError


def speed_row(system: str, setting: str, repeat: int, seconds: float, **more: object) -> dict[str, object]:
    return {
        "system": system,
        "version": "1.0",
        "dataset": "ml-1m",
        "setting": setting,
        "repeat": repeat,
        "seconds": seconds,
        **more,
    }


def cells(table: str) -> list[list[str]]:
    """The rows of a Markdown table below its header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_only_what_stands_between_the_markers_is_replaced(tmp_path: Path) -> None:
    text = "a\n<!-- table: quality -->\nold\n<!-- /table -->\nb\n<!-- table: quality -->\n<!-- /table -->\nc\n"
    made = "<!-- table: quality -->\n*Not measured yet.*\n<!-- /table -->\n"
    assert fill(text, tmp_path) == f"a\n{made}b\n{made}c\n"


def test_filling_twice_changes_nothing(tmp_path: Path) -> None:
    ResultTable(tmp_path / "training_speed.csv", SPEED).append(speed_row("recdistill", "full-softmax/stock", 1, 9.0))
    once = fill("<!-- table: training_speed -->\n<!-- /table -->\n", tmp_path)
    assert fill(once, tmp_path) == once


def test_an_unknown_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no table is called 'trainig_speed'"):
        make("trainig_speed", tmp_path)


def test_training_speed_shows_both_allocators_in_a_row(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "training_speed.csv", SPEED)
    for repeat, seconds in enumerate((98.0, 94.0, 95.0), 1):
        table.append(speed_row("rectools", "full-softmax/stock", repeat, seconds, peak_mb=2200, ratio=seconds / 9))
    table.append(speed_row("rectools", "full-softmax/tuned/noisy", 1, 58.0, ratio=6.4))
    table.append(speed_row("recdistill", "full-softmax/stock/phase-loss", 1, 5.0, ratio=0.5))
    table.append(speed_row("arithmetic-floor", "full-softmax/stock", 1, 4.0, ratio=0.4))
    assert cells(make("training_speed", tmp_path)) == [
        ["ml-1m", "full-softmax", "rectools 1.0", "95.0 (94.0–98.0)", "10.6", "2,200", "58.0", "6.40", "1"]
    ]


def test_systems_stand_side_by_side_with_how_much_longer_they_take(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "training_speed.csv", SPEED)
    table.append(speed_row("recbole", "full-softmax/stock", 1, 40.0, ratio=10.0))
    table.append(speed_row("recdistill", "full-softmax/stock", 1, 4.0, ratio=1.0))
    table.append(speed_row("recdistill", "full-softmax/tuned", 1, 3.0, ratio=1.0))
    table.append(speed_row("recdistill-compiled", "full-softmax/stock", 1, 5.0, ratio=1.2))
    table.append(speed_row("recdistill", "sampled-softmax/stock", 1, 2.0, ratio=1.0))
    made = make("training_speed_core", tmp_path)
    assert made.startswith("| data | loss | recdistill 1.0 | recbole 1.0 |\n")
    assert cells(made) == [
        ["ml-1m", "full-softmax", "4.00", "40.0 (× 10.0)"],
        ["ml-1m", "sampled-softmax", "2.00", ""],
    ]


def test_the_profile_shows_phases_and_the_share_of_the_floor(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "training_speed.csv", SPEED)
    table.append(
        speed_row("recdistill", "full-softmax/stock", 1, 8.0),
        speed_row("recdistill", "full-softmax/stock/phase-forward", 1, 2.0),
        speed_row("recdistill", "full-softmax/stock/phase-loss", 1, 6.0),
        speed_row("recdistill-compiled", "full-softmax/stock", 1, 5.0),
        speed_row("arithmetic-floor", "full-softmax/stock", 1, 4.0, ratio=0.5),
    )
    made = make("training_profile", tmp_path)
    assert "| forward | loss | floor, s | share of the floor |" in made
    assert cells(made) == [["ml-1m", "full-softmax", "8.00", "2.00", "6.00", "4.00", "50%"]]


def test_any_file_of_times_has_a_table(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "data_size.csv", SPEED)
    for repeat, seconds in enumerate((1.2, 1.4), 1):
        table.append(speed_row("recdistill", "csv", repeat, seconds, peak_mb=400 + repeat))
    assert cells(make("data_size", tmp_path)) == [["ml-1m", "csv", "recdistill 1.0", "1.30 (1.20–1.40)", "", "402"]]


def test_quality_is_the_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "quality.csv", QUALITY)
    run = {"dataset": "ml-1m", "split": "leave-one-out", "student": "sasrec", "method": "labels", "k": 10}
    for seed, value in enumerate((0.1, 0.3)):
        table.append({**run, "seed": seed, "metric": "ndcg", "stratum": "all", "value": value, "minutes": 4 + seed})
    table.append({**run, "seed": 0, "metric": "hr", "stratum": "tail", "value": 0.25})
    table.append({**run, "seed": 0, "metric": "ndcg", "stratum": "all", "k": 5, "value": 0.9})
    deviation = (((0.1 - 0.2) ** 2 + (0.3 - 0.2) ** 2) / 1) ** 0.5  # 0.1414…
    assert cells(make("quality", tmp_path)) == [
        [
            *("ml-1m", "leave-one-out", "sasrec", "", "labels", "2", "4.50"),
            *("", "", "0.2500", f"0.2000 ± {deviation:.4f}", "", ""),
        ]
    ]


def test_a_signal_of_a_band_stands_in_a_row(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "premise.csv", PREMISE)
    key = {"dataset": "ml-1m", "teacher": "sasrec", "signal": "consistency", "band": 2}
    table.append(*({**key, "part": part, "users": 4, "hit_rate": part / 10} for part in (1, 2)))
    table.append({**key, "part": "all", "users": 1234, "hit_rate": 0.15, "auc": 0.75, "p": 1e-9})
    assert cells(make("premise", tmp_path))[0] == [
        *("ml-1m", "sasrec", "consistency", "2", "1,234", "0.750", "1e-09", "0.1500", "0.1000", "0.2000")
    ]


def test_paired_tests_of_all_strata_stand_in_a_row(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "bahsd_paired.csv", PAIRED)
    cell = {"dataset": "ml-1m", "split": "leave-one-out", "teacher": "sasrec", "student": "sasrec"}
    cell |= {"regime": "pure", "access": "lists", "metric": "ndcg", "k": "10"}
    for stratum, gain, p in (("all", 5.25, 0.0001), ("tail", -1.0, 0.5)):
        table.append({**cell, "method": "bahsd", "other": "kd", "stratum": stratum, "gain": gain, "p": p, "seeds": 3})
    table.append({**cell, "method": "bahsd", "other": "rrd", "stratum": "all", "gain": 2.0, "p": 0.01, "seeds": 1})
    table.append({**cell, "method": "bahsd", "other": "rrd", "stratum": "tail", "p": 0.01, "seeds": 1})  # rrd had 0
    key = ["ml-1m", "leave-one-out", "sasrec → sasrec", "pure, lists", "bahsd"]
    assert cells(make("bahsd_paired", tmp_path)) == [
        [*key, "kd", "3", "NDCG@10", "+5.2% (p 0.0001)", "-1.0% (p 0.5000)"],
        [*key, "rrd", "1", "NDCG@10", "+2.0% (p 0.0100)", ""],
    ]


def test_quality_shows_the_figures_and_the_split_that_a_table_is_about(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "rcekd.csv", QUALITY)
    run = {"dataset": "gowalla", "teacher": "mf-300", "student": "mf-20", "method": "rcekd", "seed": 0}
    for split, metric, k in (("8:1:1 shuffled", "recall", 20), ("leave-one-out", "hr", 5)):
        table.append({**run, "split": split, "metric": metric, "k": k, "stratum": "all", "value": 0.25, "minutes": 1})
    (row,) = cells(made := make("rcekd", tmp_path))
    assert (row[:3], row[7:]) == (
        ["gowalla", "8:1:1 shuffled", "mf-300 → mf-20"],
        ["", "", "0.2500", *[""] * 9],
    )
    heading = [cell.strip() for cell in made.splitlines()[0].strip("|").split("|")]
    assert heading[7:11] == ["Recall@10", "NDCG@10", "Recall@20", "Recall@20 head"]
    (row,) = cells(make("rcekd_sequences", tmp_path))
    assert (row[1], row[7]) == ("leave-one-out", "0.2500")


def test_methods_stand_side_by_side_in_every_cell(tmp_path: Path) -> None:
    """A teacher stands in the cells of all its students, a student alone in those of all its teachers."""
    table = ResultTable(tmp_path / "rcekd.csv", QUALITY)

    def append(value: float, method: str, teacher: str, student: str, split: str, k: int, **more: object) -> None:
        row = {"dataset": "gowalla", "split": split, "teacher": teacher, "student": student, "method": method}
        table.append({"seed": 0, "stratum": "all", **row, "metric": "ndcg", "k": k, "value": value, **more})

    for seed, value in enumerate((0.1, 0.3)):
        append(value, "rcekd", "mf-300", "mf-20", "8:1:1 shuffled", 20, seed=seed)
        append(value, "rcekd", "mf-300", "mf-20", "8:1:1 shuffled", 20, seed=seed, stratum="tail")
    append(0.4, "rcekd", "sasrec-64", "sasrec-16", "leave-one-out", 10)
    append(0.9, "rcekd", "sasrec-64", "sasrec-16", "leave-one-out", 20)
    append(0.9, "rcekd", "mf-300", "mf-20", "8:1:1 shuffled", 20, variant="without S")
    append(0.5, "labels", "", "mf-20", "8:1:1 shuffled", 20)
    append(0.6, "teacher", "mf-300", "", "8:1:1 shuffled", 20)
    made = make("rcekd_core", tmp_path)
    assert made.splitlines()[0] == (
        "| method | gowalla, 8:1:1 shuffled, mf-300 → mf-20 | gowalla, leave-one-out, sasrec-64 → sasrec-16 |"
    )
    assert cells(made) == [
        ["teacher", "0.6000 (1)", ""],
        ["labels", "0.5000 (1)", ""],
        ["rcekd", "0.2000 ± 0.1414 / 0.2000 (2)", "0.4000 (1)"],
    ]


def test_budgets_stand_side_by_side(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "bahsd.csv", QUALITY)

    def append(value: float, variant: str, method: str = "bahsd", regime: str = "pure", **more: object) -> None:
        row = {"dataset": "ml-1m", "split": "leave-one-out", "teacher": "sasrec", "student": "sasrec"}
        way = {"regime": regime, "access": "lists", "method": method, "variant": variant, "seed": 0}
        table.append({**row, **way, "metric": "ndcg", "k": 10, "stratum": "all", "value": value, **more})

    append(0.1, "1,000 queries")
    append(0.2, "1,000 queries", seed=1)
    append(0.5, "1,000 queries", metric="agreement")
    append(0.3, "20,000 queries")
    append(0.4, "faithful, 20,000 queries")
    append(0.6, "1,000 queries", "kd", "assisted")
    append(0.9, "faithful, 28,908 queries")
    append(0.9, "with a second opinion, plain rules, 1,000 queries")
    append(0.9, "")
    made = make("bahsd_budgets_core", tmp_path)
    assert made.startswith("| setting | method | 1,000 questions | 5,000 questions | 20,000 questions |\n")
    assert cells(made) == [
        ["assisted, lists", "kd", "0.6000 (1)", "", ""],
        ["pure, lists", "bahsd", "0.1500 / 0.5000 (2)", "", "0.3000 (1)"],
        ["pure, lists", "bahsd faithful", "", "", "0.4000 (1)"],
    ]


def test_methods_as_they_are_and_their_variants_stand_apart(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "s4rec.csv", QUALITY)
    run = {"dataset": "ml-1m", "split": "leave-one-out", "student": "sasrec", "method": "s4rec", "seed": 0}
    for variant, value in (("softmax", 0.1), ("softmax without CSD", 0.2), ("bce", 0.3), ("smoothed", 0.4)):
        table.append({**run, "variant": variant, "metric": "hr", "k": 5, "stratum": "all", "value": value})
    rest = ["", "", "", "", "", "", "", "", ""]
    cell = ["ml-1m", "leave-one-out", "sasrec", ""]
    assert cells(make("s4rec", tmp_path)) == [
        [*cell, "s4rec softmax", "1", "", "0.1000", *rest],
        [*cell, "s4rec bce", "1", "", "0.3000", *rest],
        [*cell, "s4rec smoothed", "1", "", "0.4000", *rest],
    ]
    assert cells(make("s4rec_variants", tmp_path)) == [[*cell, "s4rec softmax without CSD", "1", "", "0.2000", *rest]]


def test_published_figures_stand_beside_ours(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "s4rec_published.csv", PUBLISHED_COLUMNS)
    row = {"dataset": "ml-1m", "split": "leave-one-out", "student": "sasrec", "variant": "bce", "seeds": 3}
    table.append({**row, "method": "s4rec", "metric": "hr", "k": 5, "value": 0.11, "published": 0.1, "gain": 10.0})
    table.append({**row, "method": "s4rec", "metric": "ndcg", "k": 20, "value": 0.3, "published": 0.4, "gain": -25.0})
    table.append({**row, "method": "labels", "metric": "hr", "k": 5, "value": 0.1, "published": 0.1, "gain": 0.0})
    made = make("s4rec_published", tmp_path)
    assert "| seeds | HR@5 | NDCG@20 |" in made
    cell = ["ml-1m", "leave-one-out", "sasrec"]
    assert cells(made) == [
        [*cell, "s4rec bce", "3", "0.1100 (0.1000, +10.0%)", "0.3000 (0.4000, -25.0%)"],
        [*cell, "labels bce", "3", "0.1000 (0.1000, +0.0%)", ""],
    ]


def test_shares_of_the_head_are_shown_by_quartiles(tmp_path: Path) -> None:
    """The share of all users weighs intents by their users; the quartiles count intents alike."""
    table = ResultTable(tmp_path / "s4rec_clusters.csv", CLUSTER_COLUMNS)
    row = {"dataset": "ml-1m", "split": "leave-one-out", "student": "sasrec", "method": "s4rec", "variant": "softmax"}
    for cluster, (users, share) in enumerate(((96, 0.5), (1, 0.0), (1, 0.1), (1, 0.2), (1, 1.0))):
        table.append({**row, "seed": 0, "cluster": cluster, "users": users, "head_share": share})
    whole = (96 * 0.5 + 0.1 + 0.2 + 1.0) / 100  # 0.493
    assert cells(make("s4rec_clusters", tmp_path)) == [
        [
            *("ml-1m", "leave-one-out", "sasrec", "s4rec softmax", "5", f"{whole:.2f}"),
            *("0.00", "0.10", "0.20", "0.50", "1.00"),
        ]
    ]


def test_of_a_search_the_best_trial_is_shown(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "rcekd_trials.csv", TRIAL_COLUMNS)
    run = {"dataset": "gowalla", "split": "8:1:1 shuffled", "teacher": "mf-300", "student": "mf-20", "method": "cd"}
    for trial, value in enumerate((0.03, 0.2, None)):
        state = "complete" if value else "pruned"
        settings = json.dumps({"method.weight": 10.0 * trial})
        more = {"trial": trial, "state": state, "settings": settings, "value": value, "tail": value, "minutes": 2}
        table.append({**run, "sampler": "tpe", **more})
    assert cells(make("rcekd_trials", tmp_path)) == [
        [
            *("gowalla", "8:1:1 shuffled", "mf-300 → mf-20", "cd", "tpe", "3", "1", "6.00"),
            *("weight 10.0", "0.2", "0.2"),
        ]
    ]


def test_every_idea_of_a_search_is_shown(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "rcekd_trials.csv", TRIAL_COLUMNS)
    run = {"dataset": "gowalla", "split": "8:1:1 shuffled", "teacher": "mf-300", "student": "mf-20", "method": "ckd"}
    for trial, value in enumerate((0.2, 0.1)):
        settings = json.dumps({"method.top_k": 10 * (trial + 1)})
        more = {"trial": trial, "state": "complete", "settings": settings, "value": value, "tail": value, "minutes": 2}
        table.append({**run, "sampler": "grid", **more})
    assert [line[-3:] for line in cells(make("rcekd_trials", tmp_path))] == [
        ["top_k 10", "0.2", "0.2"],
        ["top_k 20", "0.1", "0.1"],
    ]


def test_overlap_stands_in_a_row_by_epoch(tmp_path: Path) -> None:
    table = ResultTable(tmp_path / "rcekd_overlap.csv", OVERLAP_COLUMNS)
    run = {"dataset": "gowalla", "split": "8:1:1 shuffled", "teacher": "mf-300", "student": "mf-20", "method": "ce"}
    for epoch, value in ((2, 0.25), (10, 0.5)):
        table.append({**run, "seed": 0, "epoch": epoch, "k": 50, "value": value})
    made = make("rcekd_overlap", tmp_path)
    assert "| top | epoch 2 | epoch 10 |" in made
    assert cells(made) == [["gowalla", "8:1:1 shuffled", "mf-300 → mf-20", "ce", "50", "0.250", "0.500"]]


def test_times_of_methods_are_over_those_of_the_bare_student(tmp_path: Path) -> None:
    ResultTable(tmp_path / "distillation_speed.csv", SPEED).append(speed_row("rcekd", "epoch", 1, 1.2, ratio=1.2))
    made = make("distillation_speed", tmp_path)
    assert "| seconds | × labels |" in made
    assert cells(made) == [["ml-1m", "epoch", "rcekd 1.0", "1.20", "1.20", ""]]


def test_times_of_augmented_views_are_over_one_encoding(tmp_path: Path) -> None:
    ResultTable(tmp_path / "augmentation_speed.csv", SPEED).append(speed_row("s4rec", "batch-256", 1, 1.9, ratio=1.9))
    assert "| seconds | × one encoding |" in make("augmentation_speed", tmp_path)


def test_markdown_has_as_many_cells_as_headings() -> None:
    assert markdown(["a", "b"], [["1", None]]) == "| a | b |\n| --- | --- |\n| 1 |  |"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(tables.ROOT)))
def test_committed_tables_are_those_of_the_result_files(document: Path) -> None:
    """A figure in the documentation that was typed, or is older than its file, misleads."""
    text = document.read_text()
    assert fill(text, FOLDER) == text, "run `python -m benchmarks.tables`"


def test_a_method_as_it_was_chosen_has_no_variant_in_the_file() -> None:
    rows = pl.DataFrame({"variant": [None, "", "equal budget", "one stage"]})
    assert rows.filter(AS_CHOSEN)["variant"].to_list() == [None, "", "equal budget"]
