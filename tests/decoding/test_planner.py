import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selftrain.decoding.cost_model import (
    expected_tokens,
    mbsu,
    optimal_num_draft_tokens,
    predict_block_efficiency,
    speedup,
)

# Leviathan et al., arXiv 2211.17192, table 1 (cost ratio 0).
TABLE = [(0.6, 2, 1.96), (0.7, 3, 2.53), (0.8, 2, 2.44), (0.8, 5, 3.69), (0.9, 2, 2.71)]


@pytest.mark.parametrize(("acceptance", "num_draft_tokens", "want"), [*TABLE, (0.9, 10, 6.86)])
def test_speedups_of_the_paper(acceptance, num_draft_tokens, want):
    assert speedup(acceptance, num_draft_tokens, 0.0) == pytest.approx(want, abs=0.005)


@pytest.mark.parametrize(
    ("cost", "acceptance", "num_draft_tokens", "gain"),
    [(0.02, 0.8, 11, 3.82), (0.05, 0.5, 3, 1.63), (0.1, 0.9, 10, 3.43), (0.2, 0.5, 1, 1.25)],
)
def test_best_number_of_draft_tokens(cost, acceptance, num_draft_tokens, gain):
    assert optimal_num_draft_tokens(acceptance, cost) == num_draft_tokens
    assert speedup(acceptance, num_draft_tokens, cost) == pytest.approx(gain, abs=0.005)


def test_a_draft_as_slow_as_it_is_good_is_not_used():
    assert optimal_num_draft_tokens(0.3, 0.4) == 0


@given(st.floats(0, 1), st.integers(0, 20))
def test_expected_tokens_lie_between_one_and_a_full_block(acceptance, num_draft_tokens):
    assert 1 <= expected_tokens(acceptance, num_draft_tokens) <= num_draft_tokens + 1


def test_mbsu_without_draft_cost_is_block_efficiency():
    assert mbsu(2.5, 4, 0.0) == 2.5


@given(st.floats(0, 1), st.integers(0, 8))
def test_constant_acceptance_gives_the_closed_form(acceptance, num_draft_tokens):
    texts = [torch.full((40,), acceptance, dtype=torch.float64)]
    want = expected_tokens(acceptance, num_draft_tokens)
    assert predict_block_efficiency(texts, num_draft_tokens) == pytest.approx(want, rel=1e-9)


def test_correlated_acceptance_agrees_with_simulation():
    """Runs of easy and hard positions, where the closed form is off."""
    rng = torch.Generator().manual_seed(0)
    hard = torch.rand(400, generator=rng) < 0.3
    accept = torch.where(hard.repeat_interleave(5), 0.2, 0.95).double()
    stands = torch.rand(300, len(accept), generator=rng) < accept
    tokens = calls = 0
    for row in stands.tolist():
        t = 0
        while t + 4 <= len(row):
            run = next((i for i in range(4) if not row[t + i]), 4)
            t, tokens, calls = t + run + 1, tokens + run + 1, calls + 1
    predicted = predict_block_efficiency([accept], 4)
    assert predicted == pytest.approx(tokens / calls, rel=0.01)
    assert abs(expected_tokens(float(accept.mean()), 4) - predicted) > 0.1


def test_texts_too_short_to_tell_are_an_error():
    with pytest.raises(ValueError, match="num_draft_tokens=5"):
        predict_block_efficiency([torch.ones(3)], 5)
