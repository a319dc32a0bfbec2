"""On a GPU the kernels of HL-Gauss agree with float64, and never make the host wait."""

import pytest
import torch

pytest.importorskip("triton")
from selftrain.nn import CategoricalValueHead
from selftrain.ops import C51, HLGauss, OneHot, Support, TwoHot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def case(num_rows, num_bins, dtype=torch.float32):
    rng = torch.Generator("cuda").manual_seed(num_bins)
    logits = (3 * torch.randn(num_rows, num_bins, generator=rng, device="cuda")).to(dtype)
    values = 22 * torch.rand(num_rows, generator=rng, device="cuda") - 11
    return HLGauss(Support(-10.0, 10.0, num_bins)), logits, values


@pytest.mark.parametrize("num_bins", [2, 51, 101, 127, 128, 129, 1001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_and_gradients_are_those_of_float64(num_bins, dtype):
    transform, logits, values = case(300, num_bins, dtype)
    leaf, wide = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = transform.cross_entropy(leaf, values)
    want = -(transform.encode(values.double()) * torch.log_softmax(wide, -1)).sum(-1)
    torch.testing.assert_close(loss.double(), want, atol=3e-6, rtol=3e-6)
    loss.sum().backward()
    want.sum().backward()
    least = {torch.float32: 3e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    torch.testing.assert_close(leaf.grad.double(), wide.grad, atol=3e-6, rtol=least)


@pytest.mark.parametrize("make", [HLGauss, TwoHot, C51, OneHot])
def test_the_host_never_waits_for_a_head(make):
    head = CategoricalValueHead(16, make(Support(-10.0, 10.0, 51))).cuda()
    x, targets = torch.randn(8, 16, device="cuda"), torch.randn(8, device="cuda")

    def step():
        logits = head(x)
        head.loss(logits, targets, weights=targets.abs()).sum().backward()
        head.measure(logits.detach(), targets)
        return head.value(logits)

    step()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_inductor_compiles_it_as_one_graph():
    transform, logits, values = case(64, 101)
    compiled = torch.compile(transform.cross_entropy, fullgraph=True)
    torch.testing.assert_close(compiled(logits, values), transform.cross_entropy(logits, values))
