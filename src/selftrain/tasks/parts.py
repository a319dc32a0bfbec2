"""The four parts of a synthetic task: worked problems, and three sets with answers only."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from selftrain._core.checks import check_int
from selftrain.tasks.base import Problem, Task, check_disjoint

_MAX_DRAWS = 1000  # in a row without a new problem: the generator has no more


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskParts:
    """One synthetic task, cut into parts that share no problem."""

    sft: Task
    """Worked problems (``Problem.solution``) for the supervised start."""
    train: Task
    """What a loop samples on; answers or tests, no solutions."""
    validation: Task
    """What decisions are made on."""
    test: Task
    """What reported numbers are measured on."""

    def __post_init__(self) -> None:
        parts = (self.sft, self.train, self.validation, self.test)
        for i, part in enumerate(parts):
            if parts[i + 1 :]:
                check_disjoint(part, *parts[i + 1 :])


class Distinct:
    """Draws problems of which no two are the same, over all parts of a task.

    Args:
        key: Maps a problem to what makes it the same as another; default: its prompt.
    """

    def __init__(self, key: Callable[[Problem], Hashable] = lambda problem: problem.prompt) -> None:
        self._key, self._seen = key, set[Hashable]()

    def draw(
        self, part: str, num_problems: int, make: Callable[[], Problem | None]
    ) -> tuple[Problem, ...]:
        """Return new problems with the ids ``<part>-<number>``.

        Args:
            part: What the ids begin with.
            num_problems: How many.
            make: Draws a problem, or None where the draw failed.

        Raises:
            ValueError: If ``make`` gives nothing new in a thousand draws.
        """
        check_int(f"num_{part}", num_problems, low=1)
        problems: list[Problem] = []
        failed = 0
        while len(problems) < num_problems:
            problem = make()
            if problem is None or self._key(problem) in self._seen:
                failed += 1
                if failed >= _MAX_DRAWS:
                    raise ValueError(
                        f"num_{part}={num_problems}: only {len(problems)} further problems were "
                        "found; ask for fewer, or for a larger task."
                    )
                continue
            failed = 0
            self._seen.add(self._key(problem))
            problems.append(replace(problem, id=f"{part}-{len(problems)}"))
        return tuple(problems)
