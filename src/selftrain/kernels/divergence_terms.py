"""What one token adds to a divergence and to its gradient, inside of kernels.

p is the teacher's probability of the token, q the student's, r = log p - log q. Every divergence is
a sum over tokens of a ``value``, and its gradient with respect to the student's scores is
``push - q * sum(push)``, where push = q dD/dq; constants in dD/dq cancel there and are left out.

Near p = q values are of second order in r and gradients of first. So they come from r, not from
differences of probabilities, and a value has the multiple of p - q added (its sum is 0) that
removes its own first order: then the rounding of the normalisers does not show in it either.

No column needs a mask: beyond the vocabulary p = q = 0, r = 0, and all terms are 0.
"""

import triton
import triton.language as tl

from selftrain.kernels.philox import log1p

# Beyond e^80 the smaller of two probabilities no longer counts, and e^80 still fits float32.
MAX_LOG_RATIO = tl.constexpr(80.0)


@triton.jit
def growth(x, y, t):
    """Return y - x where y = x exp(t), to a few units in the last place also for small t."""
    series = 1.0 / 5040 + t * (1.0 / 40320 + t * (1.0 / 362880))
    series = 1.0 / 6 + t * (1.0 / 24 + t * (1.0 / 120 + t * (1.0 / 720 + t * series)))
    return tl.where(tl.abs(t) < 0.5, x * (t + t * t * (0.5 + t * series)), y - x)


@triton.jit
def expm1(t):
    """Return exp(t) - 1, to a few units in the last place."""
    return growth(1.0, tl.exp(t), t)


@triton.jit
def tanh(x):
    """Return the tanh of ``x`` and its derivative, both with relative precision."""
    t = -2.0 * tl.abs(x)
    e = tl.exp(t)
    magnitude = -growth(1.0, e, t) / (1.0 + e)
    return tl.where(x < 0, -magnitude, magnitude), 4.0 * e / ((1.0 + e) * (1.0 + e))


@triton.jit
def scores(start, column, vocab, inner, outer, CAPPED: tl.constexpr):
    """Return a model's scores, -inf beyond the vocabulary, and their derivatives by the raw logits.

    A score is what softmax takes: scaled, capped, divided by the temperature. That is
    ``outer * tanh(inner * raw)``, or ``inner * raw`` without a cap.
    """
    inside = column < vocab
    raw = tl.load(start + column, mask=inside, other=-float("inf"))
    if CAPPED:
        bent, slope = tanh(inner * raw)
        score, slope = rounded(outer, bent), outer * inner * slope
        score = tl.where(inside, score, -float("inf"))
    else:
        score, slope = rounded(inner, raw), inner
    return score, slope


@triton.jit
def rounded(x, y):
    """Return x * y, which no later subtraction is fused with.

    Fused, x y - x y is what the product was rounded by: equal scores would differ, by an amount
    whose sign is all that total variation looks at.
    """
    return tl.fma(x, y, 0.0)


@triton.jit
def log_ratios(student, teacher, student_top, teacher_top, student_log_mass, teacher_log_mass):
    """Return log q, log p and log p - log q of two blocks of scores; 0 for the last without mass.

    The ratio is not the difference of the other two, whose rounding is that of large numbers.
    """
    log_q = student - student_top - student_log_mass
    log_p = teacher - teacher_top - teacher_log_mass
    ratio = teacher - student - (teacher_top - student_top) - (teacher_log_mass - student_log_mass)
    # -inf in both is the one way to NaN here that leaves the row's masses as they are.
    return log_q, log_p, tl.where(ratio == ratio, ratio, 0.0)


@triton.jit
def mixture(ratio, own, other):
    """Return log m/q and log p/m for m = own p + other q, with own + other = 1.

    Each keeps its relative precision, near p = q and however small the smaller weight.
    """
    ratio = tl.minimum(tl.maximum(ratio, -MAX_LOG_RATIO), MAX_LOG_RATIO)
    near = own <= other
    # From the side of the larger weight: log m/q = log1p(own expm1(r)), or the mirror image.
    ratio = tl.where(near, ratio, -ratio)
    short = log1p(tl.where(near, own, other) * expm1(ratio))
    long = ratio - short
    return tl.where(near, short, -long), tl.where(near, long, -short)


@triton.jit
def terms(log_q, log_p, ratio, own, other, MODE: tl.constexpr):
    """Return value and push of a block of tokens; see the top of the file.

    ``own`` is p's weight in the mixture, or its exponent in "amari"; ``other`` is 1 - own, which
    the host can subtract without loss.
    """
    q, p = tl.exp(log_q), tl.exp(log_p)
    gap = growth(q, p, ratio)
    if MODE == "forward_kl":
        value, push = tl.where(p == 0, 0.0, p * ratio) - gap, -gap
    elif MODE == "reverse_kl":
        push = -tl.where(q == 0, 0.0, q * ratio)
        value = push + gap
    elif MODE == "total_variation":
        push = q * tl.where(gap > 0, -0.5, tl.where(gap < 0, 0.5, 0.0))
        value = 0.5 * tl.abs(gap)
    elif MODE == "amari":
        value, push = amari_terms(log_q, log_p, q, p, gap, ratio, own, other)
    else:
        value, push = mixture_terms(q, p, gap, ratio, own, other, MODE)
    return value, push


@triton.jit
def mixture_terms(q, p, gap, ratio, own, other, MODE: tl.constexpr):
    """Return value and push of a divergence from the mixture m = own p + other q."""
    log_m_over_q, log_p_over_m = mixture(ratio, own, other)
    first = -q * log_m_over_q
    if MODE == "jsd":
        push = other * first
        value = own * p * log_p_over_m + push
    else:
        excess = growth(q, q * tl.exp(log_p_over_m), log_p_over_m)  # q p/m - q
        if MODE == "skew_kl":
            value, push = p * log_p_over_m - other * gap, -other * excess
        else:
            tl.static_assert(MODE == "skew_reverse_kl")
            value, push = first + own * gap, first + own * excess
    return value, push


@triton.jit
def amari_terms(log_q, log_p, q, p, gap, ratio, own, other):
    """Return value and push of (sum p^own q^other - 1) / (own (own - 1))."""
    # p^own q^other from the side that keeps exponents negative, and inf - inf away.
    power = tl.exp(tl.where(ratio > 0, log_p - other * ratio, log_q + own * ratio))
    from_q = growth(q, power, own * ratio)
    from_p = growth(p, power, -other * ratio)
    # power - own p - other q, written so that what remains as own tends to 0, or to 1, is exact.
    excess = tl.where(own <= other, from_q - own * gap, from_p + other * gap)
    return excess * (-1.0 / (own * other)), from_q * (-1.0 / own)
