"""Judges programs that a model wrote, by the tests of their problems."""

import re
from collections.abc import Callable, Sequence
from typing import Literal, Self

from selftrain._core.checks import check_choice, check_int
from selftrain.errors import GradingError
from selftrain.tasks.assertions import SplitAssert, split_assert
from selftrain.tasks.base import Grade, Problem
from selftrain.tasks.packing import run_packed
from selftrain.tasks.predicates import PredicateError
from selftrain.tasks.sandbox import Outcome, Program, Result, Sandbox

Mode = Literal["auto", "outputs", "asserts"]
_CODE = "{code}"
_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def extract_code(text: str) -> str | None:
    r"""Return the program in a model's text: the last fenced block, or all of it if there is none.

    An unclosed fence lasts to the end. Leading spaces of the first line are kept, since a text may
    go on with the body of a function. None if nothing but spaces is found.

    Example:
        >>> extract_code("Here it is:\n```python\nx = 1\n```")
        'x = 1'
    """
    blocks = _FENCED.findall(text)
    code = (blocks[-1] if blocks else text).rstrip()
    return code.strip("\n") or None if code.strip() else None


class CodeGrader:
    r"""Scores a program 1 if it passes all tests of its problem, else 0.

    A test is an assert. In mode "outputs" only what it calls is run with the program, and this
    process compares the value that comes back with the expected one, which the program never sees.
    In mode "asserts" the whole assert is run with the program, which could find a way to cheat: see
    ``docs/security.md``. "auto" treats each test by itself, by outputs where it can be split. The
    grade's detail begins with how many tests were judged by outputs.

    What a problem's ``meta`` may hold: ``setup`` is run before the program, ``setup_after`` after
    it; ``code_prefix`` stands in front of the program, for prompts that are the head of a
    function; ``check``, in the place of tests, is the source of a function ``check(candidate)``
    that is called with ``entry_point``.

    The statuses are "passed" and, with score 0, "failed", "error", "timeout", "memory",
    "output_limit", "syntax", "forbidden", "no_code"; with score None "ungradable" (the problem's
    set-up fails by itself) and "sandbox_error".

    Args:
        sandbox: Runs the programs; None makes one with its defaults, which refuses where there are
            no namespaces.
        mode: How tests are judged.
        hidden: Use ``hidden_tests`` in the place of ``tests``.
        extract: Finds the program in a text, or returns None.
        template: Text with ``{code}`` that the program is put into, such as
            ``"def f(x):\n    return {code}"`` for expressions.
        partial: Score the share of tests that pass.
        max_packed: How many programs may share a process, of those that are one function which
            returns an expression of numbers and lists, and so cannot meddle with the others; all
            the rest have a process of their own. For short expressions a process costs most.

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> grader = CodeGrader(sandbox=Sandbox(allow_code_execution=True))
        >>> problem = Problem(id="0", prompt="Double it.", tests=("assert f(2) == 4",))
        >>> [grade.status for grade in grader.grade([problem] * 2, ["f = lambda x: 2 * x", "f ="])]
        ['passed', 'syntax']
        >>> grader.close()
    """

    def __init__(
        self,
        *,
        sandbox: Sandbox | None = None,
        mode: Mode = "auto",
        hidden: bool = False,
        extract: Callable[[str], str | None] = extract_code,
        template: str | None = None,
        partial: bool = False,
        max_packed: int = 1,
    ) -> None:
        check_int("max_packed", max_packed, low=1)
        check_choice("mode", mode, ("auto", "outputs", "asserts"))
        if template is not None and _CODE not in template:
            raise ValueError(f"template must hold {_CODE}, got {template!r}.")
        self._sandbox = Sandbox() if sandbox is None else sandbox
        self._mode, self._hidden, self._extract = mode, hidden, extract
        self._template, self._partial, self._max_packed = template, partial, max_packed
        self._setup_works: dict[tuple[str, str], bool] = {}

    def __enter__(self) -> Self:
        """Return the grader; the sandbox starts when it is first needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the sandbox."""
        self.close()

    def close(self) -> None:
        """End the sandbox's processes; the next use starts them again."""
        self._sandbox.close()

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """Return a grade for each text, as an answer to the problem beside it.

        Raises:
            ValueError: If there are not as many texts as problems.
            GradingError: If a problem has no tests (hidden ones may be missing), or such as its
                mode cannot use.
            SandboxError: If programs cannot be run as safely as asked for.
        """
        if len(problems) != len(texts):
            raise ValueError(f"{len(problems)} problems but {len(texts)} texts; give one for each.")
        tests = [self._tests(problem) for problem in problems]
        codes = [self._extract(text) for text in texts]
        work = list(zip(problems, tests, codes, strict=True))
        programs = [self._program(p, some, code) for p, some, code in work if some and code]
        outcomes = iter(run_packed(self._sandbox, programs, max_programs=self._max_packed))
        return [
            _ungraded(some) if not (some and code) else self._judge(problem, some, next(outcomes))
            for problem, some, code in work
        ]

    def _tests(self, problem: Problem) -> list[SplitAssert | str]:
        """Return the tests, split where they are to be judged by outputs."""
        sources = problem.hidden_tests if self._hidden else problem.tests
        found: list[SplitAssert | str] = []
        for source in sources:
            try:
                split = split_assert(source)
            except (SyntaxError, ValueError) as error:
                raise GradingError(
                    f"problem {problem.id!r} has a test that is no Python: {source!r} ({error})."
                ) from error
            if split is None and self._mode == "outputs":
                raise GradingError(
                    f"problem {problem.id!r}: the test {source!r} cannot be split into a call and "
                    "what is expected of it; mode='auto' runs such tests with the program."
                )
            if split is None or split.calls:  # a constant says nothing of any program
                found.append(source if split is None or self._mode == "asserts" else split)
        if "check" in problem.meta and not self._hidden:
            if self._mode == "outputs":
                raise GradingError(
                    f"problem {problem.id!r} is tested by a function check, which mode='outputs' "
                    "cannot judge; mode='auto' runs it with the program."
                )
            found.append(f"{problem.meta['check']}\ncheck({problem.meta['entry_point']})")
        if not found and not self._hidden:  # hidden ones are measured with where they exist
            raise GradingError(
                f"problem {problem.id!r} has no tests, so a program cannot be judged by them."
            )
        return found

    def _program(self, problem: Problem, tests: Sequence[SplitAssert | str], code: str) -> Program:
        if self._template is not None:
            code = self._template.replace(_CODE, code)
        return Program(
            code=problem.meta.get("code_prefix", "") + code,
            setup=problem.meta.get("setup", ""),
            after=problem.meta.get("setup_after", ""),
            calls=tuple(c for t in tests if isinstance(t, SplitAssert) for c in t.calls),
            asserts=tuple(test for test in tests if isinstance(test, str)),
        )

    def _judge(
        self, problem: Problem, tests: Sequence[SplitAssert | str], outcome: Outcome
    ) -> Grade:
        def grade(score: float | None, status: str, detail: str) -> Grade:
            return Grade(score, status, detail, outcome.milliseconds, outcome.level)

        if outcome.status == "sandbox_error":
            return grade(None, "sandbox_error", outcome.detail)
        # That the set-up failed is the program's word, so the set-up is tried without it.
        if outcome.detail.startswith("setup: ") and not self._check_setup(problem):
            return grade(None, "ungradable", f"the problem's own {outcome.detail}")
        by_outputs = sum(isinstance(test, SplitAssert) for test in tests)
        how = f"outputs {by_outputs}/{len(tests)}"
        verdicts = _verdicts(tests, outcome.results)
        wrong = [verdict for verdict in verdicts if verdict.status != "finished"]
        if not wrong:
            return grade(1.0, "passed", how)
        share = 1 - len(wrong) / len(tests) if self._partial else 0.0
        return grade(share, wrong[0].status, f"{how}; {wrong[0].detail}")

    def _check_setup(self, problem: Problem) -> bool:
        setup = problem.meta.get("setup", "")
        key = (problem.id, setup)
        if key not in self._setup_works:
            outcome = self._sandbox.run([Program(code=setup)])[0]
            self._setup_works[key] = outcome.status == "finished"
        return self._setup_works[key]


def _verdicts(tests: Sequence[SplitAssert | str], results: Sequence[Result]) -> list[Result]:
    """Return what came of each test, in the order of the tests."""
    num_calls = sum(len(test.calls) for test in tests if isinstance(test, SplitAssert))
    called, asserted = iter(results[:num_calls]), iter(results[num_calls:])
    return [
        _verdict(test, [next(called) for _ in test.calls])
        if isinstance(test, SplitAssert)
        else next(asserted)
        for test in tests
    ]


def _verdict(test: SplitAssert, results: Sequence[Result]) -> Result:
    for result in results:
        if result.status != "finished":
            return result
    try:
        if test.holds([result.value for result in results]):
            return Result("finished")
    except PredicateError as error:
        return Result("error", detail=f"{test.source}: {error}")
    values = ", ".join(_shorten(result.value) for result in results)
    return Result("failed", detail=f"{test.source}: got {values}")


def _shorten(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _ungraded(tests: Sequence[object]) -> Grade:
    """Return the grade of what was not run: there is nothing to run, or nothing to judge it by."""
    if not tests:
        return Grade(None, "ungradable", "the problem has no hidden tests")
    return Grade(0.0, "no_code")
