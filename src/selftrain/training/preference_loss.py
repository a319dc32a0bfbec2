"""The preference loss of a problem's answers, and what a group of answers is.

Shape letters: C chosen (correct) answers, R rejected (wrong) ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from selftrain._core.checks import check_not_empty, check_range
from selftrain.training.batch import TokenRow

_CHUNK_PAIRS = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceGroup:
    """The correct and the wrong answers to one problem; every pair of them is a preference.

    Raises:
        ValueError: If either class is empty, or a log-probability is missing or not finite.
    """

    chosen: tuple[TokenRow, ...]
    """Correct answers."""
    rejected: tuple[TokenRow, ...]
    """Wrong answers."""
    chosen_reference: tuple[float, ...]
    """The log-probability of each correct answer under the reference, in nats."""
    rejected_reference: tuple[float, ...]
    """That of each wrong answer."""
    name: str = ""
    """What errors call the group."""

    def __post_init__(self) -> None:
        for name in ("chosen", "rejected"):
            rows, reference = getattr(self, name), getattr(self, f"{name}_reference")
            check_not_empty(f"{name} of group {self.name!r}", rows)
            if len(reference) != len(rows):
                raise ValueError(
                    f"group {self.name!r}: {name}_reference has {len(reference)} log-probabilities "
                    f"for {len(rows)} answers; it needs one each."
                )
            wrong = [value for value in reference if not math.isfinite(value)]
            if wrong:
                raise ValueError(
                    f"group {self.name!r}: {name}_reference holds {wrong[0]}; log-probabilities "
                    "must be finite. Look at the reference model's logits."
                )

    @property
    def rows(self) -> tuple[TokenRow, ...]:
        """All answers, correct ones first."""
        return self.chosen + self.rejected

    @property
    def reference(self) -> tuple[float, ...]:
        """The log-probabilities of all answers under the reference."""
        return self.chosen_reference + self.rejected_reference

    @property
    def num_pairs(self) -> int:
        """Number of preferences."""
        return len(self.chosen) * len(self.rejected)

    @property
    def num_sequences(self) -> int:
        """Number of answers."""
        return len(self.chosen) + len(self.rejected)


@dataclass(frozen=True, slots=True)
class PairSums:
    """Sums over all pairs of a group, and their gradient."""

    loss: Tensor
    """The sum of the losses, a scalar without gradient."""
    right: Tensor
    """Number of pairs ranked rightly, ties counted half."""
    margin: Tensor
    """The sum of beta times the differences of log-ratios."""
    gradient: Tensor
    """``[C + R]``: of ``loss``, with respect to the log-ratios."""


def dpo_loss(
    chosen_log_ratios: Float[Tensor, " chosen"],
    rejected_log_ratios: Float[Tensor, " rejected"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Float[Tensor, "chosen rejected"]:
    r"""Return the loss of every pair of a chosen and a rejected answer to one problem.

    .. math:: L_{ij} = -(1 - \epsilon) \log \sigma(m_{ij}) - \epsilon \log \sigma(-m_{ij}),
        \qquad m_{ij} = \beta (\rho^+_i - \rho^-_j)

    with :math:`\rho = \log V(y|x) - \log \pi_{ref}(y|x)` (Rafailov et al. 2023, equation 7; with
    smoothing, the same authors' conservative form). It is ln 2 where the model is the reference.

    Args:
        chosen_log_ratios: The differences of log-probabilities of the correct answers, in nats.
        rejected_log_ratios: Those of the wrong ones.
        beta: How strongly the reference holds the model; positive.
        label_smoothing: The assumed share of pairs in the wrong order, in [0, 0.5).

    Raises:
        ValueError: If a number lies outside its range, or a tensor has other than one axis.

    Example:
        >>> dpo_loss(torch.zeros(1), torch.zeros(2))
        tensor([[0.6931, 0.6931]])
    """
    check_range("beta", beta, low=0.0, low_open=True)
    check_range("label_smoothing", label_smoothing, low=0.0, high=0.5, high_open=True)
    for name, ratios in (
        ("chosen_log_ratios", chosen_log_ratios),
        ("rejected_log_ratios", rejected_log_ratios),
    ):
        if ratios.ndim != 1:
            raise ValueError(
                f"{name} must have one axis, one number a completion, got {tuple(ratios.shape)}."
            )
    margins_CR = beta * (chosen_log_ratios[:, None] - rejected_log_ratios[None, :])
    loss_CR = F.softplus(-margins_CR)
    # softplus(m) = softplus(-m) + m
    return loss_CR + label_smoothing * margins_CR if label_smoothing else loss_CR


def pair_sums(
    log_ratios: Tensor, num_chosen: int, *, beta: float, label_smoothing: float
) -> PairSums:
    """Return loss, gradient and measures of a group, a chunk of its pairs at a time.

    Args:
        log_ratios: ``[C + R]``, those of the correct answers first; without gradient.
        num_chosen: C.
        beta: As in :func:`dpo_loss`.
        label_smoothing: Likewise.
    """
    ratios = log_ratios.detach()
    rejected_R = ratios[num_chosen:]
    loss = right = margin = ratios.new_zeros(())
    gradient = torch.zeros_like(ratios)
    size = max(1, _CHUNK_PAIRS // len(rejected_R))
    for start in range(0, num_chosen, size):
        stop = min(start + size, num_chosen)
        chosen_C = ratios[start:stop].clone().requires_grad_()
        other_R = rejected_R.clone().requires_grad_()
        with torch.enable_grad():
            part = dpo_loss(chosen_C, other_R, beta=beta, label_smoothing=label_smoothing).sum()
        chosen_grad, rejected_grad = torch.autograd.grad(part, (chosen_C, other_R))
        gradient[start:stop] = chosen_grad
        gradient[num_chosen:] += rejected_grad
        differences_CR = ratios[start:stop, None] - rejected_R
        loss = loss + part.detach()
        right = right + 0.5 * (1.0 + differences_CR.sign()).sum()
        margin = margin + beta * differences_CR.sum()
    return PairSums(loss, right, margin, gradient)


def num_pairs_of(groups: Sequence[PreferenceGroup]) -> int:
    """Return the number of preferences of all groups."""
    return sum(group.num_pairs for group in groups)
