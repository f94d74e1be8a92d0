"""S4Rec's parts beside a distillation: the student also learns intents from the histories themselves.

Source of the parts: the paper of `S4Rec`, Eqs. 2-13. To add them to what a teacher says is this library's own idea.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recdistill.errors import SettingsError
from recdistill.methods.base import Method, Setting, TrainingBatch
from recdistill.methods.contrast import pool
from recdistill.methods.intents import IntentConfig, IntentParts
from recdistill.methods.labels import LabelLoss
from recdistill.models.base import Model
from recdistill.settings import Settings


class WithIntentsConfig(Settings):
    """Whether intents are learned beside what the teacher says."""

    intents: IntentConfig | None = None
    """S4Rec's parts, with the settings of ``s4rec`` but its ``label_loss``; an empty table takes all its defaults.

    The student must read histories. Left out, nothing of it is done.
    """


class WithIntents(Method):
    r"""A method to whose loss S4Rec's parts are added, where ``intents`` is set.

    .. math:: L = L_{method} + \alpha L_{Clust} + \beta_1 L_{SCL} + \beta_2 L_{CKD} + \lambda L_{Adv}

    The parts are called ``cluster``, ``contrast``, ``distillation`` and ``adversary``, as in `S4Rec`; Eq. 14 of its
    paper is this sum with the loss on labels alone as L_method.

    A step encodes two views of each history more (α and λ alone need none), in one pass. The whole histories are not
    encoded again: the parts read the states that the method reads. Models that see both sides are the exception, which
    read them once more where ``pooling`` is ``mean``; and K-means reads all of them once more before each epoch.
    """

    Config = WithIntentsConfig
    config: WithIntentsConfig
    intents: IntentParts | None

    def check_student(self, student: Model) -> None:
        """Refuse a model that reads the user, too, where there are intents."""
        super().check_student(student)
        if self.config.intents is not None and student.reads == "user":
            raise SettingsError(
                f"method {self.name!r} is to learn intents from histories, and model {student.name!r} reads the user "
                "instead: leave method.intents out, or take a student such as 'sasrec'"
            )

    def prepare(self, setting: Setting) -> None:
        """Take note of the training data."""
        self.setting = setting
        super().prepare(setting)
        self.intents = None

    def fit_to(self, student: Model) -> None:
        """Tell head from tail users; make prototypes and classifier."""
        super().fit_to(student)
        if self.config.intents is not None:
            self.intents = IntentParts.for_student(
                student, self.config.intents, self.setting, reads_last=self.reads_last
            )

    def start_epoch(self, student: Model, epoch: int, generator: torch.Generator) -> None:
        """Find the intents anew, where K-means does."""
        super().start_epoch(student, epoch, generator)
        if self.intents is not None:
            self.intents.start_epoch(student, self.setting.train, generator, reads_last=self.reads_last)


def learn_logs(
    student: Model,
    batch: TrainingBatch,
    label_loss: LabelLoss | None,
    intents: IntentParts | None,
    earlier: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor, int]:
    """Learn from the users' own histories, labels and intents, and return the states that a teacher's loss reads.

    Args:
        student: as it is; in training mode where there are intents.
        batch: B histories.
        label_loss: where labels are learned.
        intents: where they are learned.
        earlier: ``(E,)`` places of the batch's items whose states are read as well, of a causal student.

    Returns:
        The part ``label`` and those of the intents; ``(B + E, D)`` the student's states after whole histories, or its
        vectors of users, and below them those at the places; over how many labels the loss is a mean, 0 without labels.
    """
    parts: dict[str, Tensor] = {}
    n_labels = 0
    pooled = intents is not None and intents.config.pools_states
    if not pooled and earlier is None:
        if label_loss is None:
            queries = student.encode(batch.batch)
        else:
            parts["label"], queries, n_labels = label_loss.with_queries(student, batch)
        read = vectors = queries
    else:
        if label_loss is None:
            states = student.encode_positions(batch.batch)
        else:
            parts["label"], states, n_labels = label_loss.with_states(student, batch)
        queries = states[batch.batch.last] if student.causal else student.encode(batch.batch)
        read = queries if earlier is None else torch.cat([queries, states[earlier]])
        vectors = pool(states, batch.batch, intents.config.pooling) if intents is not None else queries
    if intents is not None and intents.config.needs_vectors:
        parts |= intents.of_batch(student, batch, vectors)
    return parts, read, n_labels
