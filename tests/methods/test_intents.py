"""Intents: each equation of S4Rec by hand, who learns from what, and what an adversary leaves of a history's length."""

import math
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recdistill.clustering import sinkhorn
from recdistill.data.dataset import Sequences
from recdistill.methods.base import Setting
from recdistill.methods.intents import (
    IntentConfig,
    IntentParts,
    cluster_distillation_loss,
    clustering_loss,
    head_rows,
    intent_contrast,
    reverse_gradient,
)

from .intents import OFF, N, generator, setting, student, vectors


def intent_parts(**settings: Any) -> IntentParts:
    """Parts for vectors of width 3, where one user in five is of the head; prototypes of many lengths, as learned."""
    torch.manual_seed(0)
    config = IntentConfig.model_validate({"n_clusters": 4} | OFF | settings)
    parts = IntentParts(config, 3, torch.arange(5) == 0, share_of_head=0.2)
    with torch.no_grad():
        parts.prototypes.mul_(torch.tensor([[0.5], [1.0], [3.0], [2.0]]).repeat(config.n_clusters // 4, 1))
    return parts


# The equations


def test_eqs_3_and_4_by_hand() -> None:
    # At temperature 2 the scores 0 and 2 log 3 are probabilities 1/4 and 3/4; those of 0 and 0, 1/2 each.
    scores = torch.tensor([[0.0, 2 * math.log(3)], [0.0, 0.0]])
    targets = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    first = -(0.2 * math.log(1 / 4) + 0.8 * math.log(3 / 4))
    assert clustering_loss(scores, targets, temperature=2.0).item() == pytest.approx((first - math.log(1 / 2)) / 2)


@pytest.mark.parametrize("positive_in_denominator", [False, True])
def test_eqs_9_and_10_by_hand(positive_in_denominator: bool) -> None:
    first, second = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    prototypes, intents = torch.tensor([[1.0, 1.0], [0.0, 2.0], [-1.0, 0.0]]), torch.tensor([0, 1])
    terms = {
        # positive; views of the other history; prototypes of the other intents. All at temperature 2.
        "z1 of u0": (2, (0, 1), (0, -1)),
        "z2 of u0": (2, (0, 2), (0, -2)),
        "z1 of u1": (1, (0, 0), (1, 0)),
        "z2 of u1": (1, (1, 2), (2, -1)),
    }
    expected = 0.0
    for positive, others, intents_of_others in terms.values():
        negatives = (*others, *intents_of_others) + ((positive,) if positive_in_denominator else ())
        expected -= math.log(math.exp(positive / 2) / sum(math.exp(score / 2) for score in negatives))
    loss = intent_contrast(
        first, second, prototypes, intents, temperature=2.0, positive_in_denominator=positive_in_denominator
    )
    assert loss.item() == pytest.approx(expected / 2)


def test_the_customary_contrast_is_never_below_0_and_the_printed_one_can_be() -> None:
    views, prototypes, intents = 9 * torch.eye(3), -torch.eye(3), torch.arange(3)
    customary, printed = (
        intent_contrast(views, views, prototypes, intents, temperature=1.0, positive_in_denominator=positive).item()
        for positive in (True, False)
    )
    assert 0 <= customary < 1e-6
    assert printed < -100


@pytest.mark.parametrize("positive_in_denominator", [False, True])
def test_a_history_alone_with_its_own_intent_has_nothing_to_be_told_from(positive_in_denominator: bool) -> None:
    """K-means finds but one intent where all histories are alike, and a batch may be left with one of them."""
    view = vectors(1, 3)
    loss = intent_contrast(
        view,
        2 * view,
        torch.ones(1, 3),
        torch.tensor([0]),
        temperature=0.1,
        positive_in_denominator=positive_in_denominator,
    )
    assert loss.item() == 0
    assert torch.autograd.grad(loss, view)[0].tolist() == [[0.0, 0.0, 0.0]]


def test_eqs_11_and_12_by_hand() -> None:
    z = torch.zeros(1, 2)  # softmax: 1/2, 1/2
    mu = torch.tensor([[0.0, 2 * math.log(3)]])  # at temperature 2: 1/4, 3/4
    expected = 1 / 4 * math.log((1 / 4) / (1 / 2)) + 3 / 4 * math.log((3 / 4) / (1 / 2))
    assert cluster_distillation_loss(z, mu, temperature=2.0).item() == pytest.approx(expected)
    assert cluster_distillation_loss(mu + 5, mu, temperature=0.1).item() == pytest.approx(0, abs=1e-5)


def test_a_reversed_gradient_leaves_the_value_as_it_is() -> None:
    z = vectors(4, 3)
    assert torch.equal(reverse_gradient(z, 0.5), z)
    (gradient,) = torch.autograd.grad((reverse_gradient(z, 0.5) ** 2).sum(), z)
    torch.testing.assert_close(gradient, -0.5 * 2 * z)


def test_eq_13_the_classifier_descends_and_the_student_ascends() -> None:
    parts = intent_parts(adversary="reversal", adversary_weight=2.0, adversary_strength=0.5)
    z, head = vectors(3, 3), torch.tensor([True, False, False])
    guesses = z @ parts.classifier.weight.T + parts.classifier.bias
    expected = 2 * (guesses.logsumexp(1) - guesses[torch.arange(3), head.long()]).mean()
    loss = parts(z, None, head)["adversary"]
    torch.testing.assert_close(loss, expected)
    inputs = (z, parts.classifier.weight, parts.classifier.bias)
    of_z, *of_classifier = torch.autograd.grad(expected, inputs)
    got_z, *got_classifier = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(got_z, -0.5 * of_z)
    torch.testing.assert_close(got_classifier, of_classifier)


def test_confusion_asks_of_the_student_that_everyone_looks_average() -> None:
    parts, head = intent_parts(adversary_weight=1.0, adversary_strength=0.5), torch.tensor([True, False, False])
    z = vectors(3, 3)
    inputs = (z, parts.classifier.weight, parts.classifier.bias)
    guesses = F.linear(*inputs)
    told = F.cross_entropy(guesses, head.long())
    average = -0.5 * (guesses.log_softmax(1) * torch.tensor([0.8, 0.2])).sum(1).mean()
    loss = parts(z, None, head)["adversary"]
    torch.testing.assert_close(loss, told + average)
    got_z, *got_classifier = torch.autograd.grad(loss, inputs, retain_graph=True)
    torch.testing.assert_close(got_z, torch.autograd.grad(average, z, retain_graph=True)[0])
    torch.testing.assert_close(got_classifier, list(torch.autograd.grad(told, inputs[1:])))


# What is compared with what


def test_clusters_are_learned_from_cosines_and_a_balanced_assignment() -> None:
    parts, z = intent_parts(cluster_weight=1.0, epsilon=0.1, assignment_temperature=0.5), vectors(8, 3)
    cosines = F.normalize(z, dim=1) @ F.normalize(parts.prototypes, dim=1).T
    targets = sinkhorn(cosines, epsilon=0.1, n_iterations=3)
    expected = -(targets * (cosines / 0.5).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(parts(z, None, torch.zeros(8).bool())["cluster"], expected)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_views_meet_the_intent_that_the_whole_history_is_nearest_to(similarity: Literal["cosine", "dot"]) -> None:
    parts = intent_parts(contrast_weight=1.0, distillation_weight=1.0, similarity=similarity)
    z, first, second = (3 * vectors(5, 3, seed=seed) for seed in range(3))
    got = parts(z, (first, second), torch.zeros(5).bool())
    prototypes = parts.prototypes
    if similarity == "cosine":
        z, first, second, prototypes = (F.normalize(x, dim=1) for x in (z, first, second, prototypes))
    intents = (z @ prototypes.T).argmax(1)
    assert len(intents.unique()) > 1
    contrast = intent_contrast(first, second, prototypes, intents, temperature=0.1, positive_in_denominator=True)
    distilled = sum(cluster_distillation_loss(view, prototypes[intents], temperature=0.1) for view in (first, second))
    torch.testing.assert_close(got["contrast"], contrast)
    torch.testing.assert_close(got["distillation"], distilled)


def test_with_k_means_a_history_has_the_nearest_intent_however_long_another_is() -> None:
    parts = intent_parts(clustering="kmeans", similarity="dot", distillation_weight=1.0, distillation_temperature=1.0)
    parts.prototypes = torch.tensor([[1.0, 0.0, 0.0], [90.0, 90.0, 0.0]])
    z, first, second = torch.tensor([[2.0, 1.0, 0.0]]), vectors(1, 3, seed=1), vectors(1, 3, seed=2)
    nearest = parts.prototypes[:1]
    expected = sum(cluster_distillation_loss(view, nearest, temperature=1.0) for view in (first, second))
    torch.testing.assert_close(parts(z, (first, second), torch.tensor([False]))["distillation"], expected)


def test_with_k_means_the_nearest_centre_is_that_of_the_clustering_where_cosines_are_compared() -> None:
    """Centres are means of vectors of length 1, shorter the less these are alike; so the best cosine may be farther."""
    parts = intent_parts(clustering="kmeans", distillation_weight=1.0, distillation_temperature=1.0)
    parts.prototypes = torch.tensor([[0.2, 0.0, 0.0], [0.6, 0.8, 0.0]])
    z, first, second = torch.tensor([[0.9, 0.43, 0.0]]), vectors(1, 3, seed=1), vectors(1, 3, seed=2)
    cosines = F.normalize(z, dim=1) @ F.normalize(parts.prototypes, dim=1).T
    assert cosines[0, 0] > cosines[0, 1]
    nearest = parts.prototypes[1:]
    views = (F.normalize(view, dim=1) for view in (first, second))
    expected = sum(cluster_distillation_loss(view, nearest, temperature=1.0) for view in views)
    torch.testing.assert_close(parts(z, (first, second), torch.tensor([False]))["distillation"], expected)


# Who learns from what


@pytest.mark.parametrize(
    ("part", "moves", "settings"),
    [
        ("cluster", True, {}),
        ("contrast", False, {}),
        ("distillation", False, {}),
        ("contrast", True, {"prototypes_learn_from": "all"}),
        ("distillation", True, {"prototypes_learn_from": "all"}),
    ],
)
def test_prototypes_learn_from_clustering_alone_unless_told_otherwise(
    part: str, moves: bool, settings: dict[str, Any]
) -> None:
    parts = intent_parts(**{f"{part}_weight": 1.0}, **settings)
    z, views = vectors(6, 3), (vectors(6, 3, seed=1), vectors(6, 3, seed=2))
    loss = parts(z, views if parts.config.needs_views else None, torch.zeros(6).bool())[part]
    (gradient,) = torch.autograd.grad(loss, parts.prototypes, allow_unused=True, retain_graph=True)
    assert (gradient is not None and bool(gradient.any())) == moves
    learns = [z] if part == "cluster" else list(views)
    assert all(gradient.any() for gradient in torch.autograd.grad(loss, learns))


@pytest.mark.parametrize("extreme", [1e4, -1e4, 0.0])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("adversary", ["confusion", "reversal"])
def test_values_and_gradients_are_finite_at_extreme_vectors(extreme: float, similarity: str, adversary: str) -> None:
    parts = intent_parts(**dict.fromkeys(OFF, 1.0), similarity=similarity, adversary=adversary)
    z = torch.full((4, 3), extreme, requires_grad=True)
    loss = torch.stack(list(parts(z, (z, -z), torch.tensor([True, False, False, True])).values())).sum()
    assert loss.isfinite()
    assert torch.autograd.grad(loss, z)[0].isfinite().all()


# The queue


def test_small_batches_are_assigned_together_with_what_came_before() -> None:
    parts = intent_parts(cluster_weight=1.0, queue_size=5, assignment_temperature=1.0)
    batches, nobody = [vectors(2, 3, seed=seed) for seed in range(4)], torch.zeros(2).bool()
    for earlier in batches[:3]:
        parts(earlier, None, nobody)
    units = [F.normalize(each, dim=1) for each in batches]
    remembered = torch.cat([units[2], units[1], units[0][:1]])
    torch.testing.assert_close(parts.queue, remembered)
    prototypes = F.normalize(parts.prototypes, dim=1)
    targets = sinkhorn(torch.cat([units[3], remembered]) @ prototypes.T, epsilon=0.05, n_iterations=3)[:2]
    loss = parts(batches[3], None, nobody)["cluster"]
    torch.testing.assert_close(loss, clustering_loss(units[3] @ prototypes.T, targets, temperature=1.0))


def test_a_queue_that_is_not_full_assigns_no_empty_places() -> None:
    z, nobody = vectors(2, 3), torch.zeros(2).bool()
    with_queue, without = (intent_parts(cluster_weight=1.0, queue_size=size) for size in (100, 0))
    torch.testing.assert_close(with_queue(z, None, nobody), without(z, None, nobody))
    assert int(with_queue.queued) == 2


def test_too_few_vectors_for_the_intents_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Equally large intents take of each of two histories a part, so that hardly any belongs to one."""
    nobody = torch.zeros(2).bool()
    parts = intent_parts(cluster_weight=1.0, n_clusters=8, queue_size=5)
    for seed in range(3):
        parts(vectors(2, 3, seed=seed), None, nobody)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for said in (
        "batch of 2",
        "queue_size = 5",
        "n_clusters = 8",
        "queue_size to at least 6",
        "n_clusters to at most 7",
    ):
        assert said in record.getMessage()


@pytest.mark.parametrize(
    "settings",
    [
        {"queue_size": 6},
        {"clustering": "kmeans", "cluster_weight": 0.0},
        {"cluster_weight": 0.0, "adversary_weight": 1.0},
    ],
)
def test_nothing_is_told_where_the_queue_makes_up_for_it_or_no_assignment_is_learned(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    parts = intent_parts(**{"cluster_weight": 1.0, "n_clusters": 8} | settings)
    parts(vectors(2, 3), None, torch.zeros(2).bool())
    assert not caplog.records


def test_a_small_last_batch_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    parts = intent_parts(cluster_weight=1.0, n_clusters=4)
    for size in (4, 1):
        parts(vectors(size, 3), None, torch.zeros(size).bool())
    assert not caplog.records


# Head and tail


def test_the_head_is_the_longest_training_histories_and_ties_are_tail() -> None:
    train = Sequences.from_lists([[1] * length for length in (9, 2, 7, 7, 3, 1, 1, 1, 1, 1)])
    assert head_rows(setting(train), 0.2).nonzero()[0].tolist() == [0]
    assert head_rows(setting(train), 0.3).nonzero()[0].tolist() == [0, 2, 3]


def test_an_earlier_part_of_a_history_belongs_to_its_users_group() -> None:
    train = Sequences.from_lists([[1] * length for length in (9, 2, 2, 2, 2)])
    rows, users = train.with_windows(4)
    assert len(rows) > len(train)
    is_head = head_rows(Setting(rows, users, N), 0.2)
    assert is_head.tolist() == (users == 0).tolist()


@pytest.mark.parametrize(
    ("name", "reads_last", "expected"), [("sasrec", False, 1 / 4), ("sasrec", True, 1 / 8), ("bert4rec", False, 1 / 8)]
)
def test_the_average_user_is_one_of_those_that_are_learned_from(name: str, reads_last: bool, expected: float) -> None:
    """Most users of a shop came once. A student that never sees them is not to guess as often as if it did."""
    train = Sequences.from_lists([[1] * length for length in (5, 3, 3, 2, 1, 1, 1, 1, 0, 0)])
    parts = IntentParts.for_student(student(name), IntentConfig(), setting(train), reads_last=reads_last)
    assert parts.head.nonzero().tolist() == [[0]]
    assert parts.share_of_head == pytest.approx(expected)


@pytest.mark.parametrize("lengths", [(3, 3, 3, 3, 3), (4, 1, 1, 1, 1)])
def test_without_head_or_tail_users_to_learn_from_there_is_nothing_to_hide(lengths: tuple[int, ...]) -> None:
    learner, train = student(), Sequences.from_lists([[1] * length for length in lengths])
    parts = IntentParts.for_student(
        learner, IntentConfig.model_validate(OFF | {"adversary_weight": 1.0}), setting(train), reads_last=False
    )
    assert parts(vectors(2, 8), None, parts.head[:2]) == {}


def probe(z: Tensor, head: Tensor) -> float:
    """How often a linear probe, fitted on the first half of the users, is right about the second."""
    half, inputs = len(z) // 2, torch.cat([z, torch.ones(len(z), 1)], 1)
    weights = torch.linalg.lstsq(inputs[:half], 2 * head[:half, None].float() - 1).solution
    return float(((inputs[half:] @ weights)[:, 0] > 0).eq(head[half:]).float().mean())


@pytest.mark.parametrize("adversary", ["confusion", "reversal"])
def test_the_adversary_takes_length_out_of_vectors_that_had_it(adversary: str) -> None:
    """An encoder has what a decoder needs, and on top of it what says who is in the head; noise hides small traces.

    Chance is 1/2. All learn at one rate, as in training; reversal swings around chance, so that it takes many steps.
    """
    found = {}
    for weight in (0.0, 1.0):
        draws = generator()
        torch.manual_seed(0)
        head = torch.rand(1000, generator=draws) < 0.5
        features = torch.randn(1000, 6, generator=draws)
        features[:, 0] = 2 * head.float() - 1
        encoder, decoder = torch.nn.Linear(6, 6), torch.nn.Linear(6, 5)
        torch.nn.init.eye_(encoder.weight)
        config = IntentConfig.model_validate(OFF | {"adversary": adversary, "adversary_weight": weight})
        parts = IntentParts(config, 6, head, share_of_head=0.5)
        optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *parts.parameters()], lr=0.01)
        for _ in range(800):
            z = 5 * (encoder(features) + 0.5 * torch.randn(1000, 6, generator=draws))
            missed = (decoder(z) - features[:, 1:]).square().mean()
            optimiser.zero_grad()
            torch.stack([missed, *parts(z, None, head).values()]).sum().backward()
            optimiser.step()
        found[weight] = probe(z.detach(), head)
        assert missed.item() < 0.15
    assert found[0.0] > 0.9
    assert found[1.0] < 0.6
