r"""The dense part of :func:`selftrain.ops.linear_divergence`, by eager torch.

Values, measures and gradients of a chunk of rows whose logits exist. They are overwritten block by
block, so that on a CPU all that lies between logits and gradient stays in the cache. Four kinds
have a form of their own there, which starts from the logits s and t and needs one exponential for
each model (and one logarithm for the mixture): with :math:`q` and :math:`p` from a softmax, the
normalisers cancel from :math:`\log q - \log p - KL(q\|p) = (s - t) - E_q[s - t]`. These forms need
finite logits; other blocks, other kinds and other devices go through ``FORMULAS``.

Shape letters: C rows of a chunk, R rows of a block, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from selftrain.ops.divergence_formulas import FORMULAS

VALUES = ("loss", "acceptance", "top1_agreement", "student_entropy", "teacher_entropy")

# Elements of a block. On a CPU five buffers of this size and two threads fit the caches; elsewhere
# the bound only limits the memory of the temporaries.
_CPU_BLOCK, _DEVICE_BLOCK = 2**18, 2**24
# The mixture divides by q, which must be far from the smallest float32, and near the end of beta
# log(m/q) would be mostly rounding.
_LEAST_LOG_PROB, _MOST_BETA = -80.0, 0.95
# Below the logarithm of any probability, and finite: its product with 0 is 0.
_LEAST_LOG = -1e4


@dataclass(frozen=True, slots=True)
class LogitMap:
    """How a model makes its logits of ``y = h W^T + b``: softcap * tanh(scale * y / softcap)."""

    scale: float = 1.0
    softcap: float | None = None

    def apply_(self, y_RV: Tensor, temperature: float, slope: bool) -> Tensor | None:
        """Make logits over temperature of ``y_RV`` in place, and the soft-cap's slope if asked."""
        if self.softcap is None:
            if self.scale != temperature:
                y_RV.mul_(self.scale / temperature)
            return None
        y_RV.mul_(self.scale / self.softcap).tanh_()
        slope_RV = torch.addcmul(y_RV.new_ones(()), y_RV, y_RV, value=-1) if slope else None
        y_RV.mul_(self.softcap / temperature)
        return slope_RV


def row_divergence(
    student_CV: Tensor,
    teacher_CV: Tensor,
    weights_C: Tensor,
    *,
    kind: str,
    parameter: float,
    factor: float,
    temperature: float,
    student_scale: float,
    student_softcap: float | None,
    teacher_scale: float,
    teacher_softcap: float | None,
    grad_dtype: torch.dtype | None,
    measure: bool,
) -> tuple[dict[str, Tensor], Tensor | None]:
    r"""Return what each row has, and the gradient of the weighted sum of the divergences.

    Args:
        student_CV: :math:`y = h W^T + b`, in float32 or float64; overwritten.
        teacher_CV: The same of the teacher; overwritten.
        weights_C: The weight of each row. It counts in the gradient only.
        kind: A key of ``FORMULAS``.
        parameter: Beta or alpha, where the kind has one.
        factor: Multiplies value and gradient.
        temperature: Divides the logits, after scale and soft-cap.
        student_scale: Multiplies ``student_CV``.
        student_softcap: c in :math:`c \tanh(y/c)`; None for none.
        teacher_scale: Likewise.
        teacher_softcap: Likewise.
        grad_dtype: What the gradient is cast to after scaling; None for no gradient.
        measure: Whether to return more than the loss.

    Returns:
        C numbers for each of ``VALUES`` (the first alone without ``measure``), and the gradient
        with respect to ``student_CV``, in its memory if the dtypes agree.
    """
    needs_grad = grad_dtype is not None
    grad_CV = None
    if needs_grad:
        same = grad_dtype == student_CV.dtype
        grad_CV = student_CV if same else torch.empty_like(student_CV, dtype=grad_dtype)
    names = VALUES if measure else VALUES[:1]
    values = student_CV.new_empty((len(names), len(student_CV)))
    student_map = LogitMap(student_scale, student_softcap)
    teacher_map = LogitMap(teacher_scale, teacher_softcap)
    weights_C = weights_C * (factor * student_scale / temperature)
    fast = _FAST.get(kind) if student_CV.device.type == "cpu" else None
    work = None
    for rows in row_blocks(student_CV):
        s, t = student_CV[rows], teacher_CV[rows]
        slope = student_map.apply_(s, temperature, needs_grad)
        teacher_map.apply_(t, temperature, False)
        scored = None
        if fast is not None:
            work = s.new_empty((3, *s.shape)) if work is None else work[:, : len(s)]
            scored = _score_fast(fast, s, t, work, parameter, measure)
        if scored is None:
            scored = _score_by_formula(kind, s, t, parameter, needs_grad, measure)
        torch.stack(scored.values, out=values[:, rows])
        if grad_CV is not None and scored.grad is not None:
            weight = weights_C[rows, None] * scored.factor
            grad = scored.grad if slope is None else scored.grad.mul_(slope)
            torch.mul(grad, weight, out=grad_CV[rows])
    values[0].mul_(factor)
    return dict(zip(names, values.unbind(), strict=True)), grad_CV


@dataclass(frozen=True, slots=True)
class _Scored:
    """One block: values in the order of ``VALUES``, and the gradient over ``factor``."""

    values: list[Tensor]
    grad: Tensor | None
    factor: float = 1.0


def row_blocks(logits_CV: Tensor) -> Iterator[slice]:
    """Yield the blocks of rows that are scored at once."""
    num, vocab = logits_CV.shape
    block = _CPU_BLOCK if logits_CV.device.type == "cpu" else _DEVICE_BLOCK
    size = max(1, block // max(vocab, 1))
    return (slice(start, min(start + size, num)) for start in range(0, num, size))


def _score_by_formula(
    kind: str, s: Tensor, t: Tensor, parameter: float, needs_grad: bool, measure: bool
) -> _Scored:
    """Score a block by the formulas of :func:`selftrain.ops.divergence`."""
    log_q, log_p = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    measures = []
    if measure:
        q, p = log_q.exp(), log_p.exp()
        measures = [
            torch.minimum(q, p).sum(-1),
            (log_q.argmax(-1) == log_p.argmax(-1)).to(q.dtype),
            entropy(q, log_q),
            entropy(p, log_p),
        ]
        del q, p
    value, grad = FORMULAS[kind](log_q, log_p, parameter, needs_grad)
    return _Scored([value, *measures], grad)


@dataclass(frozen=True, slots=True)
class _Laws:
    """What the fast forms share: the probabilities of one block and their log-normalisers."""

    q: Tensor
    p: Tensor
    student_lse: Tensor
    teacher_lse: Tensor


def _score_fast(
    form: Callable[..., _Scored | None],
    s: Tensor,
    t: Tensor,
    work: Tensor,
    beta: float,
    measure: bool,
) -> _Scored | None:
    """Score a block by ``form``; None, and nothing overwritten, if that does not suit it."""
    q = torch.softmax(s, -1, out=work[0])
    p = torch.softmax(t, -1, out=work[1])
    student_mean, teacher_mean = _dot(q, s), _dot(p, t)
    # A logit of -inf makes 0 * -inf here, and NaN stays NaN.
    if not torch.isfinite(student_mean + teacher_mean).all():
        return None
    q_top, p_top = q.amax(-1), p.amax(-1)
    student_lse, teacher_lse = s.amax(-1) - q_top.log(), t.amax(-1) - p_top.log()
    measures = []
    if measure:
        # One token is the best of both if the best product is the product of the bests: a tenth of
        # the time of two argmax.
        best = torch.mul(q, p, out=work[2]).amax(-1)
        measures = [
            torch.minimum(q, p, out=work[2]).sum(-1),
            (best == q_top * p_top).to(q.dtype),
            student_lse - student_mean,
            teacher_lse - teacher_mean,
        ]
    scored = form(_Laws(q, p, student_lse, teacher_lse), s, t, beta)
    if scored is not None:
        scored.values.extend(measures)
    return scored


def entropy(probs_RV: Tensor, log_probs_RV: Tensor) -> Tensor:
    """Return the entropy of each row in nats; a term without mass is 0."""
    return -_dot(probs_RV, log_probs_RV.clamp(min=_LEAST_LOG))


def _dot(a_RV: Tensor, b_RV: Tensor) -> Tensor:
    return torch.linalg.vecdot(a_RV, b_RV)


# Each form takes the laws and the logits, and may overwrite all of them.


def _forward_kl(laws: _Laws, s: Tensor, t: Tensor, beta: float) -> _Scored:
    value = _dot(laws.p, t.sub_(s)) - laws.teacher_lse + laws.student_lse
    return _Scored([value], torch.sub(laws.q, laws.p, out=s))


def _reverse_kl(laws: _Laws, s: Tensor, t: Tensor, beta: float) -> _Scored:
    gap = s.sub_(t)
    mean_gap = _dot(laws.q, gap)
    value = mean_gap - laws.student_lse + laws.teacher_lse
    return _Scored([value], gap.sub_(mean_gap[:, None]).mul_(laws.q))


def _jsd(laws: _Laws, s: Tensor, t: Tensor, beta: float) -> _Scored | None:
    r"""With :math:`KL(p\|m) = KL(p\|q) - E_p[\log m/q]` and :math:`m/q = 1 + \beta (p - q)/q`."""
    if beta > _MOST_BETA or (s.amin(-1) - laws.student_lse).amin() < _LEAST_LOG_PROB:
        return None
    forward_kl = _dot(laws.p, t.sub_(s)) - laws.teacher_lse + laws.student_lse
    log_m_over_q = torch.sub(laws.p, laws.q, out=s).div_(laws.q).mul_(beta).log1p_()
    mean = _dot(laws.q, log_m_over_q)
    value = beta * (forward_kl - _dot(laws.p, log_m_over_q)) - (1.0 - beta) * mean
    grad = log_m_over_q.sub_(mean[:, None]).mul_(laws.q)
    return _Scored([value], grad, beta - 1.0)


def _total_variation(laws: _Laws, s: Tensor, t: Tensor, beta: float) -> _Scored:
    difference = torch.sub(laws.q, laws.p, out=s)
    value = 0.5 * torch.abs(difference, out=t).sum(-1)
    sign = difference.sign_()
    mean_sign = _dot(laws.q, sign)
    return _Scored([value], sign.sub_(mean_sign[:, None]).mul_(laws.q), 0.5)


_FAST = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "total_variation": _total_variation,
}
