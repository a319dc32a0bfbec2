"""From logits to the law that is sampled from, and sampling from it with given uniforms."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from selftrain._core.checks import check_int, check_range


def warp_logits(
    logits: Float[Tensor, "*batch vocab"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Float[Tensor, "*batch vocab"]:
    """Apply temperature, then top-k, top-p and min-p; tokens that are dropped become -inf.

    The order is that of transformers. Exactly ``top_k`` tokens stay; equal logits at a threshold
    are kept from the lowest id up, so that every path that warps breaks ties alike.
    ``temperature=0`` keeps the single most likely token.

    Args:
        logits: Raw scores. Computed in float32, or float64 if that is given.
        temperature: Divides the logits; at least 0.
        top_k: Number of most likely tokens to keep; None keeps all.
        top_p: Keep the smallest set of most likely tokens whose mass reaches this, in (0, 1].
        min_p: Drop tokens less likely than this times the most likely one, in [0, 1).

    Raises:
        ValueError: If a parameter is out of range.
    """
    check_warp(temperature, top_k, top_p, min_p)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter_(-1, best, 0.0)
    if temperature != 1:
        logits = logits / temperature
    if (top_k is not None and top_k < logits.shape[-1]) or top_p < 1:
        logits = _keep_most_likely(logits, top_k or logits.shape[-1], top_p)
    if min_p > 0:
        floor = logits.amax(-1, keepdim=True) + torch.log(torch.tensor(min_p, dtype=logits.dtype))
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return logits


def check_warp(temperature: float, top_k: int | None, top_p: float, min_p: float) -> None:
    """Raise unless the parameters are in the ranges that :func:`warp_logits` gives."""
    check_range("temperature", temperature, low=0.0)
    check_range("top_p", top_p, low=0.0, low_open=True, high=1.0)
    check_range("min_p", min_p, low=0.0, high=1.0, high_open=True)
    if top_k is not None:
        check_int("top_k", top_k, low=1)


def _keep_most_likely(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep a prefix of the tokens in order of likelihood: top-k, then top-p of what is left."""
    order = logits.sort(dim=-1, descending=True, stable=True)
    values = order.values
    keep = torch.arange(logits.shape[-1], device=logits.device) < top_k
    if top_p < 1:
        kept = values.masked_fill(~keep, -torch.inf)
        mass_before = torch.softmax(kept, -1).cumsum(-1) - torch.softmax(kept, -1)
        keep = keep & (mass_before < top_p)
        keep[..., 0] = True  # the first token always stays, whatever the rounding
    keep = keep.expand(values.shape)
    return logits.masked_fill(~torch.zeros_like(keep).scatter(-1, order.indices, keep), -torch.inf)


def inverse_cdf(
    weights: Float[Tensor, "*batch vocab"], uniforms: Float64[Tensor, "*batch"]
) -> Int64[Tensor, "*batch"]:
    """Return the token at which the running sum of ``weights`` passes ``uniforms`` times the total.

    The sum is taken in float64, so that rare tokens keep their share; a token of weight zero is
    never returned.

    Args:
        weights: Non-negative, not necessarily normalised, with a positive total.
        uniforms: Multiples of 2^-52 in [0, 1), as :func:`selftrain.ops.uniform` gives.
    """
    running = weights.cumsum(-1, dtype=torch.float64)
    # Strictly below the total, since a multiple of 2^-52 is at least one rounding step below 1.
    goal = uniforms.unsqueeze(-1) * running[..., -1:]
    # NaN weights find no place; they must not become an index out of range.
    return (
        torch.searchsorted(running, goal, right=True).squeeze(-1).clamp(max=weights.shape[-1] - 1)
    )
