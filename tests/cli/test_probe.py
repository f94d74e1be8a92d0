import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recdistill.labelling import Plan
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_records import Stats

from ..teachers.raw_api import Body, RawApi, response
from .shell import call

ONE_EACH = np.ones(1000, np.int64)
"""A call for each of a thousand questions."""


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


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((1, 2), "these answers 1.0000, rules counted in the logs 1.0000\n.*the logs add nothing to these answers"),
        (
            (2, 12),
            r"these answers 0.0000, rules counted in the logs 1.0000\n.*best with 0\.7 \(p 0.0001 against the answers "
            r"alone\): method.second_opinion = 0\.7 ",
        ),
        (
            (8, 1),
            r"these answers 0.9262, rules counted in the logs 1.0000\n.*best with 0\.4 \(p 0.0\d+ against the answers "
            r"alone\); beside labels 0\.5 is the least that is learned: method.second_opinion = 0\.5 ",
        ),
    ],
)
def test_what_is_labelled_is_weighed_against_the_logs(
    capsys: pytest.CaptureFixture[str],
    run_file: Path,
    api: RawApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: tuple[int, int],
    said: str,
) -> None:
    """Customers take the next product: an API that lists it first needs no logs, the others do."""

    def ten(body: Body) -> bytes:
        newest = int(body["history"][-1].removeprefix("p"))
        return response({"items": [f"p{(newest + step) % 12}" for step in (*steps, *range(3, 11))]})

    api.answer = ten
    options = (run_file, "--out", tmp_path / "run", "--set", "method.top_k=10")
    assert "NDCG" not in call(capsys, "probe", *options)[1], "60 validation cases are too few"
    monkeypatch.setattr("recdistill.methods.opinion.FEWEST_CASES", 60)
    assert re.search(f"validation NDCG@10, 60 cases: {said}", call(capsys, "probe", *options)[1], re.DOTALL)
    assert len(api.asked) == 60
    walks = ("--set", "method.name=extraction", "--set", "method.top_k=10", "--set", "method.walk_len=8")
    code, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "walks", *walks)
    assert (code, "NDCG" in out) == (0, False), "that method hears nobody else"


def test_test_cases_that_the_teacher_is_asked_about_are_planned_and_labelled(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    """A test history that is another one's training history is asked about once: its list is the longer one."""
    options = ("--out", tmp_path / "run", "--set", "evaluation.ask_teacher=15")
    _, out, _ = call(capsys, "probe", run_file, *options, "--dry-run")
    assert call(capsys, "probe", run_file, *options)[0] == 0
    tested, asked = ({tuple(body["history"]) for body in some} for some in (api.asked[:15], api.asked[15:]))
    training = {tuple(f"p{(c + step) % 12}" for step in range(4 + c % 5)) for c in range(60)}
    assert len(tested) == 15
    assert asked == training - tested, "the test cases come first"
    n = 15 + len(training - tested)
    assert out.startswith(f"{n} questions, 0 answered before, {n} to ask\n")
    assert call(capsys, "distill", run_file, *options)[0] == 0
    assert len(api.asked) == n


def test_a_plan_of_walks_goes_along_the_answers_that_are_there(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    walks = ("--set", "method.name=extraction", "--set", "method.walk_len=6", "--set", "method.n_queries=30")
    options = (run_file, "--out", tmp_path / "run", *walks)
    planned = call(capsys, "probe", *options, "--dry-run")[1]
    assert re.match(r"\d+ questions, 0 answered before, \d+ to ask, or others, as the answers turn out\n", planned)
    assert call(capsys, "probe", *options)[0] == 0
    n = len(api.asked)
    again = call(capsys, "probe", *options, "--dry-run")[1]
    assert again.startswith(f"{n} questions, {n} answered before, 0 to ask\n")


def test_what_was_refused_for_good_is_planned_as_such(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    good, refused = api.answer, response(b"who?", "404 Not Found")
    api.answer = lambda body: refused if body["history"][-1] == "p3" else good(body)
    options = (run_file, "--out", tmp_path / "run")
    call(capsys, "probe", *options)
    again = call(capsys, "probe", *options, "--dry-run")[1]
    assert again.startswith("60 questions, 55 answered before, 5 refused for good, 0 to ask\n")


def test_a_dry_run_leaves_the_ledger_as_it_is(
    capsys: pytest.CaptureFixture[str], run_file: Path, tmp_path: Path
) -> None:
    options = (run_file, "--out", tmp_path / "run")
    call(capsys, "probe", *options)
    before = call(capsys, "ledger", "stats", tmp_path / "run" / "ledger.sqlite")
    for changes, said in (
        (["teacher.budget=5"], "60 questions, 60 answered before, 0 to ask\nbudget: 0 of 5 queries left: enough"),
        (["teacher.budget=7", "teacher.identity=other"], "budget: 7 of 7 queries left, at 1 an answer: buys 7"),
    ):
        others = [option for change in changes for option in ("--set", change)]
        assert said in call(capsys, "probe", *options, "--dry-run", *others)[1]
    code, _, err = call(capsys, "probe", *options, "--dry-run", "--set", "teacher.charge=calls")
    assert code == 2
    assert 'set charge = "queries"' in err
    assert call(capsys, "ledger", "stats", tmp_path / "run" / "ledger.sqlite") == before


def test_a_plan_counts_the_last_call_of_those_that_are_asked_together_whole(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    """Fifteen test cases are asked before the other 47 questions: one call of 15 and three, the last of seven."""
    api.answer = two_a_page
    options = (*BATCH, "--set", "teacher.charge=calls", "--set", "evaluation.ask_teacher=15")
    for budget, told, bought in ((3, "buys 55, 7 too few", (55, 3, 0)), (4, "an answer: enough", (62, 4, 0))):
        given = (*options, "--set", f"teacher.budget={budget}")
        _, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "run", "--dry-run", *given)
        assert told in out
        assert call(capsys, "probe", run_file, "--out", tmp_path / "run", *given)[0] == 0
        assert of_the_run(tmp_path / "run") == bought


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


SESSION = ("--set", 'teacher.body={s="{session}", i="{item}"}', "--set", "teacher.reads=session")
PAGES = ("--set", 'teacher.body={o="{offset}", h="{history}"}', "--set", "teacher.max_k=2")
BATCH = (
    *("--set", 'teacher.body={q="{questions}"}', "--set", 'teacher.question={h="{history}"}'),
    *("--set", 'teacher.answers="a[*]"', "--set", "teacher.batch_size=20"),
)


def two_a_page(body: Body) -> bytes:
    """Answer whatever is asked, in the form in which it is asked."""
    items = [f"p{body.get('o', 0) + place}" for place in range(2)]
    return response({"a": [{"items": items}] * len(body["q"])} if "q" in body else {"items": items})


@pytest.mark.parametrize(
    ("shape", "charge", "budget", "told", "answers", "spent"),
    [
        ((*SESSION, "--set", "teacher.max_history=4"), "calls", 21, "at 4 an answer: buys 5, 7 too few", 5, 20),
        ((*SESSION, "--set", "teacher.max_history=4"), "rows", 21, "at 4 an answer: buys 5, 7 too few", 5, 20),
        (PAGES, "calls", 21, "at 2 an answer: buys 10, 50 too few", 10, 20),
        (PAGES, "rows", 21, "at 2 an answer: buys 10, 50 too few", 10, 20),
        (BATCH, "calls", 2, "at 0.05 an answer: buys 40, 20 too few", 40, 2),
        (BATCH, "calls", 5, "at 0.05 an answer: enough", 60, 3),
        (BATCH, "rows", 50, "at 1 an answer: buys 50, 10 too few", 50, 50),
        (PAGES, "queries", 50, "at 1 an answer: buys 50, 10 too few", 50, 50),
    ],
)
def test_a_dry_run_knows_what_an_answer_costs_before_the_first(
    capsys: pytest.CaptureFixture[str],
    run_file: Path,
    api: RawApi,
    tmp_path: Path,
    shape: tuple[str, ...],
    charge: str,
    budget: int,
    told: str,
    answers: int,
    spent: int,
) -> None:
    """And nothing is spent on replays, or on pages, that do not come to their end.

    The newest four items are of twelve kinds.
    """
    api.answer = two_a_page
    options = (*shape, "--set", f"teacher.charge={charge}", "--set", f"teacher.budget={budget}")
    _, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "run", "--dry-run", *options)
    assert f"{budget} of {budget} {charge} left, {told}\n" in out
    assert call(capsys, "probe", run_file, "--out", tmp_path / "run", *options)[0] == 0
    assert of_the_run(tmp_path / "run") == (answers, spent, 0)


def of_the_run(folder: Path) -> tuple[int, int, int]:
    """Return how many answers a run has, what it spent, and how many of its attempts failed."""
    with Ledger(folder / "ledger.sqlite") as ledger:
        (stats,) = (ledger.stats(teacher) for teacher in ledger.teachers())
    return stats.answers, stats.spent, stats.failures


def test_sessions_are_counted_each_by_its_length(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    """Of four to eight items, in the order in which they are asked."""
    api.answer = two_a_page
    options = (*SESSION, "--set", "teacher.charge=calls", "--set", "teacher.budget=100")
    _, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "run", "--dry-run", *options)
    (buys,) = re.findall(r"at 6 an answer: buys (\d+),", out)
    call(capsys, "probe", run_file, "--out", tmp_path / "run", *options)
    answers, spent, failures = of_the_run(tmp_path / "run")
    assert (answers, failures) == (int(buys), 0)
    assert 100 - 8 < spent <= 100


def test_a_budget_that_buys_no_answer_says_what_the_first_takes(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    options = (*SESSION, "--set", "teacher.max_history=4", "--set", "teacher.charge=calls", "--set", "teacher.budget=3")
    code, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "run", *options)
    assert (code, api.asked) == (2, [])
    assert "3 of 3 calls left, at 4 an answer: buys 0, 12 too few; the first takes 4\n" in out


def test_a_rate_counts_every_call_of_a_session(
    capsys: pytest.CaptureFixture[str], run_file: Path, tmp_path: Path
) -> None:
    """Twelve histories of each of 4 to 8 items are 360 calls."""
    options = (*SESSION, "--set", "teacher.rate=1")
    _, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "run", "--dry-run", *options)
    assert "time: 6:00\n" in out


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
    plan = Plan(1200, ONE_EACH, np.ones(1000), 100, 1, stats, concurrency=8, rate=10.0, seconds_each=0.2)
    assert plan.affordable == affordable
    assert plan.seconds == pytest.approx(seconds)


def test_without_a_rate_time_is_what_an_answer_took() -> None:
    plan = Plan(1000, ONE_EACH, np.ones(1000), 100, 1, Stats("api"), concurrency=8, rate=None, seconds_each=0.4)
    assert plan.seconds == pytest.approx(50)
    assert replace(plan, batch_size=5, shares=np.full(1000, 0.2)).seconds == pytest.approx(10)


def test_what_was_measured_counts_unless_questions_are_known_to_differ() -> None:
    """Pages that ended early cost 1.5 calls, not 2; a session of four items takes four calls, whatever others took."""
    stats = Stats("api", answers=10, spent=15, budget=25, calls=15, charge="calls")
    pages = Plan(30, np.full(20, 2), np.ones(20), 100, 1, stats, concurrency=8, rate=1.0, seconds_each=None)
    assert (pages.affordable, pages.seconds) == (6, 9.0)
    sessions = replace(pages, calls=np.array([4, 3, 2, 9]), shares=np.ones(4))
    assert (sessions.affordable, sessions.seconds) == (3, 9.0)


def teach_together(run_file: Path, api: RawApi, *members: dict[str, Any]) -> None:
    """Let an ensemble teach where one API has."""
    before, after = run_file.read_text().split("[teacher]\n")
    named = "[teacher]\nkind = 'ensemble'\n" + "".join(
        "[[teacher.members]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in member.items())
        for member in ({"kind": "http", "url": api.url, "first_wait": 0.01} | named for named in members)
    )
    run_file.write_text(before + named + after[after.index("[") :])


def test_every_api_of_an_ensemble_is_planned_and_asked(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    """One of them is asked within a budget, and the other about everything."""
    teach_together(run_file, api, {"identity": "new", "budget": 40}, {"identity": "old"})
    code, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "run", "--dry-run")
    assert (code, api.asked) == (0, [])
    assert out.splitlines() == [
        "new",
        "60 questions, 0 answered before, 60 to ask",
        "budget: 40 of 40 queries left, at 1 an answer: buys 40, 20 too few",
        "time: not known before the first answers",
        "old",
        "60 questions, 0 answered before, 60 to ask",
        "time: not known before the first answers",
    ]
    code, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "run")
    assert (code, len(api.asked)) == (0, 100)
    assert re.search(r"^new\nanswers +40\nspent +40 queries, 0 left of 40\n", out, re.MULTILINE)
    assert re.search(r"^old\nanswers +60\nspent +60 queries, no budget\n", out, re.MULTILINE)


def test_rounds_of_one_api_are_planned_to_spend_its_budget_once(
    capsys: pytest.CaptureFixture[str], run_file: Path, api: RawApi, tmp_path: Path
) -> None:
    """Of 100 queries 60 are taken by the first round."""
    teach_together(run_file, api, {"budget": 100}, {"budget": 100, "round": 1})
    _, out, _ = call(capsys, "probe", run_file, "--out", tmp_path / "run", "--dry-run")
    assert [line for line in out.splitlines() if "budget" in line] == [
        "budget: 100 of 100 queries left, at 1 an answer: enough",
        "budget: 40 of 100 queries left by then, at 1 an answer: buys 40, 20 too few",
    ]
    call(capsys, "probe", run_file, "--out", tmp_path / "run")
    assert len(api.asked) == 100
