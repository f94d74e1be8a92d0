"""The settings of the training loop."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from recdistill import devices
from recdistill.settings import Settings


class TrainerSettings(Settings):
    """How long and how fast to learn."""

    epochs: PositiveInt = 100
    """Passes over the training users at most."""
    batch_size: PositiveInt = 256
    """Users per step, over all processes."""
    long_histories: Literal["newest", "windows"] = "newest"
    """What is learned from histories longer than the student's ``max_len``: their newest part, or all of it in windows.

    A teacher is asked about every window. Windows count as users in an epoch.
    """
    shorten: float = Field(default=0.0, ge=0, le=1)
    """Share of histories that are read from a random item on, another one each epoch, as if they had begun there.

    Models that read histories learn so not to need the oldest items; what is taught after a history stays the same.
    """
    learning_rate: PositiveFloat = 1e-3
    """Of Adam, at its highest."""
    weight_decay: float = Field(default=0.0, ge=0)
    """On matrices only."""
    decay: Literal["decoupled", "l2"] = "decoupled"
    """What ``weight_decay`` does: shorten all weights alike, as AdamW does; or join the gradient, as Adam's L2 does in
    papers on matrix factorisation, so that it holds back most what is rarely learned from. Losses here are means over a
    batch: where a paper sums over the rows of one, divide its value by their number.
    """
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from 0."""
    average: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running mean of the student's weights, say 0.999 a step, which is validated and kept in place of the
    weights themselves; 0 keeps these.
    """
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up: not at all, or to 0 at the last of ``epochs``."""
    clip_norm: float = Field(default=5.0, ge=0)
    """Longest gradient, in L2 norm; longer ones are shortened. 0 switches it off."""
    patience: PositiveInt = 10
    """Validations in a row without a new best before training stops."""
    validate_every: PositiveInt = 1
    """Epochs between validations."""
    keep_epochs: tuple[PositiveInt, ...] = ()
    """Epochs, from 1, after which the student is also kept as it is then, in ``epochs/`` of the run's folder.

    A method that follows the course of its teacher's training (``hetcomp``) learns from these.
    """
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the order of users and of every draw in model and method."""
    device: str = Field(default="cpu", pattern=devices.NAMES)
    """Where the student is trained, and where a model of one's own that teaches it scores: ``cpu``, ``cuda``,
    ``cuda:N``, or ``auto`` for a CUDA device if there is one. A run can be taken up again on another device, and says
    then what differs.

    Only CPUs have been tried so far; there alone a run that was stopped ends with the very same weights.
    """
    compile: bool = False
    """Let ``torch.compile`` fuse a transformer's blocks; needs a C++ compiler, and seconds to start."""

    @model_validator(mode="after")
    def _keep_what_comes(self) -> Self:
        if max(self.keep_epochs, default=0) > self.epochs:
            raise ValueError(f"keep_epochs names epoch {max(self.keep_epochs)}, but training ends after {self.epochs}")
        return self
