"""The tokens that a threshold keeps are those that sorting keeps."""

import itertools

import pytest
import torch

from selftrain.kernels.rows import Rows
from selftrain.kernels.threshold import warped_stats
from selftrain.ops.warp import warp_logits


def kept_by_threshold(logits, *, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    rows = Rows(logits.unsqueeze(1), None, temperature, None)
    maxima, sums, cut = warped_stats(rows, top_k, top_p, min_p)
    token = torch.arange(logits.shape[1])
    above = logits.float() > cut.thresholds.unsqueeze(1)
    equal = logits.float() == cut.thresholds.unsqueeze(1)
    kept = above | (equal & (token <= cut.last_tokens.unsqueeze(1)))
    # The statistics are those of what is kept.
    highest = maxima.amax(1, keepdim=True)
    mass = (sums * torch.exp((maxima - highest) / temperature)).sum(1)
    want = torch.where(kept, torch.exp((logits.float() - highest) / temperature), 0.0).sum(1)
    torch.testing.assert_close(mass, want, rtol=1e-5, atol=0)
    return kept


def check(logits, **warp):
    kept = kept_by_threshold(logits, **warp) & logits.isfinite()
    assert torch.equal(kept, warp_logits(logits, **warp).isfinite())


WARPS = [
    {"top_k": 1},
    {"top_k": 40},
    {"top_p": 0.3, "temperature": 0.7},
    {"top_p": 0.95},
    {"min_p": 0.1, "temperature": 1.3},
    {"top_k": 30, "top_p": 0.8, "min_p": 0.02},
]


@pytest.mark.parametrize(
    ("warp", "dtype"),
    [(warp, torch.bfloat16) for warp in WARPS]
    + [(WARPS[-1], torch.float16), (WARPS[-1], torch.float32), (WARPS[2], torch.float32)],
    ids=str,
)
def test_random_rows(warp, dtype):
    rng = torch.Generator().manual_seed(3)
    check((3 * torch.randn(2, 257, generator=rng)).to(dtype), **warp)


@pytest.mark.parametrize("warp", [{"top_k": 1100}, {"top_p": 0.97}], ids=str)
def test_rows_of_several_blocks(warp):
    rng = torch.Generator().manual_seed(4)
    check(torch.randn(1, 2311, generator=rng).bfloat16(), **warp)


@pytest.mark.parametrize(("vocab", "top_k"), list(itertools.product([1, 127, 128, 129], [1, 100])))
def test_ragged_sizes(vocab, top_k):
    rng = torch.Generator().manual_seed(vocab)
    logits = torch.randn(1, vocab, generator=rng)
    if top_k < vocab:
        check(logits, top_k=top_k)
    else:
        assert warped_stats(Rows(logits.unsqueeze(1), None, 1.0, None), top_k, 1.0, 0.0)[2] is None


@pytest.mark.parametrize("warp", [{"top_k": 5}, {"top_p": 0.45}], ids=str)
@pytest.mark.parametrize("value", [0.0, -2.5])
def test_ties_at_the_threshold_keep_the_lowest_ids(warp, value):
    """Equal logits in two blocks; masses of powers of two, so that sums are exact."""
    logits = torch.full((1, 2048), -torch.inf)
    logits[0, [3, 700, 1023, 1024, 1500, 1501, 2000, 2047]] = value
    kept = kept_by_threshold(logits, **warp) & logits.isfinite()
    count = {"top_k": 5, "top_p": 4}[next(iter(warp))]
    assert kept.nonzero()[:, 1].tolist() == [3, 700, 1023, 1024, 1500][:count]


def test_negative_zero_ties_with_zero():
    logits = torch.tensor([[-0.0, 0.0, -1.0, 0.0]])
    assert kept_by_threshold(logits, top_k=2).tolist() == [[True, True, False, False]]


def test_more_tokens_than_finite_logits():
    logits = torch.tensor([[1.0, -torch.inf, 0.0, -torch.inf, -torch.inf]])
    check(logits, top_k=4)
