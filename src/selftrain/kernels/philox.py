"""The noise of :mod:`selftrain.ops.philox` inside of kernels: the same integers."""

import triton
import triton.language as tl


@triton.jit
def uniform(seed, stream, position, slot):
    """Return ``ops.philox.uniform`` in float64, to the bit; ``slot`` may be a block."""
    slot = tl.to_tensor(slot).to(tl.uint32)
    first, second, _, _ = tl.philox(seed, slot, position.to(tl.uint32), stream, 0)
    bits = (first.to(tl.uint64) << 20) | (second >> 12).to(tl.uint64)
    return bits.to(tl.float64) * 2.220446049250313e-16  # 2^-52


@triton.jit
def log1p(x):
    """Return log(1 + x), to a few units in the last place of float32."""
    # The rounding of 1 + x is undone by dividing by what was really added (Kahan).
    w = 1.0 + x
    return tl.where(w == 1.0, x, tl.log(w) * (x / tl.where(w == 1.0, 1.0, w - 1.0)))


@triton.jit
def gumbel(seed, stream, position, first, BLOCK: tl.constexpr):
    """Return ``ops.philox.gumbel`` of the tokens ``first .. first + BLOCK``, multiples of 4.

    The words are the same; the logarithms may differ from torch's in the last places.
    """
    group = first // 4 + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = tl.philox(seed, group.to(tl.uint32), position.to(tl.uint32), stream, 0)
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    u = (words.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2^-32
    u = tl.minimum(u, 0.99999994)  # the float before 1: a large word rounds to 2^32
    return -tl.log(-log1p(-u))
