"""What a model reads before a problem: worked examples, or a conversation."""

from collections.abc import Sequence
from dataclasses import replace

from selftrain._core.checks import check_int
from selftrain._core.rng import derive
from selftrain.tasks.base import Problem, Task


def few_shot_prefix(problems: Sequence[Problem]) -> str:
    r"""Return a prefix of worked examples: prompt and solution of each, then an empty line.

    Raises:
        ValueError: If a problem has no solution, or chat messages for a prompt.

    Example:
        >>> few_shot_prefix([Problem(id="0", prompt="1+1=", solution="2")])
        '1+1=2\n\n'
    """
    for problem in problems:
        if problem.solution is None or not isinstance(problem.prompt, str):
            raise ValueError(
                f"problem {problem.id!r} cannot be a worked example: it needs a solution, and a "
                "prompt that is text."
            )
    return "".join(f"{problem.prompt}{problem.solution}\n\n" for problem in problems)


def choose_shots(
    problems: Sequence[Problem], *, num_shots: int, seed: int = 0
) -> tuple[Problem, ...]:
    """Choose worked examples at random among the problems that have a solution.

    A larger choice of the same seed begins with every smaller one.

    Raises:
        ValueError: If there are not enough.

    Example:
        >>> problems = [Problem(id=str(i), prompt=f"{i}+1=", solution=str(i + 1)) for i in range(9)]
        >>> few_shot_prefix(choose_shots(problems, num_shots=2)).count("+1=")
        2
    """
    check_int("num_shots", num_shots, low=0)
    solved = [problem for problem in problems if problem.solution is not None]
    if num_shots > len(solved):
        raise ValueError(
            f"num_shots is {num_shots}, but only {len(solved)} problems have a solution to show."
        )
    return tuple(sorted(solved, key=lambda p: derive(seed, "shots", p.id))[:num_shots])


def as_chat(task: Task, *, system: str | None = None) -> Task:
    """Return the task with prompts that are chat messages, for models with a chat template.

    The text of each prompt, the task's prefix in front, becomes one message of the user.

    Args:
        task: A task whose prompts are text.
        system: What the system's message says; None for none.

    Raises:
        ValueError: If a prompt is not text.

    Example:
        >>> from selftrain.tasks import ExactGrader
        >>> task = Task("sums", (Problem(id="0", prompt="1+1=", answer="2"),), ExactGrader())
        >>> as_chat(task).problems[0].prompt
        [{'role': 'user', 'content': '1+1='}]
    """
    first = [] if system is None else [{"role": "system", "content": system}]
    problems = []
    for problem in task.problems:
        text = task.prompt(problem)
        if not isinstance(text, str):
            raise ValueError(f"problem {problem.id!r} has chat messages for a prompt already.")
        messages = [*first, {"role": "user", "content": text}]
        problems.append(replace(problem, prompt=messages))
    return replace(task, problems=tuple(problems), prefix="")
