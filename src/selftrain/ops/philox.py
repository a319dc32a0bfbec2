"""Counter-based noise: the one random source of samplers, drafts and verifiers.

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a key
and a counter to four 32-bit words, so every draw has an address instead of a place in a sequence.
A row's noise then depends on that row's seed alone: not on the batch it sits in, not on how many
draws came before it.
"""

from enum import IntEnum

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from selftrain._core.checks import check_int

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CPU_BLOCK = 2**14  # counters at once: the words of so many stay in the cache


class Stream(IntEnum):
    """What a draw is for. Two purposes never share noise: sharing biases speculative sampling."""

    EMIT = 0
    """The token that a plain sampler, or the target after a rejection, emits."""
    ACCEPT = 1
    """The accept test of one drafted token."""
    DRAFT = 2
    """The draft model's own sampling."""
    COUPLED = 3
    """Noise over the vocabulary that plain sampling, draft and verifier share: :func:`gumbel`."""


def philox(
    seeds: Int64[Tensor, "*#shape"], counters: tuple[Int64[Tensor, "*#shape"] | int, ...]
) -> Int64[Tensor, "*shape 4"]:
    """Return the four 32-bit words of Philox-4x32-10, as int64 in [0, 2^32).

    Args:
        seeds: The key: low and high 32 bits of each seed.
        counters: Four counter words below 2^32 each; tensors broadcast against ``seeds``.
    """
    return torch.stack(_rounds(seeds, counters), dim=-1)


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


def gumbel(
    seeds: Int64[Tensor, "*#shape"],
    *,
    position: Int64[Tensor, "*#shape"] | int,
    vocab_size: int,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*shape vocab"]:
    r"""Return Gumbel noise for every token, addressed by (seed, position, token).

    With it, :math:`\arg\max_v \log p(v) + G(v)` is a sample of p, and samples of similar laws
    drawn with the same noise are mostly equal: see :func:`selftrain.ops.verify_coupled`. Unlike
    the other noise, it belongs to a position and not to a block, so it may be kept for as long as
    the position is undecided; many positions at once cost less than one at a time.

    Args:
        seeds: One seed a row, in [0, 2^63).
        position: Index in its sequence of the token that the noise decides.
        vocab_size: Number of tokens; the noise of a token does not depend on it.
        dtype: float32 or float64. The words behind both are the same.
    """
    check_int("vocab_size", vocab_size, low=1)
    position = torch.as_tensor(position, dtype=torch.int64, device=seeds.device)
    shape = torch.broadcast_shapes(seeds.shape, position.shape)
    groups = torch.arange(-(-vocab_size // 4), device=seeds.device)
    noise = torch.empty(*shape, len(groups), 4, dtype=dtype, device=seeds.device)
    # -log(-log(u)) would put the winning tail at u -> 1, where floats are 2^-24 apart: rare tokens
    # would never win. At u -> 0 the steps are those of the words, down to 2^-33. The step below 1
    # keeps the other tail finite.
    step = 2.0**-24 if dtype == torch.float32 else 2.0**-53
    width = max(1, _CPU_BLOCK // max(1, shape.numel()))
    if seeds.device.type != "cpu":
        width = max(1, len(groups))
    for part, group in zip(noise.split(width, dim=-2), groups.split(width), strict=True):
        counters = (group, position.unsqueeze(-1), int(Stream.COUPLED), 0)
        for index, word in enumerate(_rounds(seeds.unsqueeze(-1), counters)):
            part[..., index] = word
        part.add_(0.5).mul_(-(2.0**-32)).clamp_(min=step - 1).log1p_().neg_().log_().neg_()
    return noise.flatten(-2)[..., :vocab_size]


def _rounds(seeds: Tensor, counters: tuple[Tensor | int, ...]) -> tuple[Tensor, ...]:
    """Return the four words, all of the common shape."""
    c0, c1, c2, c3 = torch.broadcast_tensors(
        seeds, *(torch.as_tensor(c, dtype=torch.int64, device=seeds.device) for c in counters)
    )[1:]
    high = seeds >> 32
    for index in range(_ROUNDS):
        k0, k1 = seeds + index * _WEYL[0], high + index * _WEYL[1]
        # int64 products wrap modulo 2^64, which keeps all 64 bits of the unsigned product; the
        # shift drags the sign along. Keys and the words that only xor reads next may hold anything
        # above their 32 bits: one mask takes it all off.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (product1 >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (product0 >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = product1, product0
    return c0, c1 & _MASK, c2, c3 & _MASK
