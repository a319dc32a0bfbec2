"""Splits asserts into what a program computes and what is expected of it.

``assert f(2) == [4]`` becomes the expression ``f(2)``, which is evaluated where the program runs,
and the predicate ``_0 == [4]``, which is evaluated here, on the value that came back. So a program
is judged by a process that does not run it, and never sees what is expected.
"""

import ast
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from selftrain.tasks.predicates import FUNCTIONS, evaluate, is_constant

_OWN = "_own_"
_HOLE = "_{}"
_SINGLETONS = (None, True, False)


class _NotSplittableError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class SplitAssert:
    """An assert in two parts."""

    source: str
    """The assert as it was written."""
    calls: tuple[str, ...]
    """Expressions to be evaluated with the program, without what is expected of them; empty if the
    assert is not about the program, such as ``assert True``."""
    predicate: ast.expr
    """What must be true of their values, which it calls ``_0``, ``_1`` and so on."""

    def holds(self, values: Sequence[object]) -> bool:
        """Say whether the predicate is true of the values of ``calls``.

        Raises:
            PredicateError: If it cannot be evaluated, such as an order of text and numbers.
        """
        names: Mapping[str, object] = {_HOLE.format(i): value for i, value in enumerate(values)}
        return bool(evaluate(self.predicate, names))


@lru_cache(maxsize=4096)
def split_assert(source: str) -> SplitAssert | None:
    """Return an assert in its two parts, or None if it cannot be parted.

    It can if it is one ``assert`` of calls, each compared with a constant expression, tested for
    truth, or inside functions such as ``abs`` or ``math.isclose`` together with constants; and
    combinations of those by ``and``, ``or`` and ``not``.

    Args:
        source: One statement, from whoever wrote the tests, who is trusted.

    Raises:
        SyntaxError: If it is no Python.

    Example:
        >>> split_assert("assert abs(f(2) - 4) < 1e-6").calls
        ('f(2)',)
        >>> split_assert("assert f(2) == f(3)") is None
        True
    """
    body = ast.parse(source.strip()).body
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        return None
    test, splitter = body[0].test, _Splitter()
    try:
        predicate = splitter.split(test)
        if not splitter.calls and (own := _outermost_function(test)):
            # Nothing but known functions: it means one that the program defines anew, as in MBPP.
            predicate = splitter.split(_renamed(test, own))
    except _NotSplittableError:
        return None
    calls = (call.replace(_OWN, "") for call in splitter.calls)
    return SplitAssert(source, tuple(calls), predicate)


def _outermost_function(test: ast.expr) -> str | None:
    """Return the name that is called first, seen from outside; None if none is."""
    called = (node.func for node in ast.walk(test) if isinstance(node, ast.Call))
    return next((function.id for function in called if isinstance(function, ast.Name)), None)


def _renamed(test: ast.expr, name: str) -> ast.expr:
    """Return the test with a function called by a name that is not known."""
    test = copy.deepcopy(test)
    for node in ast.walk(test):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            node.func.id = _OWN + name
    return test


class _Splitter:
    """Replaces what the program computes by names, from the outside in."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def split(self, node: ast.expr) -> ast.expr:
        if is_constant(node):
            return node
        if _is_output(node):
            self.calls.append(ast.unparse(node))
            return ast.Name(_HOLE.format(len(self.calls) - 1), ast.Load())
        match node:
            case ast.UnaryOp(op=op, operand=operand):
                return ast.UnaryOp(op, self.split(operand))
            case ast.BoolOp(op=op, values=values):
                return ast.BoolOp(op, [self.split(value) for value in values])
            case ast.BinOp(left=left, op=op, right=right):
                return ast.BinOp(self.split(left), op, self.split(right))
            case ast.Compare():
                return self._split_comparison(node)
            case ast.Tuple(elts=elements):
                return ast.Tuple([self.split(element) for element in elements], ast.Load())
            case ast.List(elts=elements):
                return ast.List([self.split(element) for element in elements], ast.Load())
            case ast.Call(func=function, args=arguments, keywords=keywords) if _is_known(function):
                inside = [self.split(argument) for argument in arguments]
                named = [ast.keyword(word.arg, self.split(word.value)) for word in keywords]
                return ast.Call(function, inside, named)
        raise _NotSplittableError

    def _split_comparison(self, node: ast.Compare) -> ast.expr:
        sides = [node.left, *node.comparators]
        # Of two sides that the program computes neither is known to be right.
        if sum(not is_constant(side) for side in sides) > 1:
            raise _NotSplittableError
        if any(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops) and not all(
            _is_singleton(side) or not is_constant(side) for side in sides
        ):
            raise _NotSplittableError
        left, *others = (self.split(side) for side in sides)
        return ast.Compare(left, node.ops, others)


def _is_output(node: ast.expr) -> bool:
    """Say whether an expression only calls the program and takes a view of what it returns."""
    match node:
        case ast.Name(id=name):
            return name not in FUNCTIONS
        case ast.Call(func=function, args=[inside], keywords=[]) if _is_known(function):
            return _is_output(inside)  # such as set(f(x)): f may return a generator
        case ast.Call(func=ast.Name() as function):
            return not _is_known(function)
        case ast.Call(func=ast.Attribute(value=value) as function):
            return not _is_known(function) and not is_constant(value) and _is_output(value)
        case ast.Attribute(value=value):
            return _is_output(value)
        case ast.Subscript(value=value, slice=index):
            return _is_output(value) and _is_index(index)
    return False


def _is_index(node: ast.expr) -> bool:
    if isinstance(node, ast.Slice):
        return all(is_constant(p) for p in (node.lower, node.upper, node.step) if p is not None)
    return is_constant(node)


def _is_known(function: ast.expr) -> bool:
    return ast.unparse(function) in FUNCTIONS


def _is_singleton(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and any(node.value is one for one in _SINGLETONS)
