"""What the configurations of all training loops have in common."""

from typing import Literal, Protocol

from selftrain._core.checks import check_choice, check_int
from selftrain.training.optim import OptimConfig

Normalize = Literal["sequence", "token"]


class RunSettings(Protocol):
    """The fields that every training configuration has."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        ...

    @property
    def batch_size(self) -> int:
        """Rows (or groups of them) per optimizer step, over all processes."""
        ...

    @property
    def optim(self) -> OptimConfig:
        """The optimizer's settings."""
        ...

    @property
    def seed(self) -> int:
        """Everything random in the run follows from it."""
        ...

    @property
    def log_every(self) -> int:
        """Steps between rows of metrics."""
        ...

    @property
    def save_every(self) -> int | None:
        """Steps between checkpoints."""
        ...

    @property
    def eval_every(self) -> int | None:
        """Steps between evaluations."""
        ...


class StepSettings(RunSettings, Protocol):
    """The fields of configurations whose loss is a sum over the tokens of rows."""

    @property
    def micro_batch_size(self) -> int | None:
        """Rows per forward pass on one process; None: all of them."""
        ...

    @property
    def normalize(self) -> Normalize:
        """Average over tokens within each sequence first, or over all tokens."""
        ...


def check_step_settings(config: StepSettings) -> None:
    """Raise unless the fields of :class:`StepSettings` lie in their ranges."""
    check_int("num_steps", config.num_steps, low=1)
    check_run_settings(config)
    check_choice("normalize", config.normalize, ("sequence", "token"))
    if config.micro_batch_size is not None:
        check_int("micro_batch_size", config.micro_batch_size, low=1)


def check_run_settings(config: RunSettings) -> None:
    """Raise unless the fields of :class:`RunSettings` but ``num_steps`` lie in their ranges."""
    check_int("batch_size", config.batch_size, low=1)
    check_int("seed", config.seed, low=0, high=2**63 - 1)
    check_int("log_every", config.log_every, low=1)
    for name in ("save_every", "eval_every"):
        value = getattr(config, name)
        if value is not None:
            check_int(name, value, low=1)
