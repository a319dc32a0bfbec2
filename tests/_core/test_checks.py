"""The wording and the bounds of argument checks."""

import math

import pytest
import torch

from selftrain._core.checks import (
    check_choice,
    check_int,
    check_not_empty,
    check_range,
    check_same_vocab,
)


def test_closed_bounds_are_allowed():
    check_range("x", 0, low=0.0, high=1.0)
    check_range("x", 1.0, low=0.0, high=1.0)
    with pytest.raises(ValueError, match=r"x must satisfy 0\.0 <= x <= 1\.0, got 1\.5"):
        check_range("x", 1.5, low=0.0, high=1.0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_open_bounds_are_refused(value):
    with pytest.raises(ValueError, match=r"0 < x < 1"):
        check_range("x", value, low=0, high=1, low_open=True, high_open=True)


def test_nan_is_refused_even_without_bounds():
    with pytest.raises(ValueError, match="got nan"):
        check_range("x", math.nan)


def test_infinity_is_refused_by_an_open_infinite_bound():
    with pytest.raises(ValueError, match="got inf"):
        check_range("x", math.inf, high=math.inf, high_open=True)


@pytest.mark.parametrize("value", [True, "1", None])
def test_a_kind_that_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match="x must be a number"):
        check_range("x", value)


@pytest.mark.parametrize("value", [True, 1.0, "1"])
def test_only_integers_pass_check_int(value):
    with pytest.raises(TypeError, match="x must be an integer"):
        check_int("x", value)


def test_check_int_keeps_the_bounds():
    check_int("x", 1, low=1, high=1)
    with pytest.raises(ValueError, match="1 <= x"):
        check_int("x", 0, low=1)


def test_a_wrong_choice_lists_the_right_ones():
    check_choice("kind", "a", ("a", "b"))
    with pytest.raises(ValueError, match="kind must be one of 'a', 'b'; got 'c'"):
        check_choice("kind", "c", ("a", "b"))


def test_nothing_is_not_enough():
    check_not_empty("prompts", ["x"])
    with pytest.raises(ValueError, match="prompts is empty"):
        check_not_empty("prompts", [])


@pytest.mark.parametrize(
    ("student", "teacher", "advice"),
    [(5, 7, r"teacher_logits\[\.\.\., :5\]"), (9, 7, r"student_logits\[\.\.\., :7\]")],
)
def test_vocabulary_mismatch_names_the_slice_that_mends_it(student, teacher, advice):
    with pytest.raises(ValueError, match=advice):
        check_same_vocab(torch.zeros(2, student), torch.zeros(2, teacher))
