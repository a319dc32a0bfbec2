"""Divergences of rows of logits in one to three sweeps, the form of ``ops`` on GPUs.

``row_stats`` leaves a maximum and a sum for each share of each row; ``sweep`` makes the normalisers
of these, and sums values, pushes and measures; a second ``sweep`` writes the gradient, which the
forward KL can write in the first. Nothing waits for the host, and nothing of the size of the
vocabulary is written but the gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selftrain._core.checks import check_choice, check_range
from selftrain.kernels._dispatch import launch, register
from selftrain.kernels.divergence_sweeps import row_stats_kernel, sweep_kernel

KINDS = (
    "forward_kl",
    "reverse_kl",
    "jsd",
    "total_variation",
    "skew_kl",
    "skew_reverse_kl",
    "amari",
)
"""The values of ``kind`` that :func:`row_divergence` takes."""
_MEASURES = ("acceptance", "top1_agreement", "student_entropy", "teacher_entropy")
_WITH_PARAMETER = ("jsd", "skew_kl", "skew_reverse_kl", "amari")
_GRAD_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Columns at once, and the most programs that share a row.
_BLOCK, _MOST_SPLITS, _WARPS = 2048, 8, 8


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

    The scores whose softmax is taken are ``softcap * tanh(scale * y / softcap) / temperature`` of
    the raw logits y, or ``scale * y / temperature`` without a soft-cap. Logits of -inf count as no
    mass: 0 in value and gradient where both models have them, inf where the divergence is.

    Args:
        student_CV: Raw logits in float32; rows may lie apart, columns not. Not overwritten.
        teacher_CV: The same of the teacher.
        weights_C: The weight of each row. It counts in the gradient only; where it is 0 that is 0,
            whatever the row holds.
        kind: One of :data:`KINDS`.
        parameter: The teacher's weight in the mixture, or its exponent in "amari", in (0, 1);
            unused by the other kinds.
        factor: Multiplies value and gradient.
        temperature: Divides the logits, after scale and soft-cap.
        student_scale: Multiplies ``student_CV``.
        student_softcap: Bounds the student's logits; None for none.
        teacher_scale: Likewise.
        teacher_softcap: Likewise.
        grad_dtype: What the gradient is cast to after scaling; None for no gradient.
        measure: Whether to return more than the loss.

    Returns:
        C numbers in float32 for "loss" and, with ``measure``, "acceptance" (the overlap of the two
        laws), "top1_agreement", "student_entropy" and "teacher_entropy"; and the gradient with
        respect to ``student_CV``.

    Raises:
        ValueError: If shapes, types or layouts of the logits are not these, ``kind`` or
            ``grad_dtype`` is unknown, or a number lies outside its range.
    """
    _check_logits(student_CV, teacher_CV, weights_C)
    check_choice("kind", kind, KINDS)
    check_range("temperature", temperature, low=0.0, low_open=True)
    if kind in _WITH_PARAMETER:
        check_range("parameter", parameter, low=0.0, high=1.0, low_open=True, high_open=True)
    if grad_dtype is not None:
        check_choice("grad_dtype", grad_dtype, _GRAD_DTYPES)
    sums, grad_CV = divergence_sweeps(
        student_CV,
        teacher_CV,
        weights_C.float().contiguous(),
        kind,
        float(parameter),
        float(factor),
        *_bend(student_scale, student_softcap, temperature),
        student_softcap is not None,
        *_bend(teacher_scale, teacher_softcap, temperature),
        teacher_softcap is not None,
        grad_dtype,
        measure,
    )
    loss, _, *measures = sums.unbind()
    values = {"loss": loss * factor, **dict(zip(_MEASURES, measures, strict=False))}
    return values, None if grad_dtype is None else grad_CV


def _bend(scale: float, softcap: float | None, temperature: float) -> tuple[float, float]:
    """Return what multiplies the raw logits, and what the tanh of that, if there is one."""
    if softcap is None:
        return scale / temperature, 1.0
    return scale / softcap, softcap / temperature


def _check_logits(student_CV: Tensor, teacher_CV: Tensor, weights_C: Tensor) -> None:
    for name, logits in (("student_CV", student_CV), ("teacher_CV", teacher_CV)):
        if logits.dim() != 2 or logits.dtype != torch.float32:
            raise ValueError(
                f"{name} must be float32 of two dimensions, got {logits.dtype} of shape "
                f"{tuple(logits.shape)}; products of matrices can write float32."
            )
        if logits.shape[1] > 1 and logits.stride(1) != 1:
            raise ValueError(
                f"{name} has strides {logits.stride()}; the columns of a row must be adjacent: "
                "pass it contiguous."
            )
    if student_CV.shape != teacher_CV.shape or weights_C.shape != student_CV.shape[:1]:
        raise ValueError(
            f"student_CV has shape {tuple(student_CV.shape)}, teacher_CV "
            f"{tuple(teacher_CV.shape)}, weights_C {tuple(weights_C.shape)}; they must be [C, V], "
            "[C, V] and [C]."
        )


def _fake(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    kind: str,
    parameter: float,
    factor: float,
    student_inner: float,
    student_outer: float,
    student_capped: bool,
    teacher_inner: float,
    teacher_outer: float,
    teacher_capped: bool,
    grad_dtype: torch.dtype | None,
    measure: bool,
) -> tuple[Tensor, Tensor]:
    sums = student.new_empty((6 if measure else 2, student.shape[0]))
    return sums, _empty_grad(student, grad_dtype)


def _empty_grad(student: Tensor, grad_dtype: torch.dtype | None) -> Tensor:
    rows, vocab = student.shape
    if grad_dtype is None:
        return student.new_empty((0, vocab))
    return student.new_empty((rows, vocab), dtype=grad_dtype)


@dataclass(frozen=True)
class _Model:
    """One model's logits, how they are bent, and the shares into which a row is cut."""

    logits: Tensor
    inner: float
    outer: float
    capped: bool
    measure: bool

    def shares(self) -> dict[str, int]:
        """Return the arguments that say which columns each program sweeps."""
        vocab = self.logits.shape[1]
        blocks = -(-vocab // _BLOCK)
        splits = _MOST_SPLITS
        while splits >= 2 * blocks and splits > 1:
            splits //= 2  # programs without columns
        span = _BLOCK * -(-blocks // splits)
        return {"vocab": vocab, "span": span, "SPLITS": splits, "BLOCK": _BLOCK}

    def arguments(self, name: str) -> dict[str, Tensor | float | bool]:
        """Return the arguments of ``sweep_kernel`` for the model; this launches ``row_stats``."""
        shares = self.shares()
        cells = (self.logits.shape[0], shares["SPLITS"])
        found = {
            "maxima": self.logits.new_empty(cells),
            "masses": self.logits.new_empty(cells),
            "best": self.logits.new_empty(cells, dtype=torch.int32),
        }
        bend = {"stride": self.logits.stride(0), "inner": self.inner, "outer": self.outer}
        launch(row_stats_kernel)[cells](
            logits=self.logits,
            **bend,
            **found,
            **shares,
            CAPPED=self.capped,
            MEASURE=self.measure,
            num_warps=_WARPS,
        )
        arguments = {f"{name}_{key}": value for key, value in (bend | found).items()}
        return {name: self.logits, **arguments, f"{name.upper()}_CAPPED": self.capped}


@register("selftrain::divergence_sweeps", _fake)
def divergence_sweeps(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    kind: str,
    parameter: float,
    factor: float,
    student_inner: float,
    student_outer: float,
    student_capped: bool,
    teacher_inner: float,
    teacher_outer: float,
    teacher_capped: bool,
    grad_dtype: torch.dtype | None,
    measure: bool,
) -> tuple[Tensor, Tensor]:
    """Return sums over the vocabulary ``[2 or 6, C]``, and the gradient (of no rows for None).

    The sums are those of ``divergence_sweeps``, in its order; see :func:`row_divergence`.
    """
    model = _Model(student, student_inner, student_outer, student_capped, measure)
    other = _Model(teacher, teacher_inner, teacher_outer, teacher_capped, measure)
    shares = model.shares()
    num_rows, splits = student.shape[0], shares["SPLITS"]
    cells = student.new_empty((6 if measure else 2, num_rows, splits))
    grad = _empty_grad(student, grad_dtype)
    common = {
        **model.arguments("student"),
        **other.arguments("teacher"),
        **shares,
        "weights": weights,
        "cells": cells,
        "grad": grad,
        "own": parameter,
        "other": 1.0 - parameter,
        "factor": factor,
        "num_rows": num_rows,
        "MODE": kind,
        "MEASURE": measure,
        "num_warps": _WARPS,
    }
    wants_grad = grad_dtype is not None
    at_once = wants_grad and kind == "forward_kl"
    sweep = launch(sweep_kernel)[(num_rows, splits)]
    sweep(**common, pushes=weights, REDUCE=True, GRAD=at_once)
    sums = cells.sum(-1)
    if wants_grad and not at_once:
        sweep(**common, pushes=sums[1], REDUCE=False, GRAD=True)
    return sums, grad
