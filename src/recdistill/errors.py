"""The errors that a user can meet. Each says what was asked, what came back and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from recdistill.rankings import Ranking


class RecDistillError(Exception):
    """Base of every error that recdistill raises on purpose; the command line prints it in one line."""


class DataError(RecDistillError):
    """Interactions that cannot be read, or that cannot be split as asked."""


class SettingsError(RecDistillError):
    """A run file, an option or a setting that does not make sense."""


class TeacherError(RecDistillError):
    """A teacher that cannot answer, or whose answer makes no sense."""


class BudgetExhausted(TeacherError):
    """The budget buys no more answers; every one bought so far is in the ledger."""

    def __init__(
        self, message: str, *, ranking: Ranking | None = None, answered: npt.NDArray[np.bool_] | None = None
    ) -> None:
        super().__init__(message)
        self.ranking = ranking
        """The lists that were asked for; a row that is not answered lists nothing."""
        self.answered = answered
        """``(B,)`` which rows are answered."""


class TrainingError(RecDistillError):
    """Training that cannot go on: a loss that is not finite, a folder that cannot be written."""


class ArtefactError(RecDistillError):
    """A saved model or run that cannot be read back."""
