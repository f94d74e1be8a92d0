import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from recdistill import __version__
from recdistill.runs.execute import Result, run_training
from recdistill.runs.file import Run
from recdistill.serving.student import Recommendation
from recdistill.tables import print_recommendations
from recdistill.teachers.presets import presets

from .shell import call


@pytest.fixture(scope="module")
def runs(little_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, ``one`` and ``two``, that differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "two")):
        training = little_run["training"] | {"seed": seed}
        run_training(Run.parse(little_run | {"training": training}), folder / name)
    return folder


@pytest.fixture
def run_file(little_run: dict[str, Any], tmp_path: Path) -> Path:
    lines = [
        f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in inner.items())
        for section, inner in little_run.items()
    ]
    path = tmp_path / "little.toml"
    path.write_text("\n".join(lines))
    return path


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    jobs = ["demo", "data", "train", "distill", "probe", "ledger", "evaluate", "compare", "recommend"]
    for command in [*jobs, "methods", "models", "settings", "presets"]:
        assert re.search(rf"\b{command}\b", out), command


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"recdistill {__version__}\n", "")


def test_presets_says_what_each_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "presets")
    assert code == 0
    for name, about in presets().items():
        assert re.search(rf"^{name} +{about.split()[0]}", out, re.MULTILINE), name


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_threads_do_not_spin_for_long_unless_the_user_says_so(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    monkeypatch.setattr(os, "environ", environment | given)
    call(capsys, "--version")
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_train_writes_a_run_and_prints_what_it_reached(
    capsys: pytest.CaptureFixture[str], run_file: Path, tmp_path: Path
) -> None:
    code, out, err = call(capsys, "train", run_file, "--out", tmp_path / "run", "--set", "training.epochs=1")
    assert code == 0
    assert Result.load(tmp_path / "run").run.training.epochs == 1
    assert "leave-one-out (last item test, last but one validation), seen items masked" in out
    assert re.search(r"all +60 +\d\.\d{4}", out)
    assert "epoch 1/1" in err


def test_a_run_goes_to_a_folder_with_the_name_of_its_file(
    capsys: pytest.CaptureFixture[str], run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "train", run_file, "--set", "training.epochs=1")[0] == 0
    assert (tmp_path / "runs" / "little" / "run.json").is_file()


def test_the_run_of_a_run_json_goes_on_in_its_own_folder(
    capsys: pytest.CaptureFixture[str], runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another folder it would begin again, and an API would be paid twice."""
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "train", runs / "one" / "run.json")
    assert code == 0
    assert f"student: {runs / 'one' / 'student'}" in out
    assert not (tmp_path / "runs").exists()


def test_distill_asks_a_finished_run(
    capsys: pytest.CaptureFixture[str], run_file: Path, runs: Path, tmp_path: Path
) -> None:
    teacher = ["--set", "teacher.kind=run", "--set", f"teacher.folder={runs / 'one'}", "--set", "method.top_k=4"]
    code, out, _ = call(capsys, "distill", run_file, "--out", tmp_path / "run", *teacher)
    assert code == 0
    assert "student:" in out
    for model in ("teacher sasrec-[0-9a-f]{12}", "student"):
        assert re.search(rf"^{model} +[\d,]+ +\d\.\d\d +[\d,]+$", out, re.MULTILINE), model
    assert Result.load(tmp_path / "run").run.method.name == "ckd"


def test_an_error_of_ours_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], run_file: Path, tmp_path: Path
) -> None:
    code, out, err = call(capsys, "train", run_file, "--out", tmp_path / "run", "--set", "training.epoch=1")
    assert (code, out) == (2, "")
    assert err == f"error: {run_file}: [training]: unknown setting 'epoch'; did you mean 'epochs'?\n"


def test_a_missing_run_file_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, "train", tmp_path / "no.toml")
    assert code == 2
    assert err == f"error: cannot read the run file {tmp_path / 'no.toml'}: No such file or directory\n"


def test_evaluate_shows_every_stratum(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    code, out, _ = call(capsys, "evaluate", runs / "one")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if re.match(r"(all|head|tail|length|item)[-\d ]", line)] == [
        "all",
        "head",
        "tail",
        "length-1",
        "length-2",
        "length-3",
        "length-4",
        "length-5",
        "item-tail",
    ]


def test_compare_shows_runs_side_by_side_with_intervals_and_p(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    code, out, err = call(capsys, "compare", runs / "one", runs / "two", "--metric", "mrr", "-k", 5)
    assert (code, err) == (0, "")
    interval = r"\d\.\d{4} \[\d\.\d{4}, \d\.\d{4}\]"
    assert re.search(rf"one +{interval} +{interval} +{interval}", out)
    assert re.search(r"MRR@5, against one", out)
    tail = re.search(
        r"two +tail +([+-]\d\.\d{4}) \(([+-]\d+\.\d) %\) +\[[+-]\d\.\d{4}, [+-]\d\.\d{4}\] +\d\.\d{4}", out
    )
    before = re.search(r"one(?: +(\d\.\d{4}) \[\d\.\d{4}, \d\.\d{4}\]){3}", out)
    assert tail
    assert before
    assert float(tail[2]) == pytest.approx(100 * float(tail[1]) / float(before[1]), abs=0.3)


def test_users_with_short_histories_from_logs_to_what_they_gained(
    capsys: pytest.CaptureFixture[str], runs: Path, run_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "s4rec"
    settings = ["--set", "method.name=s4rec", "--set", "method.n_clusters=6", "--set", "training.epochs=1"]
    assert call(capsys, "train", run_file, *settings, "--out", folder)[0] == 0
    code, out, _ = call(capsys, "recommend", folder, "--history", "p1,p2", "-k", 3)
    assert code == 0
    assert len(set(re.findall(r"\bp\d+\b", out)) - {"p1", "p2"}) == 3
    code, out, _ = call(capsys, "compare", runs / "one", folder, "--metric", "ndcg")
    assert code == 0
    gained = r"[+-]0\.\d{4} \([+-]\d+\.\d %\) +\[[+-]0\.\d{4}, [+-]0\.\d{4}\] +[01]\.\d{4}"
    for stratum in ("head", "tail"):
        assert re.search(rf"^s4rec +{stratum} +{gained}$", out, re.MULTILINE)


def test_compare_refuses_runs_on_other_cases(
    capsys: pytest.CaptureFixture[str], runs: Path, little_run: dict[str, Any], tmp_path: Path
) -> None:
    run_training(Run.parse(little_run | {"split": {"protocol": "last-basket"}}), tmp_path / "basket")
    code, _, err = call(capsys, "compare", runs / "one", tmp_path / "basket")
    assert code == 2
    assert "cannot be compared" in err


def test_compare_refuses_the_same_run_twice(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    code, _, err = call(capsys, "compare", runs / "one", runs / "two" / ".." / "one")
    assert (code, err) == (2, "error: the same run is given twice\n")


def test_compare_refuses_an_unknown_metric(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    code, _, err = call(capsys, "compare", runs / "one", runs / "two", "--metric", "ndgc")
    assert code == 2
    assert "unknown metric 'ndgc'; did you mean 'ndcg'?" in err


def test_recommend_takes_raw_ids_and_gives_titles(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    code, out, _ = call(capsys, "recommend", runs / "one", "--history", "p3, p4,p5", "-k", 2)
    assert code == 0
    assert re.search(r"p6 +-?\d+\.\d{3} +Product 6", out)
    assert len(out.splitlines()) == 3


def test_ids_and_titles_are_printed_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither an emoji nor markup, and a long title on one line."""
    title = ":smile: [bold]" + " and more" * 40
    print_recommendations([Recommendation(":apple:", 1.0, title)])
    assert capsys.readouterr().out.splitlines()[1].rstrip() == f":apple:  1.000  {title}"


def test_recommend_for_a_user_of_the_data(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    """c0 bought p0…p5, so the answer is that to this history."""
    by_user = call(capsys, "recommend", runs / "one", "--user", "c0")
    by_history = call(capsys, "recommend", runs / "one", "--history", "p0,p1,p2,p3,p4,p5")
    assert by_user == by_history


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give either --history with item ids, or --user"),
        (["--history", "p1", "--user", "c1"], "give either --history with item ids, or --user"),
        (["--history", "p1,p99"], r"does not know: \['p99'\].*--skip-unknown"),
        (["--history", "p99", "--skip-unknown"], "has no item that the student knows"),
        (["--user", "c99"], r"1 of 1 user ids are unknown, for example \['c99'\]"),
    ],
)
def test_recommend_refuses_what_it_cannot_answer(
    capsys: pytest.CaptureFixture[str], runs: Path, options: list[str], said: str
) -> None:
    code, _, err = call(capsys, "recommend", runs / "one", *options)
    assert code == 2
    assert re.search(said, err)


def test_recommend_from_a_saved_student_needs_a_history(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    """The folder of a student alone knows no users."""
    assert call(capsys, "recommend", runs / "one" / "student", "--history", "p1")[0] == 0
    code, _, err = call(capsys, "recommend", runs / "one" / "student", "--user", "c1")
    assert code == 2
    assert "use --history" in err


def test_methods_are_listed_with_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "methods")
    assert code == 0
    assert re.search(r"^kd  Learn the teacher's list", out, re.MULTILINE)
    assert re.search(r"^ +top_k +100 +Length of the lists asked for\.", out, re.MULTILINE)


def test_a_long_default_leaves_room_for_what_settings_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call(capsys, "methods", "s4rec")
    assert re.search(r'^  augmentation.kinds +\["crop", "mask", +Operators, of which one is', out, re.MULTILINE)
    assert re.search(r"^  n_clusters +128 +Intents \(K\)\.", out, re.MULTILINE)


def test_models_are_listed_with_where_a_student_may_start(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "models")
    starts = re.findall(r"^  start +null +Folder of the run, or of a saved student", out, re.MULTILINE)
    assert len(starts) == len(re.findall(r"^\w+  \S", out, re.MULTILINE)) > 1


def test_a_run_says_where_its_student_started(
    capsys: pytest.CaptureFixture[str], runs: Path, little_run: dict[str, Any], tmp_path: Path
) -> None:
    student = little_run["model"] | {"start": str(runs / "one")}
    run_training(Run.parse(little_run | {"model": student}), tmp_path / "on")
    shown = call(capsys, "evaluate", tmp_path / "on")[1]
    assert re.search(rf"started from {runs / 'one'}, validation NDCG@10 [01]\.\d{{4}}, now [01]\.\d{{4}}", shown)
    assert "started from" not in call(capsys, "evaluate", runs / "one")[1]


def test_one_model_is_listed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "models", "gru4rec")
    assert code == 0
    assert out.startswith("gru4rec  A recurrent net")
    assert "sasrec" not in out


def test_every_section_is_listed_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """What a run file may hold is found without reading the source."""
    code, out, _ = call(capsys, "settings")
    assert code == 0
    listed = re.findall(r"^([\w.]+)  \S", out, re.MULTILINE)
    assert listed == [
        *("data", "evaluation", "signature.google", "signature.hmac", "signature.oauth", "signature.sigv4", "split"),
        *(
            "teacher.ensemble",
            "teacher.file",
            "teacher.http",
            "teacher.matrix",
            "teacher.rules",
            "teacher.run",
            "training",
        ),
    ]
    assert re.search(r"^  path +needed +CSV, TSV or Parquet file", out, re.MULTILINE)
    assert re.search(r"^  budget +null +Most of what `?`?charge", out, re.MULTILINE)


def test_the_kinds_of_a_section_are_listed_together(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "settings", "teacher")
    kinds = re.findall(r"^([\w.]+)  \S", out, re.MULTILINE)
    assert kinds == [f"teacher.{kind}" for kind in ("ensemble", "file", "http", "matrix", "rules", "run")]
    _, out, _ = call(capsys, "settings", "teacher.run")
    assert re.findall(r"^([\w.]+)  \S", out, re.MULTILINE) == ["teacher.run"]
    assert call(capsys, "settings", "trainig")[::2] == (
        2,
        "error: unknown section 'trainig'; did you mean 'training'?\n",
    )


def test_an_unknown_name_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "methods", "bashd")[::2] == (2, "error: unknown method 'bashd'; did you mean 'bahsd'?\n")
