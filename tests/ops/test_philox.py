import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from selftrain.ops.philox import Stream, philox, uniform

# The known answers published with Random123 (kat_vectors, philox4x32-10).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_known_answers(counter, key, words):
    low, high = key
    seed = (high << 32 | low) - (1 << 64 if high >> 31 else 0)  # as a signed 64-bit key
    assert philox(torch.tensor(seed), counter).tolist() == list(words)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31), st.integers(0, 100))
def test_uniforms_are_multiples_of_two_to_minus_52_below_one(seed, position, slot):
    u = uniform(torch.tensor(seed), stream=Stream.EMIT, position=position, slot=slot)
    assert 0 <= float(u) < 1
    assert float(u) * 2**52 == int(float(u) * 2**52)


def test_uniforms_follow_the_uniform_law():
    u = uniform(torch.arange(200_000), stream=Stream.ACCEPT, position=3)
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("axis", ["seed", "stream", "position", "slot"])
def test_neighbouring_addresses_give_uncorrelated_noise(axis):
    n = 100_000
    base = {"stream": 0, "position": 0, "slot": 0}
    first = uniform(torch.arange(n) * 2, **base)
    shifted = torch.arange(n) * 2 + (axis == "seed")
    second = uniform(shifted, **{k: v + (k == axis) for k, v in base.items()})
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 5 / n**0.5


def test_a_row_draws_the_same_noise_alone_and_in_a_batch():
    seeds = torch.tensor([5, 6, 7])
    together = uniform(seeds.view(-1, 1), stream=2, position=torch.arange(9), slot=1)
    alone = uniform(seeds[1:2].view(-1, 1), stream=2, position=torch.arange(9), slot=1)
    assert torch.equal(together[1:2], alone)
