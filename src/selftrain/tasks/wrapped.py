"""Graders around other graders: one that saves work, and two that a loop must not learn from."""

from collections.abc import Sequence
from dataclasses import replace

from selftrain._core.checks import check_int, check_range
from selftrain._core.rng import derive
from selftrain.tasks.base import Grade, Grader, Problem


class GradeOnce:
    """Judges equal texts of a problem once a call, for graders whose judgement takes long.

    Args:
        grader: Does the work; its grades must depend on problem and text alone.

    Example:
        >>> from selftrain.tasks import CountdownGrader
        >>> problem = Problem(id="0", prompt="1 2:3=", meta={"numbers": [1, 2], "target": 3})
        >>> grader = GradeOnce(CountdownGrader())
        >>> [grade.score for grade in grader.grade([problem] * 3, ["1+2", "1*2", "1+2"])]
        [1.0, 0.0, 1.0]
    """

    def __init__(self, grader: Grader) -> None:
        self._grader = grader

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """Return a grade for each text."""
        asked: dict[tuple[str, str], tuple[Problem, str]] = {}
        for problem, text in zip(problems, texts, strict=True):
            asked.setdefault((problem.id, text), (problem, text))
        if not asked:
            return []
        distinct, once = zip(*asked.values(), strict=True)
        found = dict(zip(asked, self._grader.grade(distinct, once), strict=True))
        return [found[problem.id, text] for problem, text in zip(problems, texts, strict=True)]


class PermutedGrader:
    """A control: the grades of a call, dealt out to its texts at random.

    As many texts are right as truly are, but which ones says nothing. A loop that gains from it
    has another source of gain than the reward.

    Args:
        grader: Whose grades are permuted.
        seed: Sets the permutations, with the ids and texts of a call.
    """

    def __init__(self, grader: Grader, *, seed: int = 0) -> None:
        check_int("seed", seed, low=0)
        self._grader, self._seed = grader, seed

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """Return the grades in another order."""
        grades = self._grader.grade(problems, texts)
        places = range(len(grades))
        drawn = sorted(places, key=lambda i: derive(self._seed, problems[i].id, texts[i], i))
        permuted = list(grades)
        for place, i in zip(places, drawn, strict=True):
            permuted[i] = replace(grades[place], detail="permuted")
        return permuted


class RandomGrader:
    """A control: every text is right with the same probability, whatever it says.

    Args:
        probability: The chance of a score of 1.
        seed: Sets the scores, with the ids and texts of a call.
    """

    def __init__(self, probability: float, *, seed: int = 0) -> None:
        check_range("probability", probability, low=0.0, high=1.0)
        check_int("seed", seed, low=0)
        self._probability, self._seed = probability, seed

    def grade(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Grade]:
        """Return scores of 0 or 1 at random, the same ones in every call of the same texts."""
        grades = []
        for i, (problem, text) in enumerate(zip(problems, texts, strict=True)):
            right = derive(self._seed, problem.id, text, i) / 2**63 < self._probability
            grades.append(Grade(float(right), "correct" if right else "wrong", "at random"))
        return grades
