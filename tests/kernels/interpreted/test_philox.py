"""The noise that kernels make is the reference's."""

import numpy as np
import torch
import triton
import triton.language as tl

from selftrain.kernels import philox
from selftrain.ops.philox import Stream, gumbel, uniform


@triton.jit
def uniform_kernel(seeds, positions, slots, out, stream, COUNT: tl.constexpr):
    row = tl.program_id(0)
    slot = tl.arange(0, COUNT)
    u = philox.uniform(
        tl.load(seeds + row), stream, tl.load(positions + row), tl.load(slots + slot)
    )
    tl.store(out + row * COUNT + slot, u)


@triton.jit
def gumbel_kernel(seeds, positions, out, stream, first, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    noise = philox.gumbel(tl.load(seeds + row), stream, tl.load(positions + row), first, BLOCK)
    tl.store(out + row * BLOCK + tl.arange(0, BLOCK), noise)


@triton.jit
def log1p_kernel(x, out, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(out + index, philox.log1p(tl.load(x + index)))


SEEDS = torch.tensor([0, 1, 2**31, 2**32 + 7, 2**63 - 1])
POSITIONS = torch.tensor([0, 5, 2**31 - 1, 2**31, 2**32 - 1])


def test_uniforms_are_equal_to_the_bit():
    slots = torch.tensor([0, 1, 7, 63])
    for stream in (Stream.EMIT, Stream.ACCEPT, Stream.DRAFT):
        out = torch.empty(len(SEEDS), 4, dtype=torch.float64)
        uniform_kernel[(len(SEEDS),)](SEEDS, POSITIONS, slots, out, int(stream), COUNT=4)
        want = uniform(SEEDS.view(-1, 1), stream=stream, position=POSITIONS.view(-1, 1), slot=slots)
        assert torch.equal(out, want)


def test_gumbel_noise_has_the_words_and_logarithms_of_the_reference():
    out = torch.empty(len(SEEDS), 256)
    gumbel_kernel[(len(SEEDS),)](SEEDS, POSITIONS, out, int(Stream.COUPLED), 512, BLOCK=256)
    want = gumbel(SEEDS, position=POSITIONS, vocab_size=768)[:, 512:]
    torch.testing.assert_close(out, want, atol=1e-6, rtol=1e-6)
    exact = gumbel(SEEDS, position=POSITIONS, vocab_size=768, dtype=torch.float64)[:, 512:]
    # Where noise is low, u is near 1 and rounded to steps of 2^-24; but such tokens do not win.
    wins = exact > 0
    torch.testing.assert_close(out.double()[wins], exact[wins], atol=1e-6, rtol=1e-6)


def test_log1p_errs_by_less_than_four_units_in_the_last_place():
    near = torch.logspace(-30, -0.01, 2048)
    x = torch.cat([-near, near])
    out = torch.empty_like(x)
    log1p_kernel[(1,)](x, out, BLOCK=4096)
    exact = np.log1p(x.double().numpy())
    assert np.abs(out.double().numpy() / exact - 1).max() < 4 * 2.0**-24
