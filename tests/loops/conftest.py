"""A task that a tiny model learns in seconds, and samplers that need no model."""

from collections.abc import Callable, Sequence

import pytest

from selftrain import Completion
from selftrain._core.rng import derive
from selftrain.tasks.base import Grade, Problem, Task

collect_ignore = ["crash_loop.py"]  # a script; it imports this file by its own name


class FirstCharacter:
    """Right if the text begins with the answer."""

    def grade(self, problems, texts):
        return [
            Grade(
                float(text[:1] == problem.answer),
                "correct" if text[:1] == problem.answer else "wrong",
            )
            for problem, text in zip(problems, texts, strict=True)
        ]


def problems(count: int, first: int = 0) -> tuple[Problem, ...]:
    """Letters, each to be answered by a digit that depends on it."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return tuple(
        Problem(
            id=f"p{i}",
            prompt=f"{letters[i % 26]}{letters[i // 26]}=",
            answer=str(i % 3),
            solution=str(i % 3),
        )
        for i in range(first, first + count)
    )


@pytest.fixture(scope="module")
def digit_task() -> Task:
    """Eight problems."""
    return Task("digits", problems(8), FirstCharacter())


@pytest.fixture
def make_task() -> Callable[..., Task]:
    def make(count: int = 8, first: int = 0, name: str = "digits", **fields) -> Task:
        fields = {
            "grader": FirstCharacter(),
            "final_answer": lambda problem, text: text[:1] or None,
            **fields,
        }
        return Task(name, problems(count, first), **fields)

    return make


class DigitSampler:
    """Answers 0, 1 or 2 at random, each by the sample's own seed; counts its calls."""

    def __init__(self, answers: str = "012") -> None:
        self.calls: list[list[str]] = []
        self.answers = answers

    def sample(self, prompts: Sequence, *, num_samples: int, params, seeds=None):
        self.calls.append(list(prompts))
        return [
            [
                Completion(self.answers[derive(s, "digit") % len(self.answers)], None, None, "stop")
                for s in own
            ]
            for own in seeds
        ]


@pytest.fixture
def digit_sampler() -> DigitSampler:
    return DigitSampler()
