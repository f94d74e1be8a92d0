"""Whether reliability predicts hits: the figures of made-up users."""

import numpy as np
import pytest
from benchmarks.premise import PARTS, Answered, ask, black_box, compare_shares, compare_targets, figures

from benchmarks import premise
from recdistill.data.embedded import load_shop
from recdistill.data.splits import Split, leave_one_out
from recdistill.evaluation.full_ranking import evaluate
from recdistill.methods.base import Setting
from recdistill.methods.believing import SHARES
from recdistill.models.base import build_model
from recdistill.serving.student import Student
from recdistill.teachers.local import LocalTeacher
from recdistill.teachers.rules import RulesTeacher
from recdistill.training.progress import Fit


def test_a_signal_that_sorts_hits_within_a_band_has_an_auc_of_one() -> None:
    hits = np.array([False] * 5 + [True] * 5)
    found = Answered({"consistency": np.linspace(0, 1, 10)}, np.concatenate([hits, ~hits]), np.repeat([1, 3], 10))
    found.signals["consistency"] = np.tile(np.linspace(0, 1, 10), 2)
    rows = list(figures(found))
    whole = {row["band"]: row for row in rows if row["part"] == "all"}
    assert whole[1]["auc"] == 1
    assert whole[1]["p"] < 0.01
    assert whole[3]["auc"] == 0
    assert whole[1]["hit_rate"] == 0.5
    parts = [row["hit_rate"] for row in rows if row["band"] == 1 and row["part"] != "all"]
    assert parts == [0, 0, 0.5, 1, 1]
    assert len(parts) == PARTS


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> tuple[Split, Setting]:
    dataset = load_shop()
    split = leave_one_out(dataset)
    student = Student.of(build_model("sasrec", dataset.n_items, {"dim": 8}), dataset, protocol="test")
    monkeypatch.setattr(premise, "train", lambda *_: (student, Fit()))
    return split, black_box(split, "amazon-beauty", "sasrec")


def test_users_whose_history_cannot_be_cut_are_left_out(asked: tuple[Split, Setting]) -> None:
    split, setting = asked
    found = ask(split, setting)
    assert len(found.hits) == len(found.bands) == len(found.signals["peakedness"]) == (split.train.lengths > 1).sum()
    assert found.signals["consistency"].min() >= 0


def test_single_answers_are_those_of_full_ranking_and_a_consensus_is_another(asked: tuple[Split, Setting]) -> None:
    split, setting = asked
    rows = list(compare_targets(split, setting))
    whole = {row["target"]: row for row in rows if row["part"] == "all"}
    assert isinstance(setting.teacher, LocalTeacher)
    found = evaluate(setting.teacher.model, split.valid, n_items=setting.n_items)
    assert whole["whole"]["ndcg"] == pytest.approx(found.mean("ndcg", 10))
    assert whole["whole"]["hr"] == pytest.approx(found.mean("hr", 10))
    assert len(whole) == 14
    assert len({row["ndcg"] for row in whole.values()}) > 9
    for name, row in whole.items():
        parts = [part for part in rows if part["target"] == name and part["part"] != "all"]
        assert sum(part["users"] for part in parts) == row["users"] == len(split.valid)
        assert sum(part["users"] * part["ndcg"] for part in parts) == pytest.approx(row["users"] * row["ndcg"])


def test_a_share_of_nothing_is_the_teacher_and_of_all_the_rules(asked: tuple[Split, Setting]) -> None:
    split, _ = asked
    setting = black_box(split, "amazon-beauty", "sasrec", gives_scores=False)
    rows = list(compare_shares(split, setting))
    whole = {row["share"]: row for row in rows if row["part"] == "all"}
    assert tuple(whole) == SHARES
    assert isinstance(setting.teacher, LocalTeacher)
    rules = RulesTeacher(split.train, setting.n_items, exclude_history=setting.teacher.exclude_history)
    for share, source in ((0.0, setting.teacher.model), (1.0, rules)):
        found = evaluate(source, split.valid, n_items=setting.n_items)
        assert whole[share]["ndcg"] == pytest.approx(found.mean("ndcg", 10))
    assert whole[0.0]["ndcg"] < whole[0.5]["ndcg"] < whole[1.0]["ndcg"], "a model that has learned nothing only takes"
    for share in whole:
        parts = [row for row in rows if row["share"] == share and row["part"] != "all"]
        assert sum(part["users"] for part in parts) == len(split.valid)
        assert sum(part["users"] * part["hr"] for part in parts) == pytest.approx(len(split.valid) * whole[share]["hr"])
