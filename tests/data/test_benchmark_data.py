from pathlib import Path

import polars as pl
import pytest

from recdistill.data import benchmark_data
from recdistill.data.benchmark_data import BENCHMARKS, Benchmark, benchmark_folder, load_benchmark
from recdistill.errors import DataError

MADE_UP = Benchmark(n_users=2, n_items=2, n_interactions=5, time="timestamp", title="title", min_item_count=2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the data set ``made-up``; item 9 occurs once and is left out."""
    monkeypatch.setitem(BENCHMARKS, "made-up", MADE_UP)
    rows = [(1, 5, 30), (1, 6, 20), (1, 5, 10), (2, 5, 1), (2, 6, 2), (2, 9, 3)]
    data = tmp_path / "made-up"
    data.mkdir()
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(
        data / "interactions.parquet"
    )
    pl.DataFrame({"item_id": [5, 6, 9], "title": ["Five", "Six", "Nine"]}).write_parquet(data / "items.parquet")
    return tmp_path


def test_reads_in_order_of_time_with_titles_and_rare_items_left_out(folder: Path) -> None:
    found = load_benchmark("made-up", folder)
    assert [row.tolist() for row in found.sequences] == [[1, 2, 1], [1, 2]]
    assert [found.title(1), found.title(2)] == ["Five", "Six"]


def test_data_that_differs_from_the_published_statistics_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS, "made-up", Benchmark(2, 3, 1_000))
    with pytest.raises(DataError, match="2 / 3 / 6, but must be 2 / 3 / 1,000"):
        load_benchmark("made-up", folder)


def test_the_folder_comes_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECDISTILL_DATA", str(folder))
    assert load_benchmark("made-up").n_users == 2


def test_the_folder_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECDISTILL_DATA", raising=False)
    assert benchmark_folder() == benchmark_data.DEFAULT_FOLDER


def test_a_missing_folder_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ml-1m/interactions.parquet, which is not there; set RECDISTILL_DATA"):
        load_benchmark("ml-1m", tmp_path)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match="unknown benchmark data 'amazon-beaty'; did you mean 'amazon-beauty'"):
        load_benchmark("amazon-beaty")
