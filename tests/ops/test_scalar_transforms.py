import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from selftrain.ops import Identity, MuZeroScale, ScalarTransform, Symlog

ALL = [Identity(), Symlog(), MuZeroScale(), MuZeroScale(epsilon=0.0), MuZeroScale(epsilon=0.1)]
MAGNITUDES = torch.cat([torch.zeros(1), torch.logspace(-30, 4, 200)])
# The exponential of symlog's inverse multiplies an error in its argument by the argument.
SPREAD = torch.cat([-MAGNITUDES.flip(0), MAGNITUDES])


@pytest.mark.parametrize("scalar", ALL, ids=repr)
def test_both_directions_undo_each_other_to_rounding_at_every_magnitude(scalar):
    back = scalar.invert(scalar.apply(SPREAD))
    torch.testing.assert_close(back, SPREAD, rtol=3e-6, atol=0)


@pytest.mark.parametrize("scalar", ALL, ids=repr)
@settings(max_examples=40, deadline=None)
@given(x=st.floats(-1e4, 1e4))
def test_maps_are_odd_and_keep_the_order(scalar, x):
    x = torch.tensor(x, dtype=torch.float64)
    assert scalar.apply(-x) == -scalar.apply(x)
    assert scalar.apply(x + 1e-3) > scalar.apply(x)


def test_symlog_is_the_published_formula():
    x = SPREAD.double()
    torch.testing.assert_close(
        Symlog().apply(x), x.sign() * (x.abs() + 1).log(), atol=1e-15, rtol=0
    )


@pytest.mark.parametrize("epsilon", [1e-3, 1e-2])
def test_the_muzero_scale_is_the_published_formula_and_inverse(epsilon):
    x = SPREAD.double()[SPREAD.abs() > 1e-3]
    y = x.sign() * ((x.abs() + 1).sqrt() - 1) + epsilon * x
    scalar = MuZeroScale(epsilon=epsilon)
    torch.testing.assert_close(scalar.apply(x), y, rtol=1e-10, atol=0)
    root = (1 + 4 * epsilon * (y.abs() + 1 + epsilon)).sqrt()
    published = y.sign() * (((root - 1) / (2 * epsilon)) ** 2 - 1)
    torch.testing.assert_close(scalar.invert(y), published, rtol=1e-7, atol=0)


def test_every_map_keeps_the_protocol():
    assert all(isinstance(scalar, ScalarTransform) for scalar in ALL)


@pytest.mark.parametrize("epsilon", [-1e-3, float("inf"), float("nan")])
def test_a_slope_that_is_none_is_an_error(epsilon):
    with pytest.raises(ValueError, match="epsilon must satisfy"):
        MuZeroScale(epsilon=epsilon)
