"""What a drafter is: anything that proposes tokens for the target to verify."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from selftrain.decoding.cache import SlotCache
from selftrain.decoding.params import SamplingParams


class Draft(NamedTuple):
    """Proposed tokens and the laws that they were drawn from."""

    tokens: Tensor
    """Ids ``[batch, drafted]``; -1 where a row proposes less than others, from there to its end."""
    logits: Tensor | None
    """Warped logits of those laws ``[batch, drafted, vocab]``. None: the tokens were not drawn but
    determined (greedy decoding, n-grams), so that each law has all its mass on its token."""

    @classmethod
    def stack(cls, picks: Sequence[tuple[Tensor, Tensor | None]]) -> "Draft":
        """Return the draft of what :class:`Pick` returned, slot by slot."""
        laws = [law for _, law in picks if law is not None]
        tokens = torch.stack([token for token, _ in picks], dim=1)
        return cls(tokens, torch.stack(laws, dim=1) if laws else None)


@dataclass(frozen=True, slots=True)
class Rows:
    """The batch at the beginning of a block."""

    tokens: Tensor
    """The rows so far ``[batch, capacity]``; what lies beyond a row's length is void."""
    lengths: Tensor
    """Their lengths ``[batch]``."""
    last: Tensor
    """The last index of each row that will ever be kept ``[batch]``; proposals beyond are void."""
    host_lengths: tuple[int, ...]
    """The lengths once more, known to the host."""

    @property
    def extent(self) -> int:
        """The largest length."""
        return max(self.host_lengths)


class Pick(Protocol):
    """Draws proposals: holds the warping, the noise and the logits processors of a block."""

    def __call__(self, logits: Tensor, slot: int) -> tuple[Tensor, Tensor | None]:
        """Return a token a row ``[batch]``, and the warped logits of its law, None if determined.

        Args:
            logits: Raw logits over the target's vocabulary ``[batch, vocab]``; -inf bars a token.
            slot: Which proposal of the block it is, from 0, in order.
        """
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """What a drafter learns when a call of ``generate`` begins."""

    prompts: Sequence[Sequence[int]]
    """The rows' prompts."""
    capacity: int
    """Most tokens that a row can hold."""
    params: SamplingParams
    """How the target is sampled."""
    target: SlotCache
    """The target and its cache, which holds every prompt but for its last token."""
    vocab_size: int
    """The target's number of logits."""


class DraftSession(Protocol):
    """A drafter at work on one batch."""

    def propose(self, rows: Rows, num_tokens: int, pick: Pick) -> Draft:
        """Propose up to ``num_tokens`` tokens for every row; 0 of them is not asked for."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep the rows with these indices: the others have finished."""
        ...


class Drafter(Protocol):
    """Proposes tokens. Any law will do: it decides the speed, never the output."""

    @property
    def models(self) -> tuple[nn.Module, ...]:
        """The modules at work, to be put in evaluation mode; may be empty."""
        ...

    def check(self, target: PreTrainedModel) -> None:
        """Raise ``TypeError`` or ``ValueError`` if this drafter cannot serve ``target``."""
        ...

    def start(self, setting: Setting) -> DraftSession:
        """Begin one call of ``generate``."""
        ...
