"""Problems that can be checked: what is asked, and how an answer is judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from selftrain._core.checks import check_int, check_not_empty, check_range
from selftrain._core.rng import derive

PromptText = str | Sequence[Mapping[str, Any]]
"""Text, or chat messages as ``apply_chat_template`` takes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One question, with what is needed to judge an answer."""

    id: str
    """Unique within its task; samples refer to it."""
    prompt: PromptText
    """What the model is asked, without the task's shared prefix."""
    answer: str | None = None
    """The final answer, where there is one."""
    solution: str | None = None
    """A worked solution as a model should write it, for supervised training."""
    tests: tuple[str, ...] = ()
    """For programs: assert statements that decide the score."""
    hidden_tests: tuple[str, ...] = ()
    """For programs: assert statements that only measure how far the score can be trusted."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Plain data that a grader or a report may want, such as a level or set-up code."""

    def __post_init__(self) -> None:
        if not self.id or not self.prompt:
            raise ValueError(f"a problem needs an id and a prompt, got {self!r}.")


@dataclass(frozen=True, slots=True)
class Grade:
    """The judgement of one text."""

    score: float | None
    """In [0, 1]; None where it could not be judged, which is not the same as wrong."""
    status: str
    """Why, in a word: "correct", "wrong", "no_answer", "passed", "timeout", "ungradable", ..."""
    detail: str = ""
    """What a reader of the sample may want to know."""
    milliseconds: float = 0.0
    """Time taken to judge."""
    level: str | None = None
    """The isolation under which a program ran; None where nothing was run."""

    def __post_init__(self) -> None:
        if self.score is not None:
            check_range("score", self.score, low=0.0, high=1.0)


class Grader(Protocol):
    """Judges texts."""

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """Return one grade for each problem and the text beside it."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """Problems of one kind and their judge.

    Raises:
        ValueError: If there is no problem, or two share an id.

    Example:
        >>> class Exact:
        ...     def grade(self, problems, texts):
        ...         return [Grade(float(p.answer == t), "") for p, t in zip(problems, texts)]
        >>> task = Task("sums", (Problem(id="0", prompt="1+1=", answer="2"),), Exact())
        >>> task.grader.grade(task.problems, ["2"])[0].score
        1.0
    """

    name: str
    """What the task is called in reports."""
    problems: tuple[Problem, ...]
    """All of them, in a fixed order."""
    grader: Grader
    """Decides the score."""
    hidden_grader: Grader | None = None
    """A stricter judge of what ``grader`` lets pass, for the rate of false positives only."""
    final_answer: Callable[[Problem, str], str | None] | None = None
    """Reduces a text to its answer in a canonical form, for majority votes; None where the text has
    none."""
    prefix: str = ""
    """Text in front of every prompt, such as worked examples; prompts must be text then."""

    def __post_init__(self) -> None:
        check_not_empty("problems", self.problems)
        seen: set[str] = set()
        for problem in self.problems:
            if problem.id in seen:
                raise ValueError(f"problems: the id {problem.id!r} occurs twice; ids are unique.")
            seen.add(problem.id)
            if self.prefix and not isinstance(problem.prompt, str):
                raise ValueError(
                    f"problem {problem.id!r} has chat messages for a prompt, and the task a prefix;"
                    " put the prefix into the messages."
                )

    def __len__(self) -> int:
        return len(self.problems)

    def prompt(self, problem: Problem) -> PromptText:
        """Return what the model reads: the prefix and the problem's prompt."""
        return self.prefix + problem.prompt if isinstance(problem.prompt, str) else problem.prompt

    def by_id(self) -> dict[str, Problem]:
        """Return the problems by their id."""
        return {problem.id: problem for problem in self.problems}

    def take(self, num_problems: int, *, seed: int = 0) -> "Task":
        """Return the task with a random choice of its problems, all of them if it has fewer.

        A larger choice of the same seed contains every smaller one.
        """
        check_int("num_problems", num_problems, low=1)
        ranked = sorted(self.problems, key=lambda p: derive(seed, "take", p.id))
        kept = {problem.id for problem in ranked[:num_problems]}
        return replace(self, problems=tuple(p for p in self.problems if p.id in kept))

    def split(self, *fractions: float, seed: int = 0) -> "tuple[Task, ...]":
        """Split the problems by a hash of their ids into parts of about these sizes, and the rest.

        Which part a problem falls into does not depend on the other problems.

        Raises:
            ValueError: If the fractions exceed 1 in all, or a part is empty.
        """
        for fraction in fractions:
            check_range("fraction", fraction, low=0.0, low_open=True)
        check_range("the sum of fractions", sum(fractions), high=1.0)
        parts: list[list[Problem]] = [[] for _ in range(len(fractions) + 1)]
        for problem in self.problems:
            place = derive(seed, "split", problem.id) / 2**63
            number = 0
            while number < len(fractions) and place >= fractions[number]:
                place -= fractions[number]
                number += 1
            parts[number].append(problem)
        if sum(fractions) == 1:
            parts.pop()
        return tuple(replace(self, problems=tuple(part)) for part in parts)


def check_disjoint(train: Task, *others: Task) -> None:
    """Raise ``ValueError`` if a problem of ``others`` is also in ``train``, by prompt or by id."""
    ids = {problem.id for problem in train.problems}
    prompts = {_normalised(problem.prompt) for problem in train.problems}
    for other in others:
        for problem in other.problems:
            same = "id" if problem.id in ids else "prompt"
            if same == "id" or _normalised(problem.prompt) in prompts:
                raise ValueError(
                    f"problem {problem.id!r} of {other.name!r} is also in {train.name!r} (by its "
                    f"{same}); what is measured on must not be trained on."
                )


def _normalised(prompt: PromptText) -> str:
    text = prompt if isinstance(prompt, str) else " ".join(str(m.get("content")) for m in prompt)
    return " ".join(text.split()).casefold()
