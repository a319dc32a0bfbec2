"""Cross entropies of values: against definitions, automatic differentiation and encoded targets."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from value_cases import COMPILED, SUPPORT, TRANSFORMS, values_for

from selftrain.ops import HLGauss, Support, TwoHot, categorical_cross_entropy


def logits_for(transform, num=40, *, dtype=torch.float64, spread=3.0, seed=0):
    rng = torch.Generator().manual_seed(seed)
    drawn = spread * torch.randn(
        num, transform.support.num_bins, generator=rng, dtype=torch.float64
    )
    return drawn.to(dtype)


def by_definition(logits, probs):
    return -(probs * torch.log_softmax(logits, -1)).sum(-1)


def value_and_grad(function, logits, *arguments):
    leaf = logits.detach().clone().requires_grad_()
    value = function(leaf, *arguments)
    rng = torch.Generator().manual_seed(1)
    weights = torch.rand(value.shape, generator=rng, dtype=value.dtype)
    return value.detach(), torch.autograd.grad((weights * value).sum(), leaf)[0]


def assert_same(got, want, **tolerance):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_the_loss_of_values_is_that_of_their_codes(transform):
    values, logits = values_for(transform, 40), logits_for(transform)
    got = value_and_grad(transform.cross_entropy, logits, values)
    want = value_and_grad(by_definition, logits, transform.encode(values))
    # The window of HL-Gauss leaves out 1e-9 of the mass.
    assert_same(got, want, atol=1e-7, rtol=1e-7)


@settings(max_examples=60, deadline=None)
@given(ratio=st.floats(1e-2, 1e3), num=st.integers(2, 120), share=st.floats(0, 1))
def test_the_window_holds_the_mass_at_any_ratio(ratio, num, share):
    transform = HLGauss(Support(-1.0, 3.0, num), ratio)
    value = torch.tensor([4 * share - 1], dtype=torch.float64)
    logits = logits_for(transform, 1, seed=num)
    got = value_and_grad(transform.cross_entropy, logits, value)
    want = value_and_grad(by_definition, logits, transform.encode(value))
    assert_same(got, want, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_float32_losses_and_gradients_agree_with_float64(transform):
    values, logits = values_for(transform, 37), logits_for(transform, 37)
    want = value_and_grad(transform.cross_entropy, logits, values)
    got = value_and_grad(transform.cross_entropy, logits.float(), values)  # values decide the bin
    assert_same(got, want, atol=1e-6, rtol=3e-6, check_dtype=False)
    narrow = value_and_grad(transform.cross_entropy, logits.float(), values.float())
    assert narrow[0].dtype == narrow[1].dtype == torch.float32


def test_gradients_are_the_model_less_the_target_within_one():
    probs = TwoHot(SUPPORT).encode(torch.linspace(-12, 12, 40, dtype=torch.float64))
    logits = logits_for(TwoHot(SUPPORT), spread=30.0).requires_grad_()
    categorical_cross_entropy(logits, probs).sum().backward()
    torch.testing.assert_close(logits.grad, torch.softmax(logits.detach(), -1) - probs)
    assert logits.grad.abs().max() <= 1


@pytest.mark.parametrize("transform", [HLGauss(SUPPORT), TwoHot(SUPPORT)], ids=repr)
def test_the_loss_is_least_where_the_model_is_the_target(transform):
    values = torch.tensor([-10.0, 0.3, 9.0], dtype=torch.float64)
    probs = transform.encode(values)
    logits = probs.clamp(min=1e-300).log().requires_grad_()
    loss = transform.cross_entropy(logits, values)
    torch.testing.assert_close(loss.detach(), torch.special.entr(probs).sum(-1), atol=1e-6, rtol=0)
    loss.sum().backward()
    assert logits.grad.abs().max() < 1e-8


def test_gradients_pass_gradcheck():
    logits = logits_for(HLGauss(Support(-1.0, 1.0, 9)), 4).requires_grad_()
    values = torch.tensor([-1.0, 0.1, 0.9, 2.0], dtype=torch.float64)
    probs = torch.rand(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    probs /= probs.sum(-1, keepdim=True)
    torch.autograd.gradcheck(categorical_cross_entropy, (logits, probs))
    for transform in (HLGauss(Support(-1.0, 1.0, 9)), HLGauss(Support(-1.0, 1.0, 9), 0.1)):
        torch.autograd.gradcheck(lambda x, t=transform: t.cross_entropy(x, values), logits)


def test_two_backward_passes_give_the_gradient_twice():
    logits = logits_for(HLGauss(SUPPORT), 3).requires_grad_()
    loss = HLGauss(SUPPORT).cross_entropy(logits, torch.tensor([0.0, 1.0, 2.0])).sum()
    loss.backward(retain_graph=True)
    once = logits.grad.clone()
    loss.backward()
    torch.testing.assert_close(logits.grad, 2 * once)


@pytest.mark.parametrize("transform", [HLGauss(SUPPORT), TwoHot(SUPPORT)], ids=repr)
def test_a_logit_of_minus_infinity_costs_nothing_where_there_is_no_mass(transform):
    values = torch.tensor([5.0])
    logits = torch.zeros(1, 51)
    logits[:, :5] = -math.inf
    leaf = logits.clone().requires_grad_()
    loss = transform.cross_entropy(leaf, values)
    loss.backward()
    assert loss.isfinite()
    assert (leaf.grad[:, :5] == 0).all()
    logits[:, :] = -math.inf
    logits[:, 0] = 0.0
    assert transform.cross_entropy(logits, values).isinf()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("transform", [HLGauss(SUPPORT), TwoHot(SUPPORT)], ids=repr)
def test_half_precision_logits_are_compared_in_float32_under_autocast_too(transform, dtype):
    values = torch.linspace(-9, 9, 20)
    logits = logits_for(transform, 20, dtype=dtype)
    want, want_grad = value_and_grad(transform.cross_entropy, logits.float(), values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grad = value_and_grad(transform.cross_entropy, logits, values)
    assert torch.equal(got, want)
    assert grad.dtype == dtype
    assert torch.equal(grad, want_grad.to(dtype))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_leading_dimensions_layouts_and_empty_batches(transform):
    logits = logits_for(transform, 24, dtype=torch.float32)
    values = values_for(transform, 24, dtype=torch.float32)
    flat = transform.cross_entropy(logits, values)
    shaped = transform.cross_entropy(logits.reshape(2, 3, 4, -1), values.reshape(2, 3, 4))
    assert torch.equal(shaped.flatten(), flat)
    columns = logits.T.contiguous().T
    assert not columns.is_contiguous()
    torch.testing.assert_close(transform.cross_entropy(columns, values), flat)
    assert transform.cross_entropy(logits[0], values[0]).shape == ()
    empty = logits[:0].requires_grad_()
    loss = transform.cross_entropy(empty, values[:0])
    assert loss.shape == (0,)
    loss.sum().backward()
    assert empty.grad.shape == empty.shape


@pytest.mark.parametrize("transform", COMPILED, ids=repr)
# Dynamo itself makes an instance of the autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("without_shape_checks")
def test_losses_compile_as_one_graph(transform):
    logits = logits_for(transform, 5, dtype=torch.float32)
    values = values_for(transform, 5, dtype=torch.float32)
    compiled = torch.compile(transform.cross_entropy, fullgraph=True, backend="aot_eager")
    got = value_and_grad(compiled, logits, values)
    assert_same(got, value_and_grad(transform.cross_entropy, logits, values))


# Dynamo itself makes an instance of the autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("without_shape_checks")
def test_a_nan_in_a_compiled_graph_stays_in_its_row():
    compiled = torch.compile(HLGauss(SUPPORT).cross_entropy, fullgraph=True, backend="aot_eager")
    values = torch.tensor([1.0, math.nan, math.inf])
    loss, grad = value_and_grad(compiled, torch.zeros(3, 51), values)
    assert loss.isnan().tolist() == [False, True, False]
    assert grad.isnan().any(-1).tolist() == [False, True, False]


def test_values_get_no_gradient():
    values = torch.tensor([1.0], requires_grad=True)
    logits = torch.zeros(1, 51, requires_grad=True)
    for transform in (HLGauss(SUPPORT), TwoHot(SUPPORT)):
        transform.cross_entropy(logits, values).backward()
    assert values.grad is None
    probs = torch.full((1, 51), 1 / 51, requires_grad=True)
    categorical_cross_entropy(logits, probs).backward()
    assert probs.grad is None


# Bad input


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
@pytest.mark.usefixtures("without_shape_checks")
def test_shapes_that_do_not_belong_together(transform):
    num = transform.support.num_bins
    with pytest.raises(ValueError, match="take those of the actions"):
        transform.cross_entropy(torch.zeros(3, 2, num), torch.zeros(3))
    with pytest.raises(ValueError, match="nothing is broadcast"):
        transform.cross_entropy(torch.zeros(3, num), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"\(3, \d+\)"):
        transform.cross_entropy(torch.zeros(3, num + 1), torch.zeros(3))


def test_targets_that_are_no_distribution():
    logits = torch.zeros(2, 3)
    for bad in ([1.0, 1.0, 1.0], [2.0, -1.0, 0.0], [math.nan, 0.0, 1.0]):
        with pytest.raises(ValueError, match="target_probs must be probabilities"):
            categorical_cross_entropy(logits, torch.tensor([[1.0, 0.0, 0.0], bad]))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_values_that_are_no_numbers(transform):
    with pytest.raises(ValueError, match="values has 2 of 3 numbers that are NaN or infinite"):
        transform.cross_entropy(
            torch.zeros(3, transform.support.num_bins), torch.tensor([math.nan, 0.0, math.inf])
        )


def test_devices_that_differ():
    with pytest.raises(ValueError, match="on cpu, logits on meta"):
        HLGauss(SUPPORT).cross_entropy(torch.zeros(2, 51, device="meta"), torch.zeros(2))
    with pytest.raises(ValueError, match="target_probs is on meta, logits on cpu"):
        categorical_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 3, device="meta"))


@pytest.mark.usefixtures("without_shape_checks")
def test_backends_that_cannot_run():
    arguments = (torch.zeros(2, 51), torch.zeros(2))
    with pytest.raises(ValueError, match="backend must be one of"):
        HLGauss(SUPPORT).cross_entropy(*arguments, backend="cuda")
