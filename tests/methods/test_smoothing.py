"""Labels smoothed by rules: which rules, at which places, and how they are mixed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.labels import LabelLoss, LabelLossConfig, mask_items
from recdistill.methods.smoothing import Smoothing
from recdistill.models.base import Model, build_model
from recdistill.models.bert4rec import BERT4Rec
from recdistill.teachers.rules import RulesTeacher
from recdistill.training.batches import Batches

ROWS = [[1, 2, 3, 4, 5], [2, 3, 6], [], [3, 4, 6, 1], [5, 1, 2], [7]]
N = 8
TRAIN = Sequences.from_lists(ROWS)


def setting(train: Sequences = TRAIN, users: Any = None) -> Setting:
    return Setting(train, np.arange(len(train)) if users is None else users, N)


def batch(rows: list[int], train: Sequences = TRAIN, shown: list[int] | None = None, **how: Any) -> TrainingBatch:
    batches = Batches(train, batch_size=9, **{"max_len": None, "reads_last": False} | how)
    packed = batches.of(np.array(rows), None if shown is None else np.array(shown))
    return TrainingBatch(*packed, torch.Generator().manual_seed(0))


def said(history: list[int], *, ordered: bool = True, exclude_history: bool = True, k: int = N) -> dict[int, float]:
    """Return what rules say after a history, as shares of the k best."""
    sharp: dict[str, Any] = {"window": 5, "fade": 1.0, "decay": 0.5, "popularity": 0.0, "prior": 0.0}
    rules = RulesTeacher(TRAIN, N, ordered=ordered, exclude_history=exclude_history, **(sharp if ordered else {}))
    ranking = rules.rank(Sequences.from_lists([history]), k)
    assert ranking.scores is not None
    shares = {int(i): float(np.exp(s)) for i, s in zip(ranking.items[0], ranking.scores[0], strict=True) if i}
    return {item: share / sum(shares.values()) for item, share in shares.items()}


def targets(items: Tensor, probs: Tensor) -> list[dict[int, float]]:
    """Return each row's target by item, and make sure that no item stands in it twice."""
    rows = []
    for row, chances in zip(items.tolist(), probs.tolist(), strict=True):
        listed = [item for item in row if item]
        assert len(set(listed)) == len(listed)
        rows.append({item: chance for item, chance in zip(row, chances, strict=True) if item and chance})
    return rows


def mixed(label: int, rules: dict[int, float], share: float) -> dict[int, float]:
    whole = {item: share * worth for item, worth in rules.items()}
    whole[label] = whole.get(label, 0.0) + (1 - share if rules else 1.0)
    return whole


def assert_same(found: list[dict[int, float]], expected: list[dict[int, float]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-3)  # shares are kept in 16 bits


@pytest.mark.parametrize(
    ("rows", "shown", "how"),
    [
        ([0, 3], None, {}),
        ([3, 0], None, {"max_len": 2}),
        ([1, 0], [1, 3], {}),
        ([0, 1], None, {"reads_last": True}),
        ([0, 3], [2, 1], {"reads_last": True, "max_len": 3}),
    ],
)
def test_labels_are_smoothed_by_what_follows_the_whole_history_so_far(
    rows: list[int], shown: list[int] | None, how: dict[str, Any]
) -> None:
    """However little of it the student is shown."""
    some = batch(rows, shown=shown, **how)
    at = some.labels.nonzero().squeeze(1)
    found = targets(*Smoothing(setting(), 0.3, N).after(some, at, some.labels[at]))
    expected = []
    for row in rows:
        n_shown = shown[rows.index(row)] if shown else how.get("max_len", 9)
        last = len(ROWS[row]) - (0 if how.get("reads_last") else 1)
        places = range(max(0, last - n_shown), min(last, len(ROWS[row]) - 1))
        expected += [mixed(ROWS[row][place + 1], said(ROWS[row][: place + 1]), 0.3) for place in places]
    assert len(expected) == len(at) > 0
    assert_same(found, expected)


def test_windows_of_a_history_are_smoothed_like_its_parts() -> None:
    train, users = TRAIN.with_windows(2)
    window = len(TRAIN)  # the first of them: user 0 without the newest item
    assert train[window].tolist() == [1, 2, 3, 4]
    some = batch([window], train, max_len=2)
    found = targets(*Smoothing(setting(train, users), 0.5, N).after(some, torch.tensor([0, 1]), some.labels))
    assert_same(found, [mixed(3, said([1, 2]), 0.5), mixed(4, said([1, 2, 3]), 0.5)])


def test_only_the_best_rules_are_listened_to() -> None:
    some = batch([0])
    found = targets(*Smoothing(setting(), 0.4, 1).after(some, torch.tensor([1]), torch.tensor([8])))
    assert_same(found, [mixed(8, said([1, 2], k=1), 0.4)])


def test_a_label_that_nothing_is_known_about_stays_whole() -> None:
    lonely = Sequences.from_lists([[1, 2], [8, 7, 3], [1, 3]])
    smoothing = Smoothing(setting(lonely), 0.4, N)
    first = batch([0], lonely)
    found = targets(*smoothing.after(first, torch.tensor([-1, 0]), torch.tensor([5, 5])))
    assert found[0] == {5: 1.0}
    assert len(found[1]) > 1
    alone = Sequences.from_lists([[8, 7], [1, 2, 3]])  # nothing but 7 follows 8
    found = targets(*Smoothing(setting(alone), 0.4, N).after(batch([0], alone), torch.tensor([0]), torch.tensor([7])))
    assert_same(found, [{7: 1.0}])


def test_items_of_the_history_are_possible_where_histories_repeat_items() -> None:
    repeating = Sequences.from_lists([[1, 2, 1, 2], [1, 3]])
    some = batch([0], repeating)
    label = torch.tensor([2])
    assert 1 in targets(*Smoothing(setting(repeating), 0.5, N).after(some, torch.tensor([1]), label))[0]
    once = Sequences.from_lists([[1, 2], [2, 1], [1, 3], [2, 3]])
    found = targets(
        *Smoothing(setting(once), 0.5, N).after(batch([1], once, reads_last=True), torch.tensor([1]), label)
    )
    assert_same(found, [{2: 0.5, 3: 0.5}])


def test_users_are_smoothed_by_a_walk_from_what_they_took() -> None:
    some = batch([1, 5, 4], reads_last=True)
    lists = torch.tensor([[2, 3, 6], [7, 0, 0], [1, 2, 5]])
    found = targets(*Smoothing(setting(), 0.3, N).for_users(some, lists))
    for row, taken, target in zip([1, 5, 4], ([2, 3, 6], [7], [1, 2, 5]), found, strict=True):
        walk = said(ROWS[row], ordered=False)
        own = 0.7 if walk else 1.0
        expected = dict.fromkeys(taken, own) | {item: 0.3 * len(taken) * worth for item, worth in walk.items()}
        assert target == pytest.approx(expected, abs=5e-3)
        assert sum(target.values()) == pytest.approx(len(taken), abs=5e-3)


def cross_entropy(student: Model, queries: Tensor, wanted: list[dict[int, float]]) -> Tensor:
    target = torch.zeros(len(wanted), N)
    for row, chances in enumerate(wanted):
        for item, chance in chances.items():
            target[row, item - 1] = chance
    logs = torch.log_softmax(queries @ student.item_embeddings()[1:].T, 1)
    return -(target * logs).sum(1)


CONFIG = LabelLossConfig(smoothing=0.3, smoothing_depth=N, precision="fp32")


def test_the_next_item_is_learned_with_what_rules_say() -> None:
    student = build_model("sasrec", N, {"dim": 4, "dropout": 0.0})
    some = batch([1, 3])
    wanted = [mixed(row[n], said(row[:n]), 0.3) for row in (ROWS[1], ROWS[3]) for n in range(1, len(row))]
    expected = cross_entropy(student, student.encode_positions(some.batch), wanted).mean()
    torch.testing.assert_close(LabelLoss(CONFIG, setting())(student, some), expected, rtol=1e-3, atol=0)


def test_masked_items_are_learned_with_what_rules_say_after_those_before_them() -> None:
    student = build_model("bert4rec", N, {"dim": 4, "n_heads": 1, "dropout": 0.0})
    assert isinstance(student, BERT4Rec)
    some = batch([0, 3], reads_last=True)
    masked, labels = mask_items(
        some.batch, student.mask_item, share=0.4, last_share=0.2, generator=torch.Generator().manual_seed(0)
    )
    before = [(row, n) for row in (0, 3) for n in range(len(ROWS[row]))]
    hidden = labels.nonzero().squeeze(1).tolist()
    assert any(before[at][1] > 0 for at in hidden)
    wanted = [
        mixed(int(labels[at]), said(ROWS[before[at][0]][: before[at][1]]) if before[at][1] else {}, 0.3)
        for at in hidden
    ]
    expected = cross_entropy(student, student.encode_positions(masked)[hidden], wanted).mean()
    torch.testing.assert_close(LabelLoss(CONFIG, setting())(student, some), expected, rtol=1e-3, atol=0)


def test_what_users_took_is_learned_with_what_rules_say() -> None:
    student = build_model("mf", N, {"dim": 4}, train=TRAIN)
    some = batch([1, 4], reads_last=True)
    walks = [said(ROWS[row], ordered=False) for row in (1, 4)]
    wanted = [
        dict.fromkeys(ROWS[row], 0.7) | {item: 0.9 * worth for item, worth in walk.items()}
        for row, walk in zip((1, 4), walks, strict=True)
    ]
    expected = cross_entropy(student, student.encode(some.batch), wanted).sum() / 6
    torch.testing.assert_close(LabelLoss(CONFIG, setting())(student, some), expected, rtol=1e-3, atol=0)


def test_other_losses_are_not_smoothed() -> None:
    with pytest.raises(
        SettingsError, match=r"smoothing is read only with loss = 'softmax': set that, or leave smoothing out"
    ):
        LabelLossConfig.parse({"loss": "bce", "smoothing": 0.2})
