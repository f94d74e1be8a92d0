"""Make the Markdown tables in the documentation from the result files: ``python -m benchmarks.tables``.

A table stands between two comments, ``<!-- table: training_speed -->`` and ``<!-- /table -->``; what is between them is
replaced. The name is that of a function in `TABLES`, or of any file of times in ``results/``.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from benchmarks.results import FOLDER

from recdistill.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def fill(text: str, results: Path) -> str:
    """Return ``text`` with every table made anew from the files in ``results``."""
    return BLOCK.sub(lambda block: f"{block[1]}{make(block['name'], results)}\n{block[3]}", text)


def make(name: str, results: Path) -> str:
    """Return one table in Markdown.

    Raises:
        DataError: when no table has this name.
    """
    source, build = TABLES.get(name, (name, speed))
    path = results / f"{source}.csv"
    if not path.is_file():
        if name not in TABLES:
            raise DataError(f"no table is called {name!r}, and there is no {path}; tables: {', '.join(TABLES)}")
        return "*Not measured yet.*"
    return build(pl.read_csv(path, infer_schema=False))


def training_speed(rows: pl.DataFrame) -> str:
    """Seconds per epoch of every system, with the allocator as it comes and tuned."""
    rows = _split_setting(rows).filter(pl.col("phase").is_null(), pl.col("system") != "arithmetic-floor")
    cells = rows.group_by("dataset", "loss", "system", maintain_order=True).agg(
        *(
            column
            for allocator in ("stock", "tuned")
            for column in (
                _spread("seconds", pl.col("allocator") == allocator).alias(f"{allocator}_seconds"),
                _median("ratio", pl.col("allocator") == allocator).alias(f"{allocator}_ratio"),
            )
        ),
        _median("peak_mb", pl.col("allocator") == "stock").alias("peak_mb"),
        pl.col("version").last(),
        pl.col("noisy").sum(),
    )
    return markdown(
        ["data", "loss", "system", "s / epoch", "× ours", "peak MB", "tuned: s / epoch", "× ours", "noisy"],
        [
            [
                row["dataset"],
                row["loss"],
                f"{row['system']} {row['version']}",
                row["stock_seconds"],
                _number(row["stock_ratio"]),
                _number(row["peak_mb"]),
                row["tuned_seconds"],
                _number(row["tuned_ratio"]),
                str(row["noisy"] or ""),
            ]
            for row in cells.iter_rows(named=True)
        ],
    )


def training_profile(rows: pl.DataFrame) -> str:
    """Where the seconds of our epoch go, and the share of the arithmetic floor."""
    rows = _split_setting(rows).filter(pl.col("allocator") == "stock")
    ours = rows.filter(pl.col("system") == "recdistill")
    floor = rows.filter(pl.col("system") == "arithmetic-floor")
    phases = ours["phase"].drop_nulls().unique(maintain_order=True).to_list()
    lines = []
    for (dataset, loss), group in ours.group_by("dataset", "loss", maintain_order=True):
        spent = [_middle(group.filter(pl.col("phase") == phase), "seconds") for phase in phases]
        bound = floor.filter(pl.col("dataset") == dataset, pl.col("loss") == loss)
        share = _middle(bound, "ratio")
        lines.append(
            [
                str(dataset),
                str(loss),
                _number(_middle(group.filter(pl.col("phase").is_null()), "seconds")),
                *map(_number, spent),
                _number(_middle(bound, "seconds")),
                "" if share is None else f"{share:.0%}",
            ]
        )
    return markdown(["data", "loss", "s / epoch", *phases, "floor, s", "share of the floor"], lines)


def speed(rows: pl.DataFrame, *, over: str = "ours") -> str:
    """Any file of times: the median over repeats of every setting; ``over``: what the ratios are over."""
    cells = rows.group_by("dataset", "setting", "system", maintain_order=True).agg(
        _spread("seconds").alias("seconds"),
        _median("ratio").alias("ratio"),
        _median("peak_mb").alias("peak_mb"),
        pl.col("version").last(),
    )
    return markdown(
        ["data", "setting", "system", "seconds", f"× {over}", "peak MB"],
        [
            [
                row["dataset"],
                row["setting"],
                f"{row['system']} {row['version']}",
                row["seconds"],
                _number(row["ratio"]),
                _number(row["peak_mb"]),
            ]
            for row in cells.iter_rows(named=True)
        ],
    )


def labelling_speed(rows: pl.DataFrame) -> str:
    """Answers a second of every setting, and the share of what the API allows; peak memory."""
    queries = pl.col("dataset").str.extract(r"^(\d+)").cast(pl.Int64)
    ours = rows.filter(pl.col("system") != "allowed").with_columns(queries.alias("n"))
    allowed = rows.filter(pl.col("system") == "allowed")
    cells = ours.group_by("setting", "n", maintain_order=True).agg(
        _spread("seconds").alias("spread"), _median("seconds").alias("seconds"), _median("peak_mb").alias("peak_mb")
    )
    lines = []
    for row in cells.iter_rows(named=True):
        bound = allowed.filter(pl.col("setting") == row["setting"])
        share = _middle(bound, "ratio")
        lines.append(
            [
                row["setting"],
                f"{row['n']:,}",
                row["spread"],
                _number(row["n"] / row["seconds"]),
                "" if share is None else f"{share:.0%}",
                _number(row["peak_mb"]),
            ]
        )
    return markdown(["setting", "answers", "seconds", "answers / s", "share of what is allowed", "peak MB"], lines)


Figure = tuple[str, int, str]
"""A metric, its k and a stratum."""
NAMES = {"hr": "HR", "ndcg": "NDCG", "recall": "Recall", "mrr": "MRR"}
HR_AND_NDCG: list[Figure] = [(metric, 10, stratum) for metric in ("hr", "ndcg") for stratum in ("all", "head", "tail")]


def quality(rows: pl.DataFrame, *, shown: Sequence[Figure] = HR_AND_NDCG, where: pl.Expr | None = None) -> str:
    """Metrics of every method: mean ± deviation over seeds. Rows of a cell stand together, what has no setting first.

    Args:
        rows: of a result file.
        shown: the figures, a column each.
        where: which rows; all where it is left out.
    """
    run = ["dataset", "split", "teacher", "student", "regime", "access", "method", "variant"]
    cells = (
        rows.filter(True if where is None else where, pl.col("k").is_in([str(k) for _, k, _ in shown]))
        .group_by(run, maintain_order=True)
        .agg(
            *(_mean("value", _is(figure)).alias(_heading(figure)) for figure in shown),
            pl.col("seed").n_unique(),
            pl.col("minutes").cast(pl.Float64).mean(),
        )
        .with_row_index("place")
        .sort(
            *(pl.col("place").min().over(run[:n]) for n in (2, 4)),
            pl.col("regime").fill_null(""),
            *(pl.col("place").min().over(run[:n]) for n in (6, 7, 8)),
        )
    )
    return markdown(
        ["data", "split", "teacher → student", "setting", "method", "seeds", "minutes", *map(_heading, shown)],
        [
            [
                row["dataset"],
                row["split"],
                _pair(row),
                ", ".join(filter(None, (row["regime"], row["access"]))),
                " ".join(filter(None, (row["method"], row["variant"]))),
                str(row["seed"]),
                _number(row["minutes"]),
                *(row[_heading(figure)] for figure in shown),
            ]
            for row in cells.iter_rows(named=True)
        ],
    )


def _is(figure: Figure) -> pl.Expr:
    metric, k, stratum = figure
    return (pl.col("metric") == metric) & (pl.col("k") == str(k)) & (pl.col("stratum") == stratum)


def _heading(figure: Figure) -> str:
    metric, k, stratum = figure
    return f"{NAMES[metric]}@{k}" + ("" if stratum == "all" else f" {stratum}")


def _pair(row: dict[str, str | None]) -> str:
    return " → ".join(filter(None, (row["teacher"], row["student"])))


def paired(rows: pl.DataFrame) -> str:
    """What a method gains over the others of its cell, with the p-value of the paired test."""
    cells = rows.pivot(
        "stratum",
        index=["dataset", "split", "teacher", "student", "regime", "access", "method", "other", "seeds", "metric", "k"],
        values=["gain", "p"],
    )
    strata = rows["stratum"].unique(maintain_order=True).to_list()
    return markdown(
        ["data", "split", "teacher → student", "setting", "method", "against", "seeds", "gain in", *strata],
        [
            [
                row["dataset"],
                row["split"],
                _pair(row),
                ", ".join(filter(None, (row["regime"], row["access"]))),
                row["method"],
                row["other"],
                row["seeds"],
                f"{NAMES[row['metric']]}@{row['k']}",
                *(_gain(row.get(f"gain_{s}"), row.get(f"p_{s}")) for s in strata),
            ]
            for row in cells.iter_rows(named=True)
        ],
    )


def _gain(gain: str | None, p: str | None) -> str:
    return "" if gain is None or p is None else f"{float(gain):+.1f}% (p {float(p):.4f})"


def trials(rows: pl.DataFrame) -> str:
    """What tuning found: trials made and pruned, and the best one's settings and figures; ideas, a line each."""
    run = ["dataset", "split", "teacher", "student", "method", "variant", "sampler"]
    idea = pl.when(pl.col("sampler") == "grid").then(pl.col("settings"))
    lines = []
    for _, group in rows.group_by(*run, idea.alias("idea"), maintain_order=True):
        finished = group.filter(pl.col("state") == "complete").sort(pl.col("value").cast(pl.Float64), descending=True)
        first = group.row(0, named=True)
        best = finished.row(0, named=True) if len(finished) else None
        minutes = group["minutes"].cast(pl.Float64).sum()
        lines.append(
            [
                *(first["dataset"], first["split"], _pair(first)),
                " ".join(filter(None, (first["method"], first["variant"]))),
                *(first["sampler"], str(len(group)), str(len(group) - len(finished)), _number(minutes)),
                *(("", "", "") if best is None else (_settings(best["settings"]), best["value"], best["tail"])),
            ]
        )
    figure = f"{NAMES['ndcg']}@20"
    header = ["data", "split", "teacher → student", "method", "search", "trials", "pruned", "minutes", "best"]
    return markdown([*header, figure, f"{figure} tail"], lines)


def _settings(text: str) -> str:
    return ", ".join(f"{name.split('.')[-1]} {value}" for name, value in json.loads(text).items())


def overlap(rows: pl.DataFrame) -> str:
    """How much of the teacher's lists the student's share after some epochs."""
    cells = rows.pivot(
        "epoch", index=["dataset", "split", "teacher", "student", "method", "variant", "seed", "k"], values="value"
    )
    epochs = sorted(rows["epoch"].unique().to_list(), key=int)
    return markdown(
        ["data", "split", "teacher → student", "method", "top", *(f"epoch {epoch}" for epoch in epochs)],
        [
            [
                *(row["dataset"], row["split"], _pair(row)),
                " ".join(filter(None, (row["method"], row["variant"]))),
                row["k"],
                *("" if row[epoch] is None else f"{float(row[epoch]):.3f}" for epoch in epochs),
            ]
            for row in cells.iter_rows(named=True)
        ],
    )


def premise(rows: pl.DataFrame) -> str:
    """How well each signal sorts hits from misses within a band, and the hit rate of each fifth of its users."""
    parts = rows.filter(pl.col("part") != "all").pivot(
        "part", index=["dataset", "teacher", "signal", "band"], values="hit_rate"
    )
    whole = rows.filter(pl.col("part") == "all").join(parts, on=["dataset", "teacher", "signal", "band"])
    points = sorted(rows["part"].unique().drop_nulls().to_list())[:-1]
    return markdown(
        ["data", "teacher", "signal", "band of length", "users", "AUC", "p", "HR@10", *(f"fifth {n}" for n in points)],
        [
            [
                *(row[name] for name in ("dataset", "teacher", "signal", "band")),
                f"{int(row['users']):,}",
                f"{float(row['auc']):.3f}",
                f"{float(row['p']):.1g}",
                *(f"{float(row[name]):.4f}" for name in ("hit_rate", *points)),
            ]
            for row in whole.iter_rows(named=True)
        ],
    )


def premise_targets(rows: pl.DataFrame) -> str:
    """How often single answers and their consensus are right, and NDCG of each fifth of the users by consistency."""
    keys = ["dataset", "teacher", "target"]
    points = sorted(rows["part"].unique().drop_nulls().to_list())[:-1]
    parts = rows.pivot("part", index=keys, values="ndcg", maintain_order=True).drop("all")
    whole = rows.filter(pl.col("part") == "all").join(parts, on=keys, maintain_order="left")
    return markdown(
        ["data", "teacher", "answer", "users", "HR@10", "NDCG@10", *(f"fifth {n}" for n in points)],
        [
            [
                *(row[name] for name in keys),
                f"{int(row['users']):,}",
                *(f"{float(row[name]):.4f}" for name in ("hr", "ndcg", *points)),
            ]
            for row in whole.iter_rows(named=True)
        ],
    )


def published(rows: pl.DataFrame) -> str:
    """What a paper reports, in parentheses, beside what is measured here."""
    cell = ["dataset", "split", "student", "method", "variant", "seeds"]
    shown = [(str(metric), str(k)) for metric, k in rows.select("metric", "k").unique(maintain_order=True).rows()]
    lines = []
    for key, group in rows.group_by(cell, maintain_order=True):
        dataset, split, student, method, variant, seeds = map(str, key)
        figures = {(row["metric"], row["k"]): row for row in group.iter_rows(named=True)}
        lines.append(
            [
                *(dataset, split, student, f"{method} {variant}", seeds),
                *(_beside(figures[figure]) if figure in figures else "" for figure in shown),
            ]
        )
    headings = [f"{NAMES[metric]}@{k}" for metric, k in shown]
    return markdown(["data", "split", "student", "method", "seeds", *headings], lines)


def _beside(row: dict[str, str]) -> str:
    return f"{float(row['value']):.4f} ({float(row['published']):.4f}, {float(row['gain']):+.1f}%)"


def clusters(rows: pl.DataFrame) -> str:
    """How the share of head users differs between the intents of a method."""
    lines = []
    for key, group in rows.group_by("dataset", "split", "student", "method", "variant", maintain_order=True):
        dataset, split, student, method, variant = map(str, key)
        shares, users = (group[name].cast(pl.Float64).to_numpy() for name in ("head_share", "users"))
        quartiles = np.quantile(shares, (0, 0.25, 0.5, 0.75, 1))
        found = [f"{share:.2f}" for share in (np.average(shares, weights=users), *quartiles)]
        lines.append([dataset, split, student, f"{method} {variant}", str(len(group)), *found])
    header = ["data", "split", "student", "method", "intents", "head, all users"]
    return markdown([*header, "least", "lower quartile", "median", "upper quartile", "most"], lines)


BY_STRATUM = ("all", "head", "tail", "item-head", "item-tail")
RECALL_AND_NDCG: list[Figure] = [
    *((metric, 10, "all") for metric in ("recall", "ndcg")),
    *((metric, 20, stratum) for metric in ("recall", "ndcg") for stratum in BY_STRATUM),
]
OF_SEQUENCES: list[Figure] = [
    *((metric, k, "all") for metric in ("hr", "ndcg") for k in (5, 20)),
    *((metric, 10, stratum) for metric in ("hr", "ndcg") for stratum in BY_STRATUM),
]
OF_USERS: list[Figure] = [
    *((metric, k, "all") for metric in ("hr", "ndcg") for k in (5, 10, 20)),
    *((metric, 10, stratum) for metric in ("hr", "ndcg") for stratum in ("head", "tail")),
]
AS_CHOSEN = pl.col("variant").fill_null("").is_in(["", "equal budget"])
"""Of BAHSD's table: methods as validation data chose them, not their earlier forms and ablations."""
AS_TUNED = pl.col("variant").fill_null("").is_in(["", "on all items"])
"""Of RCE-KD's tables: methods as they were tuned, not their earlier forms and ablations."""
SHORT: list[Figure] = [("recall", 20, "all"), *(("ndcg", 20, stratum) for stratum in BY_STRATUM)]
IS_CORE = pl.col("variant").is_in(["softmax", "bce"])
"""Of S4Rec's tables: methods as they are, on either base loss."""

TABLES: dict[str, tuple[str, Callable[[pl.DataFrame], str]]] = {
    "training_speed": ("training_speed", training_speed),
    "training_profile": ("training_speed", training_profile),
    "quality": ("quality", quality),
    "quality_search": ("quality_search", quality),
    "bahsd": ("bahsd", quality),
    "bahsd_core": ("bahsd", partial(quality, where=AS_CHOSEN)),
    "bahsd_search": ("bahsd_search", quality),
    "premise": ("premise", premise),
    "premise_targets": ("premise_targets", premise_targets),
    "bahsd_paired": ("bahsd_paired", paired),
    "rcekd": ("rcekd", partial(quality, shown=RECALL_AND_NDCG, where=pl.col("split") != "leave-one-out")),
    "rcekd_core": ("rcekd", partial(quality, shown=SHORT, where=AS_TUNED & (pl.col("split") != "leave-one-out"))),
    "rcekd_sequences": ("rcekd", partial(quality, shown=OF_SEQUENCES, where=pl.col("split") == "leave-one-out")),
    "rcekd_trials": ("rcekd_trials", trials),
    "rcekd_paired": ("rcekd_paired", paired),
    "rcekd_overlap": ("rcekd_overlap", overlap),
    "distillation_speed": ("distillation_speed", partial(speed, over="labels")),
    "s4rec": ("s4rec", partial(quality, shown=OF_USERS, where=IS_CORE)),
    "s4rec_variants": ("s4rec", partial(quality, shown=OF_USERS, where=~IS_CORE)),
    "s4rec_search": ("s4rec_search", quality),
    "s4rec_paired": ("s4rec_paired", paired),
    "s4rec_published": ("s4rec_published", published),
    "s4rec_clusters": ("s4rec_clusters", clusters),
    "s4rec_speed": ("s4rec_speed", partial(speed, over="labels")),
    "augmentation_speed": ("augmentation_speed", partial(speed, over="one encoding")),
    "evaluation_speed": ("evaluation_speed", speed),
    "labelling_speed": ("labelling_speed", labelling_speed),
    "data_size": ("data_size", speed),
}
"""The result file that each table is made from, and how; any other name is a file of times, shown by `speed`."""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """Return a table in Markdown; an empty cell for ``None``."""
    lines = [header, ["---"] * len(header), *([cell or "" for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _split_setting(rows: pl.DataFrame) -> pl.DataFrame:
    """Add the parts of ``loss/allocator[/phase-x][/noisy]`` as columns."""
    setting = pl.col("setting")
    return rows.with_columns(
        setting.str.extract(r"^([^/]+)").alias("loss"),
        setting.str.extract(r"^[^/]+/([^/]+)").alias("allocator"),
        setting.str.extract(r"/phase-([^/]+)").alias("phase"),
        setting.str.ends_with("/noisy").alias("noisy"),
    )


def _chosen(column: str, where: pl.Expr | None) -> pl.Expr:
    values = pl.col(column) if where is None else pl.col(column).filter(where)
    return values.cast(pl.Float64)


def _median(column: str, where: pl.Expr | None = None) -> pl.Expr:
    return _chosen(column, where).median()


def _middle(rows: pl.DataFrame, column: str) -> float | None:
    middle = rows.select(_median(column)).item()
    return None if middle is None else float(middle)


def _spread(column: str, where: pl.Expr | None = None) -> pl.Expr:
    """The median and, of several repeats, the range, as ``95.0 (94.0–98.0)``."""

    def describe(values: pl.Series) -> str:
        middle = _number(values.median())
        return middle if len(values) < 2 else f"{middle} ({_number(values.min())}–{_number(values.max())})"

    return _chosen(column, where).map_batches(describe, return_dtype=pl.String, returns_scalar=True)


def _mean(column: str, where: pl.Expr) -> pl.Expr:
    """The mean and, of several seeds, the standard deviation, as ``0.0519 ± 0.0007``."""

    def describe(values: pl.Series) -> str:
        known = values.to_list()
        if len(known) < 2:
            return "".join(f"{value:.4f}" for value in known)
        return f"{statistics.mean(known):.4f} ± {statistics.stdev(known):.4f}"

    return _chosen(column, where).map_batches(describe, return_dtype=pl.String, returns_scalar=True)


def _number(value: object) -> str:
    """Three significant digits, or all digits of a whole part that has more."""
    if not isinstance(value, (int, float)):
        return ""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a table is out of date")
    check = parser.parse_args().check
    stale = False
    for path in DOCUMENTS:
        text = path.read_text()
        try:
            filled = fill(text, FOLDER)
        except DataError as error:
            raise SystemExit(f"error: {path}: {error}") from error
        if filled != text:
            stale = True
            if not check:
                path.write_text(filled)
            print(f"{path.relative_to(ROOT)}: {'out of date' if check else 'tables made anew'}", file=sys.stderr)
    if check and stale:
        raise SystemExit("run `python -m benchmarks.tables`")


if __name__ == "__main__":
    main()
