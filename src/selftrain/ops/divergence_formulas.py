r"""The formulas of the divergences: value and gradient from two rows of log-probabilities.

For any :math:`D = \sum_v F(p_v, q_v)` with :math:`g = \partial F / \partial q` the gradient with
respect to the student's logits at temperature 1 is :math:`q_v (g_v - \sum_w q_w g_w)`, so what is
constant in g drops out and may be left away. Here p is the teacher's law and q the student's.

Shape letters: N positions, V vocabulary.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from selftrain._core.checks import check_choice, check_range

DivergenceKind = Literal[
    "forward_kl", "reverse_kl", "jsd", "total_variation", "skew_kl", "skew_reverse_kl", "amari"
]
JSDScale = Literal["paper", "unit"]
Formula = Callable[[Tensor, Tensor, float, bool], tuple[Tensor, Tensor | None]]

# Beyond e^80 the smaller of two probabilities no longer counts, and e^80 still fits float32.
_MAX_LOG_RATIO = 80.0


def resolve(
    kind: str, beta: float, alpha: float, scale: str = "paper"
) -> tuple[DivergenceKind, float, float]:
    r"""Return the formula to use, its parameter, and the factor on its value and gradient.

    What happens at the ends of ``beta`` and ``alpha`` is decided here, once for every
    implementation of the formulas: there the divergence is a KL, and never a division by zero.

    Args:
        kind: Which divergence.
        beta: The teacher's weight in the mixture of "jsd", in [0, 1].
        alpha: For "skew_kl" the teacher's and for "skew_reverse_kl" the student's weight in the
            mixture, in [0, 1); for "amari" the exponent of p, in [0, 1]; unused otherwise.
        scale: "paper" or "unit", for "jsd"; unused otherwise.

    Returns:
        The key into :data:`FORMULAS`; the formula's ``parameter``: the teacher's weight in the
        mixture, or for "amari" the exponent; and the factor.

    Raises:
        ValueError: If ``kind`` or ``scale`` is unknown (the message lists the known ones), or
            ``beta`` or ``alpha`` lies outside its range.
    """
    check_choice("kind", kind, DIVERGENCES)
    check_choice("scale", scale, ("paper", "unit"))
    check_range("beta", beta, low=0.0, high=1.0)
    if kind == "jsd":
        if beta in (0.0, 1.0):
            return ("forward_kl" if beta == 0.0 else "reverse_kl"), 0.0, 1.0
        return "jsd", float(beta), 1.0 / (beta * (1.0 - beta)) if scale == "unit" else 1.0
    if kind in ("skew_kl", "skew_reverse_kl"):
        _check_alpha(kind, alpha)
        if alpha == 0.0:
            return ("forward_kl" if kind == "skew_kl" else "reverse_kl"), 0.0, 1.0
        return kind, float(alpha) if kind == "skew_kl" else 1.0 - alpha, 1.0
    if kind == "amari":
        _check_alpha(kind, alpha)
        if alpha in (0.0, 1.0):
            return ("reverse_kl" if alpha == 0.0 else "forward_kl"), 0.0, 1.0
        return "amari", float(alpha), 1.0
    return kind, 0.0, 1.0  # pyrefly: ignore[bad-return]


def _check_alpha(kind: str, alpha: float) -> None:
    """Raise unless ``alpha`` is a parameter of ``kind``, with the reason why it is none."""
    is_amari = kind == "amari"
    try:
        check_range("alpha", alpha, low=0.0, high=1.0, high_open=not is_amari)
    except ValueError as error:
        reason = (
            "Outside, powers of the ratio of two probabilities overflow wherever one of the models "
            "has almost no mass."
            if is_amari
            else "At 1 the mixture is the law it is compared with, and the divergence 0 whatever "
            "the student does."
        )
        raise ValueError(f"{error} {reason}") from None


# Each formula takes log q and log p, may overwrite both, and returns the value per row and (if
# asked) the gradient with respect to the student's logits at temperature 1. The ratio is masked
# before the product, not after: 0 * (-inf - -inf) is NaN. A term c sum(q - p) in a value is 0 but
# for rounding: it takes out of the value what the rounding of the two normalisers, about 5e-7 in
# float32, would add to it.


def _forward_kl(
    log_q: Tensor, log_p: Tensor, parameter: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    p = log_p.exp()
    log_ratio = log_p.sub_(log_q).masked_fill_(p == 0, 0.0)
    value = log_ratio.mul_(p).sum(-1)
    return value, log_q.exp_().sub_(p) if needs_grad else None


def _reverse_kl(
    log_q: Tensor, log_p: Tensor, parameter: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    q = log_q.exp()
    log_ratio = log_q.sub_(log_p).masked_fill_(q == 0, 0.0)
    value = (q * log_ratio).sum(-1)
    return value, log_ratio.sub_(value[:, None]).mul_(q) if needs_grad else None


def _jsd(
    log_q: Tensor, log_p: Tensor, beta: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    q, p, log_m_over_q, log_p_over_m = _mixture(log_q, log_p, beta)
    kl_q_m = -(q * log_m_over_q).sum(-1)
    kl_p_m = log_p_over_m.mul_(p).sum(-1)
    value = beta * kl_p_m + (1.0 - beta) * kl_q_m
    if not needs_grad:
        return value, None
    return value, log_m_over_q.add_(kl_q_m[:, None]).mul_(q).mul_(-(1.0 - beta))


def _skew_kl(
    log_q: Tensor, log_p: Tensor, weight: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    q, p, _, log_p_over_m = _mixture(log_q, log_p, weight)
    value = (p * log_p_over_m).sum(-1).add_((q - p).sum(-1), alpha=1.0 - weight)
    # g = -(1 - weight) p / m, up to a constant that makes it small where p is close to q.
    return value, _centred(q, log_p_over_m.expm1_().mul_(weight - 1.0)) if needs_grad else None


def _skew_reverse_kl(
    log_q: Tensor, log_p: Tensor, weight: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    q, p, log_m_over_q, log_p_over_m = _mixture(log_q, log_p, weight)
    value = -(q * log_m_over_q).sum(-1).add_((q - p).sum(-1), alpha=weight)
    if not needs_grad:
        return value, None
    # g = log q/m + 1 - (1 - weight) q / m, where the last two are weight * p / m.
    return value, _centred(q, log_p_over_m.expm1_().mul_(weight).sub_(log_m_over_q))


def _amari(
    log_q: Tensor, log_p: Tensor, exponent: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    p = log_p.exp()
    log_ratio = _log_ratio(log_q, log_p)
    q = log_q.exp_()
    q_minus_p = (q - p).sum(-1)
    # With w = p^a q^(1-a) the value is sum(w - q) / a(a-1), where w - q = q expm1(a log p/q). The
    # other end, w - p, is the same with the laws exchanged and precise as a tends to 1. A clamp
    # keeps expm1 finite; the w it changes is below e^-40.
    if exponent <= 0.5:
        w_minus_q = log_ratio.clamp_(max=_MAX_LOG_RATIO).mul_(exponent).expm1_().mul_(q)
        value = w_minus_q.sum(-1).add_(q_minus_p, alpha=exponent)
    else:
        log_ratio = log_ratio.clamp_(min=-_MAX_LOG_RATIO)
        w_minus_p = log_ratio.mul_(exponent - 1.0).expm1_().mul_(p)
        value = w_minus_p.sum(-1).sub_(q_minus_p, alpha=1.0 - exponent)
        w_minus_q = w_minus_p.add_(p).sub_(q)
    value = value.div_(exponent * (exponent - 1.0))
    if not needs_grad:
        return value, None
    mean = w_minus_q.sum(-1, keepdim=True)
    return value, w_minus_q.sub_(q.mul_(mean)).div_(-exponent)


def _total_variation(
    log_q: Tensor, log_p: Tensor, parameter: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    q = log_q.exp_()
    difference = q - log_p.exp_()
    value = 0.5 * difference.abs().sum(-1)
    return value, _centred(q, difference.sign_().mul_(0.5)) if needs_grad else None


def _mixture(log_q: Tensor, log_p: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return q, p, log m/q and log p/m for m = weight p + (1 - weight) q; overwrites its inputs."""
    p = log_p.exp()
    # r = log p/q gives log m/q = log1p(weight expm1(r)). Unlike a logaddexp of log p and log q
    # minus log q, this keeps its relative precision where p is close to q, and as the weight tends
    # to 0. As it tends to 1, log m/p does.
    log_ratio = _log_ratio(log_q, log_p).clamp_(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    q = log_q.exp_()
    if weight <= 0.5:
        log_m_over_q = torch.expm1(log_ratio).mul_(weight).log1p_()
        log_p_over_m = log_ratio.sub_(log_m_over_q)
    else:
        log_p_over_m = torch.expm1(-log_ratio).mul_(1.0 - weight).log1p_().neg_()
        log_m_over_q = log_ratio.sub_(log_p_over_m)
    return q, p, log_m_over_q, log_p_over_m


def _log_ratio(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return log p/q; where both laws have no mass some number, not NaN, to be multiplied by 0.

    Overwrites ``log_p``. A NaN of the models stays one, which ``nan_to_num`` would hide.
    """
    return log_p.clamp_(min=torch.finfo(log_p.dtype).min).sub_(log_q)


def _centred(q: Tensor, g: Tensor) -> Tensor:
    """Return q (g - sum q g), the gradient that belongs to g; overwrites ``g``."""
    return g.sub_((q * g).sum(-1, keepdim=True)).mul_(q)


FORMULAS: dict[str, Formula] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "total_variation": _total_variation,
    "skew_kl": _skew_kl,
    "skew_reverse_kl": _skew_reverse_kl,
    "amari": _amari,
}
"""``FORMULAS[kind](log_q_NV, log_p_NV, parameter, needs_grad) -> (value_N, gradient_NV | None)``.

Both inputs may be overwritten; ``kind``, ``parameter`` and the factor to apply to both results come
from :func:`resolve`. The gradient is with respect to the student's logits at temperature 1.
"""

DIVERGENCES: tuple[str, ...] = tuple(FORMULAS)
"""The values of ``kind`` that :func:`selftrain.ops.divergence` takes."""
