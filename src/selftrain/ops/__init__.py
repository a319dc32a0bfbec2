"""Pure functions over tensors: divergences, masks, noise, warping, verification."""

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
from selftrain.ops.lenience import (
    Lenience,
    LenienceRule,
    LenientVerdict,
    LeviathanLenience,
    MixtureLenience,
    TypicalAcceptance,
    output_law,
    verify_lenient,
)
from selftrain.ops.masking import PaddedTokens, completion_mask, masked_mean, pad_sequences
from selftrain.ops.philox import Stream, gumbel, philox, uniform
from selftrain.ops.tree import (
    TreeVerdict,
    ancestor_mask,
    inner_nodes,
    node_depths,
    verify_tree,
    verify_tree_greedy,
)
from selftrain.ops.verification import sample_tokens, verify_draft
from selftrain.ops.verify import (
    Verdict,
    residual,
    verify_block,
    verify_coupled,
    verify_greedy,
    verify_tokens,
)
from selftrain.ops.warp import inverse_cdf, warp_logits

__all__ = [
    "DIVERGENCES",
    "DivergenceKind",
    "JSDScale",
    "Lenience",
    "LenienceRule",
    "LenientVerdict",
    "LeviathanLenience",
    "MixtureLenience",
    "PaddedTokens",
    "Stream",
    "TreeVerdict",
    "TypicalAcceptance",
    "Verdict",
    "ancestor_mask",
    "completion_mask",
    "divergence",
    "forward_kl",
    "generalized_jsd",
    "gumbel",
    "inner_nodes",
    "inverse_cdf",
    "masked_mean",
    "node_depths",
    "output_law",
    "pad_sequences",
    "philox",
    "residual",
    "reverse_kl",
    "sample_tokens",
    "total_variation",
    "uniform",
    "verify_block",
    "verify_coupled",
    "verify_draft",
    "verify_greedy",
    "verify_lenient",
    "verify_tokens",
    "verify_tree",
    "verify_tree_greedy",
    "warp_logits",
]
