r"""The reverse KL from the probabilities of sampled tokens alone: estimates, and a loss.

Where the teacher tells one number per token, the log-probability of the token that the student
wrote, the sum over the vocabulary in :func:`selftrain.ops.reverse_kl` becomes an average over
tokens drawn from the student. The expectation is the same, the variance is not.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from selftrain._core.checks import check_choice

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(
    student_log_probs: Float[Tensor, "*batch"],
    teacher_log_probs: Float[Tensor, "*batch"],
    *,
    estimator: KLEstimator = "k3",
) -> Float[Tensor, "*batch"]:
    r"""Return an estimate of KL(student || teacher) from each token that the student sampled.

    With :math:`r = \log p(y) - \log q(y)`, in nats (Schulman, "Approximating KL divergence", 2020):

    - "k1" is :math:`-r`: unbiased, often negative;
    - "k2" is :math:`r^2/2`: biased, at least 0, small variance where the models are close;
    - "k3" is :math:`e^r - 1 - r`: unbiased, at least 0, as long as the student gives every token
      that the teacher allows some probability.

    The estimates are for measuring, hence without gradient. To differentiate one is not to
    differentiate the KL: the average gradient of k1 is 0 and that of k3 belongs to the forward KL.
    :func:`policy_kl_loss` has the gradient of the reverse KL.

    Args:
        student_log_probs: :math:`\log q(y)` of tokens y drawn from the student, natural log.
        teacher_log_probs: :math:`\log p(y)` of the same tokens; where it is -inf so is no estimate
            finite, as it should be.
        estimator: Which one.

    Raises:
        ValueError: If the shapes differ or ``estimator`` is unknown.

    Example:
        >>> kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.5]), estimator="k1")
        tensor([0.5000])
    """
    check_choice("estimator", estimator, ("k1", "k2", "k3"))
    _check_same_shape("teacher_log_probs", teacher_log_probs, student_log_probs)
    log_ratio = (_wide(teacher_log_probs) - _wide(student_log_probs)).detach()
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    # Where a device's expm1 errs by a unit in the last place it can fall below its argument.
    return (torch.expm1(log_ratio) - log_ratio).clamp_(min=0.0)


def policy_kl_loss(
    student_log_probs: Float[Tensor, "*batch"],
    teacher_log_probs: Float[Tensor, "*batch"],
    *,
    behaviour_log_probs: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return a loss per sampled token whose average gradient is that of KL(student || teacher).

    .. math:: L = -A\, \frac{q(y)}{\mathrm{stopgrad}(b(y))}, \qquad
              A = \mathrm{stopgrad}(\log p(y) - \log q(y)),\quad y \sim b

    Policy gradient with the log-ratio of the two models as the advantage of each token. For tokens
    drawn from the student, :math:`b = q`, the gradient is :math:`-A \nabla \log q(y)` and the
    value :math:`-A`, the estimate "k1" of :func:`kl_estimate`. For tokens drawn from an older
    student, ``behaviour_log_probs`` gives the probabilities they were drawn with, and the ratio
    corrects for the difference (position by position: the contexts are still the older student's).

    At every position :math:`E_{y \sim b} \nabla L` is the gradient of
    :func:`selftrain.ops.reverse_kl`, of which this is a noisy form. Use it where the teacher's
    whole distribution cannot be had.

    Args:
        student_log_probs: :math:`\log q(y)` of the current student, natural log, over the full
            vocabulary; the gradient flows here.
        teacher_log_probs: :math:`\log p(y)` of the same tokens. At -inf the loss is inf, and its
            gradient not finite.
        behaviour_log_probs: :math:`\log b(y)`; None if the current student drew the tokens.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> policy_kl_loss(torch.tensor([-1.0]), torch.tensor([-1.5]))
        tensor([0.5000])
    """
    _check_same_shape("teacher_log_probs", teacher_log_probs, student_log_probs)
    log_q = _wide(student_log_probs)
    sampled_as = log_q if behaviour_log_probs is None else _wide(behaviour_log_probs)
    _check_same_shape("behaviour_log_probs", sampled_as, student_log_probs)
    advantage = (_wide(teacher_log_probs) - log_q).detach()
    return -advantage * torch.exp(log_q - sampled_as.detach())


def _wide(log_probs: Tensor) -> Tensor:
    return log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))


def _check_same_shape(name: str, tensor: Tensor, student_log_probs: Tensor) -> None:
    if tensor.shape != student_log_probs.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, student_log_probs "
            f"{tuple(student_log_probs.shape)}; they must be equal (nothing is broadcast)."
        )
