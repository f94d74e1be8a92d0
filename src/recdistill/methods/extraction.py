"""Data-free extraction: the teacher is asked about histories that it writes itself, and only order is learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from recdistill.arrays import Ints, Items
from recdistill.data.dataset import Sequences
from recdistill.errors import SettingsError, TeacherError
from recdistill.losses.ranking import ranking_consistency
from recdistill.methods.base import Method, Setting, TrainingBatch
from recdistill.methods.lists import draw_unlisted, list_logits
from recdistill.methods.probing import probe
from recdistill.models.base import Batch, Model
from recdistill.settings import Settings
from recdistill.teachers.base import Teacher


class ExtractionConfig(Settings):
    """What the teacher is asked, and how its lists are learned."""

    queries: Literal["random_walks", "histories"] = "random_walks"
    """Random walks along the teacher's own lists, or the users' histories, one query each."""
    n_queries: PositiveInt = 60_000
    """How many the walks may take at most: one for each step. Fewer than ``walk_len`` make one shorter walk."""
    walk_len: PositiveInt = 50
    """Items of a walk; the teacher is asked after each of them."""
    top_k: PositiveInt = 100
    """Length of the lists asked for; the next item of a walk is any of them, all with the same chance."""
    margin: NonNegativeFloat = 0.5
    """By which a logit is to exceed that of the next item in the list, and that of a random item."""

    def unread(self) -> dict[str, str]:
        """The users' histories are no walks."""
        walks = self.queries == "random_walks"
        return {} if walks else dict.fromkeys(("n_queries", "walk_len"), "queries = 'random_walks'")


class Extraction(Method, name="extraction"):
    r"""Let the teacher write histories, and learn the order of each of its lists with a margin.

    .. math:: L = \frac1Q \sum_q \frac{1}{K-1} \sum_{k=1}^{K-1} [\delta - f_{\pi_k} + f_{\pi_{k+1}}]_+
              + \frac1K \sum_{k=1}^{K} [\delta - f_{\pi_k} + f_{j_k}]_+

    The first item of a walk is any of the catalogue; each next one is drawn from the list that the teacher gives. The
    student learns the list after every item of a walk, all walks once an epoch, however many users there are. One that
    sees both sides reads a walk up to one item at a time: items are drawn anew each epoch, as many as there are
    histories (or walks, where these are more), so that it reads as much as the student of another method.
    No user's data are looked at, but for the validation that chooses the epoch.

    Source: Yue et al., "Black-Box Attacks on Sequential Recommenders via Data-Free Model Extraction", RecSys 2021,
    section 4. Differs: a list's items are never drawn as its random items, and places without a counterpart are left
    out of the mean.
    """

    Config = ExtractionConfig
    config: ExtractionConfig
    needs = frozenset({"rankings"})
    parts_of_histories = True

    @property
    def follows_answers(self) -> bool:
        """Walks go along them."""
        return self.config.queries == "random_walks"

    def check_teacher(self, teacher: Teacher | None) -> Teacher:
        """Refuse one that is told users, too, where there are walks."""
        teacher = super().check_teacher(teacher)
        if self.config.queries == "random_walks" and teacher.needs_users:
            raise SettingsError(
                f"teacher {teacher.identity!r} answers for users, and a made-up history has none: "
                "set queries to 'histories'"
            )
        return teacher

    def check_student(self, student: Model) -> None:
        """Refuse one that cannot read whole walks, too."""
        super().check_student(student)
        longest, read = self.config.walk_len, student.max_len
        if self.config.queries == "random_walks" and read is not None and longest > read:
            raise SettingsError(
                f"walks of {longest} items are longer than the {read} that the student reads: set walk_len to {read}, "
                f"or max_len to {longest}"
            )

    def prepare(self, setting: Setting) -> None:
        """Let the teacher write the walks, or ask it about every training history.

        Raises:
            SettingsError: when the teacher does not give what is needed.
            TeacherError: when nothing is answered.
        """
        config, teacher = self.config, self.check_teacher(setting.teacher)
        self.walks = None
        if config.queries == "histories":
            answers = probe(setting, k=config.top_k).full
            self.listed, self.taught = torch.from_numpy(answers.items), answers.rows_answered
            return
        read = setting.train.lengths > 0
        self.n_rows, self.place = int(read.sum()), np.cumsum(read) - 1
        walk_len = min(config.walk_len, config.n_queries)
        self.walks, lists = random_walks(
            teacher,
            setting.n_items,
            n_walks=config.n_queries // walk_len,
            walk_len=walk_len,
            k=min(config.top_k, setting.n_items),
            seed=setting.seed,
            progress=setting.progress,
        )
        self.listed = torch.from_numpy(lists)

    def loss(self, student: Model, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the one part ``order``."""
        if self.walks is None:
            states, listed = student.encode(batch.batch), self.listed[batch.rows.to(self.listed.device)]
        elif len(dealt := self._dealt_to(batch.rows.cpu().numpy(), causal=student.causal)):
            states, listed = self._along(self.walks.take(dealt), student, batch)
        else:
            return {"order": student.item_embeddings().sum() * 0}
        return {"order": self._order(states, listed.long(), student, batch.generator)}

    def _along(self, walks: Sequences, student: Model, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        """Return states ``(Q, D)`` of the student along walks, and the teacher's lists ``(Q, K)`` there."""
        device = batch.rows.device
        if student.causal:
            at, _ = Sequences(np.arange(len(self.listed), dtype=np.int32), walks.starts, walks.ends).flat()
            return student.encode_positions(Batch.from_sequences(walks).to(device)), self.listed[at]
        draws = torch.rand(len(walks), generator=batch.generator).double().numpy()
        starts = Sequences(walks.items, walks.starts, walks.starts + 1 + (draws * walks.lengths).astype(np.int64))
        return student.encode(Batch.from_sequences(starts).to(device)), self.listed[starts.ends - 1]

    def _dealt_to(self, rows: Ints, *, causal: bool) -> Ints:
        """Deal the walks out to the rows of the training data; to each row one or more, where walks are read in parts.

        A causal student learns all of a walk at once, and sees each once an epoch.
        """
        n_walks = 0 if self.walks is None else len(self.walks)
        n_shares = n_walks if causal else max(n_walks, self.n_rows)
        places = self.place[rows]  # among the rows that are read
        first, end = places * n_shares // self.n_rows, (places + 1) * n_shares // self.n_rows
        shares = np.concatenate([np.arange(*ends) for ends in zip(first, end, strict=True)])
        dealt: Ints = shares.astype(np.int64) * n_walks // n_shares
        return dealt

    def _order(self, states: Tensor, listed: Tensor, student: Model, generator: torch.Generator) -> Tensor:
        embeddings = student.item_embeddings()
        others, unlisted = draw_unlisted(listed, listed.shape[1], student.n_items, generator)
        points = (listed > 0) * torch.arange(listed.shape[1], 0, -1)
        listed, others, unlisted, points = (x.to(states.device) for x in (listed, others, unlisted, points))
        return ranking_consistency(
            list_logits(states, embeddings, listed),
            points,
            list_logits(states, embeddings, others),
            unlisted,
            margin=self.config.margin,
        ).mean()


def random_walks(
    teacher: Teacher,
    n_items: int,
    *,
    n_walks: int,
    walk_len: int,
    k: int,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> tuple[Sequences, Items]:
    """Let a teacher write histories: each next item is drawn evenly from the list that it gives for those before.

    Args:
        teacher: whom to ask, within its budget; a walk ends where it does not answer.
        n_items: N; the first items are drawn from 1…N without replacement, as long as there are some.
        n_walks: W, how many.
        walk_len: items of a walk, and queries that it takes.
        k: length of the lists.
        seed: of the draws. The same seed asks the same questions, so that a ledger answers them again.
        progress: told how many of the queries are done.

    Returns:
        The walks of which anything was answered, and ``(T, k)`` int32 the list after each of their T items, 0 for
        padding.

    Raises:
        TeacherError: when not one query is answered.
    """
    generator = np.random.default_rng(seed)
    firsts = [generator.permutation(n_items) + 1 for _ in range(-(-n_walks // n_items))]
    items = np.zeros((n_walks, walk_len), np.int32)
    items[:, 0] = np.concatenate(firsts)[:n_walks]
    lists = np.zeros((n_walks, walk_len, k), np.int32)
    alive = np.arange(n_walks)
    for step in range(walk_len):
        histories = Sequences.from_lists(items[alive, : step + 1])
        ranking, _ = teacher.rank_within_budget(histories, k)
        listed = ranking.check(n_items).items
        lists[alive, step, : listed.shape[1]] = listed
        draws = generator.random(n_walks)[alive]  # as many as there were walks, so that a short budget shifts none
        going = ranking.lengths > 0
        if step + 1 < walk_len:
            chosen = (draws * ranking.lengths).astype(np.int64)
            items[alive[going], step + 1] = listed[going, chosen[going]]
        alive = alive[going]
        progress("writing histories with the teacher", (step + 1) * n_walks, n_walks * walk_len)
    answered = lists[:, :, 0] > 0
    if not answered.any():
        raise TeacherError(
            f"teacher {teacher.identity!r} answered none of {n_walks:,} histories of one item, so there is nothing "
            "to distil; raise its budget, or look at what it answers."
        )
    lengths = answered.sum(1)
    offsets = np.concatenate([[0], np.cumsum(lengths[lengths > 0])])
    return Sequences.from_offsets(items[answered], offsets), lists[answered]
