"""Losses over a vocabulary whose forward pass also yields the gradient, a block of rows at a time.

Shape letters: N positions, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

RowFunction = Callable[..., tuple[Tensor, Tensor | None]]

# Elements per block of rows. On a CPU the temporaries of a block stay in the cache (measured 2.7
# times faster than all rows at once at V = 32768); elsewhere the bound only limits their memory.
_CPU_BLOCK, _DEVICE_BLOCK = 2**19, 2**27


def stored_gradient(
    row_function: RowFunction,
    student_NV: Tensor,
    targets: tuple[Tensor, ...],
    options: tuple[Any, ...],
) -> Tensor:
    """Return the value of every row, differentiable once with respect to the student's logits.

    Only the gradient is kept for the backward pass: one buffer of the logits' shape where automatic
    differentiation keeps about five.

    Args:
        row_function: Called as ``row_function(needs_grad, student, *targets, *options)`` for a
            block of rows, the logits in the dtype of the result; returns a value per row and, if
            asked, the gradient with respect to the logits. It must not overwrite its inputs.
        student_NV: The logits.
        targets: What the logits are compared with, each with N rows; gets no gradient.
        options: Passed on.

    Returns:
        ``[N]`` in float32, or float64 if the logits or a floating target is.
    """
    return _StoredGradient.apply(row_function, options, student_NV, *targets)


class _StoredGradient(torch.autograd.Function):
    """Value in the forward pass, together with the gradient that the backward pass scales."""

    @staticmethod
    def forward(
        ctx: Any,
        row_function: RowFunction,
        options: tuple[Any, ...],
        student_NV: Tensor,
        *targets: Tensor,
    ) -> Tensor:
        doubles = [x.dtype == torch.float64 for x in (student_NV, *targets)]
        dtype = torch.float64 if any(doubles) else torch.float32
        num, vocab = student_NV.shape
        block = _CPU_BLOCK if student_NV.device.type == "cpu" else _DEVICE_BLOCK
        rows = max(1, block // max(vocab, 1))
        needs_grad = ctx.needs_input_grad[2]
        value_N = student_NV.new_empty(num, dtype=dtype)
        grad_NV = student_NV.new_empty((num, vocab) if needs_grad else (0, vocab), dtype=dtype)
        for start in range(0, num, rows):
            stop = min(start + rows, num)
            parts = [target[start:stop] for target in targets]
            student = student_NV[start:stop].to(dtype)
            value, grad = row_function(needs_grad, student, *parts, *options)
            value_N[start:stop] = value
            if grad is not None:
                grad_NV[start:stop] = grad
        ctx.save_for_backward(grad_NV)
        ctx.student_dtype = student_NV.dtype
        ctx.num_targets = len(targets)
        return value_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NV,) = ctx.saved_tensors
        grad_NV = (grad_NV * grad_outputs[0][:, None]).to(ctx.student_dtype)
        return None, None, grad_NV, *(None,) * ctx.num_targets
