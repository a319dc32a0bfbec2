r"""Cross entropy over the bins of a value, with its gradient in closed form.

.. math:: L = -\sum_i t_i \log q_i, \qquad \partial L / \partial l_i = q_i \sum_j t_j - t_i,
          \qquad q = \mathrm{softmax}(l)

so that for probabilities t each component of the gradient lies within [-1, 1], whatever the error.
Shape letters: N rows, Z bins, W bins of a window.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from selftrain.kernels._dispatch import Backend, choose
from selftrain.ops._bins import Bins, Grid, at_least_float32, check_probs

__all__ = ["categorical_cross_entropy"]

# A normal law has 1e-9 of its mass farther away than this many sigma: less than float32 rounds off.
_WINDOW_SIGMAS = 6.0
# Up to so many logits all bins cost less than finding those near the value.
_FEW_LOGITS = 2**14


def categorical_cross_entropy(
    logits: Float[Tensor, "*batch bins"], target_probs: Float[Tensor, "*batch bins"]
) -> Float[Tensor, "*batch"]:
    """Return the cross entropy of given probabilities under softmax(logits), in nats.

    In float32, or float64 if that is given, under autocast as well. A bin without target mass
    counts 0 even where the logit is -inf. First derivatives only, with respect to the logits.

    Args:
        logits: Of the network.
        target_probs: Probabilities in the last dimension; they get no gradient.

    Raises:
        ValueError: If the shapes or devices differ, or (on CPUs, outside of compiled graphs) a row
            is no distribution.

    Example:
        >>> categorical_cross_entropy(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]]))
        tensor([0.6931])
    """
    check_same_place("target_probs", target_probs, "logits", logits)
    if logits.shape != target_probs.shape:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}, target_probs {tuple(target_probs.shape)}; "
            "they must be equal (nothing is broadcast). For logits of all actions, take those of "
            "the actions that the targets are of."
        )
    check_probs("target_probs", target_probs)
    return _CrossEntropy.apply(logits, target_probs.detach())


class _CrossEntropy(torch.autograd.Function):
    """Keeps the log-probabilities and the target."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        dtype = torch.promote_types(at_least_float32(logits).dtype, target.dtype)
        log_q, target = torch.log_softmax(logits.to(dtype), -1), target.to(dtype)
        ctx.save_for_backward(log_q, target)
        ctx.logits_dtype = logits.dtype
        return -_dot_log_probs(target, log_q)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        log_q, target = ctx.saved_tensors
        grad = log_q.exp().mul_(target.sum(-1, keepdim=True)).sub_(target)
        return grad.mul_(grad_outputs[0][..., None]).to(ctx.logits_dtype), None


def hl_gauss_cross_entropy(
    logits: Tensor,
    values: Tensor,
    bins: Bins,
    make_grid: Callable[[], Grid],
    *,
    sigma_ratio: float,
    backend: Backend = "auto",
) -> Tensor:
    """Return the cross entropy of HL-Gauss codes without writing these.

    Args:
        logits: ``[*batch, Z]``.
        values: ``[*batch]``, behind the scalar transform and clamped.
        bins: Where the bins are.
        make_grid: Gives their centres on the device, where a kernel wants them.
        sigma_ratio: Standard deviation in bins.
        backend: As in :func:`selftrain.ops.divergence`.
    """
    if logits.shape != (*values.shape, bins.num) or values.device != logits.device:
        _explain(logits, values, bins)
    rows_NZ, values_N = logits, values
    if logits.dim() != 2:  # even a view costs a small batch time
        rows_NZ, values_N = logits.reshape(-1, bins.num), values.reshape(-1)
    if choose(backend, values if values.dtype == torch.float64 else logits) == "triton":
        from selftrain.kernels.hl_gauss import hl_gauss_rows

        grid = make_grid()
        loss_N = hl_gauss_rows(rows_NZ, values_N, *grid, bins.first, bins.step, sigma_ratio)
    else:
        loss_N = _hl_gauss_rows(rows_NZ, values_N, bins, sigma_ratio)
    return loss_N if logits.dim() == 2 else loss_N.reshape(values.shape)


def _explain(logits: Tensor, values: Tensor, bins: Bins) -> None:
    """Raise the error of logits and values that do not belong together."""
    check_same_place("values", values, "logits", logits)
    if logits.shape[-1:] != (bins.num,):
        raise ValueError(
            f"logits must have {bins.num} bins in the last dimension, got shape "
            f"{tuple(logits.shape)}."
        )
    raise ValueError(
        f"logits has rows of shape {tuple(logits.shape[:-1])}, the values have shape "
        f"{tuple(values.shape)}; they must be equal (nothing is broadcast). For logits of all "
        "actions, take those of the actions that the values are of."
    )


def _hl_gauss_rows(logits_NZ: Tensor, values_N: Tensor, bins: Bins, sigma_ratio: float) -> Tensor:
    """Return the loss of each row; in large batches from the bins near its value only.

    A small batch costs what its operations cost to start, so these are few, and the gradient is
    left to torch, which starts its own faster than a function written here would.
    """
    dtype = values_N.dtype
    if logits_NZ.dtype != dtype:
        dtype = torch.promote_types(at_least_float32(logits_NZ).dtype, dtype)
        logits_NZ = logits_NZ.to(dtype)
    log_q = torch.log_softmax(logits_NZ, -1)
    on_cpu = values_N.is_cpu
    # The difference of a value and an edge would not survive float32; of devices only MPS has
    # nothing wider.
    wide_N1 = (values_N if values_N.is_mps else values_N.double())[:, None]
    reach = math.ceil(min(_WINDOW_SIGMAS * sigma_ratio, bins.num)) + 1
    scale = 1 / (math.sqrt(2) * sigma_ratio)
    if 2 * reach + 1 >= bins.num or logits_NZ.numel() <= _FEW_LOGITS:
        u_NW = _all_edges(wide_N1, bins, scale)
    else:
        index_NW, u_NW = _edges_near(wide_N1, bins, reach, scale)
        log_q = log_q.gather(1, index_NW)
    mass_NW = u_NW.to(dtype).erf_().diff()
    less_NW = mass_NW.div_(mass_NW.sum(1, keepdim=True).neg_())
    loss_N = (less_NW * log_q).sum(1)
    # To look for bins without mass would take as long as the rest: on CPUs their NaN tells.
    looks = on_cpu and not torch.compiler.is_compiling()
    if looks and not math.isnan(loss_N.sum().item()):
        return loss_N
    return _dot_log_probs(less_NW, log_q)


def _all_edges(wide_N1: Tensor, bins: Bins, scale: float) -> Tensor:
    """Return the distances ``[N, Z + 1]`` of all edges from the values, in bins times ``scale``."""
    scale /= bins.step
    low, num = scale * bins.first - 0.5 * scale * bins.step, bins.num
    high = low + num * scale * bins.step
    edges = torch.linspace(low, high, num + 1, dtype=wide_N1.dtype, device=wide_N1.device)
    return torch.sub(edges, wide_N1, alpha=scale)


def _edges_near(wide_N1: Tensor, bins: Bins, reach: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return ``2 reach + 1`` bins around each value, and the distances of their edges as above."""
    width, device = 2 * reach + 1, wide_N1.device
    place = (wide_N1 - (bins.first + (reach - 0.5) * bins.step)).div_(bins.step)
    # Rounded up below 0, where it is clamped. A NaN is at some place here, not at an index out of
    # bounds, and its masses are NaN.
    first = place.long().clamp_(0, bins.num - width)
    low, high = -reach * scale, (width - reach) * scale
    edges = torch.linspace(low, high, width + 1, dtype=place.dtype, device=device)
    return first + torch.arange(width, device=device), torch.add(edges, first - place, alpha=scale)


def _dot_log_probs(probs: Tensor, log_probs: Tensor) -> Tensor:
    """Return the sums of products; a bin without mass counts 0 even where the logarithm is -inf."""
    return (probs * log_probs.masked_fill(probs == 0, 0.0)).sum(-1)


def check_same_place(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ``ValueError`` unless both tensors are on one device."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} is on {tensor.device}, {other_name} on {other.device}; move one to the other."
        )
