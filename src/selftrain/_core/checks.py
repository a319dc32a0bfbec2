"""Argument checks: one place for the wording of errors."""

from collections.abc import Collection, Sized
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def check_range(
    name: str,
    value: float,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Raise unless ``value`` is a number between ``low`` and ``high`` (closed unless ``*_open``).

    Raises:
        TypeError: If ``value`` is not a number.
        ValueError: If it lies outside, or is NaN.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__}).")
    too_low = low is not None and (value <= low if low_open else value < low)
    too_high = high is not None and (value >= high if high_open else value > high)
    if too_low or too_high or value != value:
        left = "" if low is None else f"{low} {'<' if low_open else '<='} "
        right = "" if high is None else f" {'<' if high_open else '<='} {high}"
        raise ValueError(f"{name} must satisfy {left}{name}{right}, got {value}.")


def check_int(name: str, value: int, *, low: int | None = None, high: int | None = None) -> None:
    """Raise unless ``value`` is an integer (not a bool) between ``low`` and ``high`` inclusive.

    Raises:
        TypeError: If ``value`` is not an integer.
        ValueError: If it lies outside.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__}).")
    check_range(name, value, low=low, high=high)


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``, which the message lists."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}.")


def check_not_empty(name: str, value: Sized) -> None:
    """Raise ``ValueError`` if ``value`` has no elements."""
    if len(value) == 0:
        raise ValueError(f"{name} is empty; at least one element is needed.")


def check_same_vocab(student_logits: "Tensor", teacher_logits: "Tensor") -> None:
    """Raise ``ValueError`` unless both score the same number of tokens in their last dimension."""
    student_size, teacher_size = student_logits.shape[-1], teacher_logits.shape[-1]
    if student_size != teacher_size:
        small = min(student_size, teacher_size)
        larger = "teacher" if teacher_size > student_size else "student"
        raise ValueError(
            f"the student has {student_size} logits, the teacher {teacher_size}. They are compared "
            f"token by token, so they need one vocabulary. If the {larger}'s extra rows are "
            f"padding, slice its logits: {larger}_logits[..., :{small}]."
        )
