"""Tables of figures on test and validation cases: a function takes the rows of a result file and returns Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import polars as pl
from benchmarks.table_cells import markdown, mean, number

Figure = tuple[str, int, str]
"""A metric, its k and a stratum."""
NAMES = {"hr": "HR", "ndcg": "NDCG", "recall": "Recall", "mrr": "MRR", "agreement": "Agreement"}
HR_AND_NDCG: list[Figure] = [(metric, 10, stratum) for metric in ("hr", "ndcg") for stratum in ("all", "head", "tail")]


def quality(rows: pl.DataFrame, *, shown: Sequence[Figure] = HR_AND_NDCG, where: pl.Expr | None = None) -> str:
    """Metrics of every method: mean ± deviation over seeds. Rows of a cell stand together, its teacher first.

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
            *(mean("value", _is(figure)).alias(_heading(figure)) for figure in shown),
            pl.col("seed").n_unique(),
            pl.col("minutes").cast(pl.Float64).mean(),
        )
        .with_row_index("place")
        .sort(
            *(pl.col("place").min().over(run[:n]) for n in (2, 4)),
            pl.col("regime").fill_null(""),
            pl.col("method") != "teacher",
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
                number(row["minutes"]),
                *(row[_heading(figure)] for figure in shown),
            ]
            for row in cells.iter_rows(named=True)
        ],
    )


CELL = ("dataset", "split", "teacher", "student")
ALONE = ("teacher", "labels", "rules")
"""What no method has taught, which stands above the others."""


def side_by_side(
    rows: pl.DataFrame, *, lines: Sequence[str], figure: pl.Expr, strata: Sequence[str], where: pl.Expr | None = None
) -> str:
    """One figure of every method, a line each, in every cell, a column each: of all users, of strata, and the seeds.

    Args:
        rows: of a result file.
        lines: the columns that make a line, ``method`` and ``variant`` last.
        figure: which rows hold the figure.
        strata: whose figures follow that of all users: ``0.0594 ± 0.0004 / 0.0548 (3)``.
        where: which rows are shown; all where it is left out.
    """
    across = [name for name in CELL if name not in lines]
    shown = rows.with_columns(pl.col(*CELL, *lines).fill_null("")).filter(True if where is None else where, figure)
    known = shown.group_by(*across, *lines, maintain_order=True).agg(
        *(mean("value", pl.col("stratum") == stratum).alias(stratum) for stratum in ("all", *strata)),
        pl.col("seed").n_unique(),
    )
    cells = known.select(across).unique(maintain_order=True).rows()
    cells = [cell for cell in cells if not any(cell != other and _within(cell, other) for other in cells)]
    found = {
        (cell, tuple(row[name] for name in lines)): _short(row, strata)
        for row in known.iter_rows(named=True)
        for cell in cells
        if _within(tuple(row[name] for name in across), cell)
    }
    places = {method: place for place, method in enumerate(dict.fromkeys(known["method"]))}
    keys = dict.fromkeys(key for _, key in found)
    in_order = sorted(keys, key=lambda key: (*key[:-2], *(key[-2] != name for name in ALONE), places[key[-2]], key[-1]))
    splits = len(set(shown["split"])) > 1
    setting = ["setting"] if "regime" in lines else []
    return markdown(
        [*setting, "method", *(_cell(dict(zip(across, cell, strict=True)), splits=splits) for cell in cells)],
        [
            [
                *([", ".join(filter(None, key[:2]))] if setting else []),
                " ".join(filter(None, key[2:] if setting else key)),
                *(found.get((cell, key)) for cell in cells),
            ]
            for key in in_order
        ],
    )


def by_budget(rows: pl.DataFrame, *, budgets: Sequence[int], shown: Sequence[Figure], where: pl.Expr) -> str:
    """Figures of every method, a line each, at every budget, a column each: means over seeds, ``0.0523 / 0.4294 (1)``.

    Args:
        rows: of a result file; the variants of those that are shown end with a budget, ``20,000 queries``.
        budgets: in questions; other rows are left out.
        shown: what a cell has, in this order.
        where: which rows are shown.
    """
    budget = pl.col("variant").str.extract(r"([\d,]+) queries$").str.replace_all(",", "")
    line = ["regime", "access", "method", "version"]
    known = (
        rows.filter(where)
        .with_columns(
            budget.alias("budget"), pl.col("variant").str.replace(r",? ?[\d,]+ queries$", "").alias("version")
        )
        .filter(pl.col("budget").is_in([str(each) for each in budgets]))
        .group_by(*line, "budget", maintain_order=True)
        .agg(*(mean("value", _is(figure)).alias(_heading(figure)) for figure in shown), pl.col("seed").n_unique())
    )
    headings = [_heading(figure) for figure in shown]
    found = {}
    for row in known.iter_rows(named=True):
        figures = " / ".join(row[heading].split()[0] for heading in headings if row[heading])
        found[tuple(row[name] for name in line), int(row["budget"])] = f"{figures} ({row['seed']})"
    return markdown(
        ["setting", "method", *(f"{each:,} questions" for each in budgets)],
        [
            [f"{regime}, {access}", " ".join(filter(None, (method, version))), *(found.get((key, b)) for b in budgets)]
            for key in sorted(dict.fromkeys(key for key, _ in found), key=lambda key: key[0])
            for regime, access, method, version in [key]
        ],
    )


def _within(cell: Sequence[str], other: Sequence[str]) -> bool:
    """Whether a teacher alone, or a student without one, belongs to a cell that has both."""
    return all(mine in ("", theirs) for mine, theirs in zip(cell, other, strict=True))


def _short(row: dict[str, str], strata: Sequence[str]) -> str:
    others = "".join(f" / {row[stratum].split()[0]}" for stratum in strata if row[stratum])
    return f"{row['all']}{others} ({row['seed']})"


def _cell(cell: dict[str, str | None], *, splits: bool) -> str:
    parts = [cell["dataset"], cell["split"] if splits else "", _pair({"teacher": "", "student": "", **cell})]
    return ", ".join(filter(None, parts))


def _is(figure: Figure) -> pl.Expr:
    metric, k, stratum = figure
    return (pl.col("metric") == metric) & (pl.col("k") == str(k)) & (pl.col("stratum") == stratum)


def _heading(figure: Figure) -> str:
    metric, k, stratum = figure
    return f"{NAMES[metric]}@{k}" + ("" if stratum == "all" else f" {stratum}")


def _pair(row: dict[str, str | None]) -> str:
    return " → ".join(filter(None, (row["teacher"], row["student"])))


def paired(rows: pl.DataFrame) -> str:
    """What a method gains over the others of its cell, and p of the paired test; a method's tests stand together."""
    cell = ["dataset", "split", "teacher", "student"]
    setting = [*cell, "regime", "access"]
    cells = (
        rows.pivot(
            "stratum",
            index=[*setting, "method", "other", "seeds", "metric", "k"],
            values=["gain", "p"],
        )
        .with_row_index("place")
        .sort(
            *(pl.col("place").min().over(cell[:n]) for n in (2, 4)),
            pl.col("regime").fill_null(""),
            *(pl.col("place").min().over([*setting, *more]) for more in ([], ["method"])),
            "place",
        )
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


def trials(rows: pl.DataFrame, *, where: pl.Expr | None = None) -> str:
    """What tuning found: trials made and pruned, and the best one's settings and figures; ideas, a line each.

    Args:
        rows: of the file of trials.
        where: which rows; all where it is left out.
    """
    rows = rows.filter(True if where is None else where)
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
                *(first["sampler"], str(len(group)), str(len(group) - len(finished)), number(minutes)),
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


def premise_parts(rows: pl.DataFrame, *, of: str, title: str) -> str:
    """How often each of some answers is right, and NDCG of each fifth of the users by consistency."""
    keys = ["dataset", "teacher", of]
    points = sorted(rows["part"].unique().drop_nulls().to_list())[:-1]
    parts = rows.pivot("part", index=keys, values="ndcg", maintain_order=True).drop("all")
    whole = rows.filter(pl.col("part") == "all").join(parts, on=keys, maintain_order="left")
    return markdown(
        ["data", "teacher", title, "users", "HR@10", "NDCG@10", *(f"fifth {n}" for n in points)],
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
