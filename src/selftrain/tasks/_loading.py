"""What the loaders of data sets have in common: fields of rows, and a task made of problems."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selftrain._core.checks import check_int
from selftrain.tasks.base import Grader, Problem, Task
from selftrain.tasks.files import SourceRows, read_rows
from selftrain.tasks.prompts import choose_shots, few_shot_prefix

Make = Callable[[Mapping[str, Any], str], Problem]
"""Makes a problem of a row; the text says where the row stands, for ids and errors."""


def make_problems(found: SourceRows, make: Make) -> tuple[Problem, ...]:
    """Return the problems of rows, in their order."""
    return tuple(make(row, f"{found.part}/{i}") for i, row in enumerate(found.rows))


def take_text(row: Mapping[str, Any], place: str, *names: str) -> str:
    """Return the first of some fields that a row has, as text.

    Raises:
        ValueError: If it has none of them, or the field is no text, or empty.
    """
    for name in names:
        if name in row:
            value = row[name]
            if isinstance(value, str) and value.strip():
                return value.replace("\r\n", "\n")
            raise ValueError(f"row {place}: {name!r} must be text, got {value!r}.")
    raise ValueError(
        f"row {place} has no field {' or '.join(map(repr, names))}; it has "
        f"{', '.join(row) or 'none'}. Is it another data set?"
    )


def read_split(
    source: str | Path, split: str | None, default: str, configs: Sequence[str | None] = (None,)
) -> SourceRows:
    """Read the rows of a split, by default ``default``; a file has none.

    Raises:
        ValueError: If a split of a file is asked for, or ``source`` cannot be read.
    """
    found = read_rows(source, split=split or default, configs=configs)
    if found.is_file and split is not None:
        raise ValueError(
            f"split is {split!r}, but {source} is a file, which is taken whole; leave split out, "
            "or give the folder that holds a file for each split."
        )
    return found


def read_shots(
    source: str | Path, num_shots: int, make: Make, configs: Sequence[str | None] = (None,)
) -> tuple[Problem, ...]:
    """Return ``num_shots`` problems of the train split of a folder or hub data set.

    Raises:
        ValueError: If ``source`` is a file, or has not so many.
    """
    check_int("num_shots", num_shots, low=0)
    if num_shots == 0:
        return ()
    found = read_rows(source, split="train", configs=configs)
    if found.is_file:
        raise ValueError(
            f"num_shots is {num_shots}, but {source} is a file without a train split. Give the "
            "folder that holds train.jsonl as well, or prefix=few_shot_prefix(problems)."
        )
    return choose_shots(make_problems(found, make), num_shots=num_shots)


def make_task(
    name: str,
    problems: Sequence[Problem],
    grader: Grader,
    *,
    shots: Sequence[Problem],
    prefix: str,
    max_problems: int | None,
    hidden_grader: Grader | None = None,
) -> Task:
    """Return the task of some problems, those left out that are worked examples in its prefix.

    Raises:
        ValueError: If there are both shots and a prefix, or no problem is left.
    """
    if shots and prefix:
        raise ValueError("num_shots and prefix exclude each other; give one of them.")
    shown = {problem.id for problem in shots}
    task = Task(
        name,
        tuple(problem for problem in problems if problem.id not in shown),
        grader,
        hidden_grader=hidden_grader,
        final_answer=getattr(grader, "final_answer", None),
        prefix=few_shot_prefix(shots) if shots else prefix,
    )
    return task if max_problems is None else task.take(max_problems)
