"""Sampling by inverse CDF with one uniform: first the block of the vocabulary, then the token."""

import triton
import triton.language as tl

from selftrain.kernels.rows import combine


@triton.jit
def choose(weight, u, SIZE: tl.constexpr):
    """Return where the running sum passes ``u`` times the total, and how far into that weight.

    An entry of weight 0 is never chosen unless all are. The sum is in float64, so that rare
    tokens keep their share.
    """
    weight = weight.to(tl.float64)
    index = tl.arange(0, SIZE)
    goal = u * tl.sum(weight, 0)
    passed = (tl.cumsum(weight, 0) > goal) & (weight > 0)
    # Sums in another order may differ in the last place, and leave the goal just out of reach.
    last = tl.max(tl.where(weight > 0, index, 0), 0)
    first = tl.minimum(tl.min(tl.where(passed, index, SIZE - 1), 0), last)
    before = tl.sum(tl.where(index < first, weight, 0.0), 0)
    own = tl.sum(tl.where(index == first, weight, 0.0), 0)
    into = (goal - before) / tl.where(own > 0, own, 1.0)
    return first, tl.minimum(tl.maximum(into, 0.0), 1.0)


@triton.jit
def block_masses(maxima, sums, row, num_blocks, inverse, BLOCKS: tl.constexpr):
    """Return the mass of each block of a row, and the row's maximum, to which it is relative."""
    block = tl.arange(0, BLOCKS)
    inside = block < num_blocks
    highest = tl.load(maxima + row * num_blocks + block, mask=inside, other=-float("inf"))
    mass = tl.load(sums + row * num_blocks + block, mask=inside, other=0.0)
    top, _ = combine(highest, mass, inverse, 0)
    finite = tl.where(top == -float("inf"), 0.0, top)
    return mass * tl.exp((highest - finite) * inverse), top


@triton.jit
def is_law(masses, top):
    """Return whether a row has finite logits, and neither NaN nor +inf."""
    total = tl.sum(masses, 0)
    return (total > 0) & (total < float("inf")) & (top < float("inf"))
