"""Benchmark data sets by name, from a folder of the user's, checked against their published statistics."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from recdistill.data.dataset import Dataset
from recdistill.data.interactions import read_interactions
from recdistill.errors import DataError
from recdistill.settings import nearest

VARIABLE = "RECDISTILL_DATA"
"""The environment variable that names the folder with one folder for each data set."""
DEFAULT_FOLDER = Path("../shared/data")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How to read a data set, and what must come out."""

    n_users: int
    n_items: int
    n_interactions: int
    time: str | None = None
    """Column of times; None where rows are in order, as far as the order is known."""
    title: str | None = None
    """Column of titles in ``items.parquet``."""
    min_item_count: int = 1
    """Items with fewer interactions are left out, as in the published form."""


BENCHMARKS = {
    "amazon-beauty": Benchmark(22_363, 12_101, 198_502, title="label"),
    "amazon-sports": Benchmark(35_598, 18_357, 296_337, title="label"),
    "amazon-toys": Benchmark(19_412, 11_924, 167_597, title="label"),
    "citeulike-a": Benchmark(5_551, 16_980, 204_986),
    "citeulike-t": Benchmark(5_219, 25_181, 125_580),
    "gowalla": Benchmark(29_858, 40_981, 1_027_370),
    "ml-100k": Benchmark(943, 1_682, 100_000, time="timestamp", title="title"),
    "ml-1m": Benchmark(6_040, 3_416, 999_611, time="timestamp", title="title", min_item_count=5),
    "online-retail-ii": Benchmark(5_537, 4_199, 479_275, time="timestamp", title="title"),
    "yelp-s3rec": Benchmark(30_431, 20_033, 316_354, title="label"),
}
"""The published statistics by folder name; ``online-retail-ii`` is this project's own selection."""


def benchmark_folder() -> Path:
    """Return the folder named by ``$RECDISTILL_DATA``, or ``../shared/data`` if the variable is not set."""
    return Path(os.environ.get(VARIABLE) or DEFAULT_FOLDER)


def load_benchmark(name: str, folder: Path | None = None) -> Dataset:
    """Read ``<folder>/<name>/interactions.parquet`` and ``items.parquet``.

    Args:
        name: a name in ``BENCHMARKS``.
        folder: where the data sets lie; by default ``benchmark_folder()``.

    Raises:
        DataError: for an unknown name, a missing folder, or data that differs from the published statistics.
    """
    if name not in BENCHMARKS:
        raise DataError(f"unknown benchmark data {name!r}{nearest(name, list(BENCHMARKS))}")
    benchmark = BENCHMARKS[name]
    path = (folder or benchmark_folder()) / name
    if not (path / "interactions.parquet").is_file():
        raise DataError(
            f"benchmark data {name!r} needs the file {path / 'interactions.parquet'}, which is not there; set "
            f"{VARIABLE} to the folder that holds {name}/. The data itself is not part of recdistill."
        )
    interactions = read_interactions(path / "interactions.parquet", time=benchmark.time)
    if benchmark.min_item_count > 1:
        interactions = interactions.k_core(items=benchmark.min_item_count)
    titles = None if benchmark.title is None else path / "items.parquet"
    dataset = interactions.dataset(titles, title=benchmark.title or "title")
    published = (benchmark.n_users, benchmark.n_items, benchmark.n_interactions)
    found = (dataset.n_users, dataset.n_items, dataset.n_interactions)
    if found != published:
        raise DataError(
            f"{path} is not the published {name}: users / items / interactions are {_counts(found)}, but must be "
            f"{_counts(published)}; results on it would not compare with published ones."
        )
    return dataset


def _counts(numbers: tuple[int, ...]) -> str:
    return " / ".join(f"{number:,}" for number in numbers)
