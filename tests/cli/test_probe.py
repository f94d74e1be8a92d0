import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recdistill.labelling import Plan
from recdistill.teachers.ledger import Ledger, Stats

from ..teachers.raw_api import Body, RawApi, response
from .shell import call


@pytest.fixture
def api() -> Iterator[RawApi]:
    def next_product(body: Body) -> bytes:
        newest = int(body["history"][-1].removeprefix("p"))
        return response({"items": [f"p{(newest + step) % 12}" for step in range(1, 5)]})

    with RawApi(next_product).serve() as api:
        yield api


@pytest.fixture
def run_file(little_run: dict[str, Any], tmp_path: Path, api: RawApi) -> Path:
    """Sixty customers, twelve different histories of each of five lengths: sixty questions to kd."""
    teacher = {"kind": "http", "url": api.url, "budget": 100, "first_wait": 0.01}
    sections = little_run | {"teacher": teacher, "method": {"name": "kd", "top_k": 4}}
    path = tmp_path / "little.toml"
    path.write_text(
        "\n".join(
            f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in inner.items())
            for section, inner in sections.items()
        )
    )
    return path


def test_a_dry_run_plans_and_asks_nothing(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    code, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "run", "--dry-run")
    assert (code, api.asked) == (0, [])
    assert not (tmp_path / "run").exists()
    assert out.splitlines() == [
        "60 questions, 0 answered before, 60 to ask",
        "budget: 100 of 100 queries left, at 1 an answer: enough",
        "time: not known before the first answers",
    ]


def test_a_dry_run_says_what_a_small_budget_and_a_rate_allow(
    capsys: pytest.CaptureFixture[str], run_file: Path, tmp_path: Path
) -> None:
    """45 answers at two in three seconds take 67.5 s."""
    options = ("--set", "teacher.budget=45", "--set", "teacher.rate=0.666666")
    _, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "run", "--dry-run", *options)
    assert "buys 45, 15 too few" in out
    assert "time: 1:08" in out


def test_it_labels_and_trains_nothing_and_training_then_asks_nothing(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    code, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "run")
    assert code == 0
    assert len(api.asked) == len({str(body) for body in api.asked}) == 60
    assert re.search(r"answers +60\nspent +60 queries, 40 left of 100\n", out)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["ledger.sqlite", "run.json"]
    assert call(capsys, "distill", run_file, "--out", tmp_path / "run")[0] == 0
    assert len(api.asked) == 60


def test_an_api_that_is_told_user_and_history_is_asked_about_parts_of_histories(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    body = [f'teacher.body.{name}="{{{name}}}"' for name in ("user", "history", "k")]
    changed = [*body, "method.name=bahsd", "teacher.budget=1000"]
    options = [option for setting in changed for option in ("--set", setting)]
    assert call(capsys, "probe", run_file, "--out", tmp_path / "run", *options)[0] == 0
    told: dict[str, list[list[str]]] = {}
    for asked in api.asked:
        told.setdefault(asked["user"], []).append(asked["history"])
    assert len(told) == 60
    for histories in told.values():
        longest = max(histories, key=len)
        assert all(history == longest[-len(history) :] for history in histories)
    assert max(map(len, told.values())) > 1
    n_asked = len(api.asked)
    assert call(capsys, "distill", run_file, "--out", tmp_path / "run", *options)[0] == 0
    assert len(api.asked) == n_asked


def test_it_goes_on_where_the_budget_ended(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    assert call(capsys, "probe", run_file, "--out", tmp_path / "run", "--set", "teacher.budget=25")[0] == 0
    assert len(api.asked) == 25
    _, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "run", "--dry-run")
    assert out.startswith("60 questions, 25 answered before, 35 to ask\n")
    assert "time: 0:0" in out  # measured by now
    assert call(capsys, "probe", run_file, "--out", tmp_path / "run")[0] == 0
    assert len(api.asked) == 60


def test_progress_says_spend_rate_faults_and_time_left(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recdistill.cli.progress._SILENCE", -1.0)
    monkeypatch.setattr("recdistill.labelling._REFRESH", 0.0)
    good = api.answer
    api.answer = lambda body: response(b"busy", "500 Oops") if len(api.asked) == 3 else good(body)
    _, _, err = call(capsys, "probe", run_file, "--out", tmp_path / "run")
    assert re.search(r"labelling: \d+/60  spent \d+ queries  [\d,]+/s  500 ×1  0:\d\d left", err)
    assert err.rstrip().endswith("labelling: 60")


def test_more_answers_than_the_budget_seemed_to_buy_are_told_of_once(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the first ten answers took two calls, so that 50 more calls seem to buy 25; now each takes one."""
    monkeypatch.setattr("recdistill.labelling._REFRESH", 0.0)
    good, options = api.answer, ("--set", "teacher.charge=calls", "--set", "teacher.concurrency=1")
    api.answer = lambda body: response(b"busy", "500 Oops") if len(api.asked) % 2 else good(body)
    assert call(capsys, "probe", run_file, "--out", tmp_path / "run", "--set", "teacher.budget=20", *options)[0] == 0
    api.answer = good
    again = call(capsys, "probe", run_file, "--out", tmp_path / "run", "--set", "teacher.budget=70", *options)
    assert "buys 25, 25 too few" in again[1]
    assert re.findall(r"labelling: \d+\n", again[2]) == ["labelling: 50\n"]


def test_an_api_that_refuses_is_an_error_and_what_was_bought_is_kept(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    good = api.answer
    api.answer = lambda body: good(body) if len(api.asked) <= 20 else response(b"no", "403 Forbidden")
    code, _, err = call(capsys, "probe", run_file, "--out", tmp_path / "run")
    assert code == 2
    assert "answered 403" in err
    with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert ledger.stats(api.url).answers == 20


def test_only_an_api_is_probed(capsys: pytest.CaptureFixture[str], run_file: Path, tmp_path: Path) -> None:
    without_teacher, _, _ = run_file.read_text().partition("[teacher]")
    run_file.write_text(f'{without_teacher}[teacher]\nkind = "run"\nfolder = "somewhere"\n')
    code, _, err = call(capsys, "probe", run_file, "--out", tmp_path / "run")
    assert code == 2
    assert "only an API is probed" in err


@pytest.mark.parametrize(
    ("stats", "affordable", "seconds"),
    [
        (Stats("api"), 1000, 100.0),  # ten a second
        (Stats("api", budget=400), 400, 40.0),
        (Stats("api", 100, 150, 400, calls=200, charge="calls"), 166, 33.2),  # 250 left at 1.5 each; two calls each
        (Stats("api", 100, 500, 400, charge="calls"), 0, 0.0),
    ],
)
def test_what_a_budget_buys_and_how_long_it_takes(stats: Stats, affordable: int, seconds: float) -> None:
    plan = Plan(1200, 1000, stats, concurrency=8, rate=10.0, seconds_each=0.2)
    assert plan.affordable == affordable
    assert plan.seconds == pytest.approx(seconds)


def test_without_a_rate_time_is_what_an_answer_took() -> None:
    assert Plan(1000, 1000, Stats("api"), concurrency=8, rate=None, seconds_each=0.4).seconds == pytest.approx(50)
