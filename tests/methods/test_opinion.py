"""A second opinion on a teacher's answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.methods.bahsd import BAHSD, BAHSDConfig
from recdistill.methods.base import Setting, build_method
from recdistill.methods.kd import KD
from recdistill.methods.opinion import advised
from recdistill.methods.rrd import RRD
from recdistill.methods.scored import Distillation, TeacherView
from recdistill.probing import probe
from recdistill.teachers.ensemble import EnsembleTeacher
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.teachers.rules import RulesTeacher

from .users import TRAIN, WITH_HISTORY, N, mf, scores_of, setting

HISTORIES = Sequences.from_lists([[1, 9, 2, 6], [9, 2, 1], [6, 1, 9], []])


def asked(max_len: int | None = None) -> Setting:
    train, users = HISTORIES, np.arange(len(HISTORIES))
    if max_len is not None:
        train, users = HISTORIES.with_windows(max_len)
    return Setting(train, users, 9, FakeTeacher(9))


def test_without_a_share_the_teacher_is_alone() -> None:
    plain = asked()
    assert advised(plain, 0.0) is plain


def test_the_share_is_that_of_the_rules() -> None:
    teacher = advised(asked(), 0.3).teacher
    assert isinstance(teacher, EnsembleTeacher)
    assert teacher.weights == pytest.approx([0.7, 0.3])
    rules = teacher.teachers[1]
    assert isinstance(rules, RulesTeacher)
    assert rules.ordered


def test_both_are_probed_by_what_the_teacher_reads() -> None:
    short = FakeTeacher(9)
    short.max_history = 3
    teacher = advised(replace(asked(), teacher=short), 0.5).teacher
    assert teacher is not None
    assert teacher.max_history == 3


def test_windows_of_a_history_are_counted_once() -> None:
    whole, windows = (advised(asked(max_len), 0.5).teacher for max_len in (None, 2))
    assert isinstance(whole, EnsembleTeacher)
    assert isinstance(windows, EnsembleTeacher)
    assert whole.teachers[1].identity == windows.teachers[1].identity


@pytest.mark.parametrize("name", ["kd", "bahsd", "rrd"])
def test_lists_are_those_of_both(name: str) -> None:
    method = build_method(name, {"second_opinion": 0.5, "labels": False, "top_k": 5})
    method.prepare(asked())
    expected = advised(asked(), 0.5).teacher
    assert expected is not None
    answers = expected.rank(HISTORIES.take(slice(0, 3)), 5).items.tolist()
    alone = FakeTeacher(9).rank(HISTORIES.take(slice(0, 3)), 5).items.tolist()
    assert isinstance(method, KD | BAHSD | RRD)
    if isinstance(method, BAHSD):
        listed = torch.from_numpy(method.probe.full.items)
    else:
        listed = method.answers.items if isinstance(method, KD) else method.listed
    assert listed[:3].tolist() == answers != alone


@pytest.mark.parametrize("name", ["kd", "bahsd", "rrd"])
def test_rules_answer_what_the_budget_does_not_buy_but_not_everything(name: str, tmp_path: Path) -> None:
    method = build_method(name, {"second_opinion": 0.5, "top_k": 5})
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        with pytest.raises(TeacherError, match="answered none of 3 histories"):
            method.prepare(replace(asked(), teacher=LedgerTeacher(FakeTeacher(9), ledger, budget=0)))
        teacher = LedgerTeacher(FakeTeacher(9), ledger, budget=1)
        answers = probe(advised(replace(asked(), teacher=teacher), 0.5), k=5)
        assert answers.answered[-1].sum() > teacher.rank_within_budget(HISTORIES, 5)[1].sum() == 1


def test_bahsd_hears_rules_beside_labels_unless_told_otherwise() -> None:
    def share(**settings: Any) -> float:
        method = build_method("bahsd", settings)
        assert isinstance(method, BAHSD)
        return method.config.second_opinion

    assert (share(), share(labels=True), share(labels=False)) == (0.5, 0.5, 0.0)
    assert (share(second_opinion=0.2), share(labels=False, second_opinion=0.2)) == (0.2, 0.2)
    pure = BAHSDConfig(labels=False)
    assert BAHSDConfig(**pure.model_dump()) == BAHSDConfig(**pure.model_dump(exclude_defaults=True)) == pure


@pytest.mark.parametrize("name", ["rcekd", "ckd", "ce", "cd", "dcd", "unkd"])
def test_methods_that_ask_for_scores_learn_those_of_both(name: str) -> None:
    method = build_method(name, {"second_opinion": 0.4})
    method.prepare(setting(mf(1)))
    assert isinstance(method, Distillation)
    teacher = method.setting.teacher
    assert isinstance(teacher, EnsembleTeacher)
    assert not isinstance(teacher.teachers[1], EnsembleTeacher)
    rules = teacher.teachers[1]
    assert isinstance(rules, RulesTeacher)
    assert (rules.ordered, rules.takes) == (False, "user")
    rows, items = torch.tensor(WITH_HISTORY), torch.arange(1, N + 1).expand(3, -1)
    histories = TRAIN.take(np.array(WITH_HISTORY))
    theirs = torch.from_numpy(rules.scores(histories, items.numpy())).softmax(1)
    expected = 0.6 * scores_of(mf(1))[rows, 1:].softmax(1) + 0.4 * theirs
    torch.testing.assert_close(TeacherView(method.setting).scores(rows, items).exp(), expected)


@pytest.mark.parametrize("name", ["de", "hetcomp", "htd"])
def test_who_looks_into_the_teacher_cannot_have_one(name: str) -> None:
    stages = (mf(2),)
    with pytest.raises(SettingsError, match="set second_opinion to 0"):
        build_method(name, {"second_opinion": 0.1}).prepare(setting(mf(1), earlier=stages))
