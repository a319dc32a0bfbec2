"""A grader of formulas: symbolic equality by Math-Verify, in processes that can be killed."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import TracebackType
from typing import Self

from selftrain._core.checks import check_int, check_range
from selftrain._core.optional import require
from selftrain.errors import GradingError
from selftrain.tasks._math_pool import LimitExceededError, WorkerPool
from selftrain.tasks.answers import answer_classes, parse_number, same_answer
from selftrain.tasks.base import Grade, Problem
from selftrain.tasks.extraction import Extractor, extract_boxed, extract_final_answer, first_of
from selftrain.tasks.graders import check_pairs, reference_answer, votable

_REMEMBERED = 2**16  # verdicts on distinct answers

_BOXED_FIRST = first_of(extract_boxed, extract_final_answer)


class MathGrader:
    r"""Scores 1 where the final answer equals the problem's as a formula.

    Answers that are the same number or the same text are equal without further ado; of others
    Math-Verify decides, which must be installed (``pip install 'selftrain[math]'``). It is asked
    with the reference first, because it is not symmetric: a reference ``3`` accepts ``x = 3``. A
    problem whose own answer cannot be parsed is "ungradable", with no score. An answer that takes
    too long to compare is a "timeout" and scores 0.

    It runs in child processes, which are started when they are first needed, killed on a timeout,
    and end with :meth:`close`, with the ``with`` block, or with this process, however that ends.

    Args:
        num_workers: How many processes compare at the same time.
        timeout: Processor seconds for one comparison.
        strict: Compare answers of several parts part by part: lists and ``{...}`` as sets,
            ``(...)`` and ``[...]`` in order and with the same brackets. Otherwise Math-Verify's
            own rule holds, for which ``1, 2`` equals the interval ``(1, 2)``.
        extract: Finds the final answer in a text; by default the last box, else "#### x", else
            "answer is x".

    Raises:
        MissingExtraError: If Math-Verify is not installed.
        ValueError: If ``num_workers`` or ``timeout`` is not positive.

    Example:
        >>> problem = Problem(id="0", prompt="Solve 2x = 1.", answer="1/2")
        >>> texts = [r"so $x = \boxed{\frac{\sqrt{4}}{4}}$", r"so $\boxed{2}$", "0.5, I think"]
        >>> with MathGrader() as grader:
        ...     [grade.status for grade in grader.grade([problem] * 3, texts)]
        ['correct', 'wrong', 'no_answer']
    """

    def __init__(
        self,
        *,
        num_workers: int = 2,
        timeout: float = 5.0,
        strict: bool = False,
        extract: Extractor = _BOXED_FIRST,
    ) -> None:
        check_int("num_workers", num_workers, low=1)
        check_range("timeout", timeout, low=0.0, low_open=True)
        require("math_verify", extra="math")
        self._extract, self._strict, self._num_workers = extract, strict, num_workers
        pool = self._pool = WorkerPool(num_workers, timeout)

        def readable(answer: str) -> bool:
            try:
                return bool(pool.ask({"op": "parse", "answer": answer}))
            except (LimitExceededError, ArithmeticError):
                return False

        def compare(reference: str, answer: str) -> str:
            if same_answer(reference, answer):
                return "correct"
            request = {"op": "compare", "reference": reference, "answer": answer, "strict": strict}
            try:
                return "correct" if pool.ask(request) else "wrong"
            except LimitExceededError:
                return "timeout"
            except ArithmeticError:
                return "wrong"

        def spell(answer: str) -> str | None:
            try:
                return pool.ask({"op": "canonical", "answer": answer})
            except (LimitExceededError, ArithmeticError):
                return None

        # The functions hold the pool, not the grader: one that goes out of use can be freed.
        self._readable = lru_cache(_REMEMBERED)(readable)
        self._compare = lru_cache(_REMEMBERED)(compare)
        self._spell = lru_cache(_REMEMBERED)(spell)

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """Return one grade for each problem and the text beside it.

        Raises:
            GradingError: If the processes cannot be started.
            ValueError: If a problem has no answer, or the two sequences differ in length.
        """
        check_pairs(problems, texts)
        references = [reference_answer(problem) for problem in problems]
        with ThreadPoolExecutor(self._num_workers) as threads:
            return list(threads.map(self._judge, references, texts))

    def final_answer(self, problem: Problem, text: str) -> str | None:
        """Return the final answer of a text in canonical form; None where it has none.

        Texts that are graded correct have the form of the problem's own answer.
        """
        answer = self._extract(text)
        canonical = votable(answer)
        if answer is None or canonical is None:
            return None
        reference = reference_answer(problem)
        if self._compare(reference, answer) == "correct":
            return votable(reference)
        if parse_number(canonical) is not None:
            return canonical
        return self._spell(canonical) or canonical

    def answer_classes(self, problem: Problem, answers: Sequence[str | None]) -> list[str | None]:
        """Put final answers into classes of equal ones, for majority votes.

        Equality is made transitive and symmetric by union-find; the problem's own answer takes
        part, and the class that holds it goes by its name. Distinct answers are compared in pairs,
        so that many of them take time.

        Args:
            problem: Whose answers they are.
            answers: Final answers, not whole texts; None where a text had none.

        Returns:
            The name of each answer's class, None for None.
        """
        reference = reference_answer(problem)

        def equal(one: str, other: str) -> bool:
            return self._compare(one, other) == "correct"

        return answer_classes([reference, *answers], equal)[1:]

    def close(self) -> None:
        """End the child processes; they would be started again if another text were graded."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _judge(self, reference: str, text: str) -> Grade:
        start = time.perf_counter()
        score, status, detail = self._verdict(reference, text)
        return Grade(score, status, detail, 1e3 * (time.perf_counter() - start))

    def _verdict(self, reference: str, text: str) -> tuple[float | None, str, str]:
        if not self._readable(reference):  # the reference first: a lucky answer changes nothing
            return None, "ungradable", f"the reference {reference[:80]!r} cannot be parsed"
        answer = self._extract(text)
        if answer is None:
            return 0.0, "no_answer", ""
        try:
            status = self._compare(reference, answer)
        except GradingError as error:
            if self._readable(reference):  # the processes can be started, so it is this answer
                return None, "ungradable", str(error)
            raise
        return float(status == "correct"), status, answer[:200]
