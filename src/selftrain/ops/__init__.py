"""Pure functions over tensors: divergences, values, masks, noise, warping, verification."""

from selftrain.ops.conservative import conservative_penalty
from selftrain.ops.divergence import (
    DIVERGENCES,
    DivergenceKind,
    JSDScale,
    amari_divergence,
    divergence,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
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
from selftrain.ops.linear_divergence import (
    Head,
    LinearDivergence,
    linear_cross_entropy,
    linear_divergence,
)
from selftrain.ops.masking import PaddedTokens, completion_mask, masked_mean, pad_sequences
from selftrain.ops.philox import Stream, gumbel, philox, uniform
from selftrain.ops.returns import NStepReturns, n_step_returns
from selftrain.ops.sampled_kl import KLEstimator, kl_estimate, policy_kl_loss
from selftrain.ops.scalar_transforms import Identity, MuZeroScale, ScalarTransform, Symlog
from selftrain.ops.topk_divergence import sampled_forward_kl, topk_divergence
from selftrain.ops.tree import (
    TreeVerdict,
    ancestor_mask,
    inner_nodes,
    node_depths,
    verify_tree,
    verify_tree_greedy,
)
from selftrain.ops.value_loss import categorical_cross_entropy
from selftrain.ops.value_transforms import (
    C51,
    Grid,
    HLGauss,
    OneHot,
    Support,
    TwoHot,
    ValueTransform,
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
    "C51",
    "DIVERGENCES",
    "DivergenceKind",
    "Grid",
    "HLGauss",
    "Head",
    "Identity",
    "JSDScale",
    "KLEstimator",
    "Lenience",
    "LenienceRule",
    "LenientVerdict",
    "LeviathanLenience",
    "LinearDivergence",
    "MixtureLenience",
    "MuZeroScale",
    "NStepReturns",
    "OneHot",
    "PaddedTokens",
    "ScalarTransform",
    "Stream",
    "Support",
    "Symlog",
    "TreeVerdict",
    "TwoHot",
    "TypicalAcceptance",
    "ValueTransform",
    "Verdict",
    "amari_divergence",
    "ancestor_mask",
    "categorical_cross_entropy",
    "completion_mask",
    "conservative_penalty",
    "divergence",
    "forward_kl",
    "generalized_jsd",
    "gumbel",
    "inner_nodes",
    "inverse_cdf",
    "kl_estimate",
    "linear_cross_entropy",
    "linear_divergence",
    "masked_mean",
    "n_step_returns",
    "node_depths",
    "output_law",
    "pad_sequences",
    "philox",
    "policy_kl_loss",
    "residual",
    "reverse_kl",
    "sample_tokens",
    "sampled_forward_kl",
    "skew_kl",
    "skew_reverse_kl",
    "topk_divergence",
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
