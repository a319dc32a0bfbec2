"""What a teacher says of the scored places of a batch, and the protocol of teachers.

Shape letters: N scored tokens, V vocabulary, H hidden size, K tokens known.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from selftrain.ops.linear_divergence import Head
from selftrain.training.batch import MicroBatch


@dataclass(frozen=True, slots=True)
class LogitTargets:
    """Logits over the whole vocabulary."""

    logits: Tensor
    """``[N, V]``"""


@dataclass(frozen=True, slots=True)
class HiddenTargets:
    """Final hidden states and the head that makes logits of them."""

    hidden: Tensor
    """``[N, H]``: exactly what the head receives."""
    head: Head
    """The head."""


@dataclass(frozen=True, slots=True)
class TopKTargets:
    """The likeliest tokens only, as servers give them."""

    token_ids: Tensor
    """``[N, K]``"""
    log_probs: Tensor
    """``[N, K]``: natural logarithms at temperature 1, over the whole vocabulary."""


Targets = LogitTargets | HiddenTargets | TopKTargets


class Teacher(Protocol):
    """What a student can learn from."""

    def targets(self, batch: MicroBatch) -> Targets:
        """Return what the teacher says of the N scored places, in the batch's order."""
        ...
