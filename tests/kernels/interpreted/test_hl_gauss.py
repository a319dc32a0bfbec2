"""The kernels of HL-Gauss give losses and gradients of the definition, as the eager form does."""

import math

import jaxtyping
import pytest
import torch

from selftrain.kernels.hl_gauss import hl_gauss_backward, hl_gauss_forward
from selftrain.nn import CategoricalValueHead
from selftrain.ops import HLGauss, MuZeroScale, Support


@pytest.fixture
def without_shape_checks():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def case(num_rows, num_bins, *, seed=0, dtype=torch.float32, **options):
    """Return a transform, logits, and values over the support and beyond."""
    rng = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(num_rows, num_bins, generator=rng)).to(dtype)
    values = 22 * torch.rand(num_rows, generator=rng) - 11
    return HLGauss(Support(-10.0, 10.0, num_bins), **options), logits, values


def loss_and_grad(transform, logits, values, **options):
    leaf = logits.detach().clone().requires_grad_()
    loss = transform.cross_entropy(leaf, values, **options)
    weights = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    (grad,) = torch.autograd.grad((weights * loss).sum(), leaf)
    return loss.detach(), grad


def by_definition(transform, logits, values):
    leaf = logits.double().requires_grad_()
    loss = -(transform.encode(values.double()) * torch.log_softmax(leaf, -1)).sum(-1)
    weights = torch.linspace(0.5, 2, loss.numel(), dtype=torch.float64).reshape(loss.shape)
    (grad,) = torch.autograd.grad((weights * loss).sum(), leaf)
    return loss.detach(), grad


@pytest.mark.parametrize("num_bins", [2, 51, 101, 127, 128, 129, 1001])
@pytest.mark.parametrize("options", [{}, {"sigma_ratio": 5.0}, {"centers_on_bounds": True}])
def test_losses_and_gradients_are_those_of_the_definition(num_bins, options):
    arguments = case(5, num_bins, seed=num_bins, **options)
    got = loss_and_grad(*arguments, backend="triton")
    assert got[0].dtype == got[1].dtype == torch.float32
    for one, other in zip(got, by_definition(*arguments), strict=True):
        torch.testing.assert_close(one.double(), other, atol=3e-6, rtol=3e-6)
    for one, other in zip(got, loss_and_grad(*arguments, backend="eager"), strict=True):
        torch.testing.assert_close(one, other, atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize("ratio", [1e-6, 1e-2, 0.25, 30.0, 1e4])
def test_any_width_of_the_normal_law(ratio):
    arguments = case(6, 51, sigma_ratio=ratio)
    for one, other in zip(
        loss_and_grad(*arguments, backend="triton"), by_definition(*arguments), strict=True
    ):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-11)])
def test_half_precision_gradients_are_the_float32_ones_rounded_once(dtype, unit):
    """The interpreter truncates to bfloat16, where GPUs round and err by half as much."""
    transform, logits, values = case(6, 101, dtype=dtype)
    loss, grad = loss_and_grad(transform, logits, values, backend="triton")
    want, wide = loss_and_grad(transform, logits.float(), values, backend="triton")
    assert grad.dtype == dtype
    assert torch.equal(loss, want)
    # Plus half the smallest step of float16.
    assert ((grad.float() - wide).abs() <= unit * wide.abs() + 2.0**-25).all()


def test_rows_may_lie_apart_and_have_any_leading_dimensions():
    transform, logits, values = case(12, 51)
    loss, grad = loss_and_grad(transform, logits, values, backend="triton")
    wide = torch.zeros(12, 80)
    wide[:, 5:56] = logits
    apart = transform.cross_entropy(wide[:, 5:56], values, backend="triton")
    assert torch.equal(apart, loss)
    columns = transform.cross_entropy(logits.T.contiguous().T, values, backend="triton")
    assert torch.equal(columns, loss)
    shaped, shaped_grad = loss_and_grad(
        transform, logits.reshape(2, 3, 2, 51), values.reshape(2, 3, 2), backend="triton"
    )
    assert torch.equal(shaped.flatten(), loss)
    assert torch.equal(shaped_grad.reshape(12, 51), grad)


def test_no_rows_give_no_losses():
    transform, logits, values = case(0, 51)
    loss, grad = loss_and_grad(transform, logits, values, backend="triton")
    assert loss.shape == (0,)
    assert grad.shape == (0, 51)


def test_a_logit_of_minus_infinity_costs_nothing_where_there_is_no_mass():
    transform = HLGauss(Support(-10.0, 10.0, 51))
    logits = torch.zeros(2, 51)
    logits[:, :5] = -math.inf
    loss, grad = loss_and_grad(transform, logits, torch.tensor([5.0, -10.0]), backend="triton")
    assert loss.isfinite().tolist() == [True, False]
    assert (grad[0, :5] == 0).all()


# Dynamo itself makes an instance of the autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("without_shape_checks")
def test_a_nan_in_a_compiled_graph_stays_in_its_row():
    transform = HLGauss(Support(-10.0, 10.0, 51))

    def run(logits, values):
        return transform.cross_entropy(logits, values, backend="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    loss = compiled(torch.zeros(3, 51), torch.tensor([1.0, math.nan, math.inf]))
    assert loss.isnan().tolist() == [False, True, False]


def test_scalar_transforms_and_heads_reach_the_kernels():
    transform = HLGauss(Support(-8.0, 8.0, 101), scalar=MuZeroScale())
    head = CategoricalValueHead(4, transform, num_outputs=3)
    logits = head(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    targets = torch.tensor([[0.0, 30.0, -50.0], [1e4, 2.0, -1e4]])
    got = head.loss(logits, targets, backend="triton")
    torch.testing.assert_close(got, head.loss(logits, targets), atol=3e-6, rtol=3e-6)


def test_operators_pass_opcheck():
    transform, logits, values = case(3, 51)
    grid = transform.grid()
    numbers = (transform.bins.first, transform.bins.step, 1.0)
    torch.library.opcheck(hl_gauss_forward, (logits, values, *grid, *numbers))
    torch.library.opcheck(hl_gauss_backward, (logits, values, *grid, values, values, *numbers))


# Dynamo itself makes an instance of the autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("without_shape_checks")
def test_loss_and_gradient_compile_as_one_graph():
    transform, logits, values = case(3, 51)

    def run(logits, values):
        return transform.cross_entropy(logits, values, backend="triton")

    leaf = logits.clone().requires_grad_()
    loss = torch.compile(run, fullgraph=True, backend="aot_eager")(leaf, values)
    want, want_grad = loss_and_grad(transform, logits, values, backend="triton")
    (grad,) = torch.autograd.grad((torch.linspace(0.5, 2, 3) * loss).sum(), leaf)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(grad, want_grad)
