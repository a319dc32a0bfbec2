import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from selftrain.ops.warp import inverse_cdf, most_likely, warp_logits


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7])
@pytest.mark.parametrize("top_p", [0.1, 0.8, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.2])
def test_warping_agrees_with_transformers(temperature, top_k, top_p, min_p):
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 3
    want = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        want = TopKLogitsWarper(top_k)(None, want)
    if top_p < 1:
        want = TopPLogitsWarper(top_p)(None, want)
    if min_p > 0:
        want = MinPLogitsWarper(min_p)(None, want)
    got = warp_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    torch.testing.assert_close(got, want)


def test_top_k_keeps_exactly_k_and_the_lowest_ids_among_equals():
    kept = warp_logits(torch.tensor([1.0, 2.0, 1.0, 1.0]), top_k=2).isfinite()
    assert kept.tolist() == [True, True, False, False]


def test_top_p_keeps_the_lowest_id_among_equals():
    assert warp_logits(torch.zeros(4), top_p=0.5).isfinite().tolist() == [True, True, False, False]


def test_temperature_zero_keeps_the_first_of_the_most_likely():
    warped = warp_logits(torch.tensor([0.0, 3.0, 3.0]), temperature=0.0)
    assert torch.softmax(warped, -1).tolist() == [0.0, 1.0, 0.0]


def test_half_precision_is_warped_in_float32():
    assert warp_logits(torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": 1.0}, {"top_k": 0}]
)
def test_bad_parameters_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        warp_logits(torch.zeros(3), **bad)


def test_inverse_cdf_gives_each_token_its_share_of_an_even_grid():
    weights = torch.tensor([3.0, 0.0, 1.0, 4.0])  # shares of 1/8
    grid = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    tokens = inverse_cdf(weights.expand(64, 4), grid)
    assert tokens.bincount(minlength=4).tolist() == [24, 0, 8, 32]


@given(
    st.lists(st.floats(0, 2.0**99, width=32), min_size=1, max_size=20).filter(lambda w: sum(w) > 0),
    st.sampled_from([0.0, 0.5, 1 - 2.0**-52]),
)
def test_inverse_cdf_never_returns_a_token_without_weight(weights, u):
    token = inverse_cdf(torch.tensor(weights), torch.tensor(u, dtype=torch.float64))
    assert weights[int(token)] > 0


@given(
    st.lists(st.sampled_from([-torch.inf, -2.0, 0.0, 0.5, 1.0]), min_size=1, max_size=20),
    st.integers(1, 20),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_most_likely_are_the_first_of_a_stable_sort(logits, k, dtype):
    logits = torch.tensor([logits, logits[::-1]], dtype=dtype)
    k = min(k, logits.shape[-1])
    wanted = logits.sort(dim=-1, descending=True, stable=True).indices[:, :k].sort(dim=-1).values
    found = most_likely(logits, k)
    assert torch.equal(found.ids, wanted)
    assert torch.equal(found.values, logits.gather(-1, wanted))


def test_nan_logits_stay_nan_among_the_most_likely():
    logits = torch.tensor([[0.0, torch.nan, 1.0], [torch.nan] * 3])
    assert most_likely(logits, 2).values.isnan().any(-1).all()


@pytest.mark.parametrize("k", [0, 4])
def test_more_than_all_or_none_of_the_tokens_is_an_error(k):
    with pytest.raises(ValueError, match=f"k must .*got {k}"):
        most_likely(torch.zeros(3), k)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_top_k_of_rounded_logits_is_that_of_a_stable_sort(top_p):
    """In half precision equal logits at the threshold are the rule."""
    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(0)).bfloat16()
    order = logits.float().sort(dim=-1, descending=True, stable=True)
    probs = order.values[:, :20].softmax(-1)
    keep = probs.cumsum(-1) - probs < top_p
    wanted = torch.full((8, 500), -torch.inf).scatter(
        -1, order.indices[:, :20], order.values[:, :20].masked_fill(~keep, -torch.inf)
    )
    assert torch.equal(warp_logits(logits, top_k=20, top_p=top_p), wanted)
