"""Padding of token lists, and masks of the positions that count.

Shape letters: B batch, T time.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selftrain._core.checks import check_choice


@dataclass(frozen=True, slots=True)
class PaddedTokens:
    """Token lists of different lengths as one rectangle."""

    token_ids: Int[Tensor, "batch time"]
    """The ids, ``pad_id`` where there is no token."""
    mask: Bool[Tensor, "batch time"]
    """True at tokens, False at padding."""


def pad_sequences(
    sequences: Sequence[Sequence[int]],
    *,
    side: Literal["left", "right"] = "right",
    pad_id: int = 0,
) -> PaddedTokens:
    """Pad token lists to the longest of them (right for training, left for generation).

    Padding is told by the mask, never by an id, so ``pad_id`` may be a token that also occurs in
    the text.

    Args:
        sequences: Token ids; lists may be empty, and there may be none of them.
        side: Where the padding goes.
        pad_id: What fills the padding.

    Returns:
        Ids and mask of shape ``[len(sequences), longest]``, on the CPU.

    Example:
        >>> pad_sequences([[5, 6], [7]], side="left").token_ids.tolist()
        [[5, 6], [0, 7]]
    """
    check_choice("side", side, ("left", "right"))
    longest = max(map(len, sequences), default=0)
    token_ids_BT = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask_BT = torch.zeros((len(sequences), longest), dtype=torch.bool)
    for row, tokens in enumerate(sequences):
        start = longest - len(tokens) if side == "left" else 0
        token_ids_BT[row, start : start + len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask_BT[row, start : start + len(tokens)] = True
    return PaddedTokens(token_ids_BT, mask_BT)


def completion_mask(
    token_ids: Int[Tensor, "batch time"],
    attention_mask: Bool[Tensor, "batch time"],
    *,
    prompt_lengths: Int[Tensor, " batch"],
    eos_token_ids: Collection[int] = (),
) -> Bool[Tensor, "batch time"]:
    """Return True on the completion's tokens up to and including its first end-of-sequence token.

    Never True on the prompt (which may contain such tokens), on padding (on either side) or after
    the first end of sequence.

    Args:
        token_ids: Prompt followed by completion in every row, padded on either side.
        attention_mask: True at tokens, False at padding.
        prompt_lengths: How many of a row's tokens are prompt.
        eos_token_ids: The ids that end a completion; none of them: everything counts.
    """
    position_BT = attention_mask.long().cumsum(1) - 1
    completion_BT = attention_mask & (position_BT >= prompt_lengths[:, None])
    ends_BT = torch.zeros_like(completion_BT)
    for token_id in eos_token_ids:
        ends_BT |= completion_BT & (token_ids == token_id)
    ends_before_BT = ends_BT.long().cumsum(1) - ends_BT.long()
    return completion_BT & (ends_before_BT == 0)


def masked_mean(values: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Return the mean of the values where the mask is True; 0 (with zero gradient) if nowhere.

    Masked values have no effect whatever they hold, NaN included.
    """
    total = values.masked_fill(~mask, 0.0).sum()
    return total / mask.sum().clamp(min=1)
