"""The kernels of :mod:`selftrain.kernels.divergence`: statistics of rows, sums over rows, gradient.

A row of logits is shared by ``SPLITS`` programs, each of which sweeps ``span`` columns in blocks.
What a program finds goes to its own cell of ``[rows, SPLITS]``; whoever needs the row combines its
cells in a fixed order, so results do not depend on which program was first.
"""

import triton
import triton.language as tl

from selftrain.kernels.divergence_terms import log_ratios, scores, terms
from selftrain.kernels.rows import row_total

# Which sums over the vocabulary are kept, in this order; the last four are measures.
VALUE = tl.constexpr(0)
PUSH = tl.constexpr(1)
OVERLAP = tl.constexpr(2)
AGREEMENT = tl.constexpr(3)
STUDENT_ENTROPY = tl.constexpr(4)
TEACHER_ENTROPY = tl.constexpr(5)


@triton.jit
def row_stats_kernel(
    logits,
    stride,
    inner,
    outer,
    maxima,  # out [rows, SPLITS]: the highest score
    masses,  # out [rows, SPLITS]: sum of exp(score - highest)
    best,  # out [rows, SPLITS]: the lowest column with the highest score
    vocab,
    span,
    CAPPED: tl.constexpr,
    MEASURE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Leave the statistics of one model's share of one row."""
    row, split = tl.program_id(0), tl.program_id(1)
    start = logits + row.to(tl.int64) * stride
    highest = tl.full((), -float("inf"), tl.float32)
    mass = tl.full((), 0.0, tl.float32)
    winner = tl.full((), 0, tl.int32)
    for first in range(split * span, tl.minimum((split + 1) * span, vocab), BLOCK):
        score, _ = scores(start, first + tl.arange(0, BLOCK), vocab, inner, outer, CAPPED)
        if MEASURE:
            top, place = tl.max(score, 0, return_indices=True)
            winner = tl.where(top > highest, first + place, winner)
        else:
            top = tl.max(score, 0)
        top = tl.maximum(top, highest)
        finite = tl.where(top == -float("inf"), 0.0, top)
        mass = mass * tl.exp(highest - finite) + tl.sum(tl.exp(score - finite), 0)
        highest = top
    tl.store(maxima + row * SPLITS + split, highest)
    tl.store(masses + row * SPLITS + split, mass)
    if MEASURE:
        tl.store(best + row * SPLITS + split, winner)


@triton.jit
def best_column(maxima, best, row, SPLITS: tl.constexpr):
    """Return the lowest column with a row's highest score."""
    highest = tl.load(maxima + row * SPLITS + tl.arange(0, SPLITS))
    _, split = tl.max(highest, 0, return_indices=True)
    return tl.load(best + row * SPLITS + split)


@triton.jit
def entropy(log_prob):
    """Return -p log p of a block of tokens."""
    prob = tl.exp(log_prob)
    return tl.where(prob == 0, 0.0, -prob * log_prob)


@triton.jit
def sweep_kernel(
    student,
    teacher,
    weights,
    student_stride,
    teacher_stride,
    student_inner,
    teacher_inner,
    student_outer,
    teacher_outer,
    student_maxima,
    teacher_maxima,
    student_masses,
    teacher_masses,
    student_best,
    teacher_best,
    pushes,  # [rows]: the sums of push, if they are known
    cells,  # out [sums, rows, SPLITS]
    grad,  # out [rows, vocab]
    own,
    other,
    factor,
    num_rows,
    vocab,
    span,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    MODE: tl.constexpr,
    REDUCE: tl.constexpr,
    GRAD: tl.constexpr,
    MEASURE: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the terms of one share of one row, or write their gradient, or both.

    Both at once is for the divergence whose sum of pushes is 0, "forward_kl".
    """
    row, split = tl.program_id(0), tl.program_id(1)
    student_start = student + row.to(tl.int64) * student_stride
    teacher_start = teacher + row.to(tl.int64) * teacher_stride
    student_top, mass = row_total(student_maxima, student_masses, row, SPLITS, 1.0, SPLITS)
    student_log_mass = tl.log(mass)
    teacher_top, mass = row_total(teacher_maxima, teacher_masses, row, SPLITS, 1.0, SPLITS)
    teacher_log_mass = tl.log(mass)
    weight, mean = tl.load(weights + row), 0.0
    if not REDUCE:
        mean = tl.load(pushes + row)
    values = tl.zeros((BLOCK,), tl.float32)
    sum_push = tl.zeros((BLOCK,), tl.float32)
    overlap = tl.zeros((BLOCK,), tl.float32)
    student_entropy = tl.zeros((BLOCK,), tl.float32)
    teacher_entropy = tl.zeros((BLOCK,), tl.float32)
    for first in range(split * span, tl.minimum((split + 1) * span, vocab), BLOCK):
        column = first + tl.arange(0, BLOCK)
        student_score, slope = scores(
            student_start, column, vocab, student_inner, student_outer, STUDENT_CAPPED
        )
        teacher_score, _ = scores(
            teacher_start, column, vocab, teacher_inner, teacher_outer, TEACHER_CAPPED
        )
        log_q, log_p, ratio = log_ratios(
            student_score, teacher_score, student_top, teacher_top,
            student_log_mass, teacher_log_mass,
        )  # fmt: skip
        value, push = terms(log_q, log_p, ratio, own, other, MODE)
        if REDUCE:
            values += value
            sum_push += push
            if MEASURE:
                overlap += tl.exp(tl.minimum(log_q, log_p))
                student_entropy += entropy(log_q)
                teacher_entropy += entropy(log_p)
        if GRAD:
            slope = (push - tl.exp(log_q) * mean) * slope * (weight * factor)
            # A row that does not count may hold anything.
            slope = tl.where(weight == 0, 0.0, slope)
            cell = grad + row.to(tl.int64) * vocab + column
            tl.store(cell, slope.to(grad.dtype.element_ty), mask=column < vocab)
    if REDUCE:
        cell = cells + row * SPLITS + split
        step = num_rows * SPLITS
        tl.store(cell + VALUE * step, tl.sum(values, 0))
        tl.store(cell + PUSH * step, tl.sum(sum_push, 0))
        if MEASURE:
            tl.store(cell + OVERLAP * step, tl.sum(overlap, 0))
            tl.store(cell + STUDENT_ENTROPY * step, tl.sum(student_entropy, 0))
            tl.store(cell + TEACHER_ENTROPY * step, tl.sum(teacher_entropy, 0))
            agree = best_column(student_maxima, student_best, row, SPLITS) == best_column(
                teacher_maxima, teacher_best, row, SPLITS
            )
            tl.store(cell + AGREEMENT * step, tl.where(agree & (split == 0), 1.0, 0.0))
