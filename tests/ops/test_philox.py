import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from selftrain.ops.philox import Stream, gumbel, philox, uniform

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


def test_gumbel_noise_follows_its_law():
    noise = gumbel(torch.arange(500), position=4, vocab_size=401)
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-4


def test_gumbel_noise_is_made_of_the_words_in_their_place():
    seed, vocab = 2**40 + 5, 11
    noise = gumbel(torch.tensor(seed), position=9, vocab_size=vocab, dtype=torch.float64)
    for token in range(vocab):
        word = philox(torch.tensor(seed), (token // 4, 9, Stream.COUPLED, 0))[token % 4].item()
        want = -math.log(-math.log1p(-(word + 0.5) * 2.0**-32))
        assert noise[token].item() == pytest.approx(want, rel=1e-14)


def test_single_precision_gumbel_noise_is_that_of_double_precision():
    single, double = (
        gumbel(torch.arange(50), position=3, vocab_size=1000, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    # Rounding of u near 1 is magnified where the noise is least, which hardly ever wins.
    likely = double > -1
    torch.testing.assert_close(single[likely].double(), double[likely], atol=1e-6, rtol=1e-6)


def test_gumbel_noise_of_the_greatest_and_smallest_words_is_finite_and_reaches_far(monkeypatch):
    words = tuple(torch.tensor([w]) for w in (0, 2**32 - 1, 2**32 - 200, 1))
    monkeypatch.setattr(sys.modules[gumbel.__module__], "_rounds", lambda *_: words)
    noise = gumbel(torch.tensor(0), position=0, vocab_size=4)
    assert noise[0].item() == pytest.approx(33 * math.log(2), abs=1e-5)  # -log(2^-33)
    assert noise.isfinite().all()
    assert noise[1].item() == pytest.approx(-math.log(24 * math.log(2)), abs=1e-5)


@given(st.integers(1, 70), st.integers(0, 2**63 - 1), st.integers(0, 2**31))
def test_gumbel_noise_of_a_token_does_not_depend_on_rows_positions_or_vocabulary(v, seed, position):
    seeds = torch.tensor([[1], [seed]])
    together = gumbel(seeds, position=torch.tensor([3, position, 4]), vocab_size=v + 9)
    alone = gumbel(torch.tensor(seed), position=position, vocab_size=v)
    assert torch.equal(together[1, 1, :v], alone)


def test_gumbel_noise_of_neighbouring_addresses_is_uncorrelated():
    n = 100_000
    noise = gumbel(torch.arange(n).unsqueeze(1), position=torch.arange(2), vocab_size=5)
    correlation = torch.corrcoef(noise.flatten(1).T) - torch.eye(10)
    assert correlation.abs().max() < 5 / n**0.5


@pytest.mark.usefixtures("without_shape_checks")
def test_gumbel_noise_compiles_and_needs_a_vocabulary():
    compiled = torch.compile(gumbel, fullgraph=True, backend="eager")
    seeds = torch.tensor([[3], [4]])
    options = {"position": torch.arange(3), "vocab_size": 10}
    assert torch.equal(compiled(seeds, **options), gumbel(seeds, **options))
    with pytest.raises(ValueError, match="vocab_size"):
        gumbel(seeds, position=0, vocab_size=0)
