"""What methods share that learn from a teacher's vectors: experts that map the student's onto them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from recdistill.errors import TeacherError
from recdistill.methods.base import Setting, TrainingBatch
from recdistill.methods.scored import Distillation, DistillationConfig, asked_users, known
from recdistill.models.base import Model
from recdistill.teachers.answers import Vectors


class VectorConfig(DistillationConfig):
    """What methods share that learn from a teacher's vectors."""

    n_experts: PositiveInt = 30
    """Networks that map the student's vectors onto the teacher's, for users and for items each (E)."""
    n_items: PositiveInt = 1024
    """Items learned in a step: half of them, or fewer, from the users' histories, the rest from the whole catalogue."""
    anneal_epochs: PositiveInt = 100
    """Epochs over which the choice between experts becomes a hard one."""
    last_temperature: float = Field(default=1e-3, gt=0, le=1)
    """Temperature of that choice after them; it starts at 1 and falls by the same factor each epoch.

    The papers go down to 1e-10, where the choice is no harder and gradients overflow.
    """


class VectorDistillation(Distillation):
    """A distillation from vectors of users (or histories) and items."""

    Config = VectorConfig
    config: VectorConfig
    needs = frozenset({"vectors"})

    def prepare(self, setting: Setting) -> None:
        """Ask the teacher for its vectors.

        Raises:
            SettingsError: when it does not give them.
            TeacherError: for vectors that are not finite, or so long that no distance from them is.
        """
        super().prepare(setting)
        rows = known(setting)
        vectors = self.teacher.vectors(setting.train.take(rows), users=asked_users(setting, rows))
        check_vectors(vectors, self.teacher.identity)
        self.known = torch.zeros(len(setting.train), dtype=torch.bool)
        self.known[torch.from_numpy(rows)] = True
        self.teacher_queries = torch.zeros(len(setting.train), vectors.queries.shape[1])
        self.teacher_queries[self.known] = torch.from_numpy(vectors.queries)
        self.teacher_items = torch.from_numpy(vectors.items)
        self.temperature = 1.0

    def fit_to(self, student: Model) -> None:
        """Make the experts."""
        width, teacher_width = student.item_embeddings().shape[1], self.teacher_items.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.setting.seed)
            self.user_experts = Experts(width, teacher_width, self.config.n_experts)
            self.item_experts = Experts(width, teacher_width, self.config.n_experts)
        self.to(next(student.parameters()).device)

    def start_epoch(self, student: Model, epoch: int, generator: torch.Generator) -> None:
        """Make the choice between experts harder."""
        config = self.config
        self.temperature = math.pow(config.last_temperature, min(1.0, epoch / config.anneal_epochs))

    def draw_items(self, student: Model, batch: TrainingBatch) -> Tensor:
        """Return distinct items of the batch's histories and of the catalogue, ``(n,)``."""
        half = max(1, self.config.n_items // 2)
        taken = torch.unique(batch.batch.items.cpu())
        taken = taken[torch.randperm(len(taken), generator=batch.generator)[:half]]
        others = torch.randint(1, student.n_items + 1, (half,), generator=batch.generator)
        items: Tensor = torch.unique(torch.cat([taken, others]))
        return items.to(batch.batch.items.device)

    def pairs(self, student: Model, queries: Tensor, items: Tensor, batch: TrainingBatch) -> tuple[Vecs, Vecs]:
        """Return both vectors of those users of the batch whom the teacher knows, and those of ``items (n,)``."""
        rows = batch.rows.to(self.teacher_queries.device)
        some = self.known[rows]
        of_users = self.teacher_queries[rows[some]].to(queries.device)
        of_items = self.teacher_items[items.to(self.teacher_items.device)].to(queries.device)
        return (queries[some.to(queries.device)], of_users), (F.embedding(items, student.item_embeddings()), of_items)

    def expert_loss(self, users: Vecs, items: Vecs, generator: torch.Generator) -> Tensor:
        """Return what the experts miss, a mean over users, 0 without any, plus a mean over items."""
        of_users = self.user_experts(*users, temperature=self.temperature, generator=generator)
        of_items = self.item_experts(*items, temperature=self.temperature, generator=generator)
        of_known = squared_distance(of_users, users[1]).sum() / max(len(of_users), 1)
        missed: Tensor = of_known + squared_distance(of_items, items[1]).mean()
        return missed


Vecs = tuple[Tensor, Tensor]
"""The student's ``(n, D)`` and the teacher's ``(n, D')`` vectors of the same users or items."""


class Experts(nn.Module):
    """Small networks that map a student's vector onto the teacher's, and a choice between them that reads the latter.

    Source: Kang et al., "DE-RRD", CIKM 2020, section 3; one hidden layer, half as wide as both vectors together.
    """

    def __init__(self, width: int, teacher_width: int, n_experts: int) -> None:
        super().__init__()
        hidden = (width + teacher_width) // 2
        self.n_experts = n_experts
        self.inner = nn.Linear(width, n_experts * hidden)
        self.outer = nn.Linear(n_experts * hidden, teacher_width, bias=False)
        self.bias = nn.Linear(n_experts, teacher_width, bias=False)
        self.choice = nn.Linear(teacher_width, n_experts)
        with torch.no_grad():  # each expert begins as it would alone
            self.outer.weight.uniform_(-(hidden**-0.5), hidden**-0.5)
            self.bias.weight.uniform_(-(hidden**-0.5), hidden**-0.5)

    def forward(self, student: Tensor, teacher: Tensor, *, temperature: float, generator: torch.Generator) -> Tensor:
        """Return ``(n, D')`` the chosen experts' outputs for ``student (n, D)``, chosen by ``teacher (n, D')``."""
        gates = self.gates(teacher, temperature=temperature, generator=generator)
        hidden = F.relu(self.inner(student)).unflatten(1, (self.n_experts, -1))
        mixed: Tensor = self.outer((hidden * gates[:, :, None]).flatten(1)) + self.bias(gates)
        return mixed

    def gates(self, teacher: Tensor, *, temperature: float, generator: torch.Generator) -> Tensor:
        """Return ``(n, E)`` how much each expert counts: a softmax with Gumbel noise, hard at low temperatures."""
        logits = torch.log_softmax(self.choice(teacher), dim=1)
        noise = -torch.empty(logits.shape).exponential_(generator=generator).clamp_min(1e-30).log()
        return torch.softmax((logits + noise.to(logits.device)) / temperature, dim=1)

    def group(self, teacher: Tensor) -> Tensor:
        """Return ``(n,)`` int64 the likeliest expert for each of ``teacher (n, D')``."""
        likeliest: Tensor = self.choice(teacher).argmax(1)
        return likeliest


def check_vectors(vectors: Vectors, identity: str) -> None:
    """Refuse a teacher's vectors from which no distance can be learned.

    Raises:
        TeacherError: saying how many there are.
    """
    for what, found in (("histories or users", vectors.queries), ("items", vectors.items)):
        wrong = ~torch.from_numpy(found).square().sum(1).isfinite()
        if wrong.any():
            raise TeacherError(
                f"teacher {identity!r} cannot teach: of its {len(found):,} vectors of {what}, {int(wrong.sum()):,} are "
                "not finite, or so long that the square of their length is not. Its training has diverged: train it "
                "anew at a lower learning rate, or take an earlier state of it."
            )


def squared_distance(mapped: Tensor, teacher: Tensor) -> Tensor:
    r"""Return ``(n,)`` :math:`|t - \hat t|^2`, a sum over coordinates, of ``mapped`` and ``teacher (n, D')``."""
    return (teacher - mapped).square().sum(1)
