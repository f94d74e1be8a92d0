"""The rows of S4Rec's tables, what is written of them, and what is drawn of their intents."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.comparisons import COLUMNS, Kept
from benchmarks.experiments import Recipe, Values, find_recipe, folder_of
from benchmarks.results import QUALITY, ResultTable
from benchmarks.s4rec import (
    CLUSTER_COLUMNS,
    MAP_COLUMNS,
    PUBLISHED_COLUMNS,
    Intents,
    assign,
    head_shares,
)
from benchmarks.s4rec_rows import (
    ABLATIONS,
    DATASETS,
    IN_PAPER,
    KMEANS,
    LONG,
    METHODS,
    SEEDS,
    STUDIED,
    TABLES,
    VARIANTS,
    Row,
    ablation,
    core,
    side,
)

from benchmarks import experiments, s4rec, s4rec_rows
from recdistill.data.interactions import read_interactions
from recdistill.data.splits import Split, leave_one_out
from recdistill.methods.base import Method, Setting
from recdistill.methods.iclrec import ICLRec
from recdistill.methods.s4rec import S4Rec
from recdistill.models.base import build_model
from recdistill.registry import import_all
from recdistill.training.checkpoints import CHECKPOINT

from .conftest import Found

import_all("recdistill.methods")
ALL = list(dict.fromkeys(row for table in TABLES.values() for row in table()))
WHOLE = Row(STUDIED, "s4rec")


def test_no_two_rows_of_a_table_are_one() -> None:
    for name, table in TABLES.items():
        keys = [tuple(row.key.values()) for row in table()]
        assert len(set(keys)) == len(keys), name
    names = {(row.name, row.seed) for row in ALL}
    assert len(names) == len(ALL)


def test_every_row_is_a_run_of_its_method_base_loss_and_length() -> None:
    for row in ALL:
        run = row.run()
        method = run.dump()["method"]
        assert run.student.name == "sasrec"
        assert run.training.seed == row.seed
        assert method["name"] == ("supervised" if row.method == "labels" else row.method)
        labels = method if row.method == "labels" else method["label_loss"]
        assert (labels["loss"], labels["smoothing"] > 0) == {"smoothed": ("softmax", True)}.get(
            row.loss, (row.loss, False)
        )
        assert run.student.config.max_len == (200 if row.variant == LONG else 50)  # type: ignore[attr-defined]


def test_methods_learn_labels_as_labels_alone_are_learned() -> None:
    for row in core():
        alone, taught = replace(row, method="labels").run().dump(), row.run().dump()
        assert taught["student"] == alone["student"]
        assert taught["training"] == alone["training"]
        if row.method != "labels":
            assert taught["method"]["label_loss"] == {k: v for k, v in alone["method"].items() if k != "name"}


def test_labels_alone_are_those_of_the_quality_table() -> None:
    """What was trained for one table must be found by the other."""
    for row in (Row(STUDIED, "labels"), Row(STUDIED, "labels", "bce", seed=2), Row("ml-1m", "labels", variant=LONG)):
        recipe = find_recipe(row.dataset, "sasrec", row.loss)
        assert folder_of(row.run(), row.folder_name) == folder_of(recipe.run(row.seed), recipe.name)
    assert Row("ml-1m", "labels").run().dump() != find_recipe("ml-1m", "sasrec").run(0).dump()


def test_one_seed_goes_through_the_table_before_the_others() -> None:
    rows = list(core())
    assert [row.seed for row in rows] == sorted(row.seed for row in rows)
    cells = {(row.dataset, row.loss, row.method) for row in rows}
    assert cells == {(dataset, loss, method) for loss in METHODS for dataset in DATASETS for method in METHODS[loss]}
    for cell in cells:
        seeds = tuple(row.seed for row in rows if (row.dataset, row.loss, row.method) == cell)
        assert seeds == (SEEDS if cell[1] != "bce" or cell[0] == STUDIED else SEEDS[:1])


@pytest.mark.parametrize("method", METHODS["smoothed"])
def test_smoothed_labels_are_a_base_loss_of_their_own(method: str) -> None:
    plain, smoothed = (Row(STUDIED, method, loss).run().dump() for loss in ("softmax", "smoothed"))
    labels = smoothed["method"] if method == "labels" else smoothed["method"].get("label_loss", smoothed["method"])
    assert labels["smoothing"] > 0
    labels["smoothing"] = 0.0
    assert smoothed == plain


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_nothing_but_what_it_names(variant: str) -> None:
    whole, varied = WHOLE.run().dump(), replace(WHOLE, variant=variant).run().dump()
    changed = {f"{a}.{b}" for a in whole for b in whole[a] if whole[a][b] != varied[a][b]}
    assert changed <= VARIANTS[variant].keys()
    assert changed or replace(WHOLE, variant=variant) not in list(side())
    assert variant not in ABLATIONS or changed == VARIANTS[variant].keys()


def test_side_tables_repeat_nothing_that_the_method_has_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    def variants() -> set[str]:
        return {row.variant for row in side() if row.dataset == STUDIED}

    before = variants()
    assert {"α = 0.1", "λ = 0", "K = 512", KMEANS} < before
    assert not {"α = 0.01", "β1 = 0.1", "β2 = 0.1", "λ = 1", "K = 128"} & before
    monkeypatch.setitem(s4rec_rows.TUNED, (STUDIED, "softmax", "s4rec"), {"method.cluster_weight": 0.1})
    assert variants() == before - {"α = 0.1"} | {"α = 0.01"}


def test_tuned_settings_are_those_of_every_variant_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = {"method.n_clusters": 7, "method.augmentation.crop_share": 0.5, "student.dropout": 0.3}
    monkeypatch.setitem(s4rec_rows.TUNED, (STUDIED, "softmax", "s4rec"), tuned)
    for row in (WHOLE, replace(WHOLE, seed=2), replace(WHOLE, variant="without CSD")):
        sections = row.run().dump()
        assert sections["method"]["n_clusters"] == 7
        assert sections["method"]["augmentation"]["crop_share"] == 0.5
        assert sections["student"]["dropout"] == 0.3
    assert replace(WHOLE, variant="K = 32").run().dump()["method"]["n_clusters"] == 32
    assert WHOLE.run({"method.n_clusters": 9}).dump()["method"]["n_clusters"] == 9
    for other in (replace(WHOLE, loss="bce"), replace(WHOLE, dataset="amazon-toys"), replace(WHOLE, method="iclrec")):
        assert other.run().dump()["student"]["dropout"] != 0.3


def test_a_small_batch_remembers_others_where_histories_are_long() -> None:
    run = Row("ml-1m", "s4rec", variant=LONG).run()
    assert run.training.batch_size + run.dump()["method"]["queue_size"] == 512
    assert "queue_size" not in Row("ml-1m", "iclrec", variant=LONG).run().dump()["method"]


def test_all_that_the_paper_has_is_a_row() -> None:
    rows = {(row.dataset, row.method, row.variant) for row in (*core(), *ablation())}
    assert set(IN_PAPER) <= rows
    assert {cell[0] for cell in IN_PAPER} == set(DATASETS)


@pytest.fixture
def split(shop: Path) -> Split:
    return leave_one_out(read_interactions(shop / "clicks.csv").dataset())


@pytest.fixture
def little(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every row is trained for two epochs on the little shop, and writes to a folder of its own."""

    def recipe(dataset: str, student: str, loss: str) -> Recipe:
        training = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}
        return Recipe(dataset, student, loss, model={"dim": 8, "n_blocks": 1, "max_len": 8}, training=training)

    for name in ("RESULTS", "SEARCH", "PAIRED", "PUBLISHED", "CLUSTERS", "MAP"):
        monkeypatch.setattr(s4rec, name, tmp_path / f"{name.lower()}.csv")
    for method in ("s4rec", "iclrec"):
        monkeypatch.setitem(s4rec_rows.TUNED, (STUDIED, "softmax", method), {"method.n_clusters": 4})
    monkeypatch.setattr(s4rec_rows, "find_recipe", recipe)
    monkeypatch.setattr(s4rec, "KEPT", Kept(tmp_path / "kept"))
    monkeypatch.setattr(experiments, "WORK", tmp_path / "models")
    monkeypatch.setattr(s4rec, "cut", lambda dataset: split)
    monkeypatch.setattr(s4rec, "commit", lambda: "abc")
    monkeypatch.setattr(experiments, "commit", lambda: "abc")
    return tmp_path


def test_a_row_is_measured_once_and_compared(little: Path) -> None:
    labels = Row(STUDIED, "labels")
    for row in (WHOLE, labels):
        s4rec.measure(row)
    before = ResultTable(s4rec.RESULTS, QUALITY).rows()
    s4rec.measure(WHOLE)
    rows = ResultTable(s4rec.RESULTS, QUALITY).rows()
    assert rows == before
    assert {(row["method"], row["variant"]) for row in rows} == {("s4rec", "softmax"), ("labels", "softmax")}
    assert {row["k"] for row in rows} == {"5", "10", "20"}
    assert {row["stratum"] for row in rows} >= {"all", "head", "tail"}

    s4rec.compare()
    tests = ResultTable(s4rec.PAIRED, COLUMNS).rows()
    assert [(row["method"], row["other"], row["stratum"]) for row in tests] == [
        ("s4rec softmax", "labels softmax", stratum) for stratum in ("all", "head", "tail")
    ]
    ours = ResultTable(s4rec.RESULTS, QUALITY).find(**WHOLE.key, stratum="tail", metric="ndcg", k=10)
    assert float(tests[2]["value"]) == pytest.approx(float(ours[0]["value"]), rel=1e-4)


def test_rows_are_tested_against_those_on_the_same_base_loss(little: Path, split: Split, all_at: Found) -> None:
    for row, rank in (
        (WHOLE, 1),
        (replace(WHOLE, seed=1), 1),
        (replace(WHOLE, variant="without CSD", seed=1), 3),  # log2(1 + 3) = 2: an NDCG of .5
        (Row(STUDIED, "labels", "bce"), 9),
        (Row("amazon-toys", "labels"), 9),
    ):
        s4rec.KEPT.keep(all_at(split, rank), row)
    ResultTable(s4rec.RESULTS, QUALITY)
    s4rec.compare()
    rows = ResultTable(s4rec.PAIRED, COLUMNS).rows()
    assert {(row["other"], row["seeds"], row["gain"]) for row in rows} == {("s4rec softmax without CSD", "1", "100")}


def test_means_over_seeds_stand_beside_the_paper(little: Path) -> None:
    table = ResultTable(s4rec.RESULTS, QUALITY)
    for seed, value in enumerate((0.0519, 0.1557)):  # on average twice the paper's .0519
        for stratum, factor in (("all", 1.0), ("tail", 9.0)):
            figure = {"stratum": stratum, "metric": "hr", "k": 5, "value": value * factor}
            table.append({**replace(WHOLE, seed=seed).key, **figure})
    table.append({**replace(WHOLE, variant="K = 32").key, "stratum": "all", "metric": "hr", "k": 5, "value": 0.9})
    s4rec.compare()
    (row,) = ResultTable(s4rec.PUBLISHED, PUBLISHED_COLUMNS).rows()
    assert (row["method"], row["variant"], row["metric"], row["k"]) == ("s4rec", "softmax", "hr", "5")
    assert (row["published"], row["seeds"]) == ("0.0519", "2")
    assert float(row["value"]) == pytest.approx(0.1038)
    assert float(row["gain"]) == pytest.approx(100.0)


def test_a_search_is_written_once_and_its_winner_is_not_trained_again(
    little: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"method.n_clusters": 3}
    for _ in range(2):
        s4rec.search(WHOLE, changes)
    rows = ResultTable(s4rec.SEARCH, QUALITY).rows()
    assert {(row["split"], row["variant"]) for row in rows} == {
        ("leave-one-out/valid", 'softmax {"method.n_clusters": 3}')
    }
    assert len(rows) == 3 * 2 * 3  # strata, metrics and k
    monkeypatch.setitem(s4rec_rows.TUNED, (STUDIED, "softmax", "s4rec"), changes)
    s4rec.measure(WHOLE)
    assert len(list((little / "models").iterdir())) == 1


@pytest.mark.parametrize("method", ["s4rec", "iclrec"])
def test_intents_are_drawn_once(little: Path, split: Split, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s4rec, "MAP_USERS", 20)
    row = Row(STUDIED, method)
    for _ in range(2):
        s4rec.draw(row)
    shares = ResultTable(s4rec.CLUSTERS, CLUSTER_COLUMNS).rows()
    places = ResultTable(s4rec.MAP, MAP_COLUMNS).rows()
    assert sum(int(share["users"]) for share in shares) == split.dataset.n_users == 60
    assert sum(int(share["users"]) * float(share["head_share"]) for share in shares) == pytest.approx(12, rel=1e-4)
    assert len({place["user"] for place in places}) == len(places) == 20
    assert {place["cluster"] for place in places} <= {share["cluster"] for share in shares}
    for place in places:
        assert int(place["length"]) == split.train.lengths[int(place["user"])]
        assert place["stratum"] == ("head" if place["length"] == "8" else "tail")
    assert len({(place["x"], place["y"]) for place in places}) > 10


def test_intents_are_those_after_the_last_epoch(little: Path, split: Split) -> None:
    """Prototypes are not among the best weights, and would not go with them."""
    run = WHOLE.run()
    s4rec.draw(WHOLE)
    folder = folder_of(run, WHOLE.folder_name)
    prototypes = torch.load(folder / CHECKPOINT, weights_only=True)["method"]["intents.prototypes"]
    found = s4rec.intents_of(split, run, folder)
    scores = torch.from_numpy(found.vectors) @ torch.nn.functional.normalize(prototypes, dim=1).T
    assert found.clusters.tolist() == scores.argmax(1).tolist()
    assert found.users.tolist() == list(range(60))
    assert found.is_head.sum() == 12


def test_a_vector_has_the_intent_that_training_tells(split: Split) -> None:
    """By cosine or product for S4Rec, by distance for ICLRec."""
    student = build_model("sasrec", split.dataset.n_items, {"dim": 2, "n_heads": 1})
    setting = Setting(split.train, np.arange(len(split.train)), split.dataset.n_items)
    vectors = torch.tensor([[1.0, 0.05]])
    centres = torch.tensor([[0.1, 0.0], [1.0, 0.3], [9.0, 9.0]])  # by angle, by distance and by product

    def intents(similarity: str) -> list[int]:
        method = S4Rec(similarity=similarity, n_clusters=3)
        method.prepare(setting)
        method.fit_to(student)
        with torch.no_grad():
            method.intents.prototypes.copy_(centres)
        found: list[int] = assign(method, vectors).tolist()
        return found

    by_distance = ICLRec()
    by_distance.intents = centres
    assert assign(by_distance, vectors).tolist() == [1]
    assert intents("dot") == [2]
    assert intents("cosine") == [0]


def test_the_heads_share_is_counted_within_each_intent() -> None:
    is_head = np.array([True, False, False, True])
    clusters = np.array([7, 7, 2, 7])
    empty: Any = np.zeros((4, 2))
    rows: list[Values] = list(head_shares(Intents(np.arange(4), np.ones(4, np.int64), is_head, empty, clusters)))
    assert rows == [
        {"cluster": 2, "users": 1, "head_share": 0.0},
        {"cluster": 7, "users": 3, "head_share": pytest.approx(2 / 3)},
    ]


def test_the_table_says_what_is_done_with_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, Row]] = []
    for name in ("measure", "draw"):
        monkeypatch.setattr(s4rec, name, lambda row, name=name: done.append((name, row)))
    monkeypatch.setattr(s4rec, "search", lambda row, changes: done.append((str(changes), row)))

    def command(*arguments: str) -> list[tuple[str, Row]]:
        done.clear()
        monkeypatch.setattr("sys.argv", ["s4rec", "--seeds", "0", *arguments])
        s4rec.main()
        return list(done)

    assert command("--only", f"{STUDIED}/iclrec/bce") == [("measure", Row(STUDIED, "iclrec", "bce"))]
    assert command("--only", f"{STUDIED}/iclrec", "--table", "pictures") == [("draw", Row(STUDIED, "iclrec"))]
    tried = command("--only", "amazon-toys/labels/softmax", "--search", "student.dropout=[0.3, 0.4]")
    assert [what for what, _ in tried] == ["{'student.dropout': 0.3}", "{'student.dropout': 0.4}"]


def test_every_method_of_the_tables_is_registered() -> None:
    assert {row.method for row in ALL} - {"labels"} <= Method.registry.keys()
