"""The errors that a user can meet. Each says what was asked, what came back and what to do."""


class RecDistillError(Exception):
    """Base of every error that recdistill raises on purpose; the command line prints it in one line."""


class DataError(RecDistillError):
    """Interactions that cannot be read, or that cannot be split as asked."""


class SettingsError(RecDistillError):
    """A run file, an option or a setting that does not make sense."""


class TeacherError(RecDistillError):
    """A teacher that cannot answer, or whose answer makes no sense."""


class BudgetExhausted(TeacherError):
    """The query budget is spent; every answer bought so far is in the ledger."""


class TrainingError(RecDistillError):
    """Training that cannot go on: a loss that is not finite, a folder that cannot be written."""


class ArtefactError(RecDistillError):
    """A saved model or run that cannot be read back."""
