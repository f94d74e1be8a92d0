"""BAHSD's premise: does the consistency of a teacher's answers predict whether they are right, at equal lengths?

The teacher is asked about every training history at three scales, exactly as BAHSD asks it. A hit is a validation item
among the first ten of the answer to the whole history. Users are compared within a band of length, since long histories
are both more consistent and easier. The teachers are those of seed 0 of ``quality``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from benchmarks.experiments import Values, commit, find_recipe, train
from benchmarks.results import FOLDER, ResultTable
from scipy.stats import mannwhitneyu

from recdistill.data.benchmark_data import load_benchmark
from recdistill.data.groups import Groups
from recdistill.data.splits import Split, leave_one_out
from recdistill.methods.bahsd import BAHSDConfig
from recdistill.methods.base import Setting
from recdistill.probing import Floats, consistency, peakedness, probe
from recdistill.run import local_teacher

COLUMNS = ("dataset", "teacher", "signal", "band", "part", "users", "low", "high", "hit_rate", "auc", "p", "commit")
PARTS = 5
"""Equal parts of the users of a band, from the least reliable to the most; they are the points of a plot."""
MODELS = ("sasrec", "bert4rec")


@dataclass(frozen=True, slots=True)
class Answered:
    """What is known of the users whose history could be shortened."""

    signals: dict[str, Floats]
    """``(U,)`` each way to measure reliability."""
    hits: npt.NDArray[np.bool_]
    """``(U,)`` whether the answer to the whole history holds the validation item among its first ten."""
    bands: npt.NDArray[np.int64]
    """``(U,)`` band of length, from 1."""


def main() -> None:
    """Write the rows of every teacher whose name contains ``--only``, where there are none yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="part of a teacher's name, such as amazon-beauty/sasrec")
    only = parser.parse_args().only
    results = ResultTable(FOLDER / "premise.csv", COLUMNS)
    for dataset in ("amazon-beauty", "ml-1m"):
        for model in MODELS:
            key = {"dataset": dataset, "teacher": model}
            if only not in f"{dataset}/{model}" or results.already_done(**key):
                continue
            found = ask(leave_one_out(load_benchmark(dataset)), dataset, model)
            results.append(*({**key, **row, "commit": commit()} for row in figures(found)))


def ask(split: Split, dataset: str, model: str) -> Answered:
    """Ask a teacher about all users, and compare with the validation items."""
    recipe = find_recipe(dataset, model)
    student = train(split, recipe.run(0), recipe.name)[0]
    config = BAHSDConfig()
    setting = Setting(
        split.train,
        np.arange(len(split.train)),
        split.dataset.n_items,
        teacher=local_teacher(student, split),
        max_len=student.model.max_len,
    )
    answers = probe(setting, scales=config.scales, k=config.top_k)
    target = np.zeros(len(split.train), np.int64)
    target[split.valid.users] = [targets[0] for targets in split.valid.targets]
    agreement = consistency(answers.items, depth=config.depth)
    known = ~np.isnan(agreement) & (target > 0)
    signals = {"consistency": agreement}
    if answers.scores is not None:
        signals["peakedness"] = peakedness(answers.scores)
    bands = Groups.from_train(split.train, split.dataset.n_items).bands
    hits = (answers.items[-1, :, :10] == target[:, None]).any(axis=1)
    return Answered({name: signal[known] for name, signal in signals.items()}, hits[known], bands[known])


def figures(found: Answered) -> Iterator[Values]:
    """Yield, for each signal and band, the hit rate of each part of its users, and how well the signal sorts them."""
    for name, signal in found.signals.items():
        for band in np.unique(found.bands):
            inside = found.bands == band
            values, hits = signal[inside], found.hits[inside]
            order = np.argsort(values, kind="stable")
            for part, members in enumerate(np.array_split(order, PARTS), 1):
                yield {
                    "signal": name,
                    "band": int(band),
                    "part": part,
                    "users": len(members),
                    "low": float(values[members[0]]),
                    "high": float(values[members[-1]]),
                    "hit_rate": float(hits[members].mean()),
                }
            test = mannwhitneyu(values[hits], values[~hits], alternative="greater")
            yield {
                "signal": name,
                "band": int(band),
                "part": "all",
                "users": len(values),
                "low": float(values.min()),
                "high": float(values.max()),
                "hit_rate": float(hits.mean()),
                "auc": float(test.statistic) / max(int(hits.sum()) * int((~hits).sum()), 1),
                "p": float(test.pvalue),
            }


if __name__ == "__main__":
    main()
