"""A second opinion on a teacher's answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from recdistill.arrays import Bools, Items
from recdistill.data.dataset import Sequences
from recdistill.data.splits import Cases
from recdistill.errors import SettingsError, TeacherError
from recdistill.methods.bahsd import BAHSD, BAHSDConfig
from recdistill.methods.base import Method, Setting, build_method
from recdistill.methods.kd import KD
from recdistill.methods.opinion import HALF, SecondOpinionConfig, Share, advised
from recdistill.methods.probing import probe
from recdistill.methods.rrd import RRD
from recdistill.methods.scored import Distillation, TeacherView
from recdistill.models.base import build_model
from recdistill.registry import import_all
from recdistill.teachers.base import Teacher
from recdistill.teachers.ensemble import EnsembleTeacher
from recdistill.teachers.fake import FakeTeacher, Rule
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher
from recdistill.teachers.local import LocalTeacher
from recdistill.teachers.rules import RulesTeacher

from .users import TRAIN, WITH_HISTORY, N, mf, scores_of, setting, teacher_part

HISTORIES = Sequences.from_lists([[1, 9, 2, 6], [9, 2, 1], [6, 1, 9], []])


def asked(max_len: int | None = None) -> Setting:
    train, users = HISTORIES, np.arange(len(HISTORIES))
    if max_len is not None:
        train, users = HISTORIES.with_windows(max_len)
    return Setting(train, users, 9, FakeTeacher(9))


def test_without_a_share_the_teacher_is_alone() -> None:
    plain = asked()
    assert advised(plain, 0.0, k=5) is plain


def test_the_share_is_that_of_the_rules() -> None:
    teacher = advised(asked(), 0.3, k=5).teacher
    assert isinstance(teacher, EnsembleTeacher)
    assert teacher.weights == pytest.approx([0.7, 0.3])
    rules = teacher.members[1]
    assert isinstance(rules, RulesTeacher)
    assert rules.ordered


def test_both_are_probed_by_what_the_teacher_reads() -> None:
    short = FakeTeacher(9)
    short.max_history = 3
    teacher = advised(replace(asked(), teacher=short), 0.5, k=5).teacher
    assert teacher is not None
    assert teacher.max_history == 3


def test_windows_of_a_history_are_counted_once() -> None:
    whole, windows = (advised(asked(max_len), 0.5, k=5).teacher for max_len in (None, 2))
    assert isinstance(whole, EnsembleTeacher)
    assert isinstance(windows, EnsembleTeacher)
    assert whole.members[1].identity == windows.members[1].identity


@pytest.mark.parametrize("name", ["kd", "bahsd", "rrd"])
def test_lists_are_those_of_both(name: str) -> None:
    method = build_method(name, {"second_opinion": 0.5, "labels": False, "top_k": 5})
    method.prepare(asked())
    expected = advised(asked(), 0.5, k=5).teacher
    assert expected is not None
    answers = expected.rank(HISTORIES.take(slice(0, 3)), 5).items.tolist()
    alone = FakeTeacher(9).rank(HISTORIES.take(slice(0, 3)), 5).items.tolist()
    assert isinstance(method, KD | BAHSD | RRD)
    if isinstance(method, BAHSD):
        listed = method.told.items[method.n_rows :]  # below those about the newer halves
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
        answers = probe(advised(replace(asked(), teacher=teacher), 0.5, k=5), k=5)
        assert len(answers.full.rows_answered) > teacher.rank_within_budget(HISTORIES, 5)[1].sum() == 1


def circle(teacher: Teacher, n_cases: int = 120, n_items: int = 60) -> Setting:
    """Users go round in a circle of items, and so does the held-out one of the first so many."""
    first = np.arange(150)
    train = Sequences.from_lists([(user + np.arange(4)) % n_items + 1 for user in first])
    targets = Sequences.from_lists([[(user + 4) % n_items + 1] for user in first[:n_cases]])
    cases = Cases(first[:n_cases], train.take(first[:n_cases]), targets, train.take(first[:n_cases]))
    return Setting(train, first, n_items, teacher, valid=cases)


def backwards(history: Items, k: int) -> list[int]:
    """Answer with those that come before the history, none of which anybody takes next."""
    return [int(history[0] - place - 2) % 60 + 1 for place in range(k)]


@pytest.mark.parametrize("rule", [None, backwards], ids=["right", "wrong"])
@pytest.mark.parametrize("gives_scores", [False, True])
def test_the_share_is_chosen_on_validation_cases(rule: Rule | None, gives_scores: bool) -> None:
    """Who follows the circle needs no rules; beside one who is always wrong they have the least say that is enough."""
    found: dict[str, Any] = {}
    told = replace(circle(FakeTeacher(60, rule, gives_scores=gives_scores)), found=found.__setitem__)
    teacher = advised(told, "auto", k=20).teacher
    opinion = found["second_opinion"]
    share, ndcg = opinion["share"], list(opinion["ndcg_10"].values())
    weights = teacher.weights if isinstance(teacher, EnsembleTeacher) else [1.0, 0.0]
    assert weights == pytest.approx([1 - share, share])
    assert opinion["cases"] == 120
    assert (share == 0) == (rule is None)
    assert ndcg[round(10 * share)] == 1.0 > max(ndcg[: round(10 * share)], default=0.0)


@pytest.mark.parametrize("name", ["kd", "bahsd", "rrd"])
@pytest.mark.parametrize(("rule", "share"), [(None, 0.0), (backwards, 0.5)], ids=["right", "wrong"])
def test_beside_labels_rules_have_half_at_least_or_nothing(name: str, rule: Rule | None, share: float) -> None:
    """Four tenths are the best for lists alone."""
    found: dict[str, Any] = {}
    told = replace(circle(FakeTeacher(60, rule)), found=found.__setitem__)
    build_method(name, {"second_opinion": "auto", "top_k": 20}).prepare(told)
    assert found.pop("second_opinion")["share"] == share
    build_method(name, {"second_opinion": "auto", "top_k": 20, "labels": False}).prepare(told)
    assert found["second_opinion"]["share"] == (0.4 if share else 0.0)


def test_a_share_is_chosen_where_any_item_is_scored_too() -> None:
    found: dict[str, Any] = {}
    told = circle(FakeTeacher(60))
    model = build_model("mf", 60, {"dim": 4}, train=told.train, seed=0)
    setting = replace(told, teacher=LocalTeacher(model), found=found.__setitem__)
    method = build_method("ckd", {"second_opinion": "auto"})
    method.prepare(setting)
    assert isinstance(method, Distillation)
    assert isinstance(method.setting.teacher, EnsembleTeacher)
    opinion = found["second_opinion"]
    assert method.setting.teacher.weights == pytest.approx([1 - opinion["share"], opinion["share"]])
    assert opinion["share"] > 0, "the teacher is not trained"
    assert opinion["ndcg_10"]["0"] < opinion["ndcg_10"][f"{opinion['share']:g}"] == max(opinion["ndcg_10"].values())


@pytest.mark.parametrize("exclude_history", [True, False])
@pytest.mark.parametrize("name", ["kd", "bahsd", "rrd", "dcd"])
@pytest.mark.parametrize("rule", [None, backwards], ids=["right", "wrong"])
def test_choosing_asks_nothing_twice(name: str, rule: Rule | None, exclude_history: bool) -> None:
    teacher = FakeTeacher(60, rule)
    teacher.exclude_history = exclude_history
    build_method(name, {"second_opinion": "auto", "top_k": 20}).prepare(circle(teacher))
    asked = list(map(tuple, teacher.asked))
    assert len(set(asked)) == len(set(map(tuple, circle(teacher).train))) * (2 if name == "bahsd" else 1)
    assert len(asked) == 150 * (2 if name == "bahsd" else 1)


@pytest.mark.parametrize("name", ["kd", "bahsd", "rrd"])
def test_choosing_asks_nothing_twice_where_a_history_had_no_answer(name: str) -> None:
    """One such history had its whole block asked again, and every call of a teacher without a ledger may cost."""
    teacher = FakeTeacher(60, lambda history, k: [] if history[0] == 1 else backwards(history, k))
    build_method(name, {"second_opinion": "auto", "top_k": 20}).prepare(circle(teacher))
    whole = [history for history in teacher.asked if len(history) == 4]
    assert len(whole) == 150
    assert any(history[0] == 1 for history in whole)


class OfSome(FakeTeacher):
    """Knows the first hundred users."""

    def knows(self, users: npt.NDArray[np.integer]) -> Bools:
        return users < 100


def test_whom_the_teacher_does_not_know_it_does_not_know_after_choosing() -> None:
    teacher = advised(circle(OfSome(60)), "auto", k=20).teacher
    assert teacher is not None
    assert not isinstance(teacher, EnsembleTeacher)
    assert teacher.knows(np.arange(150)).sum() == 100


def test_half_where_too_few_cases_say_which_is_best() -> None:
    few = circle(FakeTeacher(60), n_cases=99)
    for unmeasured in (few, replace(few, valid=None)):
        teacher = advised(unmeasured, "auto", k=20).teacher
        assert isinstance(teacher, EnsembleTeacher)
        assert teacher.weights == [1 - HALF, HALF] == [0.5, 0.5]


def test_cases_that_the_budget_does_not_buy_do_not_count(tmp_path: Path) -> None:
    """60 different histories are asked about by 150 users; ten of these are told nothing, or more."""
    found: dict[str, Any] = {}
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        fake = FakeTeacher(60, backwards)
        teacher = LedgerTeacher(fake, ledger, budget=55)
        whole = replace(circle(teacher), found=found.__setitem__)
        advised(whole, "auto", k=20)
        assert len(fake.asked) == 55
        assert whole.valid is not None
        answered = teacher.has(whole.valid.histories, 20).sum()
    assert 100 < answered < 120
    assert found["second_opinion"]["cases"] == answered


def test_nothing_is_chosen_where_no_rule_can_be_made() -> None:
    alone = replace(circle(FakeTeacher(60)), train=Sequences.from_lists([[1]] * 150))
    assert advised(alone, "auto", k=20) is alone
    with pytest.raises(SettingsError, match="nothing to make rules of"):
        advised(alone, 0.5, k=20)


def test_bahsd_hears_rules_beside_labels_unless_told_otherwise() -> None:
    def share(**settings: Any) -> Share:
        method = build_method("bahsd", settings)
        assert isinstance(method, BAHSD)
        return method.config.second_opinion

    assert (share(), share(labels=True), share(labels=False)) == ("auto", "auto", 0.0)
    assert [share(labels=off) for off in (0, "false", "off")] == [0.0] * 3, "however it is written"
    assert share(labels="true") == "auto"
    with pytest.raises(SettingsError, match="labels: "):
        share(labels="perhaps")
    assert (share(second_opinion=0.2), share(labels=False, second_opinion=0.2)) == (0.2, 0.2)
    pure = BAHSDConfig(labels=False)
    assert BAHSDConfig(**pure.model_dump()) == BAHSDConfig(**pure.model_dump(exclude_defaults=True)) == pure


@pytest.mark.parametrize("name", ["rcekd", "ckd", "ce", "dcd", "unkd"])
def test_methods_that_ask_for_scores_learn_those_of_both(name: str) -> None:
    method = build_method(name, {"second_opinion": 0.4})
    method.prepare(setting(mf(1)))
    assert isinstance(method, Distillation)
    teacher = method.setting.teacher
    assert isinstance(teacher, EnsembleTeacher)
    assert not isinstance(teacher.members[1], EnsembleTeacher)
    rules = teacher.members[1]
    assert isinstance(rules, RulesTeacher)
    assert (rules.ordered, rules.takes) == (False, "user")
    rows, items = torch.tensor(WITH_HISTORY), torch.arange(1, N + 1).expand(3, -1)
    histories = TRAIN.take(np.array(WITH_HISTORY))
    theirs = torch.from_numpy(rules.scores(histories, items.numpy())).softmax(1)
    expected = 0.6 * scores_of(mf(1))[rows, 1:].softmax(1) + 0.4 * theirs
    torch.testing.assert_close(TeacherView(method.setting).scores(rows, items).exp(), expected)


@pytest.mark.parametrize("name", ["cd", "de", "hetcomp", "htd"])
def test_methods_that_cannot_have_one_do_not_offer_it(name: str) -> None:
    """Rules have no vectors and no earlier stages, and their shares of all items are no logits."""
    with pytest.raises(SettingsError, match="unknown setting 'second_opinion'"):
        build_method(name, {"second_opinion": 0.1})


def test_who_reads_scores_as_logits_cannot_have_an_ensemble() -> None:
    """Shares of all items are all small, so that no item would be likely."""
    student, alone = mf(2), LocalTeacher(mf(1))
    build_method("cd").check(student, alone)
    with pytest.raises(SettingsError, match=r"name one teacher, or take a method .*'rcekd'"):
        build_method("cd").check(student, EnsembleTeacher([alone, LocalTeacher(mf(3))]))


def _that_hear_a_second_opinion() -> list[str]:
    import_all("recdistill.methods")
    return sorted(
        name
        for name, method in Method.registry.items()
        if issubclass(method, Distillation) and issubclass(method.Config, SecondOpinionConfig)
    )


@pytest.mark.parametrize("name", _that_hear_a_second_opinion())
def test_whatever_is_learned_of_a_scored_teacher_is_what_both_say(name: str) -> None:
    """Lists and scores alike: as if the teacher's own answers were those of the two."""
    teacher, student = mf(1), mf(2)
    train = Sequences.from_lists([[1, 2, 7], [2, 3], [], [7, 3, 9]])
    asked, short = (
        replace(setting(teacher), train=train),
        {"top_k": 6} if "top_k" in Method.registry[name].Config.model_fields else {},
    )

    def told(by: Setting, **settings: Any) -> list[float]:
        method = build_method(name, short | settings)
        method.prepare(by)
        method.fit_to(student)
        method.start_epoch(student, 0, torch.Generator().manual_seed(0))
        parts = teacher_part(method, student, WITH_HISTORY)
        return torch.autograd.grad(parts, student.get_parameter("embedding.weight"))[0].flatten().tolist()

    both = told(asked, second_opinion=0.6)
    assert both == pytest.approx(told(advised(asked, 0.6, k=N), second_opinion=0.0), abs=1e-6)
    assert both != pytest.approx(told(asked, second_opinion=0.0), abs=1e-3)
