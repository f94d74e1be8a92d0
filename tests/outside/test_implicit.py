"""Models of the library implicit, as teachers through a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from scipy.sparse import csr_matrix

import recdistill as rd
from recdistill.data.dataset import Sequences

from .conftest import Piece


def matrix(histories: Sequences, n_items: int) -> csr_matrix:
    """Histories as implicit reads them: a row each, item i in column i - 1."""
    items, offsets = histories.flat()
    return csr_matrix((np.ones(len(items), np.float32), items - 1, offsets), (len(histories), n_items))


def listed(ids: Any, scores: Any) -> tuple[list[list[int]], list[list[float]]]:
    """Dense items and scores; where items run out, implicit fills up with those it was to leave out."""
    real = scores > np.finfo(np.float32).min
    rows = range(len(ids))
    return [(ids[row][real[row]] + 1).tolist() for row in rows], [scores[row][real[row]].tolist() for row in rows]


def test_als_reads_histories_that_it_was_not_trained_on(piece: Piece, tmp_path: Path) -> None:
    split, n_items = piece.split, piece.split.dataset.n_items
    model = AlternatingLeastSquares(factors=16, iterations=10, random_state=0, num_threads=1)
    model.fit(matrix(split.train, n_items), show_progress=False)

    def recommend(histories: list[list[int]], k: int) -> tuple[list[list[int]], list[list[float]]]:
        rows = matrix(Sequences.from_lists(histories), n_items)
        return listed(*model.recommend(np.arange(len(histories)), rows, N=k, recalculate_user=True))

    teacher = rd.CallableTeacher(recommend, identity="implicit-als", n_items=n_items, gives_scores=True)
    student = piece.distill(teacher, tmp_path, budget=len(split.train))
    histories = split.test.histories
    piece.check(student, teacher.rank(histories, 10).items, histories)


def test_bpr_knows_users_only(piece: Piece, tmp_path: Path) -> None:
    split, n_items = piece.split, piece.split.dataset.n_items
    bought = matrix(split.train, n_items)
    model = BayesianPersonalizedRanking(factors=16, iterations=100, learning_rate=0.05, random_state=0, num_threads=1)
    model.fit(bought, show_progress=False)

    def recommend(users: list[int], k: int) -> list[list[int]]:
        return listed(*model.recommend(users, bought[users], N=k))[0]

    teacher = rd.CallableTeacher(recommend, identity="implicit-bpr", n_items=n_items, takes="user")
    student = piece.distill(teacher, tmp_path, budget=len(split.train))
    lists = teacher.rank(split.train, 10, users=np.arange(len(split.train))).items
    piece.check(student, lists, split.train)
