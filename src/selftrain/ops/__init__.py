"""Pure functions over tensors: divergences and masks."""

from selftrain.ops.divergence import (
    DIVERGENCES,
    DivergenceKind,
    JSDScale,
    divergence,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    total_variation,
)
from selftrain.ops.masking import PaddedTokens, completion_mask, masked_mean, pad_sequences

__all__ = [
    "DIVERGENCES",
    "DivergenceKind",
    "JSDScale",
    "PaddedTokens",
    "completion_mask",
    "divergence",
    "forward_kl",
    "generalized_jsd",
    "masked_mean",
    "pad_sequences",
    "reverse_kl",
    "total_variation",
]
