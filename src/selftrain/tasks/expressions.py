"""Arithmetic that a model wrote, evaluated exactly and without running anything: level L0."""

import ast
import re
from fractions import Fraction

_MAX_LENGTH, _MAX_DEPTH, _MAX_NUMBER, _MAX_EXPONENT = 256, 32, 10**12, 64
# Neither letters nor quotes: no names, calls, strings, exponents or complex numbers.
_ALLOWED = re.compile(r"[0-9+\-*/(). \t]+")


class ExpressionError(ValueError):
    """A text is no arithmetic expression, has no value, or is beyond the limits."""


def evaluate_expression(text: str) -> Fraction:
    """Return the exact value of an arithmetic expression.

    Numbers are integers or decimals such as ``0.25``; operators are ``+ - * / **`` and signs;
    brackets are round. At most 256 characters, 32 operators inside one another, and 10^12 in the
    numerator and denominator of every number on the way; exponents are integers from -64 to 64.

    Raises:
        ExpressionError: If the text is anything else, or divides by zero; a ``ValueError``.

    Example:
        >>> evaluate_expression("(1 + 2) / 4")
        Fraction(3, 4)
    """
    text = text.strip()
    if len(text) > _MAX_LENGTH:
        raise ExpressionError(
            f"the expression has {len(text)} characters; {_MAX_LENGTH} are allowed."
        )
    if not _ALLOWED.fullmatch(text):
        raise ExpressionError(
            f"{text!r} is empty or has characters other than digits, + - * / ( ) . and spaces."
        )
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{text!r} is no expression: {error}.") from None
    return _value(tree.body, text, 0)


def _value(node: ast.expr, text: str, depth: int) -> Fraction:
    if depth > _MAX_DEPTH:
        raise ExpressionError(f"{text!r} is nested deeper than {_MAX_DEPTH} operators.")
    match node:
        case ast.Constant(value=int() | float()):
            # The digits as they were written: 0.1 means one tenth.
            result = Fraction(ast.get_source_segment(text, node) or "")
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            sign = -1 if isinstance(node.op, ast.USub) else 1
            result = sign * _value(operand, text, depth + 1)
        case ast.BinOp(left=left, op=op, right=right):
            result = _apply(op, _value(left, text, depth + 1), _value(right, text, depth + 1), text)
        case _:
            raise ExpressionError(f"{text!r} is more than arithmetic: {type(node).__name__}.")
    if abs(result.numerator) > _MAX_NUMBER or result.denominator > _MAX_NUMBER:
        raise ExpressionError(f"{text!r} has numbers beyond 10^12.")
    return result


def _apply(op: ast.operator, left: Fraction, right: Fraction, text: str) -> Fraction:
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            if right == 0:
                raise ExpressionError(f"{text!r} divides by zero.")
            return left / right
        case ast.Pow():
            if right.denominator != 1 or abs(right) > _MAX_EXPONENT:
                raise ExpressionError(
                    f"{text!r} has an exponent that is no integer from -{_MAX_EXPONENT} to "
                    f"{_MAX_EXPONENT}."
                )
            if left == 0 and right < 0:
                raise ExpressionError(f"{text!r} divides by zero.")
            return Fraction(left ** int(right))
    raise ExpressionError(f"{text!r} has the operator {type(op).__name__}; + - * / ** are allowed.")
