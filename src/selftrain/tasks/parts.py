"""The four parts of a synthetic task: worked problems, and three sets with answers only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from selftrain._core.checks import check_int
from selftrain.tasks.base import Problem, Task, check_disjoint

_MAX_DRAWS = 10_000  # in a row without a new problem: the generator has no more


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


def draw_distinct(
    num_problems: int, make: Callable[[], Problem | None], *, seen: set[object] | None = None
) -> list[Problem]:
    """Draw problems until enough are found that differ in their prompts.

    Args:
        num_problems: How many.
        make: Draws a problem, or None where the draw failed.
        seen: Prompts not to draw again; those drawn are added.

    Raises:
        ValueError: If ``make`` gives nothing new in ten thousand draws.
    """
    seen = set() if seen is None else seen
    problems: list[Problem] = []
    failed = 0
    while len(problems) < num_problems:
        problem = make()
        if problem is not None and problem.prompt not in seen:
            seen.add(problem.prompt)
            problems.append(problem)
            failed = 0
            continue
        failed += 1
        if failed >= _MAX_DRAWS:
            raise ValueError(
                f"only {len(problems)} different problems were found where {num_problems} are "
                "needed; ask for fewer, or for a larger kind of problem."
            )
    return problems


def cut(problems: Sequence[Problem], sizes: Mapping[str, int]) -> dict[str, tuple[Problem, ...]]:
    """Cut problems into parts of these sizes in order, with the ids ``<part>-<number>``.

    Only the part "sft" keeps its solutions.
    """
    parts, first = {}, 0
    for name, size in sizes.items():
        check_int(f"num_{name}", size, low=1)
        chosen = problems[first : first + size]
        parts[name] = tuple(
            replace(p, id=f"{name}-{i}", solution=p.solution if name == "sft" else None)
            for i, p in enumerate(chosen)
        )
        first += size
    return parts
