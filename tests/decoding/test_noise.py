"""The noise of a block has an address: seed, stream, where the block starts, and the slot."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selftrain.decoding.noise import Noise
from selftrain.ops.philox import Stream, gumbel, uniform

SEEDS = [3, 2**40 + 1, 2**63 - 1]


def uniforms(seed, stream, start, num_slots):
    slots = torch.arange(num_slots)
    return uniform(torch.tensor(seed), stream=int(stream), position=start, slot=slots)


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=3, max_size=3), min_size=1, max_size=12),
    st.integers(1, 6),
)
def test_it_is_the_same_whatever_was_asked_for_before(steps, num_slots):
    noise, starts = Noise(torch.tensor(SEEDS), 6), [0, 5, 100]
    for step in steps:
        block = noise.at(starts, num_slots)
        for row, (seed, start) in enumerate(zip(SEEDS, starts, strict=True)):
            want = [uniforms(seed, s, start, num_slots) for s in Stream if s != Stream.COUPLED]
            assert torch.equal(block.emit[row], want[Stream.EMIT])
            assert torch.equal(block.accept[row], want[Stream.ACCEPT][:-1])
            assert torch.equal(block.draft[row], want[Stream.DRAFT][:-1])
        starts = [a + b for a, b in zip(starts, step, strict=True)]


def test_rows_keep_their_noise_when_others_leave():
    noise = Noise(torch.tensor(SEEDS), 4)
    noise.at([7, 8, 9], 4)
    noise.select([2, 0])
    block = noise.at([11, 30], 4)
    for row, (seed, start) in enumerate(((SEEDS[2], 11), (SEEDS[0], 30))):
        assert torch.equal(block.accept[row], uniforms(seed, Stream.ACCEPT, start, 4)[:-1])
    noise.select([1])
    assert torch.equal(noise.at([99], 4).emit[0], uniforms(SEEDS[0], Stream.EMIT, 99, 4))


def test_a_position_meets_fresh_noise_in_the_next_block():
    noise = Noise(torch.tensor([5]), 5)
    first, second = noise.at([10], 5), noise.at([12], 5)
    assert not torch.isin(first.accept, second.accept).any()
    assert not torch.isin(first.draft, second.draft).any()
    assert not torch.isin(first.draft, first.accept).any()


def test_a_cut_block_keeps_its_first_slots():
    noise = Noise(torch.tensor([5, 6]), 5)
    whole, cut = noise.at([3, 4], 5), noise.at([3, 4], 5).cut(3)
    assert torch.equal(cut.emit, whole.emit[:, :3])
    assert torch.equal(cut.accept, whole.accept[:, :2])
    assert torch.equal(cut.gumbel(9, torch.float64), whole.gumbel(9, torch.float64)[:, :3])


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_shared_noise_belongs_to_positions_in_the_dtype_asked_for(dtypes):
    """A draft in float32 asks first; the target in float64 must not get its rounded noise."""
    block = Noise(torch.tensor([5]), 4).at([20], 4)
    for dtype in dtypes:
        want = gumbel(torch.tensor([5]), position=torch.arange(20, 24), vocab_size=7, dtype=dtype)
        assert block.gumbel(7, dtype).dtype == dtype
        assert torch.equal(block.gumbel(7, dtype)[0], want)
