from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torch import Tensor

from recdistill.arrays import Floats
from recdistill.data.dataset import Sequences
from recdistill.data.splits import Cases
from recdistill.errors import DataError, SettingsError, TeacherError, TrainingError
from recdistill.evaluation.full_ranking import evaluate
from recdistill.evaluation.metrics import MISS
from recdistill.evaluation.results import Evaluation
from recdistill.models.base import Batch, Model
from recdistill.models.scoring import top_k
from recdistill.rankings import Ranking
from recdistill.settings import Settings
from recdistill.teachers.base import Teacher

Make = Callable[..., Model]
MakeCases = Callable[..., Cases]


def ranks(model: Model, cases: Cases) -> list[int]:
    found: list[int] = evaluate(model, cases, n_items=model.n_items).ranks.tolist()
    return found


def test_rank_counts_items_that_score_more(table_model: Make, make_cases: MakeCases) -> None:
    assert ranks(table_model([[5, 9, 7, 8]]), make_cases([[3]])) == [3]


def test_ties_count_against_the_target(table_model: Make, make_cases: MakeCases) -> None:
    """A model that scores everything alike knows nothing, and must not look good."""
    assert ranks(table_model([[1, 1, 1, 1]]), make_cases([[1]])) == [4]


def test_masked_items_are_not_counted_however_often_they_are_named(table_model: Make, make_cases: MakeCases) -> None:
    assert ranks(table_model([[5, 9, 7, 8]]), make_cases([[1]], [[2, 2, 4]])) == [2]


def test_a_masked_target_is_a_miss(table_model: Make, make_cases: MakeCases) -> None:
    assert ranks(table_model([[5, 9, 7, 8]]), make_cases([[2, 3]], [[2]])) == [MISS, 2]


def test_several_targets_stand_in_one_list(table_model: Make, make_cases: MakeCases) -> None:
    assert ranks(table_model([[5, 9, 7, 8]]), make_cases([[1, 2, 3]])) == [4, 1, 3]


def test_targets_that_tie_take_the_last_places_of_their_score(table_model: Make, make_cases: MakeCases) -> None:
    """Two targets alone at the top are a perfect list; item 4, which ties with them, comes first."""
    assert ranks(table_model([[7, 7, 0, 0]]), make_cases([[1, 2]])) == [1, 2]
    assert ranks(table_model([[7, 7, 0, 7]]), make_cases([[1, 2]])) == [2, 3]


def test_a_target_named_twice_counts_once(table_model: Make, make_cases: MakeCases) -> None:
    found = evaluate(table_model([[5, 9, 7, 8]]), make_cases([[3, 2, 3]]), n_items=4)
    assert (found.targets.tolist(), found.ranks.tolist()) == ([2, 3], [1, 3])


class Constant(Model):
    """The same scores for everyone, −∞ among them."""

    def encode(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch), 1)

    def item_embeddings(self) -> Tensor:
        return torch.tensor([[0.0], [1.0], [-torch.inf]])


def test_a_target_scored_minus_infinity_is_a_miss(make_cases: MakeCases) -> None:
    assert ranks(Constant(Settings(), 2), make_cases([[1, 2]])) == [1, MISS]


def test_nan_is_an_error_that_names_the_user(table_model: Make, make_cases: MakeCases) -> None:
    with pytest.raises(TrainingError, match="user 1 "):
        ranks(table_model([[1, 2], [np.nan, 2]]), make_cases([[1], [2]]))


def places_slowly(scores: Floats, targets: list[int], masked: set[int]) -> dict[int, int]:
    """Write the list out: best score first, on equal scores targets last; and read the targets' places."""
    items = [item for item in range(1, len(scores) + 1) if item not in masked]
    items.sort(key=lambda item: (-scores[item - 1], item in targets, item))
    return {item: place for place, item in enumerate(items, start=1) if item in targets}


def values_slowly(places: dict[int, int], n_targets: int, k: int) -> dict[str, float]:
    top = sorted(place for place in places.values() if place <= k)
    ideal = sum(1 / np.log2(1 + place) for place in range(1, min(k, n_targets) + 1))
    return {
        "hr": 1.0 if top else 0.0,
        "recall": len(top) / n_targets,
        "mrr": 1 / top[0] if top else 0.0,
        "ndcg": sum(1 / np.log2(1 + place) for place in top) / ideal,
    }


def draw(seed: int, n_items: int, levels: int, n_cases: int = 5) -> tuple[Floats, list[list[int]], list[list[int]]]:
    """Scores of few levels (ties), and for each case some targets and some masks, which may overlap."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=(n_cases, n_items)).astype(np.float64)
    most = rng.integers(1, min(n_items, 6) + 1)
    targets = [rng.choice(n_items, size=rng.integers(1, most + 1), replace=False) + 1 for _ in range(n_cases)]
    masked = [rng.integers(1, n_items + 1, size=rng.integers(0, n_items + 1)) for _ in range(n_cases)]
    return scores, [row.tolist() for row in targets], [row.tolist() for row in masked]


random_cases = given(seed=st.integers(0, 2**32), n_items=st.integers(1, 150), levels=st.sampled_from([1, 2, 10, 10**6]))
few = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@random_cases
@few
def test_every_value_agrees_with_a_list_written_out(
    table_model: Make, make_cases: MakeCases, seed: int, n_items: int, levels: int
) -> None:
    scores, targets, masked = draw(seed, n_items, levels)
    found = evaluate(table_model(scores), make_cases(targets, masked), n_items=n_items, ks=(1, 3, 10))
    for k in found.ks:
        for case in range(len(targets)):
            places = places_slowly(scores[case], targets[case], set(masked[case]))
            for metric, value in values_slowly(places, len(targets[case]), k).items():
                assert found.values(metric, k)[case] == pytest.approx(value), (metric, k)


@random_cases
@few
def test_a_stored_ranking_of_a_model_gives_what_the_model_gives(
    table_model: Make, make_cases: MakeCases, seed: int, n_items: int, levels: int
) -> None:
    """The whole list, masked items still in it: evaluation takes them out."""
    scores, targets, masked = draw(seed, n_items, levels)
    model, cases = table_model(scores), make_cases(targets, masked)
    ranking = top_k(model, cases.histories, n_items, None, users=cases.users)
    by_model = evaluate(model, cases, n_items=n_items, keep_lists=True)
    by_list = evaluate(ranking, cases, n_items=n_items)
    assert by_list.ranks.tolist() == by_model.ranks.tolist()
    assert by_model.lists is not None
    assert by_list.lists is not None
    depth = min(20, n_items)
    assert by_list.lists[:, :depth].tolist() == by_model.lists[:, :depth].tolist()


@pytest.mark.parametrize("k", [1, 5, 20])
def test_ndcg_agrees_with_scikit_learn(table_model: Make, make_cases: MakeCases, k: int) -> None:
    """A second library that knows nothing of ours; masked items are the lowest of its scores."""
    rng = np.random.default_rng(k)
    scores = rng.permuted(np.tile(np.arange(300.0), (40, 1)), axis=1)
    relevant = rng.random((40, 300)) < 0.02
    relevant[:, 0] = True
    masked = (rng.random((40, 300)) < 0.2) & ~relevant
    cases = make_cases(
        [(np.flatnonzero(row) + 1).tolist() for row in relevant], [(np.flatnonzero(row) + 1).tolist() for row in masked]
    )
    ours = evaluate(table_model(scores), cases, n_items=300, ks=(k,)).mean("ndcg", k)
    assert ours == pytest.approx(ndcg_score(relevant, np.where(masked, -1.0, scores), k=k))


def test_a_list_without_scores_gives_places(make_cases: MakeCases) -> None:
    ranking = Ranking(np.array([[4, 2, 3], [1, 3, 0]], np.int32))
    found = evaluate(ranking, make_cases([[3], [2]]), n_items=4, ks=(3,))
    assert found.ranks.tolist() == [3, MISS]


def test_masked_items_leave_a_list_and_the_rest_moves_up(make_cases: MakeCases) -> None:
    ranking = Ranking(np.array([[4, 2, 3]], np.int32))
    found = evaluate(ranking, make_cases([[3, 2]], [[4, 2]]), n_items=4, ks=(3,))
    assert found.ranks.tolist() == [MISS, 1]
    assert found.lists is not None
    assert found.lists.tolist() == [[3, 0, 0]]


def test_ties_in_a_scored_list_count_against_the_target(make_cases: MakeCases) -> None:
    ranking = Ranking(np.array([[4, 2, 3]], np.int32), np.array([[7, 7, 7]], np.float32))
    assert evaluate(ranking, make_cases([[4]]), n_items=4, ks=(3,)).ranks.tolist() == [3]


class Fixed(Teacher):
    """Gives one list to everyone and notes what it was asked."""

    identity = "fixed"

    def rank(self, histories: Sequences, k: int, *, users: npt.NDArray[np.integer] | None = None) -> Ranking:
        self.asked = (len(histories), k, users)
        return Ranking(np.tile(np.arange(1, k + 1, dtype=np.int32), (len(histories), 1)))


def test_a_teacher_is_asked_once_for_the_greatest_k(make_cases: MakeCases) -> None:
    teacher, cases = Fixed(), make_cases([[2], [6]])
    found = evaluate(teacher, cases, n_items=9, ks=(2, 5))
    assert found.ranks.tolist() == [2, MISS]
    assert teacher.asked == (2, 5, cases.users)


def test_lists_shorter_than_k_are_refused(make_cases: MakeCases) -> None:
    """NDCG@20 of a top 10 would read too low and look like a fact about the teacher."""
    with pytest.raises(TeacherError, match="3 items long, too short for k = 5"):
        evaluate(Ranking(np.array([[4, 2, 3]], np.int32)), make_cases([[4]]), n_items=9, ks=(5,))


def test_a_list_that_names_an_item_twice_is_refused(make_cases: MakeCases) -> None:
    with pytest.raises(TeacherError, match="twice"):
        evaluate(Ranking(np.array([[4, 4]], np.int32)), make_cases([[4]]), n_items=9, ks=(2,))


def test_rankings_of_other_cases_are_refused(make_cases: MakeCases) -> None:
    with pytest.raises(DataError, match="1 lists for 2 cases"):
        evaluate(Ranking(np.array([[4, 3]], np.int32)), make_cases([[4], [3]]), n_items=9, ks=(2,))


def test_a_model_of_another_catalogue_is_refused(table_model: Make, make_cases: MakeCases) -> None:
    with pytest.raises(DataError, match="knows 2 items and the cases 3"):
        evaluate(table_model([[1, 2]]), make_cases([[1]]), n_items=3)


@pytest.mark.parametrize("target", [0, 5])
def test_a_target_outside_the_catalogue_is_refused(table_model: Make, make_cases: MakeCases, target: int) -> None:
    with pytest.raises(DataError, match="1…4"):
        evaluate(table_model([[1, 2, 3, 4]]), make_cases([[target]]), n_items=4)


def test_a_case_without_target_is_refused(table_model: Make, make_cases: MakeCases) -> None:
    with pytest.raises(DataError, match="no target"):
        evaluate(table_model([[1, 2], [1, 2]]), make_cases([[1], []]), n_items=2)


def test_no_cases_are_refused(table_model: Make, make_cases: MakeCases) -> None:
    with pytest.raises(DataError, match="no cases"):
        evaluate(table_model([[1, 2]]), make_cases([]), n_items=2)


@pytest.mark.parametrize("ks", [(), (0, 5)])
def test_a_depth_below_1_is_refused(table_model: Make, make_cases: MakeCases, ks: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match="at least 1"):
        evaluate(table_model([[1, 2]]), make_cases([[1]]), n_items=2, ks=ks)


def test_a_depth_beyond_the_catalogue_takes_no_room_of_its_own(table_model: Make, make_cases: MakeCases) -> None:
    """Neither lists nor gains as long as was asked for; what is masked stays a miss."""
    cases = make_cases([[2], [1]], [[], [1]])
    found = evaluate(table_model([[5, 9, 7, 8]] * 2), cases, n_items=4, ks=(10**12,), keep_lists=True)
    assert found.lists is not None
    assert found.lists.tolist() == [[2, 4, 3, 1], [2, 4, 3, 0]]
    assert [found.mean(metric, 10**12) for metric in ("hr", "ndcg", "mrr", "recall")] == [1 / 2] * 4
    assert found.coverage(10**12) == 1


def test_what_lies_below_the_lists_is_not_known(make_cases: MakeCases, tmp_path: Path) -> None:
    """Else a teacher would seem worse than a model that ranks alike, whose every place is known."""
    found = evaluate(Ranking(np.array([[4, 2, 3]], np.int32)), make_cases([[3]]), n_items=9, ks=(2,))
    assert found.mean("hr", 3) == 1.0
    found.save(tmp_path / "found.npz")
    for evaluation in (found, found.of_users(np.ones(1, bool)), Evaluation.load(tmp_path / "found.npz")):
        with pytest.raises(DataError, match="ranks were read from lists of 3, top 4 was asked; evaluate with that k"):
            evaluation.mean("hr", 4)
    whole = evaluate(Ranking(np.array([[3, 2, 1]], np.int32)), make_cases([[3]]), n_items=3, ks=(2,))
    assert whole.mean("hr", 9) == 1.0, "there are no more items"
