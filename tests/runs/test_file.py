import json
import math
import traceback
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from recdistill.errors import SettingsError
from recdistill.runs.file import Run, override
from recdistill.runs.folder import claim
from recdistill.runs.sections import (
    FILES,
    TEACHERS,
    DataSettings,
    EnsembleTeacherSettings,
    FileTeacherSettings,
    HttpTeacherSettings,
    RunTeacherSettings,
    StartSettings,
)
from recdistill.settings import Location

API = {"kind": "http", "url": "https://shop.example/recommend"}
RUN = {"kind": "run", "folder": "runs/big"}
FILE = {"kind": "file", "path": "scores.parquet"}


def parse(**sections: Any) -> Run:
    return Run.parse({"data": {"path": "clicks.csv"}} | sections)


def test_every_default_is_filled_in() -> None:
    run = parse()
    assert (run.student.name, run.method.name, run.split.protocol) == ("sasrec", "supervised", "leave-one-out")
    assert run.dump()["student"]["dim"] == 64
    assert run.teacher is None


def test_the_teacher_decides_what_the_default_method_is() -> None:
    """How it is opened, and of a file what stands in it, is not known before; the settings are kept until then."""
    run = parse(teacher=FILE, method={"second_opinion": 0.1})
    assert run.dump()["method"] == {"second_opinion": 0.1}
    assert Run.parse(json.loads(json.dumps(run.dump()))) == run
    by_scores = run.by_default("ckd")
    assert by_scores.dump()["method"] | {"name": "ckd", "second_opinion": 0.1} == by_scores.dump()["method"]
    assert by_scores.by_default("kd") == by_scores
    assert run.differences(by_scores) == by_scores.differences(run) == []
    assert parse(teacher=FILE).differences(by_scores) == ["method.second_opinion: 0.3 and 0.1"]
    with pytest.raises(SettingsError, match=r"\[method\] kd: unknown setting 'topk'; did you mean 'top_k'"):
        parse(teacher=FILE, method={"topk": 3}).by_default("kd")


def test_student_and_model_are_two_names_for_one_section() -> None:
    assert parse(model={"dim": 8}).student.config == parse(student={"dim": 8}).student.config
    with pytest.raises(SettingsError, match="two names for one section"):
        parse(model={"dim": 8}, student={"dim": 8})


def test_the_kind_of_teacher_decides_its_settings() -> None:
    assert isinstance(parse(teacher=API | {"budget": 10}).teacher, HttpTeacherSettings)
    assert isinstance(parse(teacher=RUN).teacher, RunTeacherSettings)
    stored = parse(teacher=FILE).teacher
    assert isinstance(stored, FileTeacherSettings)
    assert stored.path == str(Path.cwd() / "scores.parquet")


def test_what_was_dumped_is_the_same_run() -> None:
    run = parse(
        student={"name": "gru4rec", "start": "runs/labels"}, teacher=API | {"budget": 5}, evaluation={"ks": [1, 7]}
    )
    assert run.start == str(Path.cwd() / "runs/labels")
    assert Run.parse(json.loads(json.dumps(run.dump()))) == run


@pytest.mark.parametrize("start", [3, ["runs/labels"]])
def test_a_start_that_is_no_text_is_refused(start: object) -> None:
    with pytest.raises(SettingsError, match=r"run: \[student\]: start: Input should be a valid string \(got"):
        parse(student={"start": start})


def test_a_device_is_no_difference_and_by_default_not_said() -> None:
    """Folders of benchmarks are found by what is no default."""
    assert parse().differences(parse(training={"device": "cuda"})) == []
    assert parse().differences(parse(training={"device": "cuda", "seed": 1})) == ["training.seed: 0 and 1"]
    assert parse(training={"device": "cpu"}).dump(defaults=False)["training"] == {}


def test_what_is_no_default_is_enough_to_make_the_same_run() -> None:
    run = parse(student={"name": "gru4rec", "dim": 8}, teacher=API | {"budget": 5}, training={"epochs": 3})
    assert run.dump(defaults=False)["student"] == {"name": "gru4rec", "dim": 8}
    assert Run.parse(json.loads(json.dumps(run.dump(defaults=False)))) == run


def test_several_teachers_are_settings_like_one() -> None:
    run = parse(teacher={"kind": "ensemble", "members": [API | {"budget": 5}, RUN, FILE], "weights": [2, 1, 1]})
    assert isinstance(run.teacher, EnsembleTeacherSettings)
    assert [member.kind for member in run.teacher.members] == ["http", "run", "file"]
    assert Run.parse(json.loads(json.dumps(run.dump()))) == run


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"trainig": {}}, r"unknown setting 'trainig'; did you mean 'training'"),
        ({"training": {"epoch": 3}}, r"\[training\]: unknown setting 'epoch'; did you mean 'epochs'"),
        ({"data": {"path": "a", "users": "u"}}, r"\[data\]: unknown setting 'users'; did you mean 'user'"),
        ({"data": {}}, r"\[data\]: path: Field required"),
        ({"student": {"name": "sasrek"}}, r"\[student\]: unknown name 'sasrek'; did you mean 'sasrec'"),
        ({"student": {"dims": 3}}, r"\[student\] sasrec: unknown setting 'dims'; did you mean 'dim'"),
        ({"method": {"name": "badsh"}}, r"\[method\]: unknown name 'badsh'; did you mean 'bahsd'"),
        ({"method": {"name": "kd", "topk": 3}}, r"\[method\] kd: unknown setting 'topk'; did you mean 'top_k'"),
        ({"teacher": {"url": "x"}}, r'\[teacher\]: kind is missing, or none of these: write kind = "http"'),
        ({"teacher": API | {"buget": 3}}, r"\[teacher\]: unknown setting 'buget'; did you mean 'budget'"),
        ({"teacher": {"kind": "ensemble", "members": [RUN]}}, r"\[teacher\]: members: Tuple should have at least 2"),
        ({"teacher": {"kind": "ensemble", "members": RUN}}, r"\[teacher\]: members: Input should be a valid tuple"),
        (
            {"teacher": {"kind": "ensemble", "members": [RUN, {"kind": "run", "foldr": "a"}]}},
            r"\[teacher\] member 2: unknown setting 'foldr'; did you mean 'folder'",
        ),
        ({"teacher": {"kind": "rules", "decay": 0}}, r"\[teacher\]: decay: Input should be greater than 0"),
        (
            {"teacher": {"kind": "ensemble", "members": [RUN, {"kind": "rules"}]}},
            r"\[teacher\]: rules advise a teacher by second_opinion in \[method\]; leave that member out",
        ),
        (
            {"method": {"name": "s4rec", "contrast_weight": math.inf}},
            r"contrast_weight: Input should be a finite number",
        ),
        ({"method": {"name": "s4rec", "n_clusters": 0}}, r"n_clusters: Input should be greater than or equal to 2"),
        ({"split": {"protocol": "loo"}}, r"\[split\]: protocol: Input should be 'leave-one-out'"),
        ({"split": {"seed": 3}}, r"seed is read only with protocol = 'random': set that, or leave seed out"),
        ({"split": {"file_order": True}}, r"file_order is read only with protocol = 'random'"),
        ({"split": {"protocol": "random", "at": 3}}, r"at is read only with protocol = 'time-cut'"),
        ({"split": {"protocol": "last-basket", "valid_at": 3}}, r"valid_at is read only with protocol = 'time-cut'"),
        ({"training": {"seed": 2**63}}, r"\[training\]: seed: Input should be less than 9223372036854775808"),
        ({"student": {"name": "bert4rec", "max_len": 1}}, r"max_len: Input should be greater than or equal to 2"),
        ({"evaluation": {"ks": []}}, r"\[evaluation\]: ks: Tuple should have at least 1 item"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_right_name(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse(**sections)


@pytest.mark.parametrize(
    "teacher",
    [
        {"headers": {"Authorization": "Bearer s3cret"}},
        {"headers": "s3cret"},
        {"signature": {"kind": "hmac", "secret": "s3cret"}},
        {"headers": {"X-Key": "${KEY}"}, "signature": "s3cret", "timeout": -1},
    ],
)
def test_no_error_repeats_what_may_be_a_secret(teacher: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as refused:
        parse(teacher=API | teacher)
    assert "s3cret" not in "".join(traceback.format_exception(refused.value))


def test_a_toml_file_is_read_with_overrides(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[data]\npath = "clicks.csv"\n[training]\nepochs = 5\n')
    run = Run.read(tmp_path / "run.toml", ["training.epochs=7", "student.dim=8", "method.loss=bce"])
    assert (run.training.epochs, run.dump()["student"]["dim"], run.dump()["method"]["loss"]) == (7, 8, "bce")


def test_paths_are_absolute_so_that_a_run_can_be_read_from_anywhere() -> None:
    assert parse().data.path == str(Path.cwd() / "clicks.csv")
    assert parse(data={"path": "shop"}).data.path == "shop"


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2011-06-01", "2011-06-01"),
        ("2011-06-01T12:30:00", "2011-06-01T12:30:00"),
        ("2011-06-01T12:30:00Z", "2011-06-01T12:30:00+00:00"),
        ('"2011-06-01"', "2011-06-01"),
        ("1306886400", 1306886400),
    ],
)
def test_an_instant_may_be_a_date_of_toml(tmp_path: Path, text: str, instant: object) -> None:
    path = tmp_path / "cut.toml"
    path.write_text(f'[data]\npath = "clicks.csv"\n[split]\nprotocol = "time-cut"\nat = {text}\n')
    run = Run.read(path, [f"split.valid_at={text}"])
    assert (run.split.at, run.split.valid_at) == (instant, instant)
    assert Run.parse(json.loads(json.dumps(run.dump()))) == run


def test_a_path_may_begin_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of paid answers must not come to lie in a folder that is called ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    teacher = parse(teacher=API | {"ledger": "~/answers.sqlite"}).teacher
    assert isinstance(teacher, HttpTeacherSettings)
    assert teacher.ledger == str(tmp_path / "answers.sqlite")
    assert parse(data={"path": "~clicks.csv"}).data.path == str(Path.cwd() / "~clicks.csv")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.toml", None, "cannot read the run file .*missing.toml: No such file"),
        ("bad.toml", b"[data\n", "is no run file: Expected ']'"),
        ("latin.toml", b'[data]\npath = "caf\xe9"\n', "is not UTF-8 text"),
        ("bad.json", b"[1]", "is no run file"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=said):
        Run.read(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 0.001),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"two words"', "two words"),
        ("gru4rec", "gru4rec"),
        ("http://127.0.0.1:80/x", "http://127.0.0.1:80/x"),
    ],
)
def test_override_values_are_toml_or_a_bare_word(text: str, value: object) -> None:
    assert override({}, [f"a.b={text}"]) == {"a": {"b": value}}


@pytest.mark.parametrize("assignment", ["epochs=3", "training.epochs", ".x=3", "training.=3", "training"])
def test_an_override_needs_section_key_and_value(assignment: str) -> None:
    with pytest.raises(SettingsError, match=r"write section\.key=value"):
        override({}, [assignment])


@pytest.mark.parametrize("text", ["[1, 2", "two words", '"open', ""])
def test_an_override_with_a_broken_value_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is no TOML value"):
        override({}, [f"a.b={text}"])


@pytest.mark.parametrize(
    "assignment",
    [
        "teacher.headers.Authorization=Bearer s3cret",
        'teacher.headers={Authorization="Bearer s3cret"',
        "Authorization=s3cret",
        "Bearer s3cret",
        "teacher.url.x=s3cret",
    ],
)
def test_an_override_that_is_refused_is_not_shown(assignment: str) -> None:
    """A shell may have put the secret there in the place of its variable."""
    with pytest.raises(SettingsError, match="--set") as caught:
        override({"teacher": {"url": "http://me:s3cret@shop.example"}}, [assignment])
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cret" not in str(error)
        error = error.__cause__


@pytest.mark.parametrize(
    "teacher",
    [
        "http://me:s3cret@shop.example",
        {"kind": "http://me:s3cret@shop.example"},
        {"kind": "http", "url": "http://shop.example", "method": "Bearer s3cret"},
        {"kind": "http", "url": "http://shop.example", "identity": ["s3cret"]},
    ],
)
def test_what_is_wrong_with_a_teacher_is_said_without_its_value(teacher: Any) -> None:
    with pytest.raises(SettingsError, match=r"teacher|\[teacher\]") as caught:
        Run.parse({"data": {"path": "log.csv"}, "teacher": teacher})
    assert "s3cret" not in str(caught.value)


def test_settings_that_do_not_go_together_are_named_without_words_of_the_library_that_checks_them() -> None:
    with pytest.raises(SettingsError, match=r"\[student\] sasrec: n_heads = 3 must divide dim = 16$"):
        Run.parse({"data": {"path": "log.csv"}, "student": {"dim": 16, "n_heads": 3}})


def test_an_override_leaves_the_original_alone() -> None:
    values = {"training": {"epochs": 1}}
    override(values, ["training.epochs=2"])
    assert values == {"training": {"epochs": 1}}


def test_differences_name_what_differs() -> None:
    assert parse().differences(parse()) == []
    assert parse().differences(parse(training={"epochs": 7})) == ["training.epochs: 100 and 7"]


def test_another_method_differs_in_its_settings_too() -> None:
    probed = parse(teacher=API, method={"name": "bahsd"})
    differences = probed.differences(parse(teacher=API, method={"name": "kd"}))
    assert 'method.name: "bahsd" and "kd"' in differences
    assert "method.depth: 20 and nothing" in differences


def both(*members: dict[str, Any], **weights: Any) -> dict[str, Any]:
    return {"kind": "ensemble", "members": list(members), **weights}


def test_how_an_api_is_reached_and_what_it_may_cost_is_no_difference() -> None:
    """A run that stopped because the budget was spent, or the API moved, goes on with the answers it has."""
    moved = {"url": "https://new.example/recommend", "budget": 99, "rate": 2.0}
    shop = API | {"identity": "shop"}
    assert parse(teacher=shop).differences(parse(teacher=shop | moved)) == []
    assert parse(teacher=both(shop, FILE)).differences(parse(teacher=both(shop | moved, FILE))) == []


def test_an_api_that_would_be_known_by_another_name_is_a_difference() -> None:
    """Its answers would all be bought anew, beside what the budget has paid for."""
    moved = API | {"url": "https://new.example/recommend"}
    said = (
        'teacher.identity: "https://shop.example/recommend" and "https://new.example/recommend"; give the first as '
        "identity, if both answer alike"
    )
    assert parse(teacher=API).differences(parse(teacher=moved)) == [said]
    assert parse(teacher=API).differences(parse(teacher=moved | {"identity": API["url"]})) == []
    assert parse(teacher=both(FILE, API)).differences(parse(teacher=both(FILE, moved))) == [said]


def test_a_ledger_is_seen_from_the_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the same file bought everything anew when it was started from another folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    api = 'kind = "http"\nurl = "https://shop.example/recommend"\nledger = "paid.sqlite"\n'
    (tmp_path / "run.toml").write_text(f'[data]\npath = "shop"\n[teacher]\n{api}')
    members = f"[[teacher.members]]\n{api}" * 2
    (tmp_path / "both.toml").write_text(f'[data]\npath = "shop"\n[teacher]\nkind = "ensemble"\n{members}')
    for name in ("run.toml", "both.toml"):
        run = Run.read(tmp_path / name)
        assert {teacher.ledger for teacher in run.apis} == {str(tmp_path / "paid.sqlite")}
        (tmp_path / "run.json").write_text(json.dumps({"settings": run.dump()}))
        assert Run.read(tmp_path / "run.json") == run
    there = Run.read(tmp_path / "run.toml", ["teacher.ledger=paid.sqlite"])
    assert there.apis[0].ledger == str(tmp_path / "elsewhere" / "paid.sqlite")


def test_every_file_is_seen_from_the_run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file must not mean two folders, its own for what was paid for and the current one for the data."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    teacher = '[teacher]\nkind = "run"\nfolder = "../big"\n'
    student = '[student]\nstart = "~/small"\n'
    (tmp_path / "run.toml").write_text(f'[data]\npath = "logs/*.csv"\ntitles = "titles.csv"\n{student}{teacher}')
    run = Run.read(tmp_path / "run.toml")
    assert run.data.path == str(tmp_path / "logs" / "*.csv")
    assert run.data.titles == str(tmp_path / "titles.csv")
    assert run.start == str(Path.home() / "small")
    assert isinstance(run.teacher, RunTeacherSettings)
    assert run.teacher.folder == str(tmp_path.parent / "big")
    matrix = 'kind = "matrix"\npath = "scores.npy"\nrow_users = "~/users.txt"\ncolumn_items = "../items.txt"\n'
    (tmp_path / "matrix.toml").write_text(f'[data]\npath = "logs.csv"\n[teacher]\n{matrix}')
    placed = Run.read(tmp_path / "matrix.toml").dump()["teacher"]
    assert placed["path"] == str(tmp_path / "scores.npy")
    assert placed["row_users"] == str(Path.home() / "users.txt")
    assert placed["column_items"] == str(tmp_path.parent / "items.txt")
    assert Run.read(tmp_path / "run.toml", ["data.path=now.csv"]).data.path == str(tmp_path / "elsewhere" / "now.csv")


def test_no_file_that_a_section_may_name_is_forgotten() -> None:
    kinds: dict[str, list[type]] = {"data": [DataSettings], "model": [StartSettings], "student": [StartSettings]}
    for name, classes in (kinds | {"teacher": list(TEACHERS.values())}).items():
        hints = [hint for kind in classes for hint in get_type_hints(kind, include_extras=True).items()]
        locations = {setting for setting, hint in hints if Location in (hint, *get_args(hint))}
        assert locations == set(FILES[name])


def test_a_folder_that_holds_another_run_names_the_ledger_of_that_run(tmp_path: Path) -> None:
    held, now = (parse(teacher=API | {"ledger": f"/{name}.sqlite"}) for name in ("paid", "new"))
    (tmp_path / "run.json").write_text(json.dumps({"settings": held.dump()}))
    with pytest.raises(SettingsError, match=r"--out, and --set teacher.ledger=/paid.sqlite to use the answers already"):
        claim(tmp_path, now)


@pytest.mark.parametrize("other", [{"budget": 6}, {"budget": 5, "charge": "calls"}, {}])
def test_rounds_of_an_api_share_a_budget_and_what_it_counts(other: dict[str, Any]) -> None:
    """Else it would be no ceiling for both."""
    with pytest.raises(SettingsError, match=r"members that are teacher .* share a budget, but it is 5 of"):
        parse(teacher=both(API | {"budget": 5}, API | {"round": 1} | other))
    parse(teacher=both(API | {"budget": 5}, API | {"round": 1, "budget": 5}))
    parse(teacher=both(API | {"budget": 5}, API | {"round": 1, "ledger": "/b"} | other))


def test_members_of_an_ensemble_differ_one_by_one() -> None:
    ledgers = [parse(teacher=both(API | {"ledger": f"/{name}"}, FILE)) for name in "ab"]
    assert ledgers[0].differences(ledgers[1]) == ['teacher.members.1.ledger: "/a" and "/b"']
    fewer, more = parse(teacher=both(FILE, FILE)), parse(teacher=both(FILE, FILE, API))
    assert 'teacher.members.3.kind: nothing and "http"' in fewer.differences(more)
