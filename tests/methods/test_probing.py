from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.methods.base import Setting
from recdistill.methods.probing import (
    Probe,
    consensus,
    consistency,
    fill_unmeasured,
    look_back,
    peakedness,
    probe,
    without,
)
from recdistill.rankings import Ranking
from recdistill.teachers.base import Teacher
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.ledger import Ledger
from recdistill.teachers.ledger_teacher import LedgerTeacher


class Oracle(Teacher):
    """Answers with a function of the history, notes what it was asked, and stops when its budget is spent."""

    def __init__(self, answer: Callable[[list[int]], list[int]], *, budget: int = 10**9, scored: bool = False) -> None:
        self.answer, self.budget, self.gives_scores = answer, budget, scored
        self.asked: list[list[int]] = []

    @property
    def identity(self) -> str:
        return "oracle"

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        items = np.zeros((len(histories), k), np.int32)
        for row, history in enumerate(histories):
            self.asked.append(history.tolist())
            listed = self.answer(history.tolist())[:k]
            items[row, : len(listed)] = listed
        scores = np.where(items > 0, -np.arange(k, dtype=np.float32), -np.inf).astype(np.float32)
        return Ranking(items, scores if self.gives_scores else None)

    def rank_within_budget(
        self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None
    ) -> tuple[Ranking, npt.NDArray[np.bool_]]:
        paid = np.arange(len(histories)) < self.budget
        self.budget -= int(paid.sum())
        answers = self.rank(histories.take(paid), k, users=users)
        items = np.zeros((len(histories), k), np.int32)
        items[paid] = answers.items
        scores = None if answers.scores is None else np.full(items.shape, -np.inf, np.float32)
        if scores is not None:
            scores[paid] = answers.scores
        return Ranking(items, scores), paid


def successors(history: list[int]) -> list[int]:
    """The two items after the newest one, on a ring of 9."""
    return [history[-1] % 9 + 1, (history[-1] + 1) % 9 + 1]


def setting(rows: list[list[int]], teacher: Teacher | None, n_items: int = 9) -> Setting:
    return Setting(Sequences.from_lists(rows), np.arange(len(rows)), n_items, teacher)


def answered(answers: Probe) -> npt.NDArray[np.bool_]:
    """``(M, R)`` which histories have an answer of their own at which scale."""
    found: npt.NDArray[np.bool_] = answers.items[:, :, 0] > 0
    return found


def test_shows_the_newest_part_of_each_history_at_each_scale() -> None:
    teacher = Oracle(successors)
    probe(setting([[1, 2, 3, 4]], teacher), scales=(0.5, 0.75, 1.0), k=2)
    assert teacher.asked == [[1, 2, 3, 4], [3, 4], [2, 3, 4]]


def test_asks_for_every_whole_history_before_any_part_of_one() -> None:
    """A budget that runs short must cost reliability before it costs answers."""
    teacher = Oracle(successors)
    probe(setting([[1, 2], [3, 4], [5, 6]], teacher), scales=(0.5, 1.0), k=2)
    assert sorted(teacher.asked[:3]) == [[1, 2], [3, 4], [5, 6]]
    assert sorted(teacher.asked[3:]) == [[2], [4], [6]]


def test_scales_that_show_the_same_items_are_asked_once() -> None:
    """Of 3 items, .75 and 1 show all 3: the same question, paid for twice and then counted as agreement."""
    teacher = Oracle(successors)
    answers = probe(setting([[1, 2, 3], [7]], teacher), scales=(0.5, 0.75, 1.0), k=2)
    assert sorted(teacher.asked) == [[1, 2, 3], [2, 3], [7]]
    assert answered(answers).T.tolist() == [[True, False, True], [False, False, True]]


def test_empty_histories_are_not_asked_about() -> None:
    teacher = Oracle(successors)
    answers = probe(setting([[], [1, 2]], teacher), scales=(1.0,), k=2)
    assert teacher.asked == [[1, 2]]
    assert answers.full.items.tolist() == [[0, 0], [3, 4]]


def test_a_history_without_an_answer_is_not_probed_further() -> None:
    """An empty list to the whole history leaves nothing to distil, whatever a part of it would bring."""
    teacher = Oracle(lambda history: [] if history == [1, 2] else successors(history))
    answers = probe(setting([[1, 2], [3, 4]], teacher), scales=(0.5, 1.0), k=2)
    assert [2] not in teacher.asked
    assert answered(answers).T.tolist() == [[False, False], [True, True]]


def test_a_budget_buys_whole_answers_first_and_leaves_the_rest_empty() -> None:
    rows = [[n, n % 9 + 1] for n in range(1, 7)]
    teacher = Oracle(successors, budget=8)
    answers = probe(setting(rows, teacher), scales=(0.5, 1.0), k=2)
    assert answered(answers).sum(axis=1).tolist() == [2, 6]


def test_a_budget_below_the_number_of_users_answers_some_and_probes_nobody() -> None:
    teacher = Oracle(successors, budget=3)
    answers = probe(setting([[n, n % 9 + 1] for n in range(1, 7)], teacher), scales=(0.5, 1.0), k=2)
    assert answered(answers).sum(axis=1).tolist() == [0, 3]
    assert len(teacher.asked) == 3


def test_who_is_asked_on_a_short_budget_does_not_depend_on_the_seed() -> None:
    """Otherwise every further seed would have to buy other answers."""
    rows = [[n, n % 9 + 1] for n in range(1, 7)]
    chosen = []
    for seed in (0, 1):
        one = Setting(Sequences.from_lists(rows), np.arange(6), 9, Oracle(successors, budget=3), seed=seed)
        chosen.append(answered(probe(one, k=2)).tolist())
    assert chosen[0] == chosen[1]


def test_probing_again_asks_only_for_what_a_ledger_does_not_hold(tmp_path: Path) -> None:
    """A run that is resumed, or repeated with another seed or a larger budget, pays for nothing twice."""
    rows = [[n, n % 9 + 1] for n in range(1, 7)]
    teacher = FakeTeacher(9)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        first = probe(setting(rows, LedgerTeacher(teacher, ledger, budget=4)), scales=(0.5, 1.0), k=2)
        again = probe(setting(rows, LedgerTeacher(teacher, ledger, budget=4)), scales=(0.5, 1.0), k=2)
        assert len(teacher.asked) == 4
        assert first.items.tolist() == again.items.tolist()
        larger = probe(setting(rows, LedgerTeacher(teacher, ledger, budget=9)), scales=(0.5, 1.0), k=2)
    assert len(teacher.asked) == 9
    assert answered(larger).sum(axis=1).tolist() == [3, 6]


def test_progress_counts_queries_up_to_all_of_them() -> None:
    seen: list[tuple[str, int, int]] = []
    one = Setting(
        Sequences.from_lists([[1, 2], [3]]),
        np.arange(2),
        9,
        Oracle(successors),
        progress=lambda *step: seen.append(step),
    )
    probe(one, scales=(0.5, 1.0), k=2)
    assert seen == [("asking the teacher", 2, 3), ("asking the teacher", 3, 3)]


def test_no_longer_list_than_the_catalogue_is_asked_for() -> None:
    assert probe(setting([[1]], Oracle(successors), n_items=9), k=100).items.shape == (1, 1, 9)


def test_scores_are_kept_at_every_scale_and_are_minus_infinity_under_padding() -> None:
    answers = probe(setting([[1, 2], []], Oracle(successors, scored=True)), scales=(0.5, 1.0), k=3)
    assert answers.scores is not None
    assert answers.scores.tolist() == [[[0.0, -1.0, -math.inf], [-math.inf] * 3]] * 2


def test_scores_move_up_with_the_items_that_stay() -> None:
    teacher = Oracle(lambda history: [item for item in (1, 3, 4) if item not in history], scored=True)
    answers = probe(setting([[1, 2]], teacher), scales=(0.5, 1.0), k=3)
    assert answers.items[0].tolist() == [[3, 4, 0]]
    assert answers.scores is not None
    assert answers.scores[0].tolist() == [[-1.0, -2.0, -math.inf]]


def test_items_of_the_whole_history_are_taken_out_of_answers_to_a_part_of_it() -> None:
    """They cannot be in the answer to the whole history, so that they would count as disagreement."""
    teacher = Oracle(lambda history: [item for item in (1, 2, 3, 4, 5) if item not in history])
    answers = probe(setting([[1, 2]], teacher), scales=(0.5, 1.0), k=4)
    assert answers.items[:, 0].tolist() == [[3, 4, 5, 0], [3, 4, 5, 0]]


def test_a_teacher_that_lists_the_history_is_compared_as_it_answers() -> None:
    """On data with repeats the items of the history are answers like any other."""
    teacher = Oracle(lambda _: [1, 3, 4])
    teacher.exclude_history = False
    answers = probe(setting([[1, 2]], teacher), scales=(0.5, 1.0), k=3)
    assert answers.items[:, 0].tolist() == [[1, 3, 4], [1, 3, 4]]


def test_a_teacher_that_takes_the_user_is_told_who_it_is() -> None:
    class ByUser(Oracle):
        takes = "user"

        def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
            assert users is not None
            return Ranking(np.array([[user + 1] for user in users], np.int32))

    rows = Sequences.from_lists([[1], [1]])
    answers = probe(Setting(rows, np.array([4, 6]), 9, ByUser(successors)), k=1)
    assert answers.full.items.tolist() == [[5], [7]]


def test_without_closes_the_gaps_and_looks_at_each_row_alone() -> None:
    lists = np.array([[1, 2, 3], [1, 2, 3]], np.int32)
    left = without(Ranking(lists), Sequences.from_lists([[2], [9, 1]]), 9)
    assert left.items.tolist() == [[1, 3, 0], [2, 3, 0]]


def test_an_answer_that_makes_no_sense_is_told_with_the_teacher_and_the_question() -> None:
    setting = Setting(Sequences.from_lists([[1], [3]]), np.arange(2), 3, FakeTeacher(9))
    said = r"'fake' was asked for 3 items for each of 2 histories, and a ranking names an item outside 1…3\. Look"
    with pytest.raises(TeacherError, match=said):
        probe(setting, k=3)


def test_a_method_without_a_teacher_is_refused() -> None:
    with pytest.raises(SettingsError, match="no teacher is given"):
        probe(setting([[1]], None), k=2)


def test_a_teacher_that_answers_for_users_cannot_be_shown_a_part_of_a_history() -> None:
    teacher = Oracle(successors)
    teacher.takes = "user"
    with pytest.raises(SettingsError, match=r"told the user alone.*use method 'kd'"):
        probe(setting([[1, 2]], teacher), scales=(0.5, 1.0), k=2)


def test_a_teacher_that_is_told_the_last_item_alone_cannot_be_probed() -> None:
    teacher = Oracle(successors)
    teacher.max_history = 1
    with pytest.raises(SettingsError, match=r"told the last item alone.*use method 'kd'"):
        probe(setting([[1, 2]], teacher), scales=(0.5, 1.0), k=2)


def test_scales_are_shares_of_what_both_student_and_teacher_read() -> None:
    def asked(max_len: int | None, max_history: int | None) -> list[int]:
        teacher = Oracle(successors)
        teacher.max_history = max_history
        probe(replace(setting([[1, 2, 3, 4, 5, 6, 7, 8]], teacher), max_len=max_len), scales=(0.5, 1.0), k=1)
        return [len(history) for history in teacher.asked]

    assert asked(None, None) == [8, 4]
    assert asked(6, None) == [8, 3]
    assert asked(6, 4) == [8, 2]
    assert asked(1, None) == [8, 1]


def test_a_part_that_the_teacher_would_hear_as_the_whole_is_not_asked_about() -> None:
    teacher = Oracle(successors)
    teacher.max_history = 3
    probed = probe(setting([[1, 2, 3, 4, 5, 6, 7, 8]], teacher), scales=(0.75, 1.0), k=1)
    assert [len(history) for history in teacher.asked] == [8]
    assert answered(probed).sum() == 1


def test_a_teacher_that_answers_nothing_is_refused() -> None:
    """Training would go on and learn nothing from it."""
    with pytest.raises(TeacherError, match="none of 2 histories"):
        probe(setting([[1], [2]], Oracle(successors, budget=0)), k=2)


def test_an_answer_with_an_unknown_item_is_refused() -> None:
    with pytest.raises(TeacherError, match="outside 1…9"):
        probe(setting([[1]], Oracle(lambda _: [10])), k=2)


def lists(*rows: list[int]) -> npt.NDArray[np.int32]:
    """M lists for one user."""
    return np.array(rows, np.int32)[:, None]


def test_consistency_by_hand() -> None:
    # [1, 2] and [2, 1]: nothing in common at depth 1, all at depth 2; weights 1 and .9.
    assert consistency(lists([1, 2], [2, 1]), depth=2) == pytest.approx([0.9 / 1.9])


def test_consistency_is_the_mean_over_all_pairs_of_scales() -> None:
    # Pairs: (same), (disjoint), (disjoint).
    assert consistency(lists([1, 2], [1, 2], [3, 4]), depth=2) == pytest.approx([1 / 3])


def test_consistency_is_1_when_short_lists_agree() -> None:
    assert consistency(lists([1, 2, 0, 0], [1, 2, 0, 0]), depth=4) == pytest.approx([1.0])


def test_consistency_of_a_single_answer_is_not_measured() -> None:
    assert np.isnan(consistency(lists([0, 0], [1, 2]), depth=2)).all()


def test_a_scale_without_an_answer_is_left_out_of_the_mean() -> None:
    assert consistency(lists([0, 0], [1, 2], [1, 2]), depth=2) == pytest.approx([1.0])


def test_peakedness_by_hand() -> None:
    # softmax of (log 3, 0) is (3/4, 1/4).
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    scores = np.array([[math.log(3), 0.0, -math.inf]], np.float32)
    assert peakedness(scores) == pytest.approx([1 - entropy / math.log(2)])


@pytest.mark.parametrize(
    ("scores", "expected"), [([5.0, 5.0, 5.0], 0.0), ([1e4, -1e4, -1e4], 1.0), ([3.0, -math.inf, -math.inf], 1.0)]
)
def test_peakedness_runs_from_flat_to_one_item(scores: list[float], expected: float) -> None:
    assert peakedness(np.array([scores], np.float32)) == pytest.approx([expected])


def test_peakedness_without_an_answer_is_not_measured() -> None:
    assert np.isnan(peakedness(np.full((1, 3), -np.inf, np.float32))).all()


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=6), st.floats(-50, 50, width=32))
def test_peakedness_is_blind_to_a_constant_added_to_the_scores(scores: list[float], constant: float) -> None:
    plain = np.array([scores], np.float32)
    assert peakedness(plain + np.float32(constant)) == pytest.approx(peakedness(plain), abs=1e-4)


@pytest.mark.parametrize(("rule", "expected"), [("unreliable", 0.0), ("reliable", 1.0), ("typical", 0.4)])
def test_the_unmeasured_count_as_the_rule_says(rule: str, expected: float) -> None:
    values = np.array([0.2, np.nan, 0.6])
    assert fill_unmeasured(values, rule) == pytest.approx([0.2, expected, 0.6])  # type: ignore[arg-type]


def test_typical_is_one_half_where_nothing_was_measured() -> None:
    assert fill_unmeasured(np.array([np.nan]), "typical").tolist() == [0.5]


def by_rank(items: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Each listed item's share: 3, 2, 1 for a list of three, over their sum."""
    points = (items > 0) * np.arange(items.shape[2], 0, -1)
    shares: npt.NDArray[np.float64] = points / np.maximum(points.sum(2, keepdims=True), 1)
    return shares


def test_consensus_is_the_mixture_of_the_answers() -> None:
    # In sixths, item 1 gets 3 + 1, item 2 gets 2 + 3, item 4 gets 2, and item 3 with 1 has no place among three.
    items = lists([1, 2, 3], [2, 4, 1])
    listed, mixed = consensus(items, by_rank(items), 9)
    assert listed.tolist() == [[2, 1, 4]]
    assert mixed[0] == pytest.approx([5 / 11, 4 / 11, 2 / 11])


def test_an_answer_that_is_sure_decides_more_of_the_consensus() -> None:
    items = lists([1, 2], [2, 1])
    shares = np.array([[[0.9, 0.1]], [[0.6, 0.4]]])
    listed, mixed = consensus(items, shares, 9)
    assert listed.tolist() == [[1, 2]]
    assert mixed[0] == pytest.approx([0.65, 0.35])


def test_consensus_with_a_majority_quorum_keeps_what_more_than_half_of_the_answers_list() -> None:
    items = lists([1, 2, 3], [2, 4, 1], [5, 6, 2])
    listed, mixed = consensus(items, by_rank(items), 9, quorum=0.5)
    assert listed.tolist() == [[2, 1, 0]]  # 2: 2 + 3 + 1, 1: 3 + 1; the others are in one list of three
    assert mixed[0] == pytest.approx([0.6, 0.4, 0])


def test_consensus_of_answers_that_share_nothing_is_the_answer_to_the_whole_history() -> None:
    """Else such users would learn nothing at all, however good that answer is."""
    items = lists([1, 2, 3], [5, 2, 4], [6, 7, 8])
    listed, mixed = consensus(items, by_rank(items), 9, quorum=0.7)
    assert listed.tolist() == [[6, 7, 8]]
    assert mixed[0] == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    items = lists([1, 2, 3], [4, 1, 2], [1, 5, 4], [2, 4, 6])  # nothing is in all, and 2 and 4 are in three
    listed, mixed = consensus(items, by_rank(items), 9, quorum=0.9)
    assert listed.tolist() == [[2, 4, 6]]
    assert mixed[0] == pytest.approx([3 / 6, 2 / 6, 1 / 6])


def test_consensus_breaks_ties_by_the_answer_to_the_whole_history() -> None:
    items = lists([1, 2], [2, 1])  # both get 2 + 1; the whole history's answer, the last, prefers 2
    assert consensus(items, by_rank(items), 9)[0].tolist() == [[2, 1]]


def test_consensus_of_one_answer_is_that_answer() -> None:
    items = lists([0, 0, 0], [7, 5, 0])
    listed, mixed = consensus(items, by_rank(items), 9, quorum=0.5)
    assert listed.tolist() == [[7, 5, 0]]
    assert mixed[0] == pytest.approx(by_rank(items)[1, 0])


def test_consensus_without_an_answer_is_empty() -> None:
    listed, mixed = consensus(np.zeros((2, 1, 3), np.int32), np.zeros((2, 1, 3)), 9)
    assert not listed.any()
    assert not mixed.any()


@given(st.lists(st.lists(st.permutations(range(1, 7)), min_size=2, max_size=2), min_size=1, max_size=5))
def test_consensus_of_a_user_does_not_depend_on_the_others(users: list[list[list[int]]]) -> None:
    items = np.array(users, np.int32).transpose(1, 0, 2)[:, :, :4]
    together = consensus(items, by_rank(items), 6)[0]
    apart = [consensus(items[:, [row]], by_rank(items[:, [row]]), 6)[0][0] for row in range(len(users))]
    assert together.tolist() == np.array(apart).tolist()


def test_prefixes_are_histories_as_they_were() -> None:
    teacher = Oracle(successors)
    found = look_back(setting([[1, 2, 3], [5], [], [4, 6], [7, 8]], teacher), 3, rows=np.arange(4), k=2)
    assert sorted(found.dropped[:, 0].tolist()) == [0, 1, 2]
    assert found.dropped[:, 1:].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert sorted(teacher.asked) == [[1], [1, 2], [4]]
    for turn, fewer in enumerate(found.dropped[:2, 0].tolist()):
        assert found.items[turn, 0].tolist() == successors([3 - fewer])
    assert found.items[0, 3].tolist() == [5, 6]  # 6 was taken later, and is part of the answer all the same
    assert not found.items[2].any()


def test_prefixes_are_cut_within_what_the_student_reads() -> None:
    rows = [list(range(1, 10))] * 50
    one = Setting(Sequences.from_lists(rows), np.arange(50), 9, Oracle(successors), max_len=3)
    found = look_back(one, 4, rows=np.arange(50), k=2)
    assert set(found.dropped[:2].flatten().tolist()) == {1, 2}
    assert not found.dropped[2:].any()


def test_looking_back_asks_the_same_again_and_as_far_as_the_budget_goes() -> None:
    """Answers that were paid for are in the ledger."""
    rows = [[n + 1, n + 2, n + 3] for n in range(6)]
    whole, short = Oracle(successors), Oracle(successors, budget=4)
    everything, some = (look_back(setting(rows, teacher), 1, rows=np.arange(6), k=2) for teacher in (whole, short))
    assert everything.dropped.tolist() == some.dropped.tolist()
    assert short.asked == whole.asked[:4]
    assert np.count_nonzero(some.items[0, :, 0]) == 4


def test_scores_of_prefixes_are_kept() -> None:
    found = look_back(setting([[1, 2]], Oracle(successors, scored=True)), 1, rows=np.arange(1), k=2)
    assert found.scores is not None
    assert found.scores.tolist() == [[[0.0, -1.0]]]
