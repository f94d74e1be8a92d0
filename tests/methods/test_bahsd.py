from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError
from recdistill.losses.ranking import ranking_consistency
from recdistill.methods.bahsd import (
    BAHSD,
    BAHSDConfig,
    gate_weights,
    same_histories,
)
from recdistill.methods.base import Setting, TrainingBatch, build_method
from recdistill.methods.probing import Probe
from recdistill.models.base import Batch, Model, build_model
from recdistill.teachers.fake import FakeTeacher

N = 8
ROWS = [[1, 2], [3, 4, 5, 6], [6, 1, 7], [8]]


def batch(rows: list[int], seed: int = 0) -> TrainingBatch:
    histories = Batch.from_lists([ROWS[row] for row in rows])
    labels = torch.cat([histories.items[1:], torch.zeros(1, dtype=torch.int64)])
    labels[histories.last] = 0
    return TrainingBatch(histories, labels, torch.tensor(rows), torch.Generator().manual_seed(seed))


def ready(teacher: FakeTeacher | None = None, method: str = "bahsd", **settings: Any) -> BAHSD:
    made = build_method(method, {"label_loss": {"precision": "fp32"}, "top_k": 4, "second_opinion": 0.0} | settings)
    made.prepare(Setting(Sequences.from_lists(ROWS), np.arange(len(ROWS)), N, teacher or FakeTeacher(N)))
    return made  # type: ignore[return-value]


def sasrec() -> Model:
    return build_model("sasrec", N, {"dim": 8, "max_len": 4, "dropout": 0.0})


def fickle(history: Any, k: int) -> list[int]:
    """Stable for histories that end in 2, another list for every length otherwise."""
    start = 4 if history[-1] == 2 else 1 + 2 * len(history)
    return [item for item in ((start + step) % N + 1 for step in range(N)) if item not in history.tolist()][:k]


# The gate


def test_the_soft_gate_by_hand() -> None:
    # Mean .5, deviation .5: one is 1 deviation above, at width .5 that is 2.
    weights = gate_weights(np.array([0.0, 1.0]), kind="soft", width=0.5)
    assert weights == pytest.approx([1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))])


def test_the_hard_gate_opens_at_the_median() -> None:
    assert gate_weights(np.array([0.1, 0.5, 0.9]), kind="hard", width=0.5).tolist() == [0.0, 1.0, 1.0]


def test_no_gate_is_one_half_for_everyone() -> None:
    assert gate_weights(np.array([0.1, 0.9]), kind="none", width=0.5).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("kind", ["soft", "hard", "none"])
def test_the_unmeasured_neither_get_a_weight_nor_move_that_of_others(kind: Any) -> None:
    with_unmeasured = gate_weights(np.array([0.2, np.nan, 0.8]), kind=kind, width=0.5)
    assert with_unmeasured[[0, 2]] == pytest.approx(gate_weights(np.array([0.2, 0.8]), kind=kind, width=0.5))
    assert np.isnan(with_unmeasured[1])


def test_equal_reliability_is_neither_trusted_nor_distrusted() -> None:
    assert gate_weights(np.array([0.7, 0.7]), kind="soft", width=0.5) == pytest.approx([0.5, 0.5])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_soft_gate_keeps_the_order_of_reliability(reliability: list[float]) -> None:
    values = np.array(reliability)
    weights = gate_weights(values, kind="soft", width=0.5)[np.argsort(values)]
    assert (np.diff(weights) >= 0).all()
    assert ((weights >= 0) & (weights <= 1)).all()


# Ranking consistency


def consistency_of(listed: list[float], points: list[int], others: list[float], **settings: Any) -> float:
    options: dict[str, Any] = {"unlisted": torch.ones(1, len(others), dtype=torch.bool), "margin": 0.5} | settings
    values = ranking_consistency(torch.tensor([listed]), torch.tensor([points]), torch.tensor([others]), **options)
    return float(values.item())


def test_the_margin_form_by_hand() -> None:
    # Leads .2 and 1 over the next item: (.3 + 0) / 2. Leads −.5, .3, 2 over random items: (1 + .2 + 0) / 3.
    value = consistency_of([1.5, 1.3, 0.3], [9, 5, 2], [2.0, 1.0, -1.7])
    assert value == pytest.approx(0.3 / 2 + 1.2 / 3, rel=1e-5)


def test_the_smooth_form_by_hand() -> None:
    value = consistency_of([1.0, 0.0], [2, 1], [0.0, 0.0], margin=None)
    assert value == pytest.approx(math.log1p(math.exp(-1)) + (math.log1p(math.exp(-1)) + math.log(2)) / 2)


def test_items_with_equal_points_have_no_order_to_learn() -> None:
    assert consistency_of([0.0, 9.0], [3, 3], [-9.0, -9.0]) == 0.0


def test_random_items_that_an_answer_lists_are_left_out() -> None:
    unlisted = torch.tensor([[False, True]])
    assert consistency_of([1.0, 0.0], [2, 1], [9.0, 0.0], unlisted=unlisted) == pytest.approx(0.5)


def test_padding_takes_no_part() -> None:
    plain = consistency_of([1.0, 0.7], [2, 1], [0.0, 0.0])
    assert consistency_of([1.0, 0.7, 5.0], [2, 1, 0], [0.0, 0.0, 9.0]) == pytest.approx(plain)


def test_an_empty_consensus_costs_nothing() -> None:
    assert consistency_of([1.0, 2.0], [0, 0], [3.0, 4.0]) == 0.0


@pytest.mark.parametrize("margin", [0.5, None])
def test_it_is_blind_to_a_constant_added_to_the_logits(margin: float | None) -> None:
    plain = consistency_of([1.0, 0.7], [2, 1], [0.0, 0.9], margin=margin)
    assert consistency_of([4.0, 3.7], [2, 1], [3.0, 3.9], margin=margin) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("margin", [0.5, None])
def test_it_is_finite_at_extreme_logits(margin: float | None) -> None:
    assert math.isfinite(consistency_of([-1e4, 1e4], [2, 1], [1e4, -1e4], margin=margin))


# Shortened and earlier histories


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_shortened_history_is_its_newest_part_rounded_up(share: float) -> None:
    method = ready(scales=[share, 1.0])
    shown, scales = method._shortened(batch([1, 2, 3]))
    rows = [ROWS[row][-math.ceil(share * len(ROWS[row])) :] for row in (1, 2, 3)]
    assert shown.items.tolist() == [item for row in rows for item in row]
    assert shown.lengths.tolist() == [len(row) for row in rows]
    assert scales.tolist() == [0, 0, 0]


def test_same_histories_are_filed_under_the_first_of_them() -> None:
    assert same_histories(Sequences.from_lists([[1, 2], [2, 1], [1, 2], []])).tolist() == [0, 1, 0, 3]


# The method


@pytest.mark.parametrize("scales", [[], [0.5], [0.0, 1.0], [1.0, 1.5], [1.0, 1.0]])
def test_scales_that_are_no_shares_or_lack_the_whole_are_refused(scales: list[float]) -> None:
    with pytest.raises(SettingsError, match="with 1 among them"):
        BAHSDConfig.parse({"scales": scales})


def test_settings_round_trip_through_json() -> None:
    config = BAHSDConfig(scales=(1.0, 0.3), ranking="margin")
    assert BAHSDConfig.model_validate_json(config.model_dump_json()) == config
    assert config.scales == (0.3, 1.0)


def test_users_whose_answers_agree_weigh_more_than_those_whose_answers_change() -> None:
    method = ready(FakeTeacher(N, fickle))
    assert method.reliability[0] == pytest.approx(1.0)
    assert method.gate[0] > method.gate[1]


def test_temperature_rises_with_consistency_and_peakedness() -> None:
    method = ready(FakeTeacher(N, gives_scores=True), temperature=1.0, reliable_temperature=3.0)
    # The circle goes on alike after any part of a history, so c = 1; of the scores 1, 1/2, 1/3, 1/4:
    weights = np.exp(1 / np.arange(1, 5))
    probs = weights / weights.sum()
    peak = 1 + (probs * np.log(probs)).sum() / math.log(4)
    assert method.temperature[1].item() == pytest.approx(1 + 2 * peak, rel=1e-5)


def test_without_scores_temperature_follows_consistency_alone() -> None:
    method = ready(FakeTeacher(N), temperature=1.0, reliable_temperature=3.0)
    assert method.temperature[1].item() == pytest.approx(3.0)


@pytest.mark.parametrize(("rule", "weight", "temperature"), [("unreliable", 0.0, 1.0), ("reliable", 1.0, 3.0)])
def test_a_history_of_one_item_counts_as_the_rule_says(rule: str, weight: float, temperature: float) -> None:
    method = ready(unmeasured=rule, temperature=1.0, reliable_temperature=3.0)
    assert np.isnan(method.reliability[3])
    assert method.gate[3].item() == weight
    assert method.temperature[3].item() == temperature


def test_a_teacher_that_is_told_the_user_cannot_be_asked_what_it_said_earlier() -> None:
    teacher = FakeTeacher(N)
    teacher.takes = "user"
    with pytest.raises(SettingsError, match="prefixes to 0"):
        ready(teacher, scales=[1.0], prefixes=1)
    assert teacher.asked == []


def test_peakedness_cannot_gate_lists() -> None:
    with pytest.raises(SettingsError, match="set it to 'consistency'"):
        ready(reliability="peakedness")


def test_peakedness_cannot_gate_where_ranks_alone_are_wanted() -> None:
    with pytest.raises(SettingsError, match="set it to 'consistency'"):
        ready(FakeTeacher(N, gives_scores=True), reliability="peakedness", values="ranks")


def test_peakedness_gates_without_probing() -> None:
    """Scores make one query enough."""
    teacher = FakeTeacher(N, gives_scores=True)
    method = ready(teacher, reliability="peakedness", scales=[1.0])
    assert len(teacher.asked) == len(ROWS)
    assert not np.isnan(method.reliability).any()


ALL_PARTS = {"label", "answer", "consensus", "view", "contrast"}


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        ({"contrast_weight": 0.1}, set()),
        ({"contrast_weight": 0.1, "labels": False}, {"label"}),
        ({"contrast_weight": 0.1, "ranking_weight": 0}, {"consensus"}),
        ({"contrast_weight": 0.1, "view_weight": 0}, {"view"}),
        ({"view_weight": 0}, {"contrast", "view"}),
    ],
)
def test_each_part_can_be_left_out(settings: dict[str, Any], left_out: set[str]) -> None:
    parts = ready(**settings, target="answer").loss(sasrec(), batch([0, 1, 2]))
    assert set(parts) == ALL_PARTS - left_out


@pytest.mark.parametrize("ranking_weight", [1.0, 0.3])
def test_what_is_taught_to_all_in_the_same_way_is_taught_once(ranking_weight: float) -> None:
    once = ready(FakeTeacher(N, fickle), ranking_weight=ranking_weight)
    apart = ready(FakeTeacher(N, fickle), ranking_weight=ranking_weight, reliable_temperature=1.0 + 1e-6)
    model = sasrec()
    whole, parts = (method.loss(model, batch([0, 1, 2])) for method in (once, apart))
    assert set(whole) == ALL_PARTS - {"answer", "contrast"}
    assert whole["consensus"].item() == pytest.approx((parts["answer"] + parts["consensus"]).item(), rel=1e-4)


def uniform(**settings: Any) -> dict[str, Tensor]:
    return ready(method="kd", **settings).loss(sasrec(), batch([0, 1, 2]))


def test_without_probing_and_dynamic_temperature_it_is_uniform_distillation() -> None:
    """The consensus of one answer is that answer, whatever the gate: the ablations end at the baseline."""
    parts = ready(scales=[1.0], reliable_temperature=1.0, contrast_weight=0).loss(sasrec(), batch([0, 1, 2]))
    expected = uniform()
    assert parts["consensus"].item() == pytest.approx(expected["answer"].item(), rel=1e-4)
    assert parts["label"].item() == pytest.approx(expected["label"].item(), rel=1e-5)


def test_with_everyone_reliable_it_is_uniform_distillation_at_the_reliable_temperature() -> None:
    parts = ready(scales=[1.0], unmeasured="reliable", reliable_temperature=3.0).loss(sasrec(), batch([0, 1, 2]))
    assert parts["answer"].item() == pytest.approx(uniform(temperature=3.0)["answer"].item(), rel=1e-4)
    assert parts["consensus"].item() == pytest.approx(0.0, abs=1e-6)


def test_the_listwise_consensus_is_the_mixture_of_all_answers() -> None:
    lists = {4: [1, 2], 3: [2, 8], 2: [2, 1]}  # by length shown
    teacher = FakeTeacher(N, rule=lambda history, k: lists[len(history)] if history[-1] == 6 else [1, 2])
    method = ready(
        teacher,
        labels=False,
        scales=[0.5, 0.75, 1.0],
        contrast_weight=0,
        unmeasured="unreliable",
        top_k=2,
        gate="none",
        rank_decay=1.0,
    )
    model = sasrec()
    log_probs = (model.encode(batch([1]).batch) @ model.item_embeddings()[1:].T).log_softmax(1)[0]
    # A first place is worth .6, a second .4: item 2 has .4 + .6 + .6, item 1 has .6 + .4.
    two, one = 1.6 / 2.6, 1.0 / 2.6
    expected = two * (math.log(two) - log_probs[1]) + one * (math.log(one) - log_probs[0])
    assert method.loss(model, batch([1]))["consensus"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("target", ["consensus", "answer"])
def test_the_reliable_are_taught_what_the_target_says(target: str) -> None:
    lists = {4: [1, 2, 7], 3: [2, 7, 1], 2: [2, 7, 1]}  # by length shown: 2 leads twice, 1 once
    teacher = FakeTeacher(N, rule=lambda history, k: lists.get(len(history), [1, 2, 7])[:k])
    method = ready(
        teacher,
        labels=False,
        target=target,
        scales=[0.5, 0.75, 1.0],
        unmeasured="reliable",
        gate="none",
        ranking="smooth",
        rank_decay=40.0,  # all the weight is on the best item
        top_k=3,
        view_weight=1.0,
    )
    model, whole = sasrec(), batch([1])

    def cost(states: Tensor) -> float:
        log_probs = (states @ model.item_embeddings()[1:].T).log_softmax(1)[0]
        wanted = (2 / 3, 1 / 3) if target == "consensus" else (0.0, 1.0)
        return -sum(share * log_probs[item - 1].item() for share, item in zip(wanted, (2, 1), strict=True))

    parts = method.loss(model, whole)
    entropy = math.log(3) - 2 / 3 * math.log(2) if target == "consensus" else 0.0
    assert parts["answer"].item() == pytest.approx((cost(model.encode(whole.batch)) - entropy) / 2, rel=1e-4)


def test_a_shortened_history_is_taught_its_own_answer() -> None:
    lists = {4: [1, 2], 2: [8, 7]}  # by length shown: the whole of four items, and half of them
    teacher = FakeTeacher(N, rule=lambda history, k: lists.get(len(history), [1, 2]))
    method = ready(teacher, labels=False, target="answer", scales=[0.5, 1.0], view_weight=0.7, top_k=2, rank_decay=1.0)
    model, whole = sasrec(), batch([1])
    assert whole.batch.lengths.tolist() == [4]
    newest = model.encode(whole.batch.newest(2))
    log_probs = (newest @ model.item_embeddings()[1:].T).log_softmax(1)[0]
    expected = 0.6 * (math.log(0.6) - log_probs[7]) + 0.4 * (math.log(0.4) - log_probs[6])
    assert method.loss(model, whole)["view"].item() == pytest.approx(0.7 * expected.item(), rel=1e-4)


def test_a_shortened_history_is_taught_the_consensus() -> None:
    lists = {4: [1], 2: [8]}  # by length shown
    teacher = FakeTeacher(N, rule=lambda history, k: lists.get(len(history), [1]))
    method = ready(teacher, labels=False, scales=[0.5, 1.0], view_weight=0.7, top_k=1)
    model, whole = sasrec(), batch([1])
    log_probs = (model.encode(whole.batch.newest(2)) @ model.item_embeddings()[1:].T).log_softmax(1)[0]
    # Item 1 leads by the whole history alone, and one item is kept.
    assert method.loss(model, whole)["view"].item() == pytest.approx(-0.7 * log_probs[0].item(), rel=1e-4)


def earlier(model: Model, last: int) -> float:
    """What the item after ``last`` costs a student that was shown the items from 3 to ``last``."""
    state = model.encode(Batch.from_lists([list(range(3, last + 1))]))
    return -(state @ model.item_embeddings()[1:].T).log_softmax(1)[0, last].item()


@pytest.mark.parametrize("target", ["consensus", "answer"])
def test_all_earlier_histories_are_taught_their_own_answers(target: str) -> None:
    teacher = FakeTeacher(N, rule=lambda history, k: [history[-1] % N + 1])
    method = ready(teacher, labels=False, target=target, scales=[0.5, 1.0], prefixes=3, view_weight=0.7, top_k=1)
    model = sasrec()
    expected = 0.7 * sum(earlier(model, last) for last in (3, 4, 5))
    assert method.loss(model, batch([1]))["view"].item() == pytest.approx(expected, rel=1e-4)


def test_a_student_that_sees_both_sides_is_shown_one_earlier_history_in_place_of_all() -> None:
    teacher = FakeTeacher(N, rule=lambda history, k: [history[-1] % N + 1])
    method = ready(teacher, labels=False, scales=[1.0], prefixes=3, view_weight=0.7, top_k=1)
    model = build_model("bert4rec", N, {"dim": 8, "max_len": 4, "dropout": 0.0})
    expected = {round(3 * 0.7 * earlier(model, last), 3) for last in (3, 4, 5)}
    assert {round(method.loss(model, batch([1], seed))["view"].item(), 3) for seed in range(30)} == expected


def test_the_order_of_the_answers_to_earlier_histories_is_learned_as_well() -> None:
    model = sasrec()
    plain, ordered = (
        ready(labels=False, scales=[1.0], prefixes=1, order_weight=weight).loss(model, batch([2], seed=1))
        for weight in (0.0, 10.0)
    )
    assert all(ordered[part] > plain[part] for part in ("consensus", "view"))


def test_labels_and_earlier_histories_are_learned_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    method, model, whole = ready(prefixes=2), sasrec(), batch([0, 1, 2])
    alone = ready().loss(model, whole)
    monkeypatch.setattr(type(model), "encode", None)
    parts = method.loss(model, whole)
    assert parts["label"].item() == pytest.approx(alone["label"].item(), rel=1e-5)
    assert parts["consensus"].item() == pytest.approx(alone["consensus"].item(), rel=1e-4)


def test_every_shortened_history_is_drawn_and_taught_what_was_said_about_it() -> None:
    asked: list[list[int]] = []

    def rule(history: Any, k: int) -> list[int]:
        asked.append(history.tolist())
        return [8, 7] if len(history) == 2 else [1, 2]

    method = ready(FakeTeacher(N, rule=rule), target="answer", scales=[0.25, 0.5, 1.0])
    views = set()
    for seed in range(30):
        whole = batch([1], seed)
        shown, scale = method._shortened(whole)
        assert shown.items.tolist() in asked
        items, _ = method._target(whole.rows, scale)
        assert items[0, :2].tolist() == ([8, 7] if len(shown.items) == 2 else [1, 2])
        views.add(tuple(shown.items.tolist()))
    assert views == {(6,), (5, 6)}


@pytest.mark.parametrize(
    ("max_history", "newest", "asked"), [(None, 2, [5, 6]), (None, 1, [5, 6]), (2, 4, [6]), (2, 3, [6])]
)
def test_a_part_that_is_taught_the_answer_to_it_is_what_the_teacher_was_asked_about(
    max_history: int | None, newest: int, asked: list[int]
) -> None:
    """Also where the student reads more than the teacher, or the batch shows the history from a later item on."""
    teacher = FakeTeacher(N)
    teacher.max_history = max_history
    method = ready(teacher, target="answer", scales=[0.5, 1.0])
    shown, _ = method._shortened(TrainingBatch(*_late(newest), torch.Generator().manual_seed(0)))
    assert [3, 4, 5, 6] in teacher.asked
    assert asked in teacher.asked, "half of what is read of them"
    assert shown.items.tolist() == asked[-newest:]


def _late(newest: int) -> tuple[Batch, Tensor, Tensor]:
    """Return the second history by its newest items alone."""
    return Batch.from_lists([ROWS[1][-newest:]]), torch.zeros(newest, dtype=torch.int64), torch.tensor([1])


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_a_history_read_from_later_than_its_prefix_learns_nothing_there(name: str) -> None:
    """A student that sees both sides reads prefixes by themselves, and there is none to read in such a batch."""
    method = ready(FakeTeacher(N), labels=False, scales=[1.0], prefixes=3, view_weight=1.0)
    newest = Batch.from_lists([[6]])  # of 3, 4, 5, 6
    late = TrainingBatch(newest, torch.zeros(1, dtype=torch.int64), torch.tensor([1]), torch.Generator().manual_seed(0))
    parts = method.loss(build_model(name, N, {"dim": 8, "max_len": 4, "dropout": 0.0}), late)
    assert parts["view"].item() == 0.0
    assert parts["consensus"].item() > 0.0
    sum(parts.values(), torch.zeros(())).backward()


def test_a_scale_that_was_not_answered_teaches_no_view() -> None:
    teacher = FakeTeacher(N, rule=lambda history, k: [] if len(history) == 2 else [1, 2])
    method = ready(teacher, labels=False, target="answer", scales=[0.5, 1.0], view_weight=1.0)
    assert method.loss(sasrec(), batch([1]))["view"].item() == 0.0


def test_without_probing_there_are_no_views() -> None:
    assert "view" not in ready(scales=[1.0], view_weight=1.0).loss(sasrec(), batch([1]))


@pytest.mark.parametrize(("listed", "penalties"), [(N, 1), (0, 2)])
def test_only_items_that_no_answer_lists_are_pushed_below_the_consensus(listed: int, penalties: int) -> None:
    """Where all scores are equal each penalty is the margin: for order, and, outside the lists, for the lead."""
    teacher = FakeTeacher(N, rule=lambda history, k: list(range(1, N + 1)))
    teacher.exclude_history = False
    method, model = ready(teacher, ranking="margin", margin=0.3, gate="none", labels=False, top_k=N), sasrec()
    method.told.items[:, listed:] = 0
    torch.nn.init.zeros_(model.item_embeddings())
    # The gate leaves one half of the margin for each penalty.
    assert method.loss(model, batch([0, 1]))["consensus"].item() == pytest.approx(penalties * 0.3 / 2)


@pytest.mark.parametrize("ranking", ["listwise", "smooth", "margin"])
def test_users_without_an_answer_add_nothing(ranking: str) -> None:
    teacher = FakeTeacher(N, rule=lambda history, k: [] if history[-1] in (2, 8) else [1, 2])
    method, model = ready(teacher, labels=False, target="answer", ranking=ranking, contrast_weight=0.1), sasrec()
    parts = method.loss(model, batch([0, 3]))
    assert set(parts) == ALL_PARTS - {"label"}
    assert {part.item() for part in parts.values()} == {0.0}


@pytest.mark.parametrize("ranking", ["listwise", "smooth", "margin"])
def test_the_same_generator_gives_the_same_loss(ranking: str) -> None:
    method, model = ready(ranking=ranking, contrast_weight=0.1), sasrec()
    first, second = (method.loss(model, batch([0, 1, 2], seed=5)) for _ in range(2))
    assert {name: part.item() for name, part in first.items()} == {name: part.item() for name, part in second.items()}


@pytest.mark.parametrize("ranking", ["listwise", "smooth", "margin"])
def test_lists_of_one_item_can_be_learned_from(ranking: str) -> None:
    parts = ready(top_k=1, ranking=ranking).loss(sasrec(), batch([0, 1, 2]))
    assert all(part.isfinite() for part in parts.values())


def test_preparing_again_gives_the_same_targets() -> None:
    """A run that is resumed prepares anew."""
    first, second = ready(FakeTeacher(N, fickle)), ready(FakeTeacher(N, fickle))
    assert torch.equal(first.gate, second.gate)
    assert torch.equal(first.agreed.items, second.agreed.items)
    assert torch.equal(first.told.logits, second.told.logits)


def test_answers_are_not_held_twice_during_training() -> None:
    """For a million users and lists of a hundred they are gigabytes."""
    assert not any(isinstance(held, Probe) for held in vars(ready()).values())


def test_identical_histories_of_two_users_leave_the_loss_finite() -> None:
    doubled = batch([1, 1])
    parts = ready(labels=False, contrast_weight=0.1).loss(sasrec(), doubled)
    assert all(part.isfinite() for part in parts.values())


@pytest.mark.parametrize("other", [{"view_weight": 0}, {"contrast_weight": 0.1}])
def test_prefixes_that_nobody_learns_are_refused_before_they_are_paid_for(other: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"prefixes or contrast_weight to 0|view_weight above 0, or prefixes to 0"):
        BAHSDConfig(prefixes=1, **other)


def test_a_contrast_without_a_shorter_scale_is_refused() -> None:
    """It would tell whole histories from themselves."""
    with pytest.raises(
        SettingsError, match=r"give another scale, for example \[0.5, 1.0\], or set contrast_weight to 0"
    ):
        BAHSDConfig.parse({"scales": [1.0], "contrast_weight": 0.1})
