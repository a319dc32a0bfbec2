"""The exceptions that are ours; everything else is a plain ``ValueError`` or ``TypeError``."""


class SelftrainError(Exception):
    """Base of the errors below, for callers who want to catch them all."""


class MissingExtraError(SelftrainError, ImportError):
    """An optional dependency is not installed; the message names the command that installs it."""


class RunConflictError(SelftrainError, ValueError):
    """A run folder holds a run with another configuration; the message lists the differences."""


class GradingError(SelftrainError, ValueError):
    """A grader cannot do its work; what it would have judged is neither right nor wrong."""


class SandboxError(SelftrainError, RuntimeError):
    """Programs cannot be run as safely as was asked for, or too often could not be run at all."""


class EngineError(SelftrainError, RuntimeError):
    """A chess engine is missing, died, took too long or answered what cannot be understood."""
