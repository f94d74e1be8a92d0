"""Tensors as in the Open Inference Protocol, version 2: objects with a name, a shape, a datatype and data.

Each question is a list of tensors of one dimension. Those of several questions are stacked into one call, a row for
each question, and the tensors of its reply are cut into the rows that answer them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from recdistill.errors import TeacherError
from recdistill.settings import Settings

Tensor: TypeAlias = dict[str, Any]


class Stacking(Settings):
    """How rows of different lengths become one tensor."""

    padding: int | str = 0
    """What fills up rows that are too short, and ends the lists that come back; the id of no item."""
    side: Literal["left", "right"] = "left"
    """Where a history is filled up: before its oldest item, or after its newest."""


def stack(questions: Sequence[Sequence[Tensor]], how: Stacking) -> list[Tensor]:
    """Lay the tensors of some questions on top of each other, as many rows as there are questions.

    >>> stack([[{"name": "ids", "data": [7]}], [{"name": "ids", "data": [8, 9]}]], Stacking())
    [{'name': 'ids', 'data': [0, 7, 8, 9], 'shape': [2, 2]}]
    """
    return [_stacked(rows, how) for rows in zip(*questions, strict=True)]


def _stacked(rows: Sequence[Tensor], how: Stacking) -> Tensor:
    width = max(len(row["data"]) for row in rows)
    data: list[Any] = []
    for row in rows:
        filling = [how.padding] * (width - len(row["data"]))
        data += [*filling, *row["data"]] if how.side == "left" else [*row["data"], *filling]
    return {**rows[0], "data": data, "shape": [len(rows), width]}


def cut(tensors: Sequence[Any], n_questions: int) -> list[list[Tensor]]:
    """Return the tensors that answer each question.

    >>> cut([{"name": "items", "shape": [2, 2], "data": [5, 6, 7, 0]}], 2)
    [[{'name': 'items', 'data': [5, 6]}], [{'name': 'items', 'data': [7, 0]}]]

    Raises:
        TeacherError: for what is no tensor, or has not a row for each question.
    """
    rows = [_rows(tensor, n_questions) for tensor in tensors]
    return [list(answer) for answer in zip(*rows, strict=True)] if rows else [[] for _ in range(n_questions)]


def _rows(tensor: Any, n_questions: int) -> list[Tensor]:
    match tensor:
        case {"name": str(name), "shape": [_, *_] as shape, "data": list(data)} if _are_sizes(shape):
            flat = _flat(data, len(shape))
        case _:
            raise TeacherError("something that is no tensor, an object with name, shape and data")
    if shape[0] != n_questions or len(flat) != math.prod(shape):
        raise TeacherError(
            f"a tensor {name!r} of shape {shape} and {len(flat)} values to {n_questions} questions; there must be a "
            "row for each"
        )
    width = len(flat) // n_questions
    return [{"name": name, "data": flat[row * width : (row + 1) * width]} for row in range(n_questions)]


def _are_sizes(shape: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _flat(data: list[Any], n_dimensions: int) -> list[Any]:
    """Return the values row by row; they may come as lists in lists."""
    for _ in range(n_dimensions - 1):
        if all(isinstance(row, list) for row in data):
            data = [value for row in data for value in row]
    return data
