"""Which method a teacher teaches by unless one is named, and what is said of one that does not fit."""

import re
from pathlib import Path

import polars as pl
import pytest

from recdistill.data.dataset import IdMap, Sequences
from recdistill.errors import SettingsError
from recdistill.methods.base import build_method, default_method, warn_of_gap
from recdistill.models.base import build_model
from recdistill.teachers.base import Teacher
from recdistill.teachers.ensemble import EnsembleTeacher
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.teachers.local import LocalTeacher
from recdistill.teachers.rules import RulesTeacher
from recdistill.teachers.stored import StoredTeacher

N = 5
IDS, USERS = IdMap(range(1, N + 1), first=1), IdMap(range(2), first=0)
TRAIN = Sequences.from_lists([[1, 2, 3], [3, 4]])


def model(*, gives_scores: bool = True) -> LocalTeacher:
    return LocalTeacher(build_model("gru4rec", N, {"dim": 4}), gives_scores=gives_scores)


def file(n_items: int = N) -> StoredTeacher:
    rows = [(user, item, -float(item)) for user in range(2) for item in range(1, n_items + 1)]
    return StoredTeacher(pl.DataFrame(rows, schema=["user", "item", "score"], orient="row"), ids=IDS, users=USERS)


def of_the_last_item() -> Teacher:
    teacher = FakeTeacher(N)
    teacher.max_history = 1
    return teacher


@pytest.mark.parametrize(
    ("teacher", "method"),
    [
        (None, "supervised"),
        (model(), "ckd"),
        (model(gives_scores=False), "bahsd"),
        (file(), "ckd"),
        (file(3), "kd"),
        (FakeTeacher(N), "bahsd"),
        (of_the_last_item(), "kd"),
        (EnsembleTeacher([model(), model()]), "ckd"),
        (EnsembleTeacher([file(), file()]), "ckd"),
        (EnsembleTeacher([file(), file(3)]), "kd"),
        (EnsembleTeacher([model(), FakeTeacher(N)]), "bahsd"),
        (RulesTeacher(TRAIN, N), "kd"),
    ],
)
def test_the_default_method_is_what_the_teacher_can_do(teacher: Teacher | None, method: str) -> None:
    assert default_method(teacher) == method
    build_method(method).check(build_model("sasrec", N), teacher)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (file(N - 1), r"of 5 items it scores 4 for user 0, say, but not item 5\. So the default method is 'kd', which"),
        (EnsembleTeacher([file(), file(N - 1)]), r"but not item 5\. So the default method is 'kd'"),
        (EnsembleTeacher([model(), file(N - 1)]), r"but not item 5\. So the default method is 'kd'"),
        (file(), None),
        (file(2), None),
        (EnsembleTeacher([FakeTeacher(N), file(N - 1)]), None),
        (model(), None),
        (None, None),
    ],
)
def test_of_scores_that_are_nearly_all_there_it_is_said_what_is_missing(
    teacher: Teacher | None, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """One new item in the logs would otherwise change the method, and nobody would know; best items alone are lists."""
    warn_of_gap(teacher)
    assert len(caplog.messages) == (said is not None)
    assert said is None or re.search(said, caplog.text)


@pytest.mark.parametrize(
    ("method", "teacher", "said"),
    [
        ("rcekd", file(3), r"as teacher, or 'kd' or 'rrd', which learn from lists$"),
        ("rcekd", FakeTeacher(N), r"as teacher, or 'bahsd', 'kd' or 'rrd', which learn from lists$"),
        ("de", file(), r"trained model as teacher, or a method that learns from its scores, such as 'rcekd'$"),
        ("de", file(3), r"trained model as teacher, or 'kd' or 'rrd', which learn from lists$"),
        ("hetcomp", model(), r": train it with training\.keep_epochs = "),
        ("hetcomp", file(), r": take a model of your own, trained with training\.keep_epochs = "),
        ("hetcomp", EnsembleTeacher([model(), model()]), r": take a model of your own, trained with"),
        ("supervised", file(3), r"asks no teacher: remove \[teacher\], or use 'kd'"),
        ("supervised", model(), r"asks no teacher: remove \[teacher\], or use 'ckd'"),
    ],
)
def test_what_is_advised_can_be_done_with_the_teacher_at_hand(method: str, teacher: Teacher, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        build_method(method).check(build_model("sasrec", N), teacher)


@pytest.mark.parametrize("method", ["rcekd", "de"])
def test_what_lies_behind_a_ledger_is_not_said_to_be_missing(method: str, tmp_path: Path) -> None:
    """A budget counts lists; the teacher itself would give what is asked for."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        kept = LedgerTeacher(model(), ledger, budget=3)
        assert default_method(kept) == "bahsd"
        with pytest.raises(
            SettingsError, match=r"through a ledger, which .* lists alone: ask it without a budget .*'bahsd'"
        ):
            build_method(method).check(build_model("sasrec", N), kept)
