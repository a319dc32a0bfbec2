"""What a teacher says of the scored tokens of a batch, in the forms that the losses take.

Shape letters: N scored tokens, V vocabulary, K tokens kept.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from selftrain.training.batch import MicroBatch
from selftrain.training.targets import HiddenTargets, LogitTargets, check_float_matrix


@dataclass(frozen=True, slots=True)
class TopKTargets:
    """The teacher's most likely tokens. What they leave of the mass is the tail's."""

    token_ids: Tensor
    """``[N, K]``: distinct within a row."""
    log_probs: Tensor
    """``[N, K]``: natural logarithms at temperature 1, normalised over the whole vocabulary."""

    def __post_init__(self) -> None:
        check_float_matrix("log_probs", self.log_probs)
        if self.token_ids.is_floating_point() or self.token_ids.is_complex():
            raise TypeError(
                f"token_ids must be integers, got {self.token_ids.dtype}; the order is "
                "(token_ids, log_probs)."
            )
        if self.token_ids.shape != self.log_probs.shape:
            raise ValueError(
                f"token_ids has shape {list(self.token_ids.shape)} and log_probs "
                f"{list(self.log_probs.shape)}; each id needs one log-probability."
            )
        if not self.token_ids.shape[1]:
            raise ValueError("token_ids has no column: at least one token a position is needed.")


Targets = LogitTargets | HiddenTargets | TopKTargets
"""Any of the three forms."""


class Teacher(Protocol):
    """Anything that can be learnt from: a model, a server, a file."""

    def targets(self, batch: MicroBatch) -> Targets:
        """Return targets for the ``N`` scored tokens of the batch, in its order, on its device."""
        ...
