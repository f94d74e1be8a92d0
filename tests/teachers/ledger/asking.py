"""Histories, and a teacher that is asked for one at a time."""

from collections.abc import Iterator
from typing import Any

from recdistill.data.dataset import Sequences
from recdistill.teachers.answers import Answer, Failure, Outcome, Take
from recdistill.teachers.fake import FakeTeacher


def histories(n: int, first: int = 1) -> Sequences:
    return Sequences.from_lists([[item] for item in range(first, first + n)])


def one_by_one(n_items: int = 50, **settings: Any) -> FakeTeacher:
    return FakeTeacher(n_items, batch_size=1, **settings)


class Choosy(FakeTeacher):
    """Refuses some items, one request after the other, and says whether that was paid for."""

    def __init__(self, refused: set[int], *, paid: bool, final: bool = False) -> None:
        super().__init__(50)
        self.refused = refused
        self.paid = paid
        self.final = final
        self.failed_before: list[bool] = []

    def answers(self, take: Take, k: int) -> Iterator[list[Outcome]]:
        while requests := take(1):
            (item,) = requests[0].history
            self.asked.append([int(item)])
            self.failed_before.append(requests[0].failed_before)
            refused = Failure("refused", calls=3, paid=self.paid, final=self.final)
            yield [(requests[0], refused if item in self.refused else Answer([int(item) + 1]))]
