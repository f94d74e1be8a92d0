from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from recdistill.cli.data import app
from recdistill.errors import DataError

root = typer.Typer()
root.add_typer(app, name="data")

GOOD = "user_id,item_id,timestamp\n1,5,1\n1,6,2\n1,5,3\n2,6,1\n"


def run(tmp_path: Path, text: str, *options: str) -> str:
    path = tmp_path / "log.csv"
    path.write_text(text)
    result = CliRunner().invoke(root, ["data", "describe", str(path), *options], catch_exceptions=False)
    assert result.exit_code == 0
    return " ".join(result.stdout.split())


def test_prints_the_figures(tmp_path: Path) -> None:
    printed = run(tmp_path, GOOD)
    for figure in (
        "users 2",
        "items 2",
        "interactions 4",
        "density 100.0000%",
        "mean 2.00; shortest 1,",
        "longest 3",
        "equal times 0.0%",
        "repeats 25.0% of interactions",
        "leave-one-out 2 1 1 100.0%",
        "mask_seen=False",
    ):
        assert figure in printed


def test_says_why_a_split_cannot_be_made(tmp_path: Path) -> None:
    assert "last-basket: a last basket split needs times" in run(tmp_path, GOOD, "--no-time")


def test_names_the_rows_left_out(tmp_path: Path) -> None:
    printed = run(tmp_path, GOOD + "1,,4\n", "--skip-bad-rows")
    assert "1 bad rows were left out" in printed
    assert "row 5 (line 6): column 'item_id' is empty" in printed


def test_ids_are_shown_as_they_stand(tmp_path: Path) -> None:
    """An id such as :apple: is no emoji, and one such as [b] no markup."""
    printed = run(tmp_path, "user_id,item_id,timestamp\n1,5,:apple:\n1,6,[b]\n1,5,3\n1,6,4\n1,7,5\n", "--skip-bad-rows")
    assert "column 'timestamp' is ':apple:'" in printed
    assert "column 'timestamp' is '[b]'" in printed


def test_no_line_is_broken_when_piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    path = folder / "log.csv"
    path.write_text(GOOD + "1,,4\n")
    lines = CliRunner().invoke(root, ["data", "describe", str(path), "--skip-bad-rows"]).stdout.splitlines()
    assert f"  {path}: row 5 (line 6): column 'item_id' is empty" in lines
    assert any(line.split() == ["leave-one-out", "2", "1", "1", "100.0%"] for line in lines)


def test_columns_and_separator_by_option(tmp_path: Path) -> None:
    text = "who\twhat\n1\t5\n1\t6\n1\t5\n"
    assert "interactions 3" in run(tmp_path, text, "--user", "who", "--item", "what", "--no-time", "--separator", "\\t")


def test_a_bad_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 5"):
        run(tmp_path, GOOD + "1,,4\n")
