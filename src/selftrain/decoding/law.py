"""The law that samplers draw from: warped logits, and draws from them with given noise."""

from typing import NamedTuple

import torch
from torch import Tensor

from selftrain.decoding.params import SamplingParams
from selftrain.ops.warp import inverse_cdf, most_likely, warp_logits


class Drawn(NamedTuple):
    """One sampled token a row, and its log-probability under the law sampled from."""

    tokens: Tensor
    log_probs: Tensor


def draw(logits: Tensor, noise: Tensor, params: SamplingParams) -> Drawn:
    """Draw one token a row from raw ``logits`` with uniforms ``noise`` under ``params``."""
    if params.greedy:
        best = logits.max(-1)
        return Drawn(logits.argmax(-1), best.values.float() * 0)
    if params.top_k is None or params.top_k >= logits.shape[-1]:
        probs = torch.softmax(warp(logits, params), dim=-1)
        place = tokens = inverse_cdf(probs, noise).unsqueeze(-1)
    else:  # the law of warp(), over the k tokens that it may leave, in order of their ids
        kept = most_likely(warp_logits(logits, temperature=params.temperature), params.top_k)
        left = warp_logits(kept.values, top_p=params.top_p, min_p=params.min_p)
        probs = torch.softmax(left, dim=-1)
        place = inverse_cdf(probs, noise).unsqueeze(-1)
        tokens = kept.ids.gather(-1, place)
    return Drawn(tokens.squeeze(-1), probs.gather(-1, place).squeeze(-1).log().float())


def warp(logits: Tensor, params: SamplingParams) -> Tensor:
    """Warp logits by ``params``; see :func:`selftrain.ops.warp_logits`."""
    return warp_logits(
        logits,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
    )


def check_finite(log_probs: Tensor) -> None:
    """Raise ``ValueError`` if a sampled token's log-probability is NaN: its logits were."""
    if log_probs.isnan().any():
        raise ValueError(
            "the model's logits are NaN or all -inf; check its weights and dtype "
            "(float16 overflows where bfloat16 does not)."
        )
