"""Runs harmless programs several to a process: a fork costs more than a short expression.

Programs in one process could meddle with one another, so only those that cannot are put together:
one function that returns an expression of numbers, lists, slices, comparisons, comprehensions and a
few functions without effects. It has no way to assign, to import, to reach an attribute, or to call
anything else. The process is in the sandbox all the same.
"""

import ast
import warnings
from collections.abc import Sequence
from dataclasses import replace

from selftrain.tasks.sandbox import Outcome, Program, Sandbox

_MAX_LENGTH = 500
"""Longer programs run alone; the parser of this process is not to be tried by them."""
_BUILTIN = (abs, all, any, bool, enumerate, int, len, list, max, min, reversed, set, sorted)
_FUNCTIONS = frozenset(function.__name__ for function in (*_BUILTIN, sum, tuple, zip))
_NODES = (
    *(ast.List, ast.Tuple, ast.Slice),
    *(ast.ListComp, ast.GeneratorExp, ast.comprehension),
    *(ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp),
    *(ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)
_OWN = "program_"
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod)  # no powers, no shifts


def run_packed(
    sandbox: Sandbox, programs: Sequence[Program], *, max_programs: int
) -> list[Outcome]:
    """Return an outcome for each program, as if each had a process of its own.

    Those of a process in which anything but an exception in a call went wrong are run again, each
    alone, so that one that takes too long does not fail the others.

    Args:
        sandbox: Runs the processes.
        programs: In any mixture; those that are not harmless run alone.
        max_programs: How many may share a process.

    Raises:
        SandboxError: As :meth:`Sandbox.run`.
    """
    found: dict[int, Outcome] = {}
    functions: dict[int, ast.FunctionDef] = {}
    if max_programs > 1:
        functions = {i: f for i, p in enumerate(programs) if (f := _harmless(p)) is not None}
    together = list(functions)
    packs = [together[i : i + max_programs] for i in range(0, len(together), max_programs)]
    packed = [_pack([(functions[i], programs[i].calls) for i in pack]) for pack in packs]
    for pack, outcome in zip(packs, sandbox.run(packed) if packed else [], strict=True):
        if all(result.status in ("finished", "error") for result in outcome.results):
            found |= _unpack(pack, programs, outcome)
    alone = [i for i in range(len(programs)) if i not in found]
    outcomes = sandbox.run([programs[i] for i in alone]) if alone else []
    found |= zip(alone, outcomes, strict=True)
    return [found[i] for i in range(len(programs))]


def _harmless(program: Program) -> ast.FunctionDef | None:
    """Return the function that a program consists of, if it can do nothing but compute."""
    if program.setup or program.after or program.asserts or not program.calls:
        return None
    if len(program.code) > _MAX_LENGTH:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # of what Python may refuse one day
            body = ast.parse(program.code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # run alone, it gets the status that says so
    match body:
        case [
            ast.FunctionDef(
                args=ast.arguments(posonlyargs=[], args=arguments, kwonlyargs=[], defaults=[]),
                body=[ast.Return(value=ast.expr() as value)],
                decorator_list=[],
                returns=None,
            ) as definition
        ] if not (definition.args.vararg or definition.args.kwarg):
            names = {argument.arg for argument in arguments if argument.annotation is None}
            if len(names) == len(arguments) and _is_pure(value, names):
                return definition
    return None


def _is_pure(value: ast.expr, arguments: set[str]) -> bool:
    """Say whether an expression computes a value from its arguments and does nothing else."""
    bound = {n.id for n in ast.walk(value) if isinstance(n, ast.Name) and _is_stored(n)}
    names = arguments | bound
    # A name of a comprehension, used behind it, would be that of another program's function.
    if names & _FUNCTIONS or any(name.startswith(_OWN) for name in names):
        return False
    callees = {id(node.func) for node in ast.walk(value) if isinstance(node, ast.Call)}
    return all(_is_allowed(node, names, callees) for node in ast.walk(value))


def _is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _is_allowed(node: ast.AST, names: set[str], callees: set[int]) -> bool:
    match node:
        case ast.Constant(value=constant):
            return isinstance(constant, int)  # text could be formatted to any length
        case ast.Name(id=name):
            return name in (_FUNCTIONS if id(node) in callees else names)
        case ast.Call(func=function, keywords=[]):
            return isinstance(function, ast.Name)
        case ast.Subscript(ctx=context):
            return isinstance(context, ast.Load)  # [0 for x[0] in y] assigns
        case ast.operator():
            return isinstance(node, _OPERATORS)
        case ast.comprehension(is_async=is_async):
            return not is_async
    return isinstance(node, _NODES)


def _pack(programs: Sequence[tuple[ast.FunctionDef, Sequence[str]]]) -> Program:
    """Return one program of functions under names that do not meet, and the calls of each."""
    sources, calls = [], []
    for i, (function, its_calls) in enumerate(programs):
        own = f"{_OWN}{i}"
        calls += [f"(lambda {function.name}: {call})({own})" for call in its_calls]
        function.name = own
        sources.append(ast.unparse(function))
    return Program(code="\n".join(sources), calls=tuple(calls))


def _unpack(
    pack: Sequence[int], programs: Sequence[Program], outcome: Outcome
) -> dict[int, Outcome]:
    """Return the outcome of each program of a pack."""
    results, found = iter(outcome.results), {}
    for i in pack:
        own = tuple(next(results) for _ in programs[i].calls)
        trouble = next((result for result in own if result.status != "finished"), None)
        found[i] = replace(
            outcome,
            status="finished" if trouble is None else trouble.status,
            results=own,
            detail="" if trouble is None else trouble.detail,
            milliseconds=outcome.milliseconds / len(pack),
        )
    return found
