import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.data.dataset import Sequences
from recdistill.errors import TeacherError
from recdistill.models.base import Batch, Model, build_model
from recdistill.settings import Settings
from recdistill.teachers.fake import FakeTeacher
from recdistill.teachers.local import LocalTeacher


class Newest(Model):
    """Scores item j after item i by weight[i, j], read off by hand."""

    name = "newest"

    def __init__(self, n_items: int = 3) -> None:
        super().__init__(Settings(), n_items)
        self.weight = torch.nn.Parameter(torch.zeros(n_items + 1, n_items))
        self.register_buffer("items", torch.cat([torch.zeros(1, n_items), torch.eye(n_items)]))

    def encode(self, batch: Batch) -> Tensor:
        return self.weight[batch.items[batch.last]]

    def item_embeddings(self) -> Tensor:
        return self.get_buffer("items")


@pytest.fixture
def model() -> Newest:
    model = Newest()
    with torch.no_grad():
        model.weight[1] = torch.tensor([5.0, 1.0, 2.0])
        model.weight[2] = torch.tensor([3.0, 4.0, 3.0])
    return model


HISTORIES = Sequences.from_lists([[2, 1], [2]])


def test_it_ranks_by_score_without_the_history_and_pads(model: Newest) -> None:
    ranking = LocalTeacher(model).rank(HISTORIES, 3).check(3)
    assert ranking.items.tolist() == [[3, 0, 0], [1, 3, 0]]
    assert ranking.scores is not None
    assert ranking.scores.tolist() == [[2.0, -np.inf, -np.inf], [3.0, 3.0, -np.inf]]


def test_it_keeps_the_history_for_data_with_repeats(model: Newest) -> None:
    assert LocalTeacher(model, exclude_history=False).rank(HISTORIES, 2).items.tolist() == [[1, 3], [2, 1]]


def test_as_a_black_box_it_gives_no_scores(model: Newest) -> None:
    teacher = LocalTeacher(model, gives_scores=False)
    assert teacher.rank(HISTORIES, 2).scores is None
    with pytest.raises(TeacherError, match="gives lists only"):
        teacher.scores(HISTORIES, np.array([[1], [1]]))


def test_scores_are_those_of_the_candidates_in_their_order(model: Newest) -> None:
    scores = LocalTeacher(model).scores(HISTORIES, np.array([[3, 1], [2, 3]]))
    assert scores.tolist() == [[2.0, 5.0], [4.0, 3.0]]


@pytest.mark.parametrize("outside", [0, 4])
def test_a_candidate_outside_the_items_is_refused(model: Newest, outside: int) -> None:
    with pytest.raises(TeacherError, match="outside 1…3"):
        LocalTeacher(model).scores(HISTORIES, np.array([[1], [outside]]))


def test_the_identity_is_the_same_for_the_same_weights(model: Newest) -> None:
    twin = Newest()
    twin.load_state_dict(model.state_dict())
    assert LocalTeacher(model).identity == LocalTeacher(twin).identity


def test_the_identity_changes_with_weights_name_and_what_is_told(model: Newest) -> None:
    teachers = [
        LocalTeacher(model),
        LocalTeacher(model, name="big"),
        LocalTeacher(model, gives_scores=False),
        LocalTeacher(model, exclude_history=False),
    ]
    with torch.no_grad():
        model.weight[1, 0] += 1
    teachers.append(LocalTeacher(model))
    assert len({teacher.identity for teacher in teachers}) == 5


def test_a_scorer_answers_again_and_again_for_some_of_the_histories(model: Newest) -> None:
    scorer = LocalTeacher(model).scorer(HISTORIES)
    assert scorer(np.array([1]), np.array([[3, 2]])).tolist() == [[3.0, 4.0]]
    assert scorer(np.array([1, 0, 1]), np.array([[1], [1], [2]])).tolist() == [[3.0], [5.0], [4.0]]


def test_few_and_many_candidates_are_scored_alike() -> None:
    """Few are gathered, many come out of one product of matrices, both in blocks."""
    torch.manual_seed(0)
    model = build_model("mf", 5000, {"dim": 64, "init_std": 1.0}, train=Sequences.from_lists([[1]] * 300))
    scorer = LocalTeacher(model).scorer(Sequences.from_lists([[1]] * 300), users=np.arange(300))
    rows = np.arange(300)[::-1]
    every = np.broadcast_to(np.arange(1, 5001), (300, 5000))
    with torch.no_grad():
        expected = model.get_parameter("user_embedding.weight") @ model.item_embeddings()[1:].T
    for all_items in (every, None):
        np.testing.assert_allclose(scorer(rows, all_items), expected.numpy()[rows], rtol=1e-3, atol=1e-3)
    few = np.random.default_rng(0).integers(1, 5001, (300, 250))
    np.testing.assert_allclose(scorer(rows, few), expected.numpy()[rows[:, None], few - 1], rtol=1e-3, atol=1e-3)


def test_vectors_multiply_to_scores(model: Newest) -> None:
    vectors = LocalTeacher(model).vectors(HISTORIES)
    scores = LocalTeacher(model).scores(HISTORIES, np.array([[1, 2, 3]] * 2))
    np.testing.assert_allclose(vectors.queries @ vectors.items[1:].T, scores)


def test_as_a_black_box_it_is_not_looked_into(model: Newest) -> None:
    teacher = LocalTeacher(model, gives_scores=False)
    assert not teacher.scores_items
    assert not teacher.gives_vectors
    for look in (teacher.scorer, teacher.vectors):
        with pytest.raises(TeacherError, match="gives lists only"):
            look(HISTORIES)


def test_a_teacher_of_lists_says_what_it_cannot_give() -> None:
    teacher = FakeTeacher(3, gives_scores=True)
    with pytest.raises(TeacherError, match="not the scores of chosen items; take a trained model"):
        teacher.scores(HISTORIES, np.array([[1], [1]]))
    with pytest.raises(TeacherError, match="does not give the vectors"):
        teacher.vectors(HISTORIES)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_model_that_has_diverged_is_no_teacher(model: Newest, broken: float) -> None:
    """Its student would be said to have diverged, and a rate that is not at fault be lowered."""
    with torch.no_grad():
        model.weight[3, 1] = broken
    with pytest.raises(
        TeacherError, match=r"'newest-\w+' cannot teach: 1 of 12 numbers in its weights 'weight' are NaN"
    ):
        LocalTeacher(model)


def test_its_checkpoints_are_its_earlier_stages_and_itself(model: Newest) -> None:
    earlier = Newest()
    teacher = LocalTeacher(model, earlier=[earlier], exclude_history=False)
    first, last = teacher.checkpoints
    assert last is teacher
    assert first.rank(HISTORIES, 1).items.tolist() == [[1], [1]]  # all scores are 0: the first item comes first
    assert not first.exclude_history
    assert list(LocalTeacher(model).checkpoints) == []


def overflowing(model: Newest, *, to: float) -> LocalTeacher:
    """Let item 2 be scored by a sum beyond 32 bits after item 1, of weights that are finite: NaN where signs differ."""
    with torch.no_grad():
        model.weight[1] = torch.tensor([3e38, 3e38 if to > 0 else -3e38, 0.0])
        model.get_buffer("items")[2] = torch.tensor([10.0, 10.0, 0.0])
    return LocalTeacher(model)


@pytest.mark.parametrize("to", [torch.inf, -1.0])
def test_scores_that_overflow_are_the_teachers_fault(model: Newest, to: float) -> None:
    """What trains the student cannot tell, and would advise on the student's learning rate."""
    teacher = overflowing(model, to=to)
    histories = Sequences.from_lists([[3], [1]])
    assert teacher.rank(histories.take(slice(0, 1)), 2).items.tolist() == [[1, 2]]
    with pytest.raises(TeacherError, match=rf"teacher '{teacher.identity}' cannot teach: .*(as inf|as NaN).* diverged"):
        teacher.rank(histories, 2)
    said = rf"teacher '{teacher.identity}' cannot teach: it scores item 2 for row 1 as (inf|nan), and 0 more"
    with pytest.raises(TeacherError, match=said):
        teacher.scorer(histories)(np.array([1, 0]), np.array([[1, 2], [1, 2]]))
    said = said.replace("row 1", "user 9")
    with pytest.raises(TeacherError, match=said):
        teacher.scores(histories, np.array([[1, 2], [1, 2]]), users=np.array([7, 9]))
