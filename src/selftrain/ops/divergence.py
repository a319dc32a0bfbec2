r"""Divergences between two next-token distributions, per position, with closed-form gradients.

Throughout, p is the teacher's and q the student's distribution over the last dimension,
:math:`q = \mathrm{softmax}(s/\tau)`, :math:`p = \mathrm{softmax}(t/\tau)`. For any
:math:`D = \sum_v F(p_v, q_v)` with :math:`g = \partial F / \partial q` the gradient with respect to
the student's logits is :math:`\partial D/\partial s_v = q_v (g_v - \sum_w q_w g_w) / \tau`, so one
pass yields value and gradient. Only the gradient is kept for the backward pass: one buffer of the
logits' shape where automatic differentiation keeps about five.

Shape letters: N positions, V vocabulary.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from selftrain._core.checks import check_choice, check_range, check_same_vocab

DivergenceKind = Literal["forward_kl", "reverse_kl", "jsd", "total_variation"]
JSDScale = Literal["paper", "unit"]

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "total_variation")
"""The values of ``kind`` that :func:`divergence` takes."""

# Elements per block of rows. On a CPU the temporaries of a block stay in the cache (measured 2.7
# times faster than all rows at once at V = 32768); elsewhere the bound only limits their memory.
_CPU_BLOCK, _DEVICE_BLOCK = 2**19, 2**27
# Beyond e^80 the smaller of two probabilities no longer counts, and e^80 still fits float32.
_MAX_LOG_RATIO = 80.0


def forward_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Return KL(teacher || student) at every position, in nats: the mass-covering one.

    .. math:: D = \sum_v p_v (\log p_v - \log q_v), \qquad
              \partial D / \partial s_v = (q_v - p_v) / \tau

    The gradient flows to the student only. Computed in float32, or float64 if that is given. Where
    the teacher has no mass the term is 0; where only the student has none the result is inf.

    Args:
        student_logits: Unnormalised scores of the model being trained.
        teacher_logits: Unnormalised scores of the fixed model; the same vocabulary.
        temperature: Divides both logits; must be positive.

    Raises:
        ValueError: If the vocabularies differ in size or ``temperature`` is not positive.

    Example:
        >>> forward_kl(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0]))
        tensor(0.)
    """
    return divergence(student_logits, teacher_logits, kind="forward_kl", temperature=temperature)


def reverse_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Return KL(student || teacher) at every position, in nats: the mode-seeking one.

    .. math:: D = \sum_v q_v (\log q_v - \log p_v), \qquad
              \partial D / \partial s_v = q_v (\log q_v - \log p_v - D) / \tau

    The gradient flows to the student only. Computed in float32, or float64 if that is given. Where
    the student has no mass the term is 0; where only the teacher has none the result is inf (and
    its gradient NaN, for it has none).

    Args:
        student_logits: Unnormalised scores of the model being trained.
        teacher_logits: Unnormalised scores of the fixed model; the same vocabulary.
        temperature: Divides both logits; must be positive.

    Raises:
        ValueError: If the vocabularies differ in size or ``temperature`` is not positive.

    Example:
        >>> reverse_kl(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0]))
        tensor(0.)
    """
    return divergence(student_logits, teacher_logits, kind="reverse_kl", temperature=temperature)


def generalized_jsd(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    beta: float = 0.5,
    scale: JSDScale = "paper",
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Return the generalised Jensen-Shannon divergence at every position, in nats.

    .. math:: D_\beta = \beta\, KL(p \| m) + (1-\beta)\, KL(q \| m), \quad m = \beta p + (1-\beta) q
    .. math:: \partial D_\beta / \partial s_v =
              (1-\beta)\, q_v (\log q_v - \log m_v - KL(q \| m)) / \tau

    This is equation 1 of GKD (arXiv 2306.13649). It vanishes at both ends:
    :math:`D_\beta/\beta \to KL(p\|q)` as :math:`\beta \to 0` and :math:`D_\beta/(1-\beta) \to
    KL(q\|p)` as :math:`\beta \to 1`. With ``scale="unit"`` the result is
    :math:`D_\beta / (\beta(1-\beta))`, which is continuous on [0, 1] with the two KLs as end values
    and agrees with both to second order for every beta, so that one learning rate serves all. With
    ``scale="paper"`` the ends beta = 0 and beta = 1 mean the forward and the reverse KL (the
    paper's convention, and a jump: at beta = 0.99 gradients are a hundred times weaker than at 1).

    Finite whatever the supports, unless the scale is "unit" and beta at an end. The gradient flows
    to the student only. Computed in float32, or float64 if that is given.

    Args:
        student_logits: Unnormalised scores of the model being trained.
        teacher_logits: Unnormalised scores of the fixed model; the same vocabulary.
        beta: The teacher's weight in the mixture, in [0, 1].
        scale: "paper" for equation 1, "unit" for the continuous scale.
        temperature: Divides both logits; must be positive.

    Raises:
        ValueError: If the vocabularies differ in size or an argument lies outside its range.

    Example:
        >>> generalized_jsd(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0]), beta=0.1)
        tensor(0.)
    """
    return divergence(
        student_logits,
        teacher_logits,
        kind="jsd",
        beta=beta,
        scale=scale,
        temperature=temperature,
    )


def total_variation(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Return the total variation distance at every position, in [0, 1].

    .. math:: D = \tfrac12 \sum_v |p_v - q_v| = 1 - \sum_v \min(p_v, q_v), \qquad
              \partial D / \partial s_v = q_v (\sigma_v - \sum_w q_w \sigma_w) / 2\tau,\
              \sigma = \mathrm{sign}(q - p)

    One minus the rate at which speculative decoding accepts a token of q under p (DistillSpec,
    arXiv 2310.08461). The gradient flows to the student only, and is 0 at ties. Computed in
    float32, or float64 if that is given.

    Args:
        student_logits: Unnormalised scores of the model being trained.
        teacher_logits: Unnormalised scores of the fixed model; the same vocabulary.
        temperature: Divides both logits; must be positive.

    Raises:
        ValueError: If the vocabularies differ in size or ``temperature`` is not positive.

    Example:
        >>> total_variation(torch.tensor([0.0, float("-inf")]), torch.tensor([0.0, 0.0]))
        tensor(0.5000)
    """
    return divergence(
        student_logits, teacher_logits, kind="total_variation", temperature=temperature
    )


def divergence(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    kind: DivergenceKind = "jsd",
    beta: float = 0.5,
    scale: JSDScale = "paper",
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """Return the divergence named by ``kind`` at every position, in nats.

    The functions of this module under one name; see :func:`forward_kl`, :func:`reverse_kl`,
    :func:`generalized_jsd` and :func:`total_variation`. First derivatives only.

    Args:
        student_logits: Unnormalised scores of the model being trained.
        teacher_logits: Unnormalised scores of the fixed model; the same shape.
        kind: Which divergence.
        beta: The teacher's weight in the mixture of "jsd", in [0, 1]; unused otherwise.
        scale: "paper" or "unit", for "jsd"; unused otherwise.
        temperature: Divides both logits; must be positive.

    Raises:
        ValueError: If ``kind`` or ``scale`` is unknown (the message lists the known ones), the
            shapes differ, or ``beta`` or ``temperature`` lies outside its range.
    """
    check_choice("kind", kind, DIVERGENCES)
    check_choice("scale", scale, ("paper", "unit"))
    check_range("beta", beta, low=0.0, high=1.0)
    check_range("temperature", temperature, low=0.0, low_open=True)
    check_same_vocab(student_logits, teacher_logits)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits has shape {tuple(student_logits.shape)}, teacher_logits "
            f"{tuple(teacher_logits.shape)}; they must be equal (nothing is broadcast)."
        )
    if kind == "jsd" and beta in (0.0, 1.0):
        kind = "forward_kl" if beta == 0.0 else "reverse_kl"
    vocab = student_logits.shape[-1]
    value_N = _Divergence.apply(
        student_logits.reshape(-1, vocab),
        teacher_logits.detach().reshape(-1, vocab),
        kind,
        float(beta),
        1.0 / (beta * (1.0 - beta)) if kind == "jsd" and scale == "unit" else 1.0,
        float(temperature),
    )
    return value_N.reshape(student_logits.shape[:-1])


class _Divergence(torch.autograd.Function):
    """Value in the forward pass, together with the gradient that the backward pass scales."""

    @staticmethod
    def forward(
        ctx: Any,
        student_NV: Tensor,
        teacher_NV: Tensor,
        kind: str,
        beta: float,
        factor: float,
        temperature: float,
    ) -> Tensor:
        wide = torch.promote_types(student_NV.dtype, teacher_NV.dtype)
        dtype = wide if wide == torch.float64 else torch.float32
        num, vocab = student_NV.shape
        block = _CPU_BLOCK if student_NV.device.type == "cpu" else _DEVICE_BLOCK
        rows = max(1, block // max(vocab, 1))
        needs_grad = ctx.needs_input_grad[0]
        value_N = student_NV.new_empty(num, dtype=dtype)
        grad_NV = student_NV.new_empty((num, vocab) if needs_grad else (0, vocab), dtype=dtype)
        for start in range(0, num, rows):
            stop = min(start + rows, num)
            log_q = _log_softmax(student_NV[start:stop], dtype, temperature)
            log_p = _log_softmax(teacher_NV[start:stop], dtype, temperature)
            value, grad = _FORMULAS[kind](log_q, log_p, beta, needs_grad)
            torch.mul(value, factor, out=value_N[start:stop])
            if grad is not None:
                torch.mul(grad, factor / temperature, out=grad_NV[start:stop])
        ctx.save_for_backward(grad_NV)
        ctx.student_dtype = student_NV.dtype
        return value_N

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NV,) = ctx.saved_tensors
        grad_NV = (grad_NV * grad_outputs[0][:, None]).to(ctx.student_dtype)
        return grad_NV, None, None, None, None, None


def _log_softmax(logits_NV: Tensor, dtype: torch.dtype, temperature: float) -> Tensor:
    """Return fresh log-probabilities, which the formulas below may overwrite."""
    logits_NV = logits_NV.to(dtype)
    return torch.log_softmax(logits_NV if temperature == 1 else logits_NV / temperature, dim=-1)


# Each formula takes log q and log p, may overwrite both, and returns the value per row and (if
# asked) the gradient with respect to the student's logits at temperature 1. The ratio is masked
# before the product, not after: 0 * (-inf - -inf) is NaN.


def _forward_kl(
    log_q: Tensor, log_p: Tensor, beta: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    p = log_p.exp()
    log_ratio = log_p.sub_(log_q).masked_fill_(p == 0, 0.0)
    value = log_ratio.mul_(p).sum(-1)
    return value, log_q.exp_().sub_(p) if needs_grad else None


def _reverse_kl(
    log_q: Tensor, log_p: Tensor, beta: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    q = log_q.exp()
    log_ratio = log_q.sub_(log_p).masked_fill_(q == 0, 0.0)
    value = (q * log_ratio).sum(-1)
    return value, log_ratio.sub_(value[:, None]).mul_(q) if needs_grad else None


def _jsd(
    log_q: Tensor, log_p: Tensor, beta: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    p = log_p.exp()
    # r = log p/q gives log m/q = log1p(beta expm1(r)). Unlike a logaddexp of log p and log q minus
    # log q, this keeps its relative precision where p is close to q, and as beta tends to 0. As it
    # tends to 1, log m/p does.
    log_ratio = log_p.sub_(log_q).clamp_(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).nan_to_num_(nan=0.0)
    q = log_q.exp_()
    if beta <= 0.5:
        log_m_over_q = torch.expm1(log_ratio).mul_(beta).log1p_()
        log_p_over_m = log_ratio.sub_(log_m_over_q)
    else:
        log_p_over_m = torch.expm1(-log_ratio).mul_(1.0 - beta).log1p_().neg_()
        log_m_over_q = log_ratio.sub_(log_p_over_m)
    kl_q_m = -(q * log_m_over_q).sum(-1)
    kl_p_m = log_p_over_m.mul_(p).sum(-1)
    value = beta * kl_p_m + (1.0 - beta) * kl_q_m
    if not needs_grad:
        return value, None
    return value, log_m_over_q.add_(kl_q_m[:, None]).mul_(q).mul_(-(1.0 - beta))


def _total_variation(
    log_q: Tensor, log_p: Tensor, beta: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    q = log_q.exp_()
    difference = q - log_p.exp_()
    value = 0.5 * difference.abs().sum(-1)
    if not needs_grad:
        return value, None
    sign = difference.sign_()
    mean_sign = (q * sign).sum(-1, keepdim=True)
    return value, sign.sub_(mean_sign).mul_(q).mul_(0.5)


_FORMULAS = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "total_variation": _total_variation,
}
