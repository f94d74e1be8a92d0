"""How well do rules recommend, and how were their settings chosen? ``RulesTeacher`` on validation items, in minutes.

The last item of every user is left out of everything, and the one before is what is to be found. A row is a data set
and the settings that are not the defaults; rows are on disk as soon as they are known.
"""

from __future__ import annotations

import argparse
import itertools
import time
from functools import cache

from benchmarks.experiments import Values, one_earlier, record, search_figures
from benchmarks.results import FOLDER, QUALITY, ResultTable

from recdistill.data.benchmark_data import load_benchmark
from recdistill.evaluation.full_ranking import evaluate
from recdistill.methods.smoothing import SHARP
from recdistill.teachers.rules import RulesTeacher

RESULTS = FOLDER / "rules.csv"
DATASETS = ("amazon-beauty", "amazon-toys", "amazon-sports", "ml-1m")
OTHERS: dict[str, tuple[float, ...]] = {
    "window": (5, 20),
    "fade": (0.0, 1.0),
    "decay": (0.5, 0.85),
    "popularity": (0.0, 0.3),
    "prior": (0.0, 10.0, 1000.0),
}
"""Values that are tried in place of the defaults, one at a time."""
SETTINGS: list[Values] = [
    {},
    *({name: value} for name, values in OTHERS.items() for value in values),
    SHARP,
]


def main() -> None:
    """Measure what is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="*", choices=DATASETS, default=DATASETS)
    split = cache(lambda dataset: one_earlier(load_benchmark(dataset)))
    for dataset, settings in itertools.product(parser.parse_args().datasets, SETTINGS):
        results = ResultTable(RESULTS, QUALITY)
        variant = ", ".join(f"{name} {value:g}" for name, value in settings.items())
        key: Values = {"dataset": dataset, "split": "leave-one-out/one earlier", "method": "rules", "variant": variant}
        if results.already_done(**key):
            continue
        cut, start = split(dataset), time.perf_counter()
        rules = RulesTeacher(cut.train, cut.dataset.n_items, **settings)
        ranking = rules.rank(cut.test.histories, 20)
        minutes = (time.perf_counter() - start) / 60
        found = evaluate(ranking, cut.test, n_items=cut.dataset.n_items, ks=(5, 10, 20), protocol=cut.protocol)
        record(results, key, search_figures(found, cut), minutes=minutes)
        print(f"{dataset}, {variant or 'defaults'}: NDCG@10 {found.mean('ndcg', 10):.4f}", flush=True)


if __name__ == "__main__":
    main()
