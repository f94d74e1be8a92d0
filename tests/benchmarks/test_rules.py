"""The choice of the rules' settings: what each row is about, and that nothing is measured twice."""

from pathlib import Path
from typing import Any

import pytest
from benchmarks.experiments import one_earlier
from benchmarks.results import QUALITY, ResultTable

from benchmarks import rules
from recdistill.data.embedded import load_shop
from recdistill.evaluation.full_ranking import evaluate
from recdistill.teachers.rules import RulesTeacher


def test_a_row_is_what_rules_with_its_settings_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shop = load_shop()
    monkeypatch.setattr(rules, "load_benchmark", lambda name: shop)
    monkeypatch.setattr(rules, "RESULTS", tmp_path / "rules.csv")
    monkeypatch.setattr(rules, "SETTINGS", [{}, {"prior": 0.0, "window": 2}])
    monkeypatch.setattr("sys.argv", ["rules", "--datasets", "amazon-toys"])
    rules.main()
    written = (tmp_path / "rules.csv").read_bytes()
    rules.main()
    assert (tmp_path / "rules.csv").read_bytes() == written

    split = one_earlier(shop)
    tried: list[tuple[str, dict[str, Any]]] = [("", {}), ("prior 0, window 2", {"prior": 0.0, "window": 2})]
    for variant, settings in tried:
        ranking = RulesTeacher(split.train, split.dataset.n_items, **settings).rank(split.test.histories, 20)
        expected = evaluate(ranking, split.test, n_items=split.dataset.n_items).mean("ndcg", 10)
        (row,) = ResultTable(tmp_path / "rules.csv", QUALITY).find(
            dataset="amazon-toys", variant=variant, stratum="all", metric="ndcg", k=10
        )
        assert float(row["value"]) == pytest.approx(expected, rel=1e-4)


def test_the_defaults_are_among_what_was_tried() -> None:
    assert {} in rules.SETTINGS
    assert len({repr(settings) for settings in rules.SETTINGS}) == len(rules.SETTINGS)
