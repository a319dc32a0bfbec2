r"""Divergences between two next-token distributions, per position, with closed-form gradients.

Throughout, p is the teacher's and q the student's distribution over the last dimension,
:math:`q = \mathrm{softmax}(s/\tau)`, :math:`p = \mathrm{softmax}(t/\tau)`. For any
:math:`D = \sum_v F(p_v, q_v)` with :math:`g = \partial F / \partial q` the gradient with respect to
the student's logits is :math:`\partial D/\partial s_v = q_v (g_v - \sum_w q_w g_w) / \tau`, so one
pass yields value and gradient.

Shape letters: N positions, V vocabulary.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from selftrain._core.checks import check_range, check_same_vocab
from selftrain.ops._stored_gradient import stored_gradient
from selftrain.ops.divergence_formulas import (
    DIVERGENCES,
    FORMULAS,
    DivergenceKind,
    JSDScale,
    resolve,
)

__all__ = [
    "DIVERGENCES",
    "DivergenceKind",
    "JSDScale",
    "amari_divergence",
    "divergence",
    "forward_kl",
    "generalized_jsd",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
]


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


def skew_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Return the skew KL, from the teacher to a mixture with it, at every position, in nats.

    .. math:: D = KL(p \| m), \quad m = \alpha p + (1-\alpha) q, \qquad
              \partial D / \partial s_v =
              -(1-\alpha)\, q_v (p_v / m_v - \sum_w q_w p_w / m_w) / \tau

    The forward KL made bounded (DistiLLM, arXiv 2402.03898): never above :math:`-\log\alpha`, with
    ratios :math:`p/m` of at most :math:`1/\alpha`, so that a token that only the teacher allows
    costs a finite amount. At alpha = 0 it is :func:`forward_kl`; at alpha = 1 it would be 0
    whatever the student does, hence an error. The gradient flows to the student only. Computed in
    float32, or float64 if that is given.

    Args:
        student_logits: Unnormalised scores of the model being trained.
        teacher_logits: Unnormalised scores of the fixed model; the same vocabulary.
        alpha: The teacher's weight in the mixture, in [0, 1).
        temperature: Divides both logits; must be positive.

    Raises:
        ValueError: If the vocabularies differ in size or an argument lies outside its range.

    Example:
        >>> banned = torch.tensor([0.0, float("-inf")])
        >>> skew_kl(banned, torch.tensor([float("-inf"), 0.0]), alpha=0.1)  # -log(0.1)
        tensor(2.3026)
    """
    return divergence(
        student_logits, teacher_logits, kind="skew_kl", alpha=alpha, temperature=temperature
    )


def skew_reverse_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Return the skew reverse KL, from the student to a mixture with it, at every position.

    .. math:: D = KL(q \| m), \quad m = (1-\alpha) p + \alpha q, \qquad
              \partial D / \partial s_v = q_v (g_v - \sum_w q_w g_w) / \tau,\
              g_v = \log (q_v / m_v) + (1-\alpha)\, p_v / m_v

    The reverse KL made bounded (DistiLLM, arXiv 2402.03898), in nats and never above
    :math:`-\log\alpha`: a token that only the student allows costs a finite amount, with a finite
    gradient. ``alpha`` is the weight of the law that is compared with the mixture, here the
    student's and in :func:`skew_kl` the teacher's. At alpha = 0 it is :func:`reverse_kl`; at
    alpha = 1 it would be 0 whatever the student does, hence an error. The gradient flows to the
    student only. Computed in float32, or float64 if that is given.

    Args:
        student_logits: Unnormalised scores of the model being trained.
        teacher_logits: Unnormalised scores of the fixed model; the same vocabulary.
        alpha: The student's weight in the mixture, in [0, 1).
        temperature: Divides both logits; must be positive.

    Raises:
        ValueError: If the vocabularies differ in size or an argument lies outside its range.

    Example:
        >>> banned = torch.tensor([0.0, float("-inf")])
        >>> skew_reverse_kl(banned, torch.tensor([float("-inf"), 0.0]), alpha=0.1)  # -log(0.1)
        tensor(2.3026)
    """
    return divergence(
        student_logits, teacher_logits, kind="skew_reverse_kl", alpha=alpha, temperature=temperature
    )


def amari_divergence(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    alpha: float,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Return the alpha-divergence (Amari) at every position, between the two KLs.

    .. math:: D = \frac{\sum_v p_v^\alpha q_v^{1-\alpha} - 1}{\alpha(\alpha-1)}, \qquad
              \partial D / \partial s_v =
              -(w_v - q_v \sum_u w_u) / \alpha\tau,\ w = p^\alpha q^{1-\alpha}

    It tends to KL(teacher || student) as alpha tends to 1 and to KL(student || teacher) as it
    tends to 0, and those are its values there; at 1/2 it is four times the squared Hellinger
    distance. For every alpha it agrees with both KLs to second order, and between the ends it is
    at most :math:`1/\alpha(1-\alpha)` whatever the supports. Orders outside [0, 1] are refused:
    they put powers of a ratio of probabilities into value and gradient that overflow wherever one
    of the models has almost no mass.

    The gradient flows to the student only. Computed in float32, or float64 if that is given.

    Args:
        student_logits: Unnormalised scores of the model being trained.
        teacher_logits: Unnormalised scores of the fixed model; the same vocabulary.
        alpha: The exponent of the teacher's probability, in [0, 1].
        temperature: Divides both logits; must be positive.

    Raises:
        ValueError: If the vocabularies differ in size or an argument lies outside its range.

    Example:
        >>> banned = torch.tensor([0.0, float("-inf")])
        >>> amari_divergence(banned, torch.tensor([float("-inf"), 0.0]), alpha=0.5)
        tensor(4.)
    """
    return divergence(
        student_logits, teacher_logits, kind="amari", alpha=alpha, temperature=temperature
    )


def divergence(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    kind: DivergenceKind = "jsd",
    beta: float = 0.5,
    alpha: float = 0.1,
    scale: JSDScale = "paper",
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    """Return the divergence named by ``kind`` at every position, in nats.

    The functions of this module under one name; see :func:`forward_kl`, :func:`reverse_kl`,
    :func:`generalized_jsd`, :func:`total_variation`, :func:`skew_kl`, :func:`skew_reverse_kl` and
    :func:`amari_divergence` ("amari"). First derivatives only.

    Args:
        student_logits: Unnormalised scores of the model being trained.
        teacher_logits: Unnormalised scores of the fixed model; the same shape.
        kind: Which divergence.
        beta: The teacher's weight in the mixture of "jsd", in [0, 1]; unused otherwise.
        alpha: The skew of "skew_kl" and "skew_reverse_kl", in [0, 1), or the order of "amari", in
            [0, 1]; unused otherwise.
        scale: "paper" or "unit", for "jsd"; unused otherwise.
        temperature: Divides both logits; must be positive.

    Raises:
        ValueError: If ``kind`` or ``scale`` is unknown (the message lists the known ones), the
            shapes differ, or ``beta``, ``alpha`` or ``temperature`` lies outside its range.
    """
    formula, parameter, factor = resolve(kind, beta, alpha, scale)
    check_range("temperature", temperature, low=0.0, low_open=True)
    check_same_vocab(student_logits, teacher_logits)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student_logits has shape {tuple(student_logits.shape)}, teacher_logits "
            f"{tuple(teacher_logits.shape)}; they must be equal (nothing is broadcast)."
        )
    vocab = student_logits.shape[-1]
    value_N = stored_gradient(
        _divergence_rows,
        student_logits.reshape(-1, vocab),
        (teacher_logits.detach().reshape(-1, vocab),),
        (formula, parameter, factor, float(temperature)),
    )
    return value_N.reshape(student_logits.shape[:-1])


def _divergence_rows(
    needs_grad: bool,
    student_NV: Tensor,
    teacher_NV: Tensor,
    formula: str,
    parameter: float,
    factor: float,
    temperature: float,
) -> tuple[Tensor, Tensor | None]:
    """Return the value of every row and the gradient with respect to the student's logits."""
    log_q = _log_softmax(student_NV, temperature)
    log_p = _log_softmax(teacher_NV.to(student_NV.dtype), temperature)
    value, grad = FORMULAS[formula](log_q, log_p, parameter, needs_grad)
    if grad is not None and factor != temperature:
        grad.mul_(factor / temperature)
    return value.mul_(factor), grad


def _log_softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    """Return fresh log-probabilities, which the formulas may overwrite."""
    return torch.log_softmax(logits_NV if temperature == 1 else logits_NV / temperature, dim=-1)
