import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.data.dataset import Sequences
from recdistill.errors import TeacherError
from recdistill.models.base import Batch, Model
from recdistill.settings import Settings
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
