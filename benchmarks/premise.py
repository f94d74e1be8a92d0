"""BAHSD's premise: does consistency predict whether a teacher's answer is right, and what follows from that?

The teacher is asked about every training history at several scales, exactly as BAHSD asks it. A hit is a validation
item among the first ten of the answer to the whole history. Users are compared within a band of length, since long
histories are both more consistent and easier. Then, for every fifth of the users by consistency, answers are compared
with their consensus, and with what teacher and rules say together, with every share of the rules: do those whose
answers are less consistent need more of these? The teachers are those of seed 0 of ``quality``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from benchmarks.experiments import Values, commit, find_recipe, train
from benchmarks.results import FOLDER, ResultTable
from scipy.stats import mannwhitneyu

from recdistill.arrays import Floats, Ints, Items
from recdistill.data.benchmark_data import load_benchmark
from recdistill.data.groups import Groups
from recdistill.data.splits import Split, leave_one_out
from recdistill.methods.bahsd import BAHSDConfig
from recdistill.methods.base import Setting
from recdistill.methods.believing import SHARES
from recdistill.methods.opinion import rules_beside
from recdistill.methods.probing import consensus, consistency, peakedness, probe, stack
from recdistill.methods.soft_lists import Answers, soft_targets
from recdistill.runs.teachers import local_teacher
from recdistill.teachers.ensemble import fuse

COLUMNS = ("dataset", "teacher", "signal", "band", "part", "users", "low", "high", "hit_rate", "auc", "p", "commit")
PARTS = 5
"""Equal parts of the users of a band, from the least reliable to the most; they are the points of a plot."""
TARGET_COLUMNS = ("dataset", "teacher", "target", "part", "users", "hr", "ndcg", "commit")
SHARE_COLUMNS = ("dataset", "teacher", "share", "part", "users", "hr", "ndcg", "commit")
HALF_AND_WHOLE = (0.5, 1.0)
SCALES = ((0.25, 1.0), HALF_AND_WHOLE, (0.75, 1.0), (0.5, 0.75, 1.0), (0.25, 0.5, 0.75, 1.0))
"""Which answers make a consensus."""
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
    reliability = ResultTable(FOLDER / "premise.csv", COLUMNS)
    targets = ResultTable(FOLDER / "premise_targets.csv", TARGET_COLUMNS)
    shares = ResultTable(FOLDER / "premise_shares.csv", SHARE_COLUMNS)
    for dataset in ("amazon-beauty", "ml-1m"):
        for model in MODELS:
            key = {"dataset": dataset, "teacher": model}
            if only not in f"{dataset}/{model}":
                continue
            split = leave_one_out(load_benchmark(dataset))
            setting = black_box(split, dataset, model)
            if not reliability.already_done(**key):
                found = ask(split, setting)
                reliability.append(*({**key, **row, "commit": commit()} for row in figures(found)))
            if not targets.already_done(**key):
                targets.append(*({**key, **row, "commit": commit()} for row in compare_targets(split, setting)))
            if not shares.already_done(**key):
                lists_alone = black_box(split, dataset, model, gives_scores=False)
                shares.append(*({**key, **row, "commit": commit()} for row in compare_shares(split, lists_alone)))


def black_box(split: Split, dataset: str, model: str, *, gives_scores: bool = True) -> Setting:
    """Return the training histories, and the teacher to ask about them."""
    recipe = find_recipe(dataset, model)
    student = train(split, recipe.run(0), recipe.name)[0]
    return Setting(
        split.train,
        np.arange(len(split.train)),
        split.dataset.n_items,
        teacher=local_teacher(student, split, gives_scores=gives_scores),
        max_len=student.model.max_len,
    )


def ask(split: Split, setting: Setting) -> Answered:
    """Ask a teacher about all users, and compare with the validation items."""
    config = BAHSDConfig()
    answers = probe(setting, scales=config.scales, k=config.top_k)
    wanted = validation_items(split)
    agreement = consistency(answers.items, depth=config.depth)
    known = ~np.isnan(agreement) & (wanted > 0)
    signals = {"consistency": agreement}
    if answers.scores is not None:
        signals["peakedness"] = peakedness(answers.scores[-1])
    bands = Groups.from_train(split.train, split.dataset.n_items).bands
    hits = (answers.items[-1, :, :10] == wanted[:, None]).any(axis=1)
    return Answered({name: signal[known] for name, signal in signals.items()}, hits[known], bands[known])


def validation_items(split: Split) -> Ints:
    """Return ``(R,)`` what each user took next, 0 for users who are not validated on."""
    wanted = np.zeros(len(split.train), np.int64)
    wanted[split.valid.users] = [targets[0] for targets in split.valid.targets]
    return wanted


def compare_targets(split: Split, setting: Setting) -> Iterator[Values]:
    """Yield how often single answers and their consensus are right, for all users and by fifths of consistency.

    All users are counted; a history too short to be cut has one answer, which is its consensus.
    """
    config, wanted = BAHSDConfig(), validation_items(split)
    lists: dict[str, Items] = {}
    probed = {scales: probe(setting, scales=scales, k=config.top_k) for scales in SCALES}
    for scales, found in probed.items():
        answers = found.items
        lists.setdefault("whole", answers[-1])
        if len(scales) == 2:
            asked = answers[0, :, :1] > 0
            lists[f"{scales[0]:g}"] = np.where(asked, answers[0], answers[-1])
        name = "consensus of " + ", ".join(f"{scale:g}" for scale in scales)
        for values in ("ranks", "scores"):
            logits = Answers.read(stack(found), values, config.rank_decay).logits
            shares = soft_targets(logits, 1.0).view(answers.shape).numpy()
            lists[f"{name} by {values}"] = consensus(answers, shares, setting.n_items)[0]
    parts = fifths(probed[HALF_AND_WHOLE].items, wanted)
    for name, listed in lists.items():
        yield from ({"target": name, **row} for row in graded(listed, wanted, parts))


def compare_shares(split: Split, setting: Setting) -> Iterator[Values]:
    """Yield how often teacher and rules together are right, by fifths of the teacher's consistency."""
    config, wanted, teacher = BAHSDConfig(), validation_items(split), setting.teacher
    assert teacher is not None, "there is somebody to ask"
    answers = probe(setting, scales=HALF_AND_WHOLE, k=config.top_k)
    parts = fifths(answers.items, wanted)
    lists = [answers.full, rules_beside(teacher, setting).rank(setting.train, config.top_k)]
    for share in SHARES:
        both = fuse(lists, [1 - share, share], config.top_k, by_score=teacher.gives_scores)
        yield from ({"share": share, **row} for row in graded(both.items, wanted, parts))


def fifths(answers: Items, wanted: Ints) -> list[Ints]:
    """Return the users who are validated on, the least consistent fifth first.

    Consistency is that between half of a history and all of it; where nothing can be cut it counts as 1.
    """
    order = np.argsort(np.nan_to_num(consistency(answers, depth=BAHSDConfig().depth), nan=1.0), kind="stable")
    return np.array_split(order[wanted[order] > 0], PARTS)


def graded(listed: Items, wanted: Ints, parts: Sequence[Ints]) -> Iterator[Values]:
    """Yield how often the first ten of each list hold what is wanted, for all users and for each part of them."""
    places = listed[:, :10] == wanted[:, None]
    hits, gains = places.any(axis=1), places @ (1 / np.log2(np.arange(2, 12)))
    for part, members in (("all", np.flatnonzero(wanted)), *enumerate(parts, 1)):
        yield {
            "part": part,
            "users": len(members),
            "hr": float(hits[members].mean()),
            "ndcg": float(gains[members].mean()),
        }


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
