"""A run's folder belongs to one run, and is read back as it was written or refused."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from recdistill.data.dataset import IdMap
from recdistill.errors import ArtefactError, RecDistillError, SettingsError
from recdistill.evaluation.results import Evaluation
from recdistill.runs.data import load_split
from recdistill.runs.execute import Result, evaluate_run, run_training
from recdistill.runs.file import Run
from recdistill.runs.folder import GROUPS, RESULTS, RUN, fingerprint
from recdistill.tables import print_result

from .listener import Listener, Sections


def test_a_finished_run_without_its_results_is_not_trained_over(finished: Result, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    (folder / RESULTS).unlink()
    for again in (partial(run_training, finished.run, folder), partial(Result.load, folder)):
        with pytest.raises(ArtefactError, match=r"has lost its results.json.* student .* can be used without it"):
            again()
    student = "student/model.safetensors"
    assert (folder / student).read_bytes() == (finished.folder / student).read_bytes()


def test_other_settings_in_the_same_folder_are_refused(finished: Result, little_run: Sections) -> None:
    other = Run.parse(little_run | {"training": little_run["training"] | {"epochs": 4}})
    with pytest.raises(SettingsError, match=r"other settings \(there and here: training.epochs: 3 and 4\)"):
        run_training(other, finished.folder)


def test_a_folder_with_something_else_in_it_is_refused(little_run: Sections, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(SettingsError, match="is there already and holds no run"):
        run_training(Run.parse(little_run), tmp_path)


def test_a_folder_where_a_run_was_killed_as_it_began_is_free(little_run: Sections, tmp_path: Path) -> None:
    """Its first file was half written, under the name that `replacing` gives it."""
    (tmp_path / ".run.json.partial").write_text("{")
    result = run_training(Run.parse(little_run), tmp_path)
    assert result.folder == tmp_path
    assert not (tmp_path / ".run.json.partial").exists()


def test_a_folder_that_cannot_be_made_is_one_clear_error(little_run: Sections, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecDistillError, match="file"):
        run_training(Run.parse(little_run), tmp_path / "file" / "run")


def test_changed_data_are_noticed(little_run: Sections, tmp_path: Path) -> None:
    clicks = tmp_path / "clicks.csv"
    original = Path(little_run["data"]["path"]).read_text()
    clicks.write_text(original)
    run = Run.parse(little_run | {"data": {"path": str(clicks)}})
    with pytest.raises(KeyboardInterrupt):
        run_training(run, tmp_path / "run", Listener(stop_after=1))
    clicks.write_text(original + "c0,p11,9999\n")
    with pytest.raises(ArtefactError, match=r"480 interactions, .* then, .* 481 interactions, .* now"):
        run_training(run, tmp_path / "run")


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"holds no run: it has no run\.json"):
        Result.load(tmp_path)


@pytest.mark.parametrize("damage", [None, b"junk", b"PK\x03\x04"])
def test_damaged_groups_are_made_anew_by_an_evaluation(finished: Result, copied: Path, damage: bytes | None) -> None:
    (copied / GROUPS).unlink() if damage is None else (copied / GROUPS).write_bytes(damage)
    with pytest.raises(ArtefactError, match=r"groups\.npz cannot be read .*; evaluate the run again to write it anew"):
        Result.load(copied)
    evaluate_run(copied)
    assert Result.load(copied).groups.labels() == finished.groups.labels()


@pytest.mark.parametrize("content", ["", '{"epochs": 3', "[]", "\xff"])
def test_damaged_results_are_one_clear_error(copied: Path, content: str) -> None:
    (copied / RESULTS).write_text(content, encoding="latin-1")
    with pytest.raises(ArtefactError, match=r"results\.json cannot be read .*; bring the file back"):
        Result.load(copied)


def test_a_run_that_does_not_say_its_data_is_one_clear_error(finished: Result, copied: Path) -> None:
    about = json.loads((copied / RUN).read_text())
    del about["data"]
    (copied / RUN).write_text(json.dumps(about))
    with pytest.raises(ArtefactError, match=r"run\.json does not say which data .*it lacks 'data'"):
        evaluate_run(copied)


def test_a_figure_that_is_no_number_is_null(
    little_run: Sections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the exposure of items where nothing is listed; no other reader of JSON knows NaN."""
    monkeypatch.setattr(Evaluation, "gini", lambda evaluation, k: float("nan"))
    result = run_training(Run.parse(little_run), tmp_path / "run")
    found = json.loads((tmp_path / "run" / RESULTS).read_text(), parse_constant=pytest.fail)
    assert found["gini@20"] is None
    assert Result.load(tmp_path / "run").facts == json.loads(json.dumps(result.facts))
    print_result(Result.load(tmp_path / "run"))


WAIT = """
import sys
from pathlib import Path
from recdistill.runs.folder import alone
with alone(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked on Windows")
@pytest.mark.parametrize("end", ["finished", "killed"])
def test_two_processes_do_not_run_in_one_folder(little_run: Sections, tmp_path: Path, end: str) -> None:
    """Both would write the same checkpoint; once the other has ended, also by a signal, the run goes on."""
    run = Run.parse(little_run)
    with pytest.raises(KeyboardInterrupt):
        run_training(run, tmp_path / "run", Listener(stop_after=1))
    command = [sys.executable, "-c", WAIT, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        listener = Listener()
        with pytest.raises(ArtefactError, match=r"another process is using .*; wait until it has ended"):
            run_training(run, tmp_path / "run", listener)
        other.communicate() if end == "finished" else other.kill()
    assert listener.epochs == []
    run_training(run, tmp_path / "run", listener)
    assert listener.epochs == [2, 3]


def test_the_fingerprint_sees_order(little_run: Sections) -> None:
    """Two data sets of the same size are told apart."""
    dataset = load_split(Run.parse(little_run)).dataset
    before = fingerprint(dataset)
    items = dataset.sequences.items
    items[[0, 1]] = items[[1, 0]]
    assert fingerprint(dataset) != before


def test_the_fingerprint_sees_ids_and_times(little_run: Sections) -> None:
    """A run's students and ranks are of these users and items, and a cut in time is of these times."""
    dataset = load_split(Run.parse(little_run)).dataset
    assert dataset.times is not None
    renamed = IdMap([f"other-{item}" for item in dataset.items.raw], first=1)
    others = [
        replace(dataset, users=IdMap(dataset.users.raw.reverse(), first=0)),
        replace(dataset, items=renamed),
        replace(dataset, times=dataset.times + 1),
        replace(dataset, times=None),
    ]
    assert len({fingerprint(each) for each in (dataset, *others)}) == 5
    assert fingerprint(replace(dataset, titles=None)) == fingerprint(dataset)


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_data_of_other_ids_or_times_are_not_evaluated_as_the_same(
    little_run: Sections, tmp_path: Path, column: str
) -> None:
    rows = [(user, (user + step) % 12, step) for user in range(30) for step in range(5)]
    clicks = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    clicks.write_csv(tmp_path / "clicks.csv")
    run_training(Run.parse(little_run | {"data": {"path": str(tmp_path / "clicks.csv")}}), tmp_path / "run")
    clicks.with_columns(pl.col(column) + 100).write_csv(tmp_path / "clicks.csv")
    with pytest.raises(ArtefactError, match=r"the data are not those of the run .* then, .* now"):
        evaluate_run(tmp_path / "run")
