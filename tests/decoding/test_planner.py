import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selftrain.decoding.cost_model import (
    expected_tokens,
    mbsu,
    operations_factor,
    optimal_num_draft_tokens,
    predict_block_efficiency,
    speedup,
)

# Leviathan et al., arXiv 2211.17192, table 1 (cost ratios 0): operations, speed.
TABLE = [
    (0.6, 2, 1.53, 1.96),
    (0.7, 3, 1.58, 2.53),
    (0.8, 2, 1.23, 2.44),
    (0.8, 5, 1.63, 3.69),
    (0.9, 2, 1.11, 2.71),
    (0.9, 10, 1.60, 6.86),
]

# By cost ratio: the best number of draft tokens and its gain, at each of these acceptances.
ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
BEST = {
    0.02: ((4, 1.79), (6, 2.17), (8, 2.76), (11, 3.82), (19, 6.37), (31, 9.95)),
    0.05: ((3, 1.63), (4, 1.92), (6, 2.35), (8, 3.09), (13, 4.67), (21, 6.60)),
    0.10: ((2, 1.46), (3, 1.67), (4, 1.98), (6, 2.47), (10, 3.43), (15, 4.48)),
    0.20: ((1, 1.25), (2, 1.40), (3, 1.58), (4, 1.87), (7, 2.37), (10, 2.87)),
    0.30: ((1, 1.15), (1, 1.23), (2, 1.37), (3, 1.55), (5, 1.87), (8, 2.18)),
}


@pytest.mark.parametrize(("acceptance", "num_draft_tokens", "operations", "speed"), TABLE)
def test_the_table_of_the_paper(acceptance, num_draft_tokens, operations, speed):
    assert speedup(acceptance, num_draft_tokens, 0.0) == pytest.approx(speed, abs=0.005)
    factor = operations_factor(acceptance, num_draft_tokens, 0.0)
    assert factor == pytest.approx(operations, abs=0.005)


@pytest.mark.parametrize("cost", BEST)
def test_best_number_of_draft_tokens(cost):
    for acceptance, (num_draft_tokens, gain) in zip(ACCEPTANCES, BEST[cost], strict=True):
        assert optimal_num_draft_tokens(acceptance, cost) == num_draft_tokens
        assert speedup(acceptance, num_draft_tokens, cost) == pytest.approx(gain, abs=0.0051)


@given(st.floats(0.01, 0.99), st.floats(0, 1.5))
def test_it_speculates_where_acceptance_exceeds_the_cost_ratio(acceptance, cost):
    """Then one draft token gains (1 + a) / (1 + c); else no number of them does."""
    if abs(acceptance - cost) < 1e-6:
        return
    best = optimal_num_draft_tokens(acceptance, cost)
    assert (best > 0) == (acceptance > cost)
    if best:
        gain = speedup(acceptance, best, cost)
        assert gain >= (1 + acceptance) / (1 + cost) * (1 - 1e-9)


@given(st.floats(0, 1), st.integers(0, 12), st.floats(0, 2))
def test_operations_are_those_of_a_block_over_its_tokens(acceptance, num_draft_tokens, ratio):
    factor = operations_factor(acceptance, num_draft_tokens, ratio)
    assert factor >= 1 - 1e-12
    block = num_draft_tokens * ratio + num_draft_tokens + 1
    assert factor * expected_tokens(acceptance, num_draft_tokens) == pytest.approx(block)


@pytest.mark.parametrize("num_draft_tokens", [0, 1, 5, 64])
def test_expected_tokens_at_its_limits(num_draft_tokens):
    assert expected_tokens(1.0, num_draft_tokens) == num_draft_tokens + 1
    assert expected_tokens(0.0, num_draft_tokens) == 1
    assert expected_tokens(0.5, 0) == 1
    nearly = expected_tokens(1 - 1e-12, num_draft_tokens)  # the closed form is 0 / 0 close by
    assert nearly == pytest.approx(num_draft_tokens + 1, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_tokens(1.1, 2), r"0.0 <= acceptance <= 1.0, got 1.1"),
        (lambda: expected_tokens(0.5, -1), r"0 <= num_draft_tokens, got -1"),
        (lambda: speedup(0.5, 2, -0.1), r"0.0 <= cost_ratio, got -0.1"),
        (lambda: operations_factor(0.5, 2, -0.1), r"0.0 <= operations_ratio, got -0.1"),
        (lambda: mbsu(0.9, 2, 0.1), r"1.0 <= block_efficiency <= 3.0, got 0.9"),
        (lambda: mbsu(2.0, 2, -0.1), r"0.0 <= parameter_ratio, got -0.1"),
    ],
)
def test_impossible_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_draft_as_slow_as_it_is_good_is_not_used():
    assert optimal_num_draft_tokens(0.3, 0.4) == 0


@given(st.floats(0, 1), st.integers(0, 20))
def test_expected_tokens_lie_between_one_and_a_full_block(acceptance, num_draft_tokens):
    assert 1 <= expected_tokens(acceptance, num_draft_tokens) <= num_draft_tokens + 1


def test_mbsu_is_the_speedup_if_time_is_parameters_read():
    assert mbsu(2.5, 4, 0.0) == 2.5
    assert mbsu(2.5, 4, 0.25) == 1.25
    assert mbsu(expected_tokens(0.8, 5), 5, 0.1) == pytest.approx(speedup(0.8, 5, 0.1))


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
