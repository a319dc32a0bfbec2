"""HL-Gauss targets and their cross entropy in one sweep over the logits, what GPUs run.

The forward pass reads the logits once and leaves two numbers a row; the backward pass reads them
again and writes the gradient. Targets are made anew in both, of one value a row.

Shape letters: N rows, Z bins.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from selftrain.kernels._dispatch import launch, register

_SQRT2 = math.sqrt(2.0)


@triton.jit
def target_masses(values, centers, rest, row, column, first, step, inverse, num_bins):
    """Return the probability of each bin of a row: see ``ops.HLGauss``."""
    value = tl.load(values + row)
    place = tl.floor((value - first) / step + 0.5)
    # A NaN is at some bin, not at an address out of bounds, and comes back below.
    place = tl.where(place == place, place, 0.0)
    near = tl.minimum(tl.maximum(place, 0.0), num_bins - 1.0).to(tl.int32)
    distance = ((value - tl.load(centers + near)) - tl.load(rest + near)) / step
    # Integers first: what remains of the value is small, and exact.
    below = ((column - near).to(tl.float32) - 0.5) - distance
    mass = tl.erf((below + 1.0) * inverse) - tl.erf(below * inverse)
    start = ((0 - near).to(tl.float32) - 0.5) - distance
    end = ((num_bins - near).to(tl.float32) - 0.5) - distance
    total = tl.erf(end * inverse) - tl.erf(start * inverse)
    return tl.where(column < num_bins, mass / total, 0.0)


@triton.jit
def loss_kernel(
    logits,
    values,
    centers,
    rest,
    losses,  # out [N]
    normalisers,  # out [N]: log-sum-exp of the logits
    stride,
    first,
    step,
    inverse,
    num_bins,
    BLOCK: tl.constexpr,
):
    """Leave the loss and the normaliser of one row."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    start = logits + row.to(tl.int64) * stride
    x = tl.load(start + column, mask=column < num_bins, other=-float("inf")).to(tl.float32)
    top = tl.max(x, 0)
    top = tl.where(top == -float("inf"), 0.0, top)
    normaliser = top + tl.log(tl.sum(tl.exp(x - top), 0))
    target = target_masses(values, centers, rest, row, column, first, step, inverse, num_bins)
    loss = tl.where(target == 0, 0.0, target * (normaliser - x))
    tl.store(losses + row, tl.sum(loss, 0))
    tl.store(normalisers + row, normaliser)


@triton.jit
def gradient_kernel(
    logits,
    values,
    centers,
    rest,
    normalisers,
    pushes,  # [N]: the gradient of each loss
    grad,  # out [N, Z]
    stride,
    first,
    step,
    inverse,
    num_bins,
    BLOCK: tl.constexpr,
):
    """Write the gradient of one row: the model's probabilities less the target's."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    start = logits + row.to(tl.int64) * stride
    x = tl.load(start + column, mask=column < num_bins, other=-float("inf")).to(tl.float32)
    target = target_masses(values, centers, rest, row, column, first, step, inverse, num_bins)
    slope = (tl.exp(x - tl.load(normalisers + row)) - target) * tl.load(pushes + row)
    cell = grad + row.to(tl.int64) * num_bins + column
    tl.store(cell, slope.to(grad.dtype.element_ty), mask=column < num_bins)


def _shares(num_bins: int) -> dict[str, int]:
    block = int(triton.next_power_of_2(num_bins))
    return {"num_bins": num_bins, "BLOCK": block, "num_warps": max(1, min(8, block // 256))}


def _fake_forward(
    logits: Tensor,
    values: Tensor,
    centers: Tensor,
    rest: Tensor,
    first: float,
    step: float,
    inverse: float,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), torch.empty_like(values)


@register("selftrain::hl_gauss_forward", _fake_forward)
def hl_gauss_forward(
    logits: Tensor,
    values: Tensor,
    centers: Tensor,
    rest: Tensor,
    first: float,
    step: float,
    inverse: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss and the log-normaliser of each row, ``[N]`` in float32."""
    losses, normalisers = torch.empty_like(values), torch.empty_like(values)
    if len(values):
        launch(loss_kernel)[(len(values),)](
            logits=logits,
            values=values,
            centers=centers,
            rest=rest,
            losses=losses,
            normalisers=normalisers,
            stride=logits.stride(0),
            first=first,
            step=step,
            inverse=inverse,
            **_shares(logits.shape[1]),
        )
    return losses, normalisers


def _fake_backward(
    logits: Tensor,
    values: Tensor,
    centers: Tensor,
    rest: Tensor,
    normalisers: Tensor,
    pushes: Tensor,
    first: float,
    step: float,
    inverse: float,
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@register("selftrain::hl_gauss_backward", _fake_backward)
def hl_gauss_backward(
    logits: Tensor,
    values: Tensor,
    centers: Tensor,
    rest: Tensor,
    normalisers: Tensor,
    pushes: Tensor,
    first: float,
    step: float,
    inverse: float,
) -> Tensor:
    """Return the gradient with respect to the logits, in their type."""
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if len(values):
        launch(gradient_kernel)[(len(values),)](
            logits=logits,
            values=values,
            centers=centers,
            rest=rest,
            normalisers=normalisers,
            pushes=pushes,
            grad=grad,
            stride=logits.stride(0),
            first=first,
            step=step,
            inverse=inverse,
            **_shares(logits.shape[1]),
        )
    return grad


def hl_gauss_rows(
    logits_NZ: Tensor,
    values_N: Tensor,
    centers_Z: Tensor,
    rest_Z: Tensor,
    first: float,
    step: float,
    sigma_ratio: float,
) -> Tensor:
    """Return the cross entropy ``[N]`` of HL-Gauss codes under softmax(logits), in float32.

    Args:
        logits_NZ: In bfloat16, float16 or float32. Rows may lie apart.
        values_N: In float32, within the bounds; no gradient flows to them.
        centers_Z: Of the bins, in float32.
        rest_Z: What float32 leaves of the centres.
        first: The first centre.
        step: The distance between centres.
        sigma_ratio: Standard deviation in bins.
    """
    if logits_NZ.shape[1] > 1 and logits_NZ.stride(1) != 1:
        logits_NZ = logits_NZ.contiguous()
    inverse = 1.0 / (_SQRT2 * sigma_ratio)
    values_N = values_N.contiguous()
    return _Loss.apply(logits_NZ, values_N, centers_Z, rest_Z, (first, step, inverse))


class _Loss(torch.autograd.Function):
    """Keeps the logits, and a number a row."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_NZ: Tensor,
        values_N: Tensor,
        centers_Z: Tensor,
        rest_Z: Tensor,
        numbers: tuple[float, float, float],
    ) -> Tensor:
        loss_N, normalisers_N = hl_gauss_forward(logits_NZ, values_N, centers_Z, rest_Z, *numbers)
        ctx.save_for_backward(logits_NZ, values_N, centers_Z, rest_Z, normalisers_N)
        ctx.numbers = numbers
        return loss_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        pushes_N = grad_outputs[0].contiguous()  # an expanded one of a sum has stride 0
        grad_NZ = hl_gauss_backward(*ctx.saved_tensors, pushes_N, *ctx.numbers)
        return grad_NZ, None, None, None, None
