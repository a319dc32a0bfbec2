"""Counter-based noise: the one random source of samplers, drafts and verifiers.

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a key
and a counter to four 32-bit words, so every draw has an address instead of a place in a sequence.
A row's noise then depends on that row's seed alone: not on the batch it sits in, not on how many
draws came before it.
"""

from enum import IntEnum

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Stream(IntEnum):
    """What a draw is for. Two purposes never share noise: sharing biases speculative sampling."""

    EMIT = 0
    """The token that a plain sampler, or the target after a rejection, emits."""
    ACCEPT = 1
    """The accept test of one drafted token."""
    DRAFT = 2
    """The draft model's own sampling."""


def philox(
    seeds: Int64[Tensor, "*#shape"], counters: tuple[Int64[Tensor, "*#shape"] | int, ...]
) -> Int64[Tensor, "*shape 4"]:
    """Return the four 32-bit words of Philox-4x32-10, as int64 in [0, 2^32).

    Args:
        seeds: The key: low and high 32 bits of each seed.
        counters: Four counter words below 2^32 each; tensors broadcast against ``seeds``.
    """
    k0, k1 = seeds & _MASK, (seeds >> 32) & _MASK
    words = torch.broadcast_tensors(
        k0, *(torch.as_tensor(c, dtype=torch.int64, device=seeds.device) for c in counters)
    )[1:]
    c0, c1, c2, c3 = words
    for round_index in range(_ROUNDS):
        if round_index:
            k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return torch.stack([c0, c1, c2, c3], dim=-1)


def uniform(
    seeds: Int64[Tensor, "*#shape"],
    *,
    stream: Int64[Tensor, "*#shape"] | int,
    position: Int64[Tensor, "*#shape"] | int,
    slot: Int64[Tensor, "*#shape"] | int = 0,
) -> Float64[Tensor, "*shape"]:
    """Return uniforms in [0, 1), multiples of 2^-52, addressed by (seed, stream, position, slot).

    Args:
        seeds: One seed a row, in [0, 2^63).
        stream: A :class:`Stream`.
        position: Index in its sequence of the first token that the draw may decide.
        slot: Which token after ``position``, within one block of speculative decoding.
    """
    words = philox(seeds, (slot, position, stream, 0))
    return ((words[..., 0] << 20) | (words[..., 1] >> 12)).to(torch.float64) * 2.0**-52


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """Return the high and low words of a 32 x 32 bit product, without overflowing int64."""
    upper, lower = (a >> 16) * constant, (a & 0xFFFF) * constant
    high = (upper + (lower >> 16)) >> 16
    low = (((upper & 0xFFFF) << 16) + lower) & _MASK
    return high, low
