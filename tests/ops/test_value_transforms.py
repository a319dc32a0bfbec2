"""Transforms against definitions, limits and invariances: probabilities, readouts, bad input."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from value_cases import (
    COMPILED,
    SUPPORT,
    TRANSFORMS,
    c51_dense,
    centers_of,
    hl_gauss_by_definition,
    values_for,
)

from selftrain.ops import C51, HLGauss, MuZeroScale, OneHot, Support, Symlog, TwoHot

EXTREMES = [-1e6, -10.0, -9.999, -1e-9, 0.0, 0.2, 10.0, 10.001, 1e6]
WIDTH = 20 / 51


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_codes_are_distributions_wherever_the_value_lies(transform, dtype):
    values = torch.cat([torch.tensor(EXTREMES, dtype=dtype), values_for(transform, dtype=dtype)])
    probs = transform.encode(values)
    assert probs.dtype == dtype
    assert probs.shape == (*values.shape, transform.support.num_bins)
    assert (probs >= 0).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones_like(values), atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    low=st.floats(-1e3, 1e3),
    size=st.floats(1e-1, 1e3),
    num=st.integers(2, 300),
    share=st.floats(-0.5, 1.5),
    ratio=st.floats(1e-3, 1e3),
    atoms=st.booleans(),
)
def test_codes_are_distributions_on_any_support(low, size, num, share, ratio, atoms):
    support = Support(low, low + size, num)
    value = torch.tensor([low + share * size], dtype=torch.float32)
    for transform in (HLGauss(support, ratio, centers_on_bounds=atoms), TwoHot(support)):
        probs = transform.encode(value)
        assert (probs >= 0).all()
        assert abs(probs.sum().item() - 1) <= 1e-6
        error = abs(transform.decode(probs).item() - min(max(value.item(), low), low + size))
        if isinstance(transform, TwoHot):
            assert error <= 1e-6 * (abs(low) + size)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_float32_agrees_with_float64_to_a_millionth(transform):
    values = values_for(transform, 2000, dtype=torch.float32)
    if isinstance(transform, OneHot):  # where edges are rounded differently, a bin is another
        edges = transform.bins.low + transform.bins.step * torch.arange(transform.bins.num + 1)
        gap = (transform.scalar.apply(values)[:, None] - edges).abs().amin(-1)
        values = values[gap > 1e-4 * transform.bins.step]
    narrow, wide = transform.encode(values), transform.encode(values.double())
    torch.testing.assert_close(narrow.double(), wide, atol=1e-6, rtol=0)


# HL-Gauss


@pytest.mark.parametrize("ratio", [0.25, 0.75, 3.0])
@pytest.mark.parametrize("value", [-10.0, -9.7, 0.1234, 4.9, 10.0])
def test_hl_gauss_is_the_truncated_normal_even_in_its_smallest_probabilities(ratio, value):
    edges = torch.linspace(-10, 10, 52, dtype=torch.float64)
    want = hl_gauss_by_definition(value, edges, ratio * WIDTH)
    got = HLGauss(SUPPORT, ratio).encode(torch.tensor(value, dtype=torch.float64))
    kept = want > 1e-290
    torch.testing.assert_close(got[kept], want[kept], rtol=1e-9, atol=0)
    narrow = HLGauss(SUPPORT, ratio).encode(torch.tensor(value)).double()
    kept = want > 1e-36
    # The exponent -u^2/2 of a tail has the rounding of u, times u.
    torch.testing.assert_close(narrow[kept], want[kept], rtol=1e-4, atol=0)


@pytest.mark.parametrize(("ratio", "bias"), [(0.75, 1e-5), (0.5, 3e-3), (0.25, 9.4e-2)])
def test_the_readout_five_sigma_inside_is_biased_no_more_than_known(ratio, bias):
    transform = HLGauss(SUPPORT, ratio)
    reach = 10 - 5 * ratio * WIDTH
    values = torch.linspace(-reach, reach, 4001, dtype=torch.float64)
    error = (transform.decode(transform.encode(values)) - values).abs().max() / WIDTH
    assert error <= bias
    assert error >= 0.1 * bias or ratio == 0.75  # the bound says something


def test_the_readout_in_float32_has_no_more_bias_than_rounding_adds():
    transform = HLGauss(SUPPORT)
    values = torch.linspace(-8.5, 8.5, 4001)
    error = (transform.decode(transform.encode(values)) - values).abs().max() / WIDTH
    assert error <= 1.5e-5


def test_the_cut_tail_biases_the_readout_near_the_bounds():
    transform = HLGauss(SUPPORT)
    sigma = 0.75 * WIDTH
    values = torch.tensor([10 - 3 * sigma, 10.0], dtype=torch.float64)
    three_sigma, bound = (transform.decode(transform.encode(values)) - values).abs() / WIDTH
    assert three_sigma == pytest.approx(3.7e-3, rel=0.15)
    assert bound == pytest.approx(0.69, abs=0.02)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_the_readout_is_monotone_in_the_value(transform):
    readout = transform.decode(transform.encode(values_for(transform, 3001)))
    assert (readout.diff() >= -1e-12 * readout.abs().max()).all()


@pytest.mark.parametrize("make", [HLGauss, TwoHot, C51])
@settings(max_examples=40, deadline=None)
@given(value=st.floats(-10, 10))
def test_codes_are_mirrored_with_the_value(make, value):
    value = torch.tensor(value, dtype=torch.float64)
    transform = make(SUPPORT)
    mirrored = transform.encode(-value).flip(-1)
    torch.testing.assert_close(transform.encode(value), mirrored, atol=1e-12, rtol=0)


def test_a_shift_by_one_bin_shifts_the_code_by_one_bin():
    transform = HLGauss(SUPPORT)
    values = torch.linspace(-5, 5, 101, dtype=torch.float64)
    shifted = transform.encode(values + WIDTH)
    torch.testing.assert_close(shifted[:, 1:], transform.encode(values)[:, :-1], atol=1e-12, rtol=0)


def test_a_ratio_near_zero_gives_the_one_hot_code():
    values = values_for(OneHot(SUPPORT), 400)
    edges = torch.linspace(-10, 10, 52, dtype=torch.float64)
    values = values[(values[:, None] - edges).abs().amin(-1) > 1e-3]
    narrow = HLGauss(SUPPORT, 1e-6).encode(values)
    torch.testing.assert_close(narrow, OneHot(SUPPORT).encode(values), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_ratio_gives_the_uniform_code(dtype):
    probs = HLGauss(SUPPORT, 1e6).encode(torch.tensor([-10.0, 3.0], dtype=dtype))
    torch.testing.assert_close(probs, torch.full_like(probs, 1 / 51), rtol=1e-5, atol=0)


def test_the_entropy_at_the_default_ratio_is_a_dozen_tenths_of_a_nat():
    values = torch.linspace(-5, 5, 100, dtype=torch.float64)
    entropy = torch.special.entr(HLGauss(SUPPORT).encode(values)).sum(-1)
    torch.testing.assert_close(entropy, torch.full_like(entropy, 1.20), atol=0.03, rtol=0)


# Conventions


def test_edges_put_centres_inside_and_atoms_on_the_bounds():
    width, spacing = 20 / 51, 20 / 50
    for transform in (HLGauss(SUPPORT), OneHot(SUPPORT)):
        assert centers_of(transform)[0].item() == pytest.approx(-10 + width / 2, abs=1e-12)
        assert centers_of(transform)[1].item() == pytest.approx(-10 + 1.5 * width, abs=1e-12)
    for transform in (TwoHot(SUPPORT), C51(SUPPORT), HLGauss(SUPPORT, centers_on_bounds=True)):
        centers = centers_of(transform)
        assert centers[[0, -1]].tolist() == [-10.0, 10.0]
        assert (centers[1] - centers[0]).item() == pytest.approx(spacing, abs=1e-12)


def test_centres_on_bounds_are_those_of_wider_edges():
    half = 0.5 * 20 / 50
    wider = Support(-10 - half, 10 + half, 51)
    values = torch.linspace(-10, 10, 300, dtype=torch.float64)
    got = HLGauss(SUPPORT, centers_on_bounds=True).encode(values)
    torch.testing.assert_close(got, HLGauss(wider).encode(values), atol=1e-12, rtol=0)


# Two-hot


@settings(max_examples=40, deadline=None)
@given(value=st.floats(-12, 12), num=st.integers(2, 200))
def test_the_mean_of_a_two_hot_code_is_the_value(value, num):
    transform = TwoHot(Support(-10.0, 10.0, num))
    probs = transform.encode(torch.tensor(value, dtype=torch.float64))
    clamped = min(max(value, -10.0), 10.0)
    assert (probs * centers_of(transform)).sum().item() == pytest.approx(clamped, abs=1e-12)
    occupied = probs.nonzero().flatten()
    assert len(occupied) <= 2
    assert len(occupied) == 1 or occupied[1] == occupied[0] + 1


def test_a_two_hot_code_is_the_tent_around_the_value():
    transform = TwoHot(SUPPORT)
    values = torch.linspace(-10, 10, 777, dtype=torch.float64)
    tent = (1 - (values[:, None] - centers_of(transform)).abs() / 0.4).clamp(min=0)
    torch.testing.assert_close(transform.encode(values), tent, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_atom_is_its_own_code(dtype):
    for make in (TwoHot, C51):
        transform = make(Support(-8.0, 8.0, 33))
        atoms = transform.grid(dtype=dtype).centers
        assert torch.equal(transform.encode(atoms), torch.eye(33, dtype=dtype))


# One-hot


def test_a_value_on_an_edge_belongs_to_the_lower_bin():
    transform = OneHot(Support(-4.0, 4.0, 8))
    values = torch.tensor([-9.0, -4.0, -3.0, -2.9, 0.0, 3.0, 3.1, 4.0, 9.0])
    assert transform.encode(values).argmax(-1).tolist() == [0, 0, 0, 1, 3, 6, 7, 7, 7]


# C51


def projection_case(num=20, bins=51, seed=0):
    rng = torch.Generator().manual_seed(seed)
    probs = torch.rand(num, bins, generator=rng, dtype=torch.float64).softmax(-1)
    rewards = 6 * torch.randn(num, generator=rng, dtype=torch.float64)
    discounts = torch.rand(num, generator=rng, dtype=torch.float64)
    return probs, rewards, discounts


def test_the_projection_is_the_double_sum_of_its_definition():
    transform = C51(SUPPORT)
    case = projection_case()
    got = transform.project(*case)
    torch.testing.assert_close(got, c51_dense(*case, centers_of(transform)), atol=1e-12, rtol=0)


@settings(max_examples=40, deadline=None)
@given(reward=st.floats(-30, 30), discount=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_projection_keeps_mass_and_the_mean_of_the_clipped_atoms(reward, discount, seed):
    transform = C51(Support(-10.0, 10.0, 21))
    probs, _, _ = projection_case(1, 21, seed)
    case = [torch.tensor([x], dtype=torch.float64) for x in (reward, discount)]
    target = transform.project(probs, *case)
    assert (target >= 0).all()
    assert target.sum().item() == pytest.approx(1.0, abs=1e-12)
    moved = (reward + discount * centers_of(transform)).clamp(-10, 10)
    want = (probs * moved).sum().item()
    assert transform.decode(target).item() == pytest.approx(want, abs=1e-11)


def test_a_terminal_transition_gives_the_two_hot_code_of_the_reward():
    probs, rewards, discounts = projection_case()
    target = C51(SUPPORT).project(probs, rewards, torch.zeros_like(discounts))
    torch.testing.assert_close(target, TwoHot(SUPPORT).encode(rewards), atol=1e-12, rtol=0)


def test_no_reward_and_no_discounting_change_nothing():
    probs, rewards, _ = projection_case()
    target = C51(SUPPORT).project(probs, torch.zeros_like(rewards), torch.ones_like(rewards))
    torch.testing.assert_close(target, probs, atol=1e-12, rtol=0)


def test_a_shift_onto_other_atoms_loses_no_mass():
    probs, _, _ = projection_case(1, 33)
    transform = C51(Support(-8.0, 8.0, 33))
    target = transform.project(probs, torch.tensor([0.5]), torch.tensor([1.0]))
    torch.testing.assert_close(target[:, 1:-1], probs[:, :-2], atol=1e-15, rtol=0)
    assert target[0, -1].item() == pytest.approx(probs[0, -2:].sum().item(), abs=1e-15)


@pytest.mark.parametrize(("reward", "end"), [(1e6, -1), (-1e6, 0)])
def test_a_reward_beyond_the_support_puts_all_mass_on_the_last_atom(reward, end):
    probs, _, discounts = projection_case(3)
    target = C51(SUPPORT).project(probs, torch.full((3,), reward), discounts)
    torch.testing.assert_close(target[:, end], torch.ones(3, dtype=torch.float64))


def test_a_projection_moves_returns_in_their_own_units_with_a_scalar_transform():
    transform = C51(Support(-4.0, 4.0, 401), scalar=Symlog())
    atom = torch.zeros(1, 401, dtype=torch.float64)
    atom[0, 300] = 1.0  # symlog 2, a return of 6.389
    target = transform.project(atom, torch.tensor([3.0]), torch.tensor([0.5]))
    want = 3 + 0.5 * (math.e**2 - 1)
    assert transform.decode(target).item() == pytest.approx(want, rel=1e-4)


def test_the_projection_takes_integer_rewards_and_any_leading_dimensions():
    probs, _, discounts = projection_case(24)
    rewards = torch.arange(24) - 12
    flat = C51(SUPPORT).project(probs, rewards, discounts)
    shaped = C51(SUPPORT).project(
        probs.reshape(2, 3, 4, 51), rewards.int().reshape(2, 3, 4), discounts.reshape(2, 3, 4)
    )
    assert torch.equal(shaped.reshape(24, 51), flat)


def tabular_chain():
    """Return rewards and successors of five states whose last step ends the episode."""
    rewards = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
    values = torch.zeros(6, dtype=torch.float64)
    for state in range(4, -1, -1):
        values[state] = rewards[state] + 0.9 * values[state + 1]
    return rewards, values[:5]


@pytest.mark.parametrize("transform", [C51(SUPPORT), TwoHot(SUPPORT), HLGauss(SUPPORT)], ids=repr)
def test_fixed_points_of_the_targets_have_the_values_of_the_chain(transform):
    rewards, values = tabular_chain()
    discounts = torch.tensor([0.9] * 4 + [0.0], dtype=torch.float64)
    probs = torch.full((5, 51), 1 / 51, dtype=torch.float64)
    for _ in range(6):
        following = probs[[1, 2, 3, 4, 4]]
        if isinstance(transform, C51):
            probs = transform.project(following, rewards, discounts)
        else:
            probs = transform.encode(rewards + discounts * transform.decode(following))
    torch.testing.assert_close(transform.decode(probs), values, atol=1e-3, rtol=0)


# Scalar transforms, shapes and types


@pytest.mark.parametrize("scalar", [Symlog(), MuZeroScale()], ids=repr)
@pytest.mark.parametrize("make", [HLGauss, TwoHot, C51])
def test_scalar_transforms_are_undone_by_the_readout(make, scalar):
    transform = make(Support(-8.0, 8.0, 401), scalar=scalar)
    values = transform.scalar.invert(torch.linspace(-7, 7, 99, dtype=torch.float64))
    back = transform.decode(transform.encode(values))
    torch.testing.assert_close(back, values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_leading_dimensions_layouts_and_empty_batches(transform):
    values = values_for(transform, 24, dtype=torch.float32)
    flat = transform.encode(values)
    assert torch.equal(transform.encode(values.reshape(2, 3, 4)), flat.reshape(2, 3, 4, -1))
    assert torch.equal(
        transform.encode(values.reshape(4, 6).T), flat.reshape(4, 6, -1).transpose(0, 1)
    )
    assert torch.equal(transform.encode(values[5]), flat[5])
    empty = transform.encode(values[:0])
    assert empty.shape == (0, transform.support.num_bins)
    assert transform.decode(empty).shape == (0,)
    assert transform.clip_fraction(values[:0]) == 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
def test_integers_are_values(dtype):
    rewards = torch.tensor([0, 1, 3], dtype=dtype)
    for transform in (HLGauss(SUPPORT), TwoHot(SUPPORT), OneHot(SUPPORT), C51(SUPPORT)):
        probs = transform.encode(rewards)
        assert torch.equal(probs, transform.encode(rewards.float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values_have_codes_in_float32(dtype):
    values = torch.tensor([0.3, -7.0, 9.0], dtype=dtype)
    for transform in (HLGauss(SUPPORT), TwoHot(SUPPORT), OneHot(SUPPORT)):
        probs = transform.encode(values)
        assert probs.dtype == torch.float32
        assert torch.equal(probs, transform.encode(values.float()))
        assert transform.decode(probs.to(dtype)).dtype == torch.float32


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_nothing_is_rounded_under_autocast(transform):
    values = values_for(transform, 30, dtype=torch.float32)
    probs = transform.encode(values)
    readout = transform.decode(probs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(transform.encode(values), probs)
        assert torch.equal(transform.decode(probs), readout)


def test_no_gradient_flows_to_the_values_and_one_flows_through_the_readout():
    values = torch.tensor([1.0], requires_grad=True)
    transform = HLGauss(SUPPORT)
    assert not transform.encode(values).requires_grad
    probs = transform.encode(values).requires_grad_()
    transform.decode(probs).backward()
    torch.testing.assert_close(probs.grad[0], transform.grid().centers)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_the_clip_fraction_counts_values_outside(transform):
    low, high = (
        torch.tensor(x, dtype=torch.float64)
        for x in (transform.support.low, transform.support.high)
    )
    inside, below, above = (low + high) / 2, low - 1, high + 1
    values = transform.scalar.invert(
        torch.stack([inside, below, above, inside, low, high, inside, inside])
    )
    assert transform.clip_fraction(values) == pytest.approx(0.25, abs=0.13)
    assert HLGauss(SUPPORT).clip_fraction(torch.tensor([-11.0, 10.0, -10.0, 12.0])) == 0.5


@pytest.mark.parametrize("transform", COMPILED, ids=repr)
@pytest.mark.usefixtures("without_shape_checks")
def test_encoding_and_decoding_compile_as_one_graph(transform):
    values = values_for(transform, 12, dtype=torch.float32)

    def both(values):
        probs = transform.encode(values)
        return probs, transform.decode(probs)

    got = torch.compile(both, fullgraph=True, backend="aot_eager")(values)
    for one, other in zip(got, both(values), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("without_shape_checks")
def test_the_projection_compiles_as_one_graph():
    case = projection_case()
    compiled = torch.compile(C51(SUPPORT).project, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*case), C51(SUPPORT).project(*case))


@pytest.mark.usefixtures("without_shape_checks")
def test_a_nan_in_a_compiled_graph_stays_in_its_row():
    encode = torch.compile(HLGauss(SUPPORT).encode, fullgraph=True, backend="aot_eager")
    probs = encode(torch.tensor([1.0, math.nan, math.inf]))
    assert probs.isnan().all(-1).tolist() == [False, True, False]
    torch.testing.assert_close(probs[2], HLGauss(SUPPORT).encode(torch.tensor(10.0)))


# Bad input


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ((1.0, 1.0, 51), ValueError, "low must be below high"),
        ((1.0, -1.0, 51), ValueError, "low must be below high"),
        ((-math.inf, 1.0, 51), ValueError, "low must satisfy"),
        ((0.0, math.nan, 51), ValueError, "high must satisfy"),
        ((0.0, 1.0, 1), ValueError, "num_bins must satisfy"),
        ((0.0, 1.0, 51.0), TypeError, "num_bins must be an integer"),
        (("0", 1.0, 51), TypeError, "low must be a number"),
        ((1e6, 1e6 + 1, 51), ValueError, "float32 does not resolve"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_bounds_and_bins_that_make_no_support(bounds, error, message):
    with pytest.raises(error, match=message):
        Support(*bounds)


@pytest.mark.parametrize("ratio", [0.0, -0.75, math.inf, math.nan, 1e-9])
def test_ratios_that_make_no_law(ratio):
    with pytest.raises(ValueError, match="sigma_ratio must satisfy"):
        HLGauss(SUPPORT, ratio)


@pytest.mark.usefixtures("without_shape_checks")
def test_parts_of_another_kind():
    with pytest.raises(TypeError, match=r"support must be a Support, got -10"):
        TwoHot(-10.0)
    with pytest.raises(TypeError, match="such as Symlog"):
        TwoHot(SUPPORT, scalar=Symlog)
    with pytest.raises(TypeError, match="such as Symlog"):
        HLGauss(SUPPORT, scalar=torch.log)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_values_that_are_no_numbers_are_counted_in_the_error(transform, bad):
    with pytest.raises(ValueError, match="values has 1 of 3 numbers that are NaN or infinite"):
        transform.encode(torch.tensor([0.0, bad, 0.5]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        transform.clip_fraction(torch.tensor([bad]))


def test_large_finite_values_are_no_error():
    assert HLGauss(SUPPORT).encode(torch.full((4,), 3e38)).sum() == pytest.approx(4)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
@pytest.mark.usefixtures("without_shape_checks")
def test_values_that_are_not_real(dtype):
    with pytest.raises(TypeError, match="values must be real numbers"):
        HLGauss(SUPPORT).encode(torch.zeros(3, dtype=dtype))


@pytest.mark.usefixtures("without_shape_checks")
def test_a_wrong_last_dimension():
    with pytest.raises(ValueError, match=r"51 bins in the last dimension, got shape \(3, 50\)"):
        HLGauss(SUPPORT).decode(torch.zeros(3, 50))
    with pytest.raises(ValueError, match=r"51 bins in the last dimension, got shape \(3, 50\)"):
        C51(SUPPORT).project(torch.zeros(3, 50), torch.zeros(3), torch.zeros(3))


@pytest.mark.usefixtures("without_shape_checks")
def test_a_projection_broadcasts_nothing_and_takes_no_logits():
    probs, rewards, discounts = projection_case(3)
    with pytest.raises(ValueError, match=r"rewards has shape \(3, 1\).*nothing is broadcast"):
        C51(SUPPORT).project(probs, rewards[:, None], discounts)
    with pytest.raises(ValueError, match=r"discounts has shape \(1,\).*nothing is broadcast"):
        C51(SUPPORT).project(probs, rewards, discounts[:1])
    with pytest.raises(ValueError, match=r"next_probs must be probabilities.*softmax"):
        C51(SUPPORT).project(torch.randn(3, 51), rewards, discounts)
    with pytest.raises(ValueError, match="rewards has 1 of 3 numbers"):
        C51(SUPPORT).project(probs, torch.tensor([0.0, math.nan, 1.0]), discounts)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_a_grid_on_another_device_is_named(transform):
    grid = transform.grid(device="meta")
    with pytest.raises(ValueError, match="the values are on cpu, the grid on meta"):
        transform.encode(torch.zeros(2), grid=grid)
    with pytest.raises(ValueError, match="rewards is on meta, next_probs on cpu"):
        C51(SUPPORT).project(projection_case(2)[0], torch.zeros(2, device="meta"), torch.zeros(2))


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=8))
def test_rows_do_not_depend_on_the_batch(values):
    values = torch.tensor(values, dtype=torch.float32)
    for transform in (HLGauss(SUPPORT), TwoHot(SUPPORT), OneHot(SUPPORT)):
        together = transform.encode(values)
        alone = torch.stack([transform.encode(value) for value in values])
        torch.testing.assert_close(together, alone, atol=1e-7, rtol=1e-6)
