import itertools
import math
import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from selftrain.ops import DIVERGENCES, divergence, sampled_forward_kl, topk_divergence

INF = float("inf")
KINDS = [
    ("forward_kl", {}),
    ("reverse_kl", {}),
    ("jsd", {"beta": 0.5}),
    ("jsd", {"beta": 0.1, "scale": "unit"}),
    ("total_variation", {}),
    ("skew_kl", {"alpha": 0.3}),
    ("skew_reverse_kl", {}),
    ("amari", {"alpha": 0.3}),
]


def logits(*shape, seed=0, scale=1.0, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=rng, dtype=dtype)


def top(t, k, temperature=1.0):
    values, ids = torch.log_softmax(t / temperature, -1).topk(k, -1)
    return ids, values


def coarse(x, ids):
    """The logits of the listed tokens and of the tail, by a sum over the tail's tokens."""
    listed = torch.zeros_like(x, dtype=torch.bool).scatter(-1, ids, True)
    rest = x.masked_fill(listed, -INF).logsumexp(-1, keepdim=True)
    return torch.cat([x.gather(-1, ids), rest], -1)


def value_and_grad(function, s, *args, upstream=None, **kwargs):
    s = s.clone().requires_grad_()
    value = function(s, *args, **kwargs)
    (grad,) = torch.autograd.grad(
        value, s, torch.ones_like(value) if upstream is None else upstream
    )
    return value.detach(), grad


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_it_is_the_divergence_between_the_laws_of_the_listed_tokens_and_the_tail(
    kind, options, temperature
):
    s, t, upstream = logits(2, 5, 11, seed=1), logits(2, 5, 11, seed=2), logits(2, 5, seed=3)
    ids, log_p = top(t, 4, temperature)

    def expected(x):  # differentiated automatically through the coarsening
        z, u = coarse(x / temperature, ids), coarse(t / temperature, ids)
        return divergence(z, u, kind=kind, **options)

    options = {"kind": kind, **options}
    result = value_and_grad(
        topk_divergence, s, ids, log_p, upstream=upstream, temperature=temperature, **options
    )
    del options["kind"]
    for a, b in zip(result, value_and_grad(expected, s, upstream=upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_forward_kl_gradient_is_that_of_the_paper_formula():
    s, t = logits(6, 9, seed=1), logits(6, 9, seed=2)
    ids, log_p = top(t, 3)
    _, grad = value_and_grad(topk_divergence, s, ids, log_p)
    q, p = torch.softmax(s, -1), torch.softmax(t, -1)
    listed = torch.zeros_like(q, dtype=torch.bool).scatter(-1, ids, True)
    p_tail = p.masked_fill(listed, 0).sum(-1, keepdim=True)
    q_tail = q.masked_fill(listed, 0).sum(-1, keepdim=True)
    expected = torch.where(listed, q - p, q * (1 - p_tail / q_tail))
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_gradient_passes_gradcheck(kind, options):
    s = logits(3, 6, seed=1).requires_grad_()
    ids, log_p = top(logits(3, 6, seed=2), 3)
    assert torch.autograd.gradcheck(
        lambda x: topk_divergence(x, ids, log_p, kind=kind, **options), (s,)
    )


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_listing_the_whole_vocabulary_gives_the_full_divergence(kind, options, dtype):
    s, t = logits(5, 300, seed=1, dtype=dtype), logits(5, 300, seed=2, dtype=dtype)
    result = value_and_grad(topk_divergence, s, *top(t, 300), kind=kind, **options)
    for a, b in zip(result, value_and_grad(divergence, s, t, kind=kind, **options), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_it_equals_the_full_divergence_where_the_ratio_is_constant_on_the_tail(kind, options):
    t = logits(5, 12, seed=1)
    ids, log_p = top(t, 4)
    s = (t + 0.7).scatter_add(-1, ids, logits(5, 4, seed=2))
    result = value_and_grad(topk_divergence, s, ids, log_p, kind=kind, **options)
    for a, b in zip(result, value_and_grad(divergence, s, t, kind=kind, **options), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(0.1, 5.0),
    shift=st.floats(-20.0, 20.0),
    k=st.integers(1, 7),
    case=st.sampled_from(KINDS),
)
def test_it_lies_between_zero_and_the_full_divergence(seed, scale, shift, k, case):
    kind, options = case
    s, t = logits(3, 8, seed=seed, scale=scale), logits(3, 8, seed=seed + 1, scale=scale)
    ids, log_p = top(t, k)
    value, grad = value_and_grad(topk_divergence, s, ids, log_p, kind=kind, **options)
    full = divergence(s, t, kind=kind, **options)
    assert (value >= -1e-12).all()
    assert (value <= full * (1 + 1e-9) + 1e-12).all()
    assert grad.sum(-1).abs().max() < 1e-11
    shifted = topk_divergence(s + shift, ids, log_p, kind=kind, **options)
    torch.testing.assert_close(value, shifted, rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 7), case=st.sampled_from(KINDS))
def test_the_order_of_the_entries_does_not_matter(seed, k, case):
    kind, options = case
    s, t = logits(2, 8, seed=seed), logits(2, 8, seed=seed + 1)
    ids, log_p = top(t, k)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    result = value_and_grad(topk_divergence, s, ids, log_p, kind=kind, **options)
    other = value_and_grad(
        topk_divergence, s, ids[..., order], log_p[..., order], kind=kind, **options
    )
    for a, b in zip(result, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_equal_models_have_no_divergence_and_no_gradient(kind, options):
    t = logits(5, 1000, seed=1, scale=3.0, dtype=torch.float32)
    value, grad = value_and_grad(topk_divergence, t, *top(t, 20), kind=kind, **options)
    assert value.abs().max() < 1e-6
    # Total variation jumps at ties, which rounding breaks: 0 is only one of its gradients there.
    assert kind == "total_variation" or grad.abs().max() < 1e-6


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("gap", [5.0, 15.0, 40.0, 200.0])
def test_a_student_tail_of_little_mass_keeps_its_relative_precision(kind, options, gap):
    # Four tokens hold all but about exp(-gap) of the student's mass; 1 - Q would be 0 in float32.
    s = logits(6, 2000, seed=1, dtype=torch.float32) - gap
    s[:, :4] += gap
    ids = torch.arange(4).expand(6, 4)
    log_p = torch.log_softmax(logits(6, 5, seed=2), -1)[:, :4].float()
    value, grad = value_and_grad(topk_divergence, s, ids, log_p, kind=kind, **options)
    expected_value, expected = value_and_grad(
        topk_divergence, s.double(), ids, log_p.double(), kind=kind, **options
    )
    torch.testing.assert_close(value.double(), expected_value, rtol=1e-5, atol=1e-7)
    if gap < 60.0:  # float32 holds no smaller gradient
        error = (grad.double() - expected)[:, 4:].norm() / expected[:, 4:].norm()
        assert error < 1e-4


@pytest.mark.parametrize("rest", [1e-3, 1e-6])
def test_a_teacher_tail_is_as_precise_as_its_log_probabilities(rest):
    # ln(1 - rest) in float32 determines the tail to eps / rest; no formula can know more.
    log_p = torch.tensor([[math.log1p(-rest)]])
    ids = torch.tensor([[0]])
    s = torch.zeros(1, 2)
    _, grad = value_and_grad(topk_divergence, s, ids, log_p)
    assert grad[0, 1].item() == pytest.approx(0.5 - rest, abs=2e-7)


def test_a_teacher_tail_below_the_resolution_gives_a_large_reverse_kl_not_an_infinite_one():
    log_p = torch.tensor([[0.0]])
    value, grad = value_and_grad(
        topk_divergence, torch.zeros(1, 2), torch.tensor([[0]]), log_p, kind="reverse_kl"
    )
    eps = torch.finfo(torch.float32).eps
    assert value.item() == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / eps), rel=1e-5)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_an_entry_of_no_probability_is_no_entry_whatever_its_id(kind):
    s, t = logits(4, 9, seed=1), logits(4, 9, seed=2)
    ids, log_p = top(t, 3)
    padded_ids = torch.cat([ids, ids[:, :1], ids[:, :1].add(1).remainder(9)], -1)
    padded = torch.cat([log_p, torch.full((4, 2), -INF, dtype=log_p.dtype)], -1)
    result = value_and_grad(topk_divergence, s, padded_ids, padded, kind=kind)
    for a, b in zip(result, value_and_grad(topk_divergence, s, ids, log_p, kind=kind), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("k", [3, 6])
def test_tokens_banned_in_both_models_change_nothing(kind, k):
    s, t = logits(4, 6, seed=1, dtype=torch.float32), logits(4, 6, seed=2, dtype=torch.float32)
    expected_value, expected_grad = value_and_grad(topk_divergence, s, *top(t, k), kind=kind)
    banned = torch.full((4, 2), -INF)
    wide, ids_and_log_p = torch.cat([s, banned], 1), top(torch.cat([t, banned], 1), k)
    value, grad = value_and_grad(topk_divergence, wide, *ids_and_log_p, kind=kind)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(grad[:, :-2], expected_grad)
    assert (grad[:, -2:] == 0).all()


def test_one_sided_bans_give_infinity_or_finite_values_by_definition():
    ids, log_half = torch.tensor([[0]]), torch.tensor([[0.5]]).log()
    only_listed = torch.tensor([[0.0, -INF, -INF]])  # q = (1, 0, 0), p = (1/2, tail 1/2)
    assert topk_divergence(only_listed, ids, log_half).item() == INF
    reverse = topk_divergence(only_listed, ids, log_half, kind="reverse_kl")
    assert reverse.item() == pytest.approx(math.log(2))
    only_tail = torch.tensor([[-INF, 0.0, 0.0]])  # q = (0, 1/2, 1/2)
    assert topk_divergence(only_tail, ids, log_half).item() == INF
    for kind in ("jsd", "total_variation", "skew_kl", "skew_reverse_kl", "amari"):
        for s in (only_listed, only_tail):
            value, grad = value_and_grad(topk_divergence, s, ids, log_half, kind=kind)
            assert torch.isfinite(value).all(), kind
            assert torch.isfinite(grad).all(), kind


def test_rows_are_independent_however_many_are_taken_at_once():
    s, t = logits(37, 30_000, seed=1), logits(37, 30_000, seed=2)
    ids, log_p = top(t, 5)
    together = value_and_grad(topk_divergence, s, ids, log_p)
    alone = [
        value_and_grad(topk_divergence, s[i : i + 1], ids[i : i + 1], log_p[i : i + 1])
        for i in range(37)
    ]
    for result, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(result, torch.cat(parts), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_float32_loss_and_its_own_gradient_type(dtype):
    s = logits(3, 70, seed=1).to(dtype)
    ids, log_p = top(logits(3, 70, seed=2), 5)
    value, grad = value_and_grad(topk_divergence, s, ids, log_p.to(dtype))
    assert (value.dtype, grad.dtype) == (torch.float32, dtype)
    exact, _ = value_and_grad(topk_divergence, s.double(), ids, log_p.to(dtype).double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_log_probabilities_rounded_above_a_sum_of_one_still_give_a_divergence(kind, options):
    t = logits(50, 200, seed=2, scale=6.0)
    ids, log_p = top(t, 30)
    rounded = log_p.bfloat16()
    assert (rounded.double().logsumexp(-1) > 1e-4).any()  # the case occurs
    value, grad = value_and_grad(topk_divergence, t.float(), ids, rounded, kind=kind, **options)
    assert (value >= -1e-6).all()
    assert grad.sum(-1).abs().max() < 1e-5


def test_no_positions_give_an_empty_result_and_a_zero_gradient():
    s = torch.zeros(4, 7, requires_grad=True)
    topk_divergence(s[:0], torch.zeros(0, 2, dtype=torch.int32), torch.zeros(0, 2)).sum().backward()
    assert (s.grad == 0).all()


def test_nan_logits_give_nan_not_a_number_that_looks_right():
    ids, log_p = top(logits(1, 4, dtype=torch.float32), 2)
    for kind in DIVERGENCES:
        for place in range(4):
            s = torch.zeros(1, 4)
            s[0, place] = float("nan")
            assert topk_divergence(s, ids, log_p, kind=kind).isnan().all(), (kind, place)


def test_no_gradient_reaches_the_teacher():
    ids, log_p = top(logits(3, 7, seed=2), 2)
    log_p.requires_grad_()
    topk_divergence(logits(3, 7).requires_grad_(), ids, log_p).sum().backward()
    assert log_p.grad is None


def test_without_the_tail_the_sum_is_truncated_and_the_user_warned():
    s, t = logits(3, 7, seed=1), logits(3, 7, seed=2)
    ids, log_p = top(t, 3)
    with pytest.warns(UserWarning, match="can be negative"):
        result = value_and_grad(topk_divergence, s, ids, log_p, tail=False)

    def truncated(x):
        return (log_p.exp() * (log_p - torch.log_softmax(x, -1).gather(-1, ids))).sum(-1)

    for a, b in zip(result, value_and_grad(truncated, s), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_without_the_tail_the_warning_comes_once_in_a_loop():
    ids, log_p = top(logits(3, 7, seed=2), 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            topk_divergence(logits(3, 7), ids, log_p, tail=False)
    assert len(caught) == 1


@pytest.mark.parametrize("kind", [kind for kind in DIVERGENCES if kind != "forward_kl"])
def test_without_the_tail_other_kinds_are_refused_with_the_reason(kind):
    ids, log_p = top(logits(3, 7, seed=2), 3)
    with pytest.raises(ValueError, match="are no divergences and can fall as the student moves"):
        topk_divergence(logits(3, 7), ids, log_p, kind=kind, tail=False)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("without_shape_checks")
def test_it_compiles_without_graph_breaks(kind, tail):
    if not tail and kind != "forward_kl":
        return
    s, (ids, log_p) = logits(4, 9, seed=1), top(logits(4, 9, seed=2), 3)
    compiled = torch.compile(topk_divergence, fullgraph=True, backend="eager")
    result = value_and_grad(compiled, s, ids, log_p, kind=kind, tail=tail)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = value_and_grad(topk_divergence, s, ids, log_p, kind=kind, tail=tail)
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b)


IDS, LOG_P = torch.tensor([[0, 1]]), torch.tensor([[-1.0, -2.0]])


@pytest.mark.parametrize(
    ("ids", "log_p", "error", "message"),
    [
        (IDS.float(), LOG_P, TypeError, "must be integers, got a tensor of torch.float32"),
        (IDS[0], LOG_P, ValueError, r"shape \(2,\).*\(1, 2\).*nothing is broadcast"),
        (IDS, LOG_P[0], ValueError, "nothing is broadcast"),
        (torch.tensor([[0, 1, 2, 3]]), torch.zeros(1, 4), ValueError, "vocabulary of 3. Slice"),
        (IDS[:, :0], LOG_P[:, :0], ValueError, "there are 0 token ids"),
        (IDS, LOG_P + 2.5, ValueError, "probability of 6.1.*log_softmax first"),
        (IDS, LOG_P * float("nan"), ValueError, "probability of nan"),
        (torch.tensor([[1, 1]]), LOG_P, ValueError, "repeats a token"),
        (torch.tensor([[1, 3]]), LOG_P, ValueError, "0 to 2, got 3"),
        (torch.tensor([[-1, 2]]), LOG_P, ValueError, "got -1. To pad"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_a_teacher_that_does_not_fit_is_an_error(ids, log_p, error, message):
    with pytest.raises(error, match=message):
        topk_divergence(torch.zeros(1, 3), ids, log_p)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "kl"}, "kind must be one of 'forward_kl'"),
        ({"kind": "jsd", "beta": -0.1}, "beta must satisfy"),
        ({"temperature": 0.0}, "temperature must satisfy 0.0 < temperature"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_arguments_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        topk_divergence(torch.zeros(1, 3), IDS, LOG_P, **options)


# Samples of the teacher.


def all_draws(p, n):
    """Every sequence of ``n`` tokens with its probability."""
    for tokens in itertools.product(range(len(p)), repeat=n):
        yield tokens, math.prod(p[i].item() for i in tokens)


def counted(tokens, vocab):
    counts = torch.bincount(torch.tensor(tokens), minlength=vocab)
    return torch.arange(vocab)[None], counts[None]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_expected_gradient_of_samples_is_that_of_forward_kl(temperature):
    s, t = logits(1, 4, seed=1), logits(1, 4, seed=2)
    p = torch.softmax(t / temperature, -1)[0]
    mean = torch.zeros_like(s)
    for tokens, weight in all_draws(p, 3):
        _, grad = value_and_grad(
            sampled_forward_kl, s, *counted(tokens, 4), temperature=temperature
        )
        mean += weight * grad
    _, expected = value_and_grad(divergence, s, t, kind="forward_kl", temperature=temperature)
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-14)


def test_expected_value_of_samples_is_too_large_by_an_amount_the_student_does_not_change():
    p = torch.softmax(logits(4, seed=2), -1)
    excess = []
    for seed in (1, 5):
        s = logits(1, 4, seed=seed)
        mean = sum(w * sampled_forward_kl(s, *counted(y, 4)) for y, w in all_draws(p, 3))
        excess.append(mean - divergence(s, p.log()[None], kind="forward_kl"))
    kl_to_p = 0.0
    for tokens, weight in all_draws(p, 3):
        share = counted(tokens, 4)[1][0].double() / 3
        kl_to_p += weight * torch.special.xlogy(share, share / p).sum().item()
    assert excess[0].item() == pytest.approx(kl_to_p, rel=1e-10)
    assert excess[1].item() == pytest.approx(kl_to_p, rel=1e-10)


def test_truncating_to_the_top_has_a_biased_gradient_where_samples_have_none():
    s, t = logits(1, 6, seed=1), logits(1, 6, seed=2)
    _, exact = value_and_grad(divergence, s, t, kind="forward_kl")
    _, truncated = value_and_grad(topk_divergence, s, *top(t, 2))
    assert (truncated - exact).norm() > 0.05 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
def test_sample_gradient_is_student_minus_share_of_the_draws(dtype):
    s = logits(2, 5, seed=1)
    ids, counts = torch.tensor([[4, 2, 0], [1, 0, 0]]), torch.tensor([[3, 1, 0], [2, 0, 0]])
    value, grad = value_and_grad(sampled_forward_kl, s, ids, counts.to(dtype))
    share = torch.tensor([[0, 0, 0.25, 0, 0.75], [0, 1, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(grad, torch.softmax(s, -1) - share)
    log_q = torch.log_softmax(s, -1)
    torch.testing.assert_close(
        value, torch.special.xlogy(share, share).sum(-1) - (share * log_q).sum(-1)
    )
    assert torch.autograd.gradcheck(
        lambda x: sampled_forward_kl(x, ids, counts), (s.requires_grad_(),)
    )


def test_a_position_without_samples_has_no_value_and_no_gradient():
    s = logits(1, 5, dtype=torch.float32)
    counts = torch.zeros(1, 2, dtype=torch.int64)
    value, grad = value_and_grad(sampled_forward_kl, s, IDS, counts)
    assert value.item() == 0
    assert (grad == 0).all()


def test_an_undrawn_token_banned_by_the_student_changes_nothing():
    s = torch.tensor([[0.0, 1.0, -INF]])
    value, grad = value_and_grad(
        sampled_forward_kl, s, torch.tensor([[0, 2]]), torch.tensor([[4, 0]])
    )
    torch.testing.assert_close(value, -torch.log_softmax(s, -1)[:, 0])
    torch.testing.assert_close(grad, torch.softmax(s, -1) - torch.tensor([[1.0, 0.0, 0.0]]))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("without_shape_checks")
def test_samples_compile_without_graph_breaks():
    s, ids, counts = logits(2, 5), torch.tensor([[0, 3], [1, 2]]), torch.tensor([[1, 2], [3, 0]])
    compiled = torch.compile(sampled_forward_kl, fullgraph=True, backend="eager")
    expected = value_and_grad(sampled_forward_kl, s, ids, counts)
    for a, b in zip(value_and_grad(compiled, s, ids, counts), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        (IDS, torch.tensor([[1, -1]]), "counts must be at least 0, got -1"),
        (IDS, torch.tensor([[1, 1, 1]]), "nothing is broadcast"),
        (torch.tensor([[2, 2]]), torch.tensor([[1, 1]]), "repeats a token"),
        (torch.tensor([[2, 3]]), torch.tensor([[1, 1]]), "0 to 2, got 3"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_samples_that_do_not_fit_are_an_error(ids, counts, message):
    with pytest.raises(ValueError, match=message):
        sampled_forward_kl(torch.zeros(1, 3), ids, counts)
