"""Arithmetic is evaluated exactly, and nothing but arithmetic."""

from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selftrain.tasks.expressions import ExpressionError, evaluate_expression


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1+2*3", 7),
        (" (1 + 2) * 3 ", 9),
        ("1/3 + 1/6", Fraction(1, 2)),
        ("-3--4", 1),
        ("2**10", 1024),
        ("2**-2", Fraction(1, 4)),
        ("0.1+0.2", Fraction(3, 10)),
        (".5", Fraction(1, 2)),
        ("1000000000000", 10**12),
    ],
)
def test_values_are_exact(text, value):
    assert evaluate_expression(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("x", "characters other"),
        ("f(1)", "characters other"),
        ("__import__('os')", "characters other"),
        ("1e9", "characters other"),
        ("1,2", "characters other"),
        ("1_000", "characters other"),
        ("1\n+2", "characters other"),
        ("1\0", "characters other"),
        ("\u0663", "characters other"),
        ("1+", "no expression"),
        ("(1", "no expression"),
        ("01", "no expression"),
        ("()", "more than arithmetic"),
        ("1 (2)", "more than arithmetic"),
        ("7//2", "FloorDiv"),
        ("1/0", "divides by zero"),
        ("0**-1", "divides by zero"),
        ("1/(2-2)", "divides by zero"),
        ("9**9**9", "beyond 10|exponent"),
        ("2**0.5", "exponent"),
        ("2**65", "exponent"),
        ("10**13", "beyond"),
        ("1000000000001", "beyond"),
        ("1/1000000000001", "beyond"),
        ("1+" * 128 + "1", "characters; 256"),
        ("1+" * 40 + "1", "nested deeper"),
        ("-" * 50 + "1", "nested deeper"),
        ("(" * 120 + "1" + ")" * 120 + "(", "no expression|more than"),
    ],
)
def test_everything_else_is_refused_with_the_reason(text, message):
    with pytest.raises(ExpressionError, match=message):
        evaluate_expression(text)


@given(st.text(alphabet="0123456789+-*/(). ", max_size=40) | st.text(max_size=20))
def test_any_text_has_a_value_or_is_refused(text):
    with suppress(ExpressionError):
        assert isinstance(evaluate_expression(text), Fraction)


FORMULAS = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: f"({t[0]}{t[1]}{t[2]})"
    ),
    max_leaves=5,
)


@given(FORMULAS)
def test_integers_agree_with_python(text):
    assert evaluate_expression(text) == eval(text)
