"""From logits to the law that is sampled from, and sampling from it with given uniforms."""

from typing import NamedTuple

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
    if top_k is not None and top_k < logits.shape[-1]:
        kept = most_likely(logits, top_k)
        values = _keep_mass(kept.values, top_p) if top_p < 1 else kept.values
        logits = torch.full_like(logits, -torch.inf).scatter_(-1, kept.ids, values)
    elif top_p < 1:
        logits = _keep_mass(logits, top_p)
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


class MostLikely(NamedTuple):
    """Some tokens of the vocabulary, in order of their ids."""

    values: Tensor
    """Their logits ``[*batch, k]``."""
    ids: Tensor
    """Which they are ``[*batch, k]``."""


def most_likely(logits: Float[Tensor, "*batch vocab"], k: int) -> MostLikely:
    """Return the ``k`` largest logits in order of their ids, equal ones from the lowest id up.

    That is what a stable sort of the vocabulary would keep, for a small part of its cost: a partial
    sort finds the threshold, and a second one the lowest ids among those that lie on it, which
    ``torch.topk`` alone would choose arbitrarily.

    Args:
        logits: Scores; -inf is allowed.
        k: How many to keep, from 1 to the size of the vocabulary.
    """
    check_int("k", k, low=1, high=logits.shape[-1])
    vocab = logits.shape[-1]
    top = logits.topk(k, dim=-1)
    threshold = top.values[..., -1:]
    num_above = (top.values != threshold).sum(-1, keepdim=True)  # NaN is above all
    # The lowest id has the largest rank; 0 marks what is not on the threshold.
    rank = torch.arange(vocab, 0, -1, dtype=torch.int32, device=logits.device)
    on_threshold = torch.where(logits == threshold, rank, 0).topk(k, dim=-1).values
    lowest = (vocab - on_threshold.long()).clamp(max=vocab - 1)
    place = torch.arange(k, device=logits.device)
    tied = lowest.gather(-1, (place - num_above).clamp(min=0))
    ids = torch.where(place < num_above, top.indices, tied).sort(dim=-1).values
    return MostLikely(logits.gather(-1, ids), ids)


def _keep_mass(logits: Tensor, top_p: float) -> Tensor:
    """Keep a prefix of the tokens in order of likelihood, whose mass reaches ``top_p``."""
    order = logits.sort(dim=-1, descending=True, stable=True)
    probs = torch.softmax(order.values, -1)
    keep = probs.cumsum(-1) - probs < top_p
    keep[..., 0] = True  # the first token always stays, whatever the rounding
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
