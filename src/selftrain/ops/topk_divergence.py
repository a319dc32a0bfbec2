r"""Divergences from a teacher that is known on a few tokens only, with closed-form gradients.

A server or a cache rarely gives a whole distribution. Two things it can give for every position:
its k likeliest tokens with their log-probabilities (:func:`topk_divergence`), or tokens drawn from
it (:func:`sampled_forward_kl`). The first is exact about the k tokens and blind to the order of the
others; the second is noisy and has the right gradient on average.

Shape letters: N positions, V vocabulary, K tokens known.
"""

import math
import warnings

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from selftrain._core.checks import check_range
from selftrain.ops._stored_gradient import RowFunction, stored_gradient
from selftrain.ops.divergence_formulas import FORMULAS, DivergenceKind, JSDScale, resolve

# Teachers rounded to half precision overshoot a total probability of 1 by about a thousandth.
_MAX_LOG_TOTAL = 0.01


def topk_divergence(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_ids: Int[Tensor, "*batch k"],
    teacher_log_probs: Float[Tensor, "*batch k"],
    *,
    kind: DivergenceKind = "forward_kl",
    beta: float = 0.5,
    alpha: float = 0.1,
    scale: JSDScale = "paper",
    temperature: float = 1.0,
    tail: bool = True,
) -> Float[Tensor, "*batch"]:
    r"""Return the divergence from a top-k teacher at every position, in nats.

    All tokens that the teacher does not list count as one outcome, the tail, with the
    probabilities :math:`\bar p = 1 - \sum_S p_v` and :math:`\bar q = 1 - \sum_S q_v`; the result
    is the divergence ``kind`` between the two laws of k + 1 outcomes. It is a divergence itself:
    at least 0, at most the full one, and equal to it where p/q is the same for all of the tail. If
    :math:`G` is its gradient with respect to the k + 1 outcomes' logits, then
    :math:`\partial D / \partial s_v` is :math:`G_v / \tau` for a listed token and
    :math:`\bar G\, q_v / \bar q \tau` for one of the tail.

    ``tail=False`` leaves the tail out of the forward KL, as is often done, and warns: what remains
    is no divergence. It can be negative and has its minimum where q is p divided by its sum, so
    the student is taught that tokens of the tail are impossible. For other kinds it is refused:
    the truncated reverse KL, for one, is least where the student has no mass on the listed tokens.

    The gradient flows to the student only. Computed in float32, or float64 if that is given. The
    student's tail is a sum over the tokens themselves, never 1 minus the rest. The teacher's can
    only be 1 minus the rest, so it is as precise as ``teacher_log_probs`` are; a tail below the
    resolution of the dtype counts as that resolution, and as 0 if the student has none either or
    the whole vocabulary is listed.

    Args:
        student_logits: Unnormalised scores of the model being trained, over the vocabulary.
        teacher_ids: Tokens that the teacher lists, each once, in any order.
        teacher_log_probs: Their natural log-probabilities over the full vocabulary, at
            ``temperature``: a law known on k tokens cannot be brought to another one. An entry of
            -inf is no entry: its token belongs to the tail, and its id may be any valid one.
        kind: Which divergence; see :func:`selftrain.ops.divergence` for all of them.
        beta: The teacher's weight in the mixture of "jsd", in [0, 1].
        alpha: The skew of "skew_kl" and "skew_reverse_kl", or the order of "amari".
        scale: "paper" or "unit", for "jsd".
        temperature: Divides the student's logits; must be positive.
        tail: Whether to count what the teacher does not list.

    Raises:
        TypeError: If ``teacher_ids`` are not integers.
        ValueError: If an argument lies outside its range, the shapes do not fit, k exceeds the
            vocabulary, ``tail`` is False with another kind than "forward_kl", or - checked on
            CPU tensors only, for elsewhere it would wait for the device - ids repeat or lie
            outside the vocabulary, or the teacher's probabilities sum to more than 1.

    Example:
        >>> logits = torch.tensor([0.0, 0.0, 0.0, 0.0])
        >>> topk_divergence(logits, torch.tensor([2, 0]), torch.tensor([0.25, 0.25]).log())
        tensor(0.)
    """
    formula, parameter, factor = resolve(kind, beta, alpha, scale)
    check_range("temperature", temperature, low=0.0, low_open=True)
    _check_shapes(student_logits, teacher_ids, "teacher_log_probs", teacher_log_probs)
    teacher_log_probs = teacher_log_probs.detach()
    _check_teacher(teacher_ids, teacher_log_probs, student_logits.shape[-1])
    if tail:
        options = (formula, parameter, factor, float(temperature))
        return _over_rows(_coarse_rows, student_logits, teacher_ids, teacher_log_probs, options)
    if formula != "forward_kl":
        raise ValueError(
            f"tail=False is offered for kind='forward_kl' only, got kind={kind!r}: without the "
            "tail the other sums are no divergences and can fall as the student moves its mass "
            "away from the tokens that the teacher lists. Leave tail at True."
        )
    if not torch.compiler.is_compiling():
        warnings.warn(
            "tail=False compares unnormalised sums: the result can be negative, and its minimum "
            "has no mass on the tokens that the teacher does not list. tail=True costs no more.",
            stacklevel=2,
        )
    options = (float(temperature),)
    return _over_rows(_listed_rows, student_logits, teacher_ids, teacher_log_probs, options)


def sampled_forward_kl(
    student_logits: Float[Tensor, "*batch vocab"],
    token_ids: Int[Tensor, "*batch n"],
    counts: Real[Tensor, "*batch n"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Return the forward KL from tokens drawn from the teacher; its gradient is unbiased.

    .. math:: \hat D = \sum_v \hat p_v (\log \hat p_v - \log q_v),\ \hat p = \text{counts} / n,
              \qquad \partial \hat D / \partial s_v = (q_v - \hat p_v) / \tau

    With tokens drawn independently from p, the expectation of the gradient is that of
    KL(teacher || student), where the gradient of a top-k teacher is biased towards its likely
    tokens (Sparse Logit Sampling, arXiv 2503.16870). The value is too large by
    :math:`E\, KL(\hat p \| p)`, which does not depend on the student. The gradient flows to the
    student only. Computed in float32, or float64 if that is given.

    Args:
        student_logits: Unnormalised scores of the model being trained, over the vocabulary.
        token_ids: The tokens that were drawn, each once, in any order.
        counts: How often each was drawn; 0 for an entry that is none. A position without any
            counts has value and gradient 0.
        temperature: Divides the student's logits; must be positive. The tokens are to be drawn at
            the same one.

    Raises:
        TypeError: If ``token_ids`` are not integers.
        ValueError: If ``temperature`` is not positive, the shapes do not fit, there are more ids
            than tokens in the vocabulary, or - checked on CPU tensors only - ids repeat or lie
            outside the vocabulary, or a count is negative.

    Example:
        >>> sampled_forward_kl(torch.zeros(4), torch.tensor([3, 1]), torch.tensor([5, 5]))
        tensor(0.6931)
    """
    check_range("temperature", temperature, low=0.0, low_open=True)
    _check_shapes(student_logits, token_ids, "counts", counts)
    counts = counts.detach().to(torch.promote_types(student_logits.dtype, torch.float32))
    if _can_check(counts) and not bool((counts >= 0).all()):
        raise ValueError(f"counts must be at least 0, got {counts.min().item()}.")
    log_p = counts.log() - counts.sum(-1, keepdim=True).clamp_(min=1e-30).log()
    _check_ids("token_ids", token_ids, counts > 0, student_logits.shape[-1])
    return _over_rows(_listed_rows, student_logits, token_ids, log_p, (float(temperature),))


def _over_rows(
    rows: RowFunction, student: Tensor, ids: Tensor, log_p: Tensor, options: tuple[float | str, ...]
) -> Tensor:
    """Apply a function of rows to tensors with any number of batch dimensions."""
    value_N = stored_gradient(
        rows,
        student.reshape(-1, student.shape[-1]),
        (ids.reshape(-1, ids.shape[-1]).long(), log_p.reshape(-1, log_p.shape[-1])),
        options,
    )
    return value_N.reshape(student.shape[:-1])


def _coarse_rows(
    needs_grad: bool,
    student_NV: Tensor,
    ids_NK: Tensor,
    log_p_NK: Tensor,
    formula: str,
    parameter: float,
    factor: float,
    temperature: float,
) -> tuple[Tensor, Tensor | None]:
    """Return value and gradient of the divergence between laws of the K tokens and the tail."""
    rest_NV = student_NV / temperature
    listed_NK = rest_NV.gather(-1, ids_NK)
    is_entry_NK = log_p_NK > -math.inf
    listed_NK.masked_fill_(~is_entry_NK, -math.inf)
    # The minimum, not an assignment: an id without an entry may repeat one that has an entry.
    removal_NK = torch.where(is_entry_NK, -math.inf, math.inf).to(rest_NV.dtype)
    rest_NV.scatter_reduce_(-1, ids_NK, removal_NK, "amin")
    tail_N1 = rest_NV.logsumexp(-1, keepdim=True)
    no_tail_N1 = tail_N1 == -math.inf
    log_q = torch.cat([listed_NK, tail_N1], -1).log_softmax(-1)
    log_p = _with_tail(log_p_NK.to(student_NV.dtype), no_tail_N1, rest_NV.shape[-1])
    value, grad = FORMULAS[formula](log_q, log_p, parameter, needs_grad)
    value = value.mul_(factor)
    if grad is None:
        return value, None
    grad.mul_(factor / temperature)
    # Tokens of the tail share its gradient in proportion to q; those listed are at -inf here.
    grad_NV = rest_NV.sub_(tail_N1.masked_fill_(no_tail_N1, 0.0)).exp_().mul_(grad[:, -1:])
    return value, grad_NV.scatter_add_(-1, ids_NK, grad[:, :-1])


def _with_tail(log_p_NK: Tensor, no_tail_N1: Tensor, vocab: int) -> Tensor:
    """Return ``[N, K + 1]``: the teacher's entries and the log of the probability they leave."""
    total_N1 = log_p_NK.logsumexp(-1, keepdim=True)
    lists_all_N1 = (log_p_NK > -math.inf).all(-1, keepdim=True) & (log_p_NK.shape[-1] == vocab)
    # Rounded log-probabilities may sum to a little more than 1, or less with nothing left over.
    log_p_NK = log_p_NK - torch.where(lists_all_N1, total_N1, total_N1.clamp(min=0.0))
    total_N1 = total_N1.clamp_(max=0.0)
    tail_N1 = torch.where(
        total_N1 > -math.log(2.0), (-torch.expm1(total_N1)).log(), torch.log1p(-total_N1.exp())
    )
    # 1 - total is a multiple of the resolution, and 0 may mean anything below it. Taken as 0 it
    # would make a reverse KL infinite that is merely large.
    floor = math.log(torch.finfo(log_p_NK.dtype).eps)
    is_none_N1 = lists_all_N1 | (no_tail_N1 & (tail_N1 <= floor))
    tail_N1 = tail_N1.clamp_(min=floor).masked_fill_(is_none_N1, -math.inf)
    return torch.cat([log_p_NK, tail_N1], -1)


def _listed_rows(
    needs_grad: bool, student_NV: Tensor, ids_NK: Tensor, log_p_NK: Tensor, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """Return sum p (log p - log q) over the entries, whatever p sums to, and its gradient."""
    log_q_NV = torch.log_softmax(student_NV / temperature, -1)
    log_p_NK = log_p_NK.to(student_NV.dtype)
    p_NK = log_p_NK.exp()
    log_ratio_NK = (log_p_NK - log_q_NV.gather(-1, ids_NK)).masked_fill_(p_NK == 0, 0.0)
    value_N = log_ratio_NK.mul_(p_NK).sum(-1)
    if not needs_grad:
        return value_N, None
    grad_NV = log_q_NV.exp_().mul_(p_NK.sum(-1, keepdim=True)).scatter_add_(-1, ids_NK, -p_NK)
    return value_N, grad_NV.div_(temperature) if temperature != 1 else grad_NV


def _check_shapes(student_logits: Tensor, ids: Tensor, name: str, values: Tensor) -> None:
    if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
        raise TypeError(f"token ids must be integers, got a tensor of {ids.dtype}.")
    if ids.shape != values.shape or ids.shape[:-1] != student_logits.shape[:-1]:
        raise ValueError(
            f"the token ids have shape {tuple(ids.shape)}, {name} {tuple(values.shape)}; both must "
            f"be {(*student_logits.shape[:-1], 'k')} beside student_logits of shape "
            f"{tuple(student_logits.shape)} (nothing is broadcast)."
        )
    num, vocab = ids.shape[-1], student_logits.shape[-1]
    if not 1 <= num <= vocab:
        raise ValueError(
            f"there are {num} token ids at every position, and must be between 1 and the "
            f"student's vocabulary of {vocab}. Slice them: ids[..., :{vocab}]."
        )


def _can_check(tensor: Tensor) -> bool:
    """Whether a look at the values neither waits for a device nor breaks a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_teacher(ids: Tensor, log_probs: Tensor, vocab: int) -> None:
    if not _can_check(log_probs) or log_probs.numel() == 0:
        return
    total = log_probs.float().logsumexp(-1).max().item()
    if not total <= _MAX_LOG_TOTAL:
        raise ValueError(
            f"teacher_log_probs sum to a probability of {math.exp(min(total, 700.0)):.4g} at some "
            "position; it must be at most 1. They are natural logs, normalised over the whole "
            "vocabulary: take logits through log_softmax first."
        )
    _check_ids("teacher_ids", ids, log_probs > -math.inf, vocab)


def _check_ids(name: str, ids: Tensor, is_entry: Tensor, vocab: int) -> None:
    if not _can_check(ids) or ids.numel() == 0:
        return
    low, high = ids.min().item(), ids.max().item()
    if low < 0 or high >= vocab:
        raise ValueError(
            f"{name} must lie in the student's vocabulary, 0 to {vocab - 1}, got "
            f"{low if low < 0 else high}. To pad, use any valid id with probability or count 0."
        )
    # An id without an entry may repeat, so each stands for a different negative number.
    distinct = torch.where(is_entry, ids.long(), -1 - torch.arange(ids.shape[-1]))
    repeated = distinct.sort(-1).values.diff(dim=-1) == 0
    if bool(repeated.any()):
        raise ValueError(
            f"{name} repeats a token at a position; each may be listed once there. Add up the "
            "probabilities or counts of equal tokens."
        )
