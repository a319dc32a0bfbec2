import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from selftrain.ops import (
    DIVERGENCES,
    amari_divergence,
    divergence,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)

CASES = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {"beta": 0.5}),
    ("jsd", {"beta": 0.1}),
    ("jsd", {"beta": 0.9, "scale": "unit"}),
    ("jsd", {"beta": 0.0}),
    ("jsd", {"beta": 1.0, "scale": "unit"}),
    ("total_variation", {}),
    ("skew_kl", {}),
    ("skew_kl", {"alpha": 0.0}),
    ("skew_kl", {"alpha": 0.7}),
    ("skew_reverse_kl", {}),
    ("skew_reverse_kl", {"alpha": 0.0}),
    ("skew_reverse_kl", {"alpha": 0.7}),
    ("amari", {}),
    ("amari", {"alpha": 0.0}),
    ("amari", {"alpha": 0.5}),
    ("amari", {"alpha": 0.8}),
    ("amari", {"alpha": 1.0}),
]
INF = float("inf")


def logits(*shape, seed=0, scale=1.0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=rng, dtype=dtype)


def plain(s, t, kind, beta=0.5, alpha=0.1, scale="paper", temperature=1.0):
    """The textbook formulas, differentiated automatically."""
    lq, lp = torch.log_softmax(s / temperature, -1), torch.log_softmax(t / temperature, -1)
    q, p = lq.exp(), lp.exp()
    if kind == "total_variation":
        return 0.5 * (p - q).abs().sum(-1)
    if kind == "forward_kl" or (kind, beta) == ("jsd", 0) or (kind, alpha) == ("amari", 1):
        return (p * (lp - lq)).sum(-1)
    if kind == "reverse_kl" or (kind, beta) == ("jsd", 1) or (kind, alpha) == ("amari", 0):
        return (q * (lq - lp)).sum(-1)
    if kind == "skew_kl":
        return (p * (lp - (alpha * p + (1 - alpha) * q).log())).sum(-1)
    if kind == "skew_reverse_kl":
        return (q * (lq - ((1 - alpha) * p + alpha * q).log())).sum(-1)
    if kind == "amari":
        return ((p**alpha * q ** (1 - alpha)).sum(-1) - 1) / (alpha * (alpha - 1))
    lm = torch.logaddexp(lp + math.log(beta), lq + math.log(1 - beta))
    value = beta * (p * (lp - lm)).sum(-1) + (1 - beta) * (q * (lq - lm)).sum(-1)
    return value / (beta * (1 - beta)) if scale == "unit" else value


def value_and_grad(function, s, t, upstream=None, **kwargs):
    s = s.clone().requires_grad_()
    value = function(s, t, **kwargs)
    (grad,) = torch.autograd.grad(
        value, s, torch.ones_like(value) if upstream is None else upstream
    )
    return value.detach(), grad


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_value_and_gradient_equal_automatic_differentiation(kind, options, temperature):
    s, t = logits(4, 3, 11, seed=1), logits(4, 3, 11, seed=2)
    upstream = logits(4, 3, seed=3)
    options = {"kind": kind, "temperature": temperature, **options}
    value, grad = value_and_grad(divergence, s, t, upstream, **options)
    expected_value, expected_grad = value_and_grad(plain, s, t, upstream, **options)
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_gradient_passes_gradcheck(kind, options):
    s, t = logits(3, 6, seed=1).requires_grad_(), logits(3, 6, seed=2)
    assert torch.autograd.gradcheck(lambda x: divergence(x, t, kind=kind, **options), (s,))


def test_rows_are_independent_however_many_are_taken_at_once():
    s, t = logits(37, 30_000, seed=1), logits(37, 30_000, seed=2)
    together = value_and_grad(divergence, s, t)
    alone = [value_and_grad(divergence, s[i : i + 1], t[i : i + 1]) for i in range(37)]
    for result, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(result, torch.cat(parts), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_equal_models_have_no_divergence_and_no_gradient(kind, options):
    s = logits(5, 1000, seed=1, scale=3.0, dtype=torch.float32)
    # Rounding in a shift would break the ties at which alone total variation has gradient 0.
    t = s if kind == "total_variation" else s + 7.0
    value, grad = value_and_grad(divergence, s, t, kind=kind, **options)
    assert value.abs().max() < 1e-6
    assert grad.abs().max() < 1e-6


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0.1, 5.0),
    shift=st.floats(-20.0, 20.0),
    case=st.sampled_from(CASES),
)
def test_divergence_is_nonnegative_and_blind_to_shifts_of_the_logits(seed, scale, shift, case):
    kind, options = case
    s, t = logits(3, 8, seed=seed, scale=scale), logits(3, 8, seed=seed + 1, scale=scale)
    value, grad = value_and_grad(divergence, s, t, kind=kind, **options)
    shifted, _ = value_and_grad(divergence, s + shift, t - shift, kind=kind, **options)
    assert (value >= -1e-12).all()
    torch.testing.assert_close(value, shifted, rtol=1e-9, atol=1e-12)
    assert grad.sum(-1).abs().max() < 1e-12


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 6.0), beta=st.floats(0.01, 0.99))
def test_bounds_between_divergences_hold(seed, scale, beta):
    s, t = logits(4, 7, seed=seed, scale=scale), logits(4, 7, seed=seed + 1, scale=scale)
    tv, jsd, half = total_variation(s, t), generalized_jsd(s, t, beta=beta), generalized_jsd(s, t)
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    slack = 1e-12
    assert ((tv >= 0) & (tv <= 1 + slack)).all()
    assert (jsd <= entropy + slack).all()
    assert (tv <= torch.sqrt(torch.minimum(forward_kl(s, t), reverse_kl(s, t)) / 2) + slack).all()
    assert (tv**2 / 2 <= half + slack).all()
    assert (half <= math.log(2) * tv + slack).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.integers(0, 2**30))
def test_swapping_the_models_swaps_beta(seed, share):
    beta = share / 2**30
    s, t = logits(3, 7, seed=seed), logits(3, 7, seed=seed + 1)
    for scale in ("paper", "unit"):
        torch.testing.assert_close(
            generalized_jsd(s, t, beta=beta, scale=scale),
            generalized_jsd(t, s, beta=1 - beta, scale=scale),
            rtol=1e-9,
            atol=1e-12,
        )


@pytest.mark.parametrize(("beta", "limit"), [(1e-4, forward_kl), (1 - 1e-4, reverse_kl)])
def test_unit_jsd_tends_to_the_kl_divergences(beta, limit):
    s, t = logits(64, 500, seed=1), logits(64, 500, seed=2)
    value = generalized_jsd(s, t, beta=beta, scale="unit")
    torch.testing.assert_close(value, limit(s, t), rtol=1e-2, atol=0)


@pytest.mark.parametrize("beta", [1e-6, 1e-4, 1 - 1e-4, 1 - 1e-6])
def test_unit_jsd_keeps_its_precision_in_float32_near_the_ends(beta):
    s, t = logits(16, 200, seed=1), logits(16, 200, seed=2)
    exact = value_and_grad(generalized_jsd, s, t, beta=beta, scale="unit")
    result = value_and_grad(generalized_jsd, s.float(), t.float(), beta=beta, scale="unit")
    for a, b in zip(result, exact, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()


@pytest.mark.parametrize("scale", ["paper", "unit"])
def test_the_ends_of_beta_are_the_kl_divergences(scale):
    s, t = logits(5, 9, seed=1), logits(5, 9, seed=2)
    for beta, limit in ((0.0, forward_kl), (1.0, reverse_kl)):
        assert torch.equal(generalized_jsd(s, t, beta=beta, scale=scale), limit(s, t))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 3.0), share=st.floats(0.01, 0.99))
def test_jsd_is_the_mean_of_the_skew_divergences(seed, scale, share):
    s, t = logits(3, 7, seed=seed, scale=scale), logits(3, 7, seed=seed + 1, scale=scale)
    expected = share * skew_kl(s, t, alpha=share)
    expected += (1 - share) * skew_reverse_kl(s, t, alpha=1 - share)
    torch.testing.assert_close(generalized_jsd(s, t, beta=share), expected, rtol=1e-9, atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 3.0), alpha=st.floats(0.01, 0.99))
def test_swapping_the_models_swaps_the_skew_divergences_and_the_end_of_amari(seed, scale, alpha):
    s, t = logits(3, 7, seed=seed, scale=scale), logits(3, 7, seed=seed + 1, scale=scale)
    for a, b in (
        (skew_kl(s, t, alpha=alpha), skew_reverse_kl(t, s, alpha=alpha)),
        (amari_divergence(s, t, alpha=alpha), amari_divergence(t, s, alpha=1 - alpha)),
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 50.0), alpha=st.floats(0.01, 0.99))
def test_bounds_of_skew_and_amari_divergences_hold(seed, scale, alpha):
    s, t = logits(4, 7, seed=seed, scale=scale), logits(4, 7, seed=seed + 1, scale=scale)
    slack = 1e-12
    forward, reverse = skew_kl(s, t, alpha=alpha), skew_reverse_kl(s, t, alpha=alpha)
    assert (torch.maximum(forward, reverse) <= -math.log(alpha) + slack).all()
    # Convexity: a mixture is nearer than its far end by at least the share of the near one.
    assert (forward <= (1 - alpha) * forward_kl(s, t) + slack).all()
    assert (reverse <= (1 - alpha) * reverse_kl(s, t) + slack).all()
    amari = amari_divergence(s, t, alpha=alpha)
    assert (amari <= (1 + slack) / (alpha * (1 - alpha))).all()


def test_amari_at_one_half_is_four_times_the_squared_hellinger_distance():
    s, t = logits(5, 9, seed=1), logits(5, 9, seed=2)
    roots = torch.softmax(s, -1).sqrt() - torch.softmax(t, -1).sqrt()
    torch.testing.assert_close(
        amari_divergence(s, t, alpha=0.5), 4 * 0.5 * roots.square().sum(-1), rtol=1e-12, atol=0
    )


LIMITS = [
    (amari_divergence, 0.0, reverse_kl),
    (amari_divergence, 1.0, forward_kl),
    (skew_kl, 0.0, forward_kl),
    (skew_reverse_kl, 0.0, reverse_kl),
]


@pytest.mark.parametrize(("function", "end", "limit"), LIMITS)
def test_the_ends_of_alpha_are_the_kl_divergences(function, end, limit):
    s, t = logits(5, 9, seed=1), logits(5, 9, seed=2)
    assert torch.equal(function(s, t, alpha=end), limit(s, t))


@pytest.mark.parametrize(("function", "end", "limit"), LIMITS)
@pytest.mark.parametrize("step", [1e-3, 1e-5])
def test_near_the_ends_of_alpha_value_and_gradient_tend_to_the_kl_divergences(
    function, end, limit, step
):
    # Narrow logits: the first-order term is a mean of p/q, which is large for wide ones.
    s, t = logits(64, 500, seed=1, scale=0.5), logits(64, 500, seed=2, scale=0.5)
    result = value_and_grad(function, s, t, alpha=abs(end - step))
    for a, b in zip(result, value_and_grad(limit, s, t), strict=True):
        assert (a - b).norm() < 10 * step * b.norm()


@pytest.mark.parametrize("alpha", [1e-6, 1e-4, 1 - 1e-4, 1 - 1e-6])
def test_amari_keeps_its_precision_in_float32_near_the_ends(alpha):
    s, t = logits(16, 200, seed=1), logits(16, 200, seed=2)
    exact = value_and_grad(amari_divergence, s, t, alpha=alpha)
    result = value_and_grad(amari_divergence, s.float(), t.float(), alpha=alpha)
    for a, b in zip(result, exact, strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()


@pytest.mark.parametrize(("kind", "options"), [case for case in CASES if "alpha" in case[1]])
def test_alpha_kinds_keep_their_precision_where_probabilities_differ_by_many_orders(kind, options):
    # Ratios beyond e^80, where the formulas clamp, on both sides.
    s, t = logits(16, 50, seed=1, scale=40.0), logits(16, 50, seed=2, scale=40.0)
    exact = value_and_grad(divergence, s.float().double(), t.float().double(), kind=kind, **options)
    result = value_and_grad(divergence, s.float(), t.float(), kind=kind, **options)
    for a, b in zip(result, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["jsd", "skew_kl", "skew_reverse_kl", "amari"])
@pytest.mark.parametrize("parameter", [0.1, 0.5, 0.9])
def test_small_values_are_precise_in_float32(kind, parameter):
    t = logits(8, 5000, seed=2, dtype=torch.float32)
    s = t + 0.01 * logits(8, 5000, seed=1, dtype=torch.float32)
    options = {"beta": parameter, "alpha": parameter}
    exact = divergence(s.double(), t.double(), kind=kind, **options)
    assert exact.max() < 1e-4
    value = divergence(s, t, kind=kind, **options)
    torch.testing.assert_close(value.double(), exact, rtol=2e-3, atol=0)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_banned_in_both_models_changes_nothing(kind, dtype):
    s, t = logits(4, 6, seed=1, dtype=dtype), logits(4, 6, seed=2, dtype=dtype)
    banned = torch.full((4, 1), -INF, dtype=dtype)
    expected_value, expected_grad = value_and_grad(divergence, s, t, kind=kind)
    value, grad = value_and_grad(
        divergence, torch.cat([s, banned], 1), torch.cat([t, banned], 1), kind=kind
    )
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(grad[:, :-1], expected_grad)
    assert (grad[:, -1] == 0).all()


def test_one_sided_bans_give_infinity_or_finite_values_by_definition():
    free, banned = torch.zeros(1, 2), torch.tensor([[0.0, -INF]])
    # q = (1/2, 1/2), p = (1, 0)
    assert forward_kl(free, banned).item() == pytest.approx(math.log(2))
    assert reverse_kl(free, banned).item() == INF
    assert total_variation(free, banned).item() == 0.5
    # q = (1, 0), p = (1/2, 1/2)
    assert forward_kl(banned, free).item() == INF
    assert reverse_kl(banned, free).item() == pytest.approx(math.log(2))
    # m = (3/4, 1/4): KL(p||m) and KL(q||m) of the textbook
    expected = 0.5 * (0.5 * math.log(2 / 3) + 0.5 * math.log(2)) + 0.5 * math.log(4 / 3)
    assert generalized_jsd(banned, free).item() == pytest.approx(expected, rel=1e-5)
    # q = (1, 0), p = (1/2, 1/2), m = (p + q) / 2 = (3/4, 1/4); sum sqrt(p q) = sqrt(1/2)
    expected = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert skew_kl(banned, free, alpha=0.5).item() == pytest.approx(expected, rel=1e-5)
    assert skew_reverse_kl(banned, free, alpha=0.5).item() == pytest.approx(math.log(4 / 3))
    assert amari_divergence(banned, free, alpha=0.5).item() == pytest.approx(4 - 4 * 0.5**0.5)
    assert skew_kl(free, banned, alpha=0.5).item() == pytest.approx(math.log(4 / 3))
    assert skew_reverse_kl(free, banned, alpha=0.5).item() == pytest.approx(expected, rel=1e-5)


BOUNDED = [
    case
    for case in CASES
    if case[0] not in ("forward_kl", "reverse_kl")
    and not {case[1].get("beta"), case[1].get("alpha")} & {0.0, 1.0}
]


@pytest.mark.parametrize(("kind", "options"), BOUNDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounded_divergences_and_their_gradients_are_finite_whatever_the_bans(kind, options, dtype):
    s = torch.tensor([[0.0, -INF, 0.0, -INF], [0.0, 0.0, -INF, -INF]], dtype=dtype)
    t = torch.tensor([[0.0, 0.0, -INF, -INF], [-INF, -INF, 0.0, 0.0]], dtype=dtype)
    value, grad = value_and_grad(divergence, s, t, kind=kind, **options)
    assert torch.isfinite(value).all()
    assert torch.isfinite(grad).all()
    assert grad.sum(-1).abs().max() < 1e-6
    assert (grad[s == -INF] == 0).all()
    # A ban is the limit of a logit that falls.
    low, high = s.clamp(min=-60.0).double(), t.clamp(min=-60.0).double()
    near, near_grad = value_and_grad(divergence, low, high, kind=kind, **options)
    torch.testing.assert_close(value.double(), near, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(grad.double(), near_grad, rtol=1e-2, atol=1e-2)


def test_forward_kl_gradient_is_finite_where_the_student_has_no_mass():
    s, t = torch.tensor([[0.0, 0.0, -INF]]), torch.tensor([[0.0, 1.0, -INF]])
    _, grad = value_and_grad(forward_kl, s, t)
    torch.testing.assert_close(grad, torch.softmax(s, -1) - torch.softmax(t, -1))


def test_extreme_logits_stay_finite():
    s = torch.tensor([[300.0, 0.0, -300.0]])
    for kind in DIVERGENCES:
        value, grad = value_and_grad(divergence, s, -s, kind=kind)
        assert torch.isfinite(value).all(), kind
        assert torch.isfinite(grad).all(), kind


def test_nan_logits_give_nan_not_a_number_that_looks_right():
    s = torch.tensor([[0.0, float("nan"), 1.0]])
    for kind in DIVERGENCES:
        assert divergence(s, torch.zeros(1, 3), kind=kind).isnan().all(), kind


@pytest.mark.parametrize(
    # Rounding makes and breaks ties of probabilities, at which total variation has its jumps.
    ("kind", "options"),
    [case for case in CASES if case[0] != "total_variation"],
)
@pytest.mark.parametrize("noise", [1.0, 0.01])
def test_gradient_of_bfloat16_logits_is_within_a_thousandth(kind, options, noise):
    t = logits(8, 32_000, seed=2, scale=2.0).bfloat16()
    s = (t.double() + logits(8, 32_000, seed=1, scale=noise)).bfloat16()
    _, exact = value_and_grad(divergence, s.double(), t.double(), kind=kind, **options)
    # The leaf is float32 so that only the loss's own error is measured, not the leaf's rounding.
    _, grad = value_and_grad(divergence, s.float(), t, kind=kind, **options)
    assert (grad - exact).norm() / exact.norm() < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_a_float32_loss_and_their_own_gradient_type(dtype):
    s, t = logits(3, 7, seed=1).to(dtype), logits(3, 7, seed=2).to(dtype)
    value, grad = value_and_grad(divergence, s, t)
    assert value.dtype == torch.float32
    assert grad.dtype == dtype


def test_no_gradient_reaches_the_teacher():
    s, t = logits(3, 7, seed=1).requires_grad_(), logits(3, 7, seed=2).requires_grad_()
    divergence(s, t).sum().backward()
    assert t.grad is None


def test_no_positions_give_an_empty_result_and_a_zero_gradient():
    s = torch.zeros(4, 7, requires_grad=True)
    divergence(s[:0], torch.zeros(0, 7)).sum().backward()
    assert (s.grad == 0).all()


def test_noncontiguous_logits_are_read_by_their_strides():
    s, t = logits(7, 5, seed=1).T, logits(7, 5, seed=2).T
    expected = value_and_grad(divergence, s.contiguous(), t.contiguous())
    for a, b in zip(value_and_grad(divergence, s, t), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", DIVERGENCES)
# Dynamo itself makes an instance of the autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("without_shape_checks")
def test_it_compiles_without_graph_breaks(kind):
    s, t = logits(4, 9, seed=1), logits(4, 9, seed=2)
    compiled = torch.compile(divergence, fullgraph=True, backend="eager")
    result = value_and_grad(compiled, s, t, kind=kind)
    for a, b in zip(result, value_and_grad(divergence, s, t, kind=kind), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("without_shape_checks")
def test_unknown_kind_lists_the_known_ones():
    with pytest.raises(ValueError, match="'forward_kl', 'reverse_kl', 'jsd', 'total_variation'"):
        divergence(torch.zeros(2), torch.zeros(2), kind="kl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "skew_kl", "alpha": -0.1}, "alpha must satisfy 0.0 <= alpha < 1.0, got -0.1"),
        ({"kind": "skew_kl", "alpha": 1.0}, "got 1.0. At 1 the mixture is the law it is compared"),
        ({"kind": "skew_reverse_kl", "alpha": 1.0}, "the divergence 0 whatever the student does"),
        ({"kind": "amari", "alpha": 2.0}, "0.0 <= alpha <= 1.0, got 2.0. Outside, powers of the"),
        ({"kind": "amari", "alpha": -1.0}, "got -1.0. Outside, powers of the ratio"),
        ({"kind": "amari", "alpha": float("nan")}, "got nan"),
        ({"beta": 1.5}, "beta must satisfy 0.0 <= beta <= 1.0, got 1.5"),
        ({"temperature": 0.0}, "temperature must satisfy 0.0 < temperature"),
        ({"scale": "half"}, "scale must be one of 'paper', 'unit'"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_arguments_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        divergence(torch.zeros(2), torch.zeros(2), **options)


@pytest.mark.usefixtures("without_shape_checks")
def test_an_alpha_that_is_no_number_is_an_error():
    with pytest.raises(TypeError, match="alpha must be a number, got 'half'"):
        divergence(torch.zeros(2), torch.zeros(2), kind="amari", alpha="half")


@pytest.mark.usefixtures("without_shape_checks")
def test_vocabularies_of_different_size_are_an_error_that_names_the_way_out():
    with pytest.raises(ValueError, match=r"teacher_logits\[\.\.\., :2\]"):
        divergence(torch.zeros(3, 2), torch.zeros(3, 4))
