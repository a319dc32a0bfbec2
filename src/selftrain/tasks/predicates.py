"""Evaluates the expected side of a test in this process, without ``eval``.

Only constants, containers, arithmetic of bounded size, comparisons, and functions without effects
are known. The expressions come from the tests; the values of their names from a program that is not
trusted, as plain data.
"""

import ast
import itertools
import math
import operator
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

_MAX_BITS, _MAX_LENGTH, _MAX_EXPONENT = 100_000, 1_000_000, 10_000

_BUILTIN = (abs, all, any, bool, bytes, complex, dict, float, frozenset, int, len, list, max, min)
_MORE = (range, reversed, round, set, sorted, str, sum, tuple)
_OF_MATH = ("isclose", "sqrt", "floor", "ceil", "fabs", "isnan", "isinf", "factorial", "radians")
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{function.__name__: function for function in (*_BUILTIN, *_MORE)},
    **{f"math.{name}": getattr(math, name) for name in _OF_MATH},
    "Decimal": Decimal,
    "Fraction": Fraction,
}
"""What may be called, by the name it has in a test."""
_CONSTANTS = {f"math.{name}": getattr(math, name) for name in ("pi", "e", "tau", "inf", "nan")}

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


class PredicateError(ValueError):
    """An expression has no value, or is beyond what is evaluated here."""


def is_constant(node: ast.expr) -> bool:
    """Say whether an expression can be evaluated here without the value of any name."""
    match node:
        case ast.Constant():
            return True
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return all(map(is_constant, parts))
        case ast.Dict(keys=keys, values=values):
            return all(key is not None and is_constant(key) for key in keys) and all(
                map(is_constant, values)
            )
        case ast.UnaryOp(operand=operand):
            return is_constant(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return type(op) in _OPERATIONS and is_constant(left) and is_constant(right)
        case ast.Attribute():
            return ast.unparse(node) in _CONSTANTS
        case ast.Call(func=function, args=arguments, keywords=keywords):
            inside = [*arguments, *(word.value for word in keywords)]
            return ast.unparse(function) in FUNCTIONS and all(map(is_constant, inside))
    return False


def evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return the value of an expression.

    Args:
        node: The expression.
        names: Values of the names in it.

    Raises:
        PredicateError: If evaluating it raises, is not allowed, or would take much time or memory.
    """
    try:
        return _evaluate(node, names)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise PredicateError(f"{type(error).__name__}: {error}") from error
    except RecursionError as error:
        raise PredicateError("nested too deeply") from error


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names[name]
        case ast.Attribute():
            return _CONSTANTS[ast.unparse(node)]
        case ast.Tuple(elts=parts):
            return tuple(_evaluate(part, names) for part in parts)
        case ast.List(elts=parts):
            return [_evaluate(part, names) for part in parts]
        case ast.Set(elts=parts):
            return {_evaluate(part, names) for part in parts}
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_evaluate(k, names): _evaluate(v, names) for k, v in pairs if k is not None}
        case ast.UnaryOp(op=op, operand=operand):
            return _SIGNS[type(op)](_evaluate(operand, names))
        case ast.BoolOp(op=op, values=values):
            return _evaluate_bool(op, values, names)
        case ast.BinOp(left=left, op=op, right=right):
            return _operate(op, _evaluate(left, names), _evaluate(right, names))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = [_evaluate(side, names) for side in (left, *comparators)]
            return all(
                _COMPARISONS[type(op)](*pair)
                for op, pair in zip(ops, itertools.pairwise(sides), strict=True)
            )
        case ast.Call(func=function, args=arguments, keywords=keywords):
            given = [_evaluate(argument, names) for argument in arguments]
            named = {str(word.arg): _evaluate(word.value, names) for word in keywords}
            return FUNCTIONS[ast.unparse(function)](*given, **named)
    raise PredicateError(f"{type(node).__name__} is not evaluated here")


def _evaluate_bool(op: ast.boolop, values: list[ast.expr], names: Mapping[str, Any]) -> Any:
    value: Any = None
    for node in values:
        value = _evaluate(node, names)
        if bool(value) is isinstance(op, ast.Or):
            break
    return value


def _operate(op: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(op, ast.Pow):
        if _bits(left) * max(1, abs(right)) > _MAX_BITS or abs(right) > _MAX_EXPONENT:
            raise PredicateError("a power too large to be evaluated here")
    elif isinstance(op, ast.Mult):
        if _bits(left) + _bits(right) > _MAX_BITS:
            raise PredicateError("a product too large to be evaluated here")
        for many, times in ((left, right), (right, left)):
            repeats = isinstance(times, int) and hasattr(many, "__len__")
            if repeats and len(many) * times > _MAX_LENGTH:
                raise PredicateError("a repetition too long to be evaluated here")
    elif isinstance(op, ast.Mod) and isinstance(left, (str, bytes)):
        raise PredicateError("text is not formatted here")
    return _OPERATIONS[type(op)](left, right)


def _bits(value: Any) -> int:
    if isinstance(value, Fraction):
        return value.numerator.bit_length() + value.denominator.bit_length()
    return value.bit_length() if isinstance(value, int) else 1
