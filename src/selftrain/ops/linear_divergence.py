r"""Distillation losses from hidden states, without the logits of all tokens.

The logits of N tokens over a vocabulary V are the largest tensor of a distillation step, twice,
and automatic differentiation keeps several more of that size. Here a chunk of tokens at a time is
projected by both heads, compared, and multiplied back: the weights of the tokens are arguments, so
the gradients are known in the forward pass. That takes three products with the student's head and
one with the teacher's, fewer than any scheme that recomputes logits in the backward pass, and
memory of a stated size besides the gradient of the student's head. Logits are float32 whatever the
type of the inputs: near convergence the gradient is a difference of nearly equal numbers, which
logits in bfloat16 lose (half of it where the divergence is 1e-5).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from selftrain._core.checks import check_int, check_range
from selftrain.kernels._dispatch import Backend, choose
from selftrain.ops._linear_loss import LinearLoss, value_names
from selftrain.ops.divergence_formulas import DivergenceKind, JSDScale, resolve


@dataclass(frozen=True, slots=True)
class Head:
    r"""The last linear layer of a language model: logits = :math:`c \tanh(a (h W^T + b) / c)`.

    Raises:
        ValueError: If ``weight`` is no matrix, the bias does not fit it, or a number is not
            positive.
    """

    weight: Tensor
    """W [vocab, features]. With fewer rows than the other model's, the rest counts as padding."""
    bias: Tensor | None = None
    """b [vocab]."""
    scale: float = 1.0
    """a, as in T5 v1.0 (features ** -0.5) or Granite."""
    softcap: float | None = None
    """c, as in Gemma 2; None for logits without a bound."""

    def __post_init__(self) -> None:
        if self.weight.ndim != 2:
            raise ValueError(
                f"weight must have shape [vocab, features], got {tuple(self.weight.shape)}."
            )
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"bias must have one element for each of the {len(self.weight)} rows of weight, "
                f"got shape {tuple(self.bias.shape)}."
            )
        check_range("scale", self.scale, low=0.0, low_open=True)
        if self.softcap is not None:
            check_range("softcap", self.softcap, low=0.0, low_open=True)


@dataclass(frozen=True, slots=True)
class LinearDivergence:
    """A loss and what was measured on the way."""

    loss: Tensor
    """The weighted sum over tokens; its gradient flows to the student's hidden state and head."""
    values: dict[str, Tensor]
    """One number a token, without gradient, 0 where the weight is 0: "loss" (in nats, unweighted),
    "acceptance" (the sum of min(p, q): how often speculative decoding would accept a token),
    "top1_agreement" (1 or 0), "student_entropy" and "teacher_entropy", all of the distributions at
    ``temperature``; "loss" alone with ``measure=False``."""


def linear_divergence(
    student_hidden: Float[Tensor, "tokens student_features"],
    student_head: Head,
    teacher_hidden: Float[Tensor, "tokens teacher_features"],
    teacher_head: Head,
    weights: Float[Tensor, " tokens"],
    *,
    kind: DivergenceKind = "jsd",
    beta: float = 0.5,
    alpha: float = 0.1,
    scale: JSDScale = "paper",
    temperature: float = 1.0,
    memory_budget: int | None = None,
    measure: bool = True,
    backend: Backend = "auto",
) -> LinearDivergence:
    r"""Return the weighted sum of divergences between two models, from their last hidden states.

    .. math:: L = \sum_n w_n D(p_n, q_n), \qquad q_n = \mathrm{softmax}(z_n / \tau)

    with the same result as :func:`selftrain.ops.divergence` of the logits, but for rounding. Tokens
    of weight 0 are as if they were not there, whatever their hidden states hold. Where the
    vocabularies differ, both are cut to the shorter one and renormalised. Gradients of first order
    only; they flow to ``student_hidden`` and the student's weight and bias, where those require
    them (a frozen head saves a third of the student's work), and are kept in float32 until the
    backward pass has scaled them.

    Args:
        student_hidden: What the student's head takes, of the tokens that may count.
        student_head: The head of the model being trained.
        teacher_hidden: The same of the teacher.
        teacher_head: The head of the fixed model.
        weights: The weight of each token, such as mask / number of tokens; without gradient.
        kind: Which divergence, as in :func:`selftrain.ops.divergence`.
        beta: Likewise.
        alpha: Likewise.
        scale: Likewise.
        temperature: Divides both logits, after scale and soft-cap; must be positive.
        memory_budget: Bytes that the logits of a chunk may take, with their gradient; at least one
            token is taken. None for 1 GiB, and on a CPU at most 512 tokens.
        measure: False leaves out all values but the loss.
        backend: What compares the logits: "auto" takes Triton on CUDA where it can, "eager" is
            torch.

    Raises:
        ValueError: If shapes do not belong together, an argument lies outside its range or the
            backend cannot run.

    Example:
        >>> head = Head(torch.eye(3))
        >>> hidden = torch.zeros(2, 3, requires_grad=True)
        >>> teacher = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> result = linear_divergence(hidden, head, teacher, head, torch.full((2,), 0.5))
        >>> result.loss.backward()
        >>> result.values["top1_agreement"]
        tensor([1., 1.])
    """
    formula, parameter, factor = resolve(kind, beta, alpha, scale)
    _check_side("student", student_hidden, student_head, weights)
    _check_side("teacher", teacher_hidden, teacher_head, weights)
    doubled = teacher_hidden.dtype == torch.float64
    chosen = choose(backend, teacher_hidden if doubled else student_hidden)
    return _apply(
        student_hidden,
        student_head,
        (_product_input(teacher_hidden), teacher_head.weight, teacher_head.bias, None),
        weights,
        (formula, parameter, factor),
        temperature,
        (teacher_head.scale, teacher_head.softcap),
        memory_budget,
        measure,
        chosen,
    )


def linear_cross_entropy(
    student_hidden: Float[Tensor, "tokens student_features"],
    student_head: Head,
    labels: Int64[Tensor, " tokens"],
    weights: Float[Tensor, " tokens"],
    *,
    temperature: float = 1.0,
    memory_budget: int | None = None,
    measure: bool = True,
) -> LinearDivergence:
    r"""Return the weighted sum of negative log-likelihoods, from the student's last hidden states.

    .. math:: L = -\sum_n w_n \log q_n(y_n)

    What :func:`linear_divergence` is for a teacher, for labels: fine-tuning, and sequence-level
    distillation on a teacher's text. A label acts as a teacher who is certain: "acceptance" is its
    probability, "top1_agreement" whether it comes first; there is no "teacher_entropy".

    Args:
        student_hidden: What the student's head takes, of the tokens that may count.
        student_head: The head of the model being trained.
        labels: The token that each row should predict; anything where the weight is 0.
        weights: The weight of each token, such as mask / number of tokens; without gradient.
        temperature: Divides the logits, after scale and soft-cap; must be positive.
        memory_budget: As in :func:`linear_divergence`.
        measure: Likewise.

    Raises:
        ValueError: If shapes do not belong together, an argument lies outside its range, or (on a
            CPU, where looking is free) a label that counts is none of the vocabulary.

    Example:
        >>> head = Head(torch.eye(2))
        >>> result = linear_cross_entropy(
        ...     torch.zeros(1, 2), head, torch.tensor([1]), torch.tensor([1.0])
        ... )
        >>> result.loss
        tensor(0.6931)
    """
    _check_side("student", student_hidden, student_head, weights)
    if labels.shape != weights.shape:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, weights {tuple(weights.shape)}; they must be "
            "equal."
        )
    return _apply(
        student_hidden,
        student_head,
        (None, None, None, labels),
        weights,
        ("nll", 0.0, 1.0),
        temperature,
        (1.0, None),
        memory_budget,
        measure,
        "eager",
    )


def _apply(
    hidden: Tensor,
    head: Head,
    teacher: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    weights: Tensor,
    loss: tuple[str, float, float],
    temperature: float,
    teacher_map: tuple[float, float | None],
    memory_budget: int | None,
    measure: bool,
    backend: str,
) -> LinearDivergence:
    check_range("temperature", temperature, low=0.0, low_open=True)
    if memory_budget is not None:
        check_int("memory_budget", memory_budget, low=1)
    total, values = LinearLoss.apply(
        _product_input(hidden),
        head.weight,
        head.bias,
        torch.is_grad_enabled(),
        *(x if x is None else x.detach() for x in teacher),
        weights.detach(),
        *loss,
        float(temperature),
        float(head.scale),
        head.softcap,
        *teacher_map,
        memory_budget,
        measure,
        backend,
    )
    names = value_names(loss[0], measure)
    return LinearDivergence(total, dict(zip(names, values.unbind(), strict=True)))


def _product_input(hidden: Tensor) -> Tensor:
    """Follow autocast on devices, where its types are much faster; CPUs gain nothing from it."""
    if hidden.is_cuda and torch.is_autocast_enabled("cuda"):
        return hidden.to(torch.get_autocast_dtype("cuda"))
    return hidden


def _check_side(name: str, hidden: Tensor, head: Head, weights: Tensor) -> None:
    if hidden.ndim != 2 or hidden.shape[1] != head.weight.shape[1]:
        raise ValueError(
            f"{name}_hidden has shape {tuple(hidden.shape)}, but {name}_head takes [tokens, "
            f"{head.weight.shape[1]}]; flatten batch and time, and check that it is the input of "
            "the head."
        )
    if weights.shape != hidden.shape[:1]:
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}; {name}_hidden has {len(hidden)} tokens, "
            "and each needs one weight."
        )
