"""The problems of ``selftrain restem`` and ``selftrain vstar``, by name."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from selftrain._core.checks import check_int
from selftrain.errors import SandboxError
from selftrain.tasks.base import Problem, PromptText, Task, check_disjoint
from selftrain.tasks.parts import TaskParts
from selftrain.tasks.prompts import choose_shots, few_shot_prefix

PublishedName = Literal["gsm8k", "math", "svamp", "mbpp", "humaneval"]
SyntheticName = Literal["modchain", "countdown", "listprog"]
TaskName = Literal[PublishedName, SyntheticName]

SYNTHETIC: tuple[str, ...] = get_args(SyntheticName)
"""Tasks that are drawn, not read: they bring worked problems and their own split."""

_SYNTHETIC = {
    "modchain": ("selftrain.tasks.modchain", "modular_chains"),
    "countdown": ("selftrain.tasks.countdown", "countdown"),
    "listprog": ("selftrain.tasks.listprog", "list_programs"),
}
_RUNS_CODE = ("mbpp", "humaneval", "listprog")
_NUM_VALIDATION = 200
_MAX_SOLVED = 500  # more would drown what the model finds by itself

STOPS: Mapping[str, tuple[str, ...]] = {
    "gsm8k": ("\nQuestion:",),
    "svamp": ("\nQuestion:",),
    "math": ("\nProblem:",),
    "mbpp": ('\n"""',),
    "humaneval": ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint("),
}
"""Where a completion ends because a model goes on with something of its own."""


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Which problems, and how many."""

    task: TaskName
    """The problems: a published set, or a synthetic one that needs no download."""
    dataset: str | None = None
    """File (.jsonl, .jsonl.gz, .json, .parquet), folder with a file for each split, or hub name, in
    place of the set's own hub name."""
    test_dataset: str | None = None
    """The same for the test problems, where --dataset is a single file."""
    num_shots: int = 0
    """Worked examples before every prompt, taken out of the training problems."""
    max_train: int | None = None
    """Most problems to train on; a synthetic task draws so many."""
    num_validation: int | None = None
    """Problems that decide when to stop, chosen out of the training problems and not trained on;
    default 200. A synthetic task draws its own."""
    max_test: int | None = None
    """Most test problems. Of a data set without a test part so many are set aside for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopTasks:
    """The parts that a loop takes."""

    train: Task
    """What is trained on."""
    validation: Task
    """What decides when to stop."""
    test: Task | None
    """What is reported."""
    worked: Task | None
    """Problems with solutions, not all of them right, that a model from scratch begins with."""

    def solved(self) -> Task | None:
        """Return problems with right solutions to train on; None: those of ``train``."""
        if self.worked is None:
            return None
        problems = [p for p in self.worked.problems if p.solution is not None]
        grades = self.worked.grader.grade(problems, [p.solution or "" for p in problems])
        right = tuple(p for p, g in zip(problems, grades, strict=True) if g.score == 1)
        return replace(self.worked, problems=right).take(_MAX_SOLVED)


def load_tasks(options: TaskOptions, *, allow_code_execution: bool = False) -> LoopTasks:
    """Read or draw the problems and cut them into parts that share none.

    Args:
        options: Which ones.
        allow_code_execution: Accept to run programs without namespaces around them.

    Raises:
        ValueError: If the data has no such problems, or too few.
        SandboxError: If programs cannot be run as safely as they should.
    """
    for name in ("max_train", "num_validation", "max_test"):
        if (value := getattr(options, name)) is not None:
            check_int(name, value, low=1)
    check_int("num_shots", options.num_shots, low=0)
    sandbox: Any = None
    if options.task in _RUNS_CODE:
        from selftrain.tasks.sandbox import Sandbox

        sandbox = Sandbox(allow_code_execution=allow_code_execution)
    tasks = _draw(options, sandbox) if options.task in SYNTHETIC else _read(options, sandbox)
    for part in (tasks.validation, tasks.test):
        if part is not None:
            check_disjoint(tasks.train, part)
    if sandbox is not None:
        _check_sandbox(tasks)
    return tasks


def answer_hint(task: Task) -> Callable[[Problem], PromptText]:
    """Return what STaR's second attempts read: the prompt with the answer given away before it.

    Raises:
        ValueError: If a problem has no answer to give away.
    """
    for problem in task.problems:
        if problem.answer is None:
            raise ValueError(
                f"rationalize shows a model the answer, but problem {problem.id!r} of "
                f"{task.name!r} has none; use --no-rationalize, or a task with final answers."
            )

    def hint(problem: Problem) -> PromptText:
        told = f"Hint: the answer is {problem.answer}.\n"
        if isinstance(problem.prompt, str):
            return task.prefix + told + problem.prompt
        *before, last = problem.prompt
        return [*before, {**last, "content": told + str(last["content"])}]

    return hint


def _draw(options: TaskOptions, sandbox: Any) -> LoopTasks:
    if options.dataset is not None or options.test_dataset is not None:
        raise ValueError(
            f"--dataset and --test-dataset do not go with --task {options.task}, which draws "
            "its problems."
        )
    module, function = _SYNTHETIC[options.task]
    sizes = {
        "num_train": options.max_train,
        "num_validation": options.num_validation,
        "num_test": options.max_test,
    }
    given: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    if sandbox is not None:
        given["sandbox"] = sandbox
    parts: TaskParts = getattr(importlib.import_module(module), function)(**given)
    shots = choose_shots(parts.sft.problems, num_shots=options.num_shots)
    prefix = few_shot_prefix(shots)
    return LoopTasks(
        train=replace(parts.train, prefix=prefix),
        validation=replace(parts.validation, prefix=prefix),
        test=replace(parts.test, prefix=prefix),
        worked=replace(_without(parts.sft, shots), prefix=prefix),
    )


def _read(options: TaskOptions, sandbox: Any) -> LoopTasks:
    pool = _load(options.task, options.dataset, "train", sandbox)
    test = None
    if options.test_dataset is not None:
        test = _load(options.task, options.test_dataset, "test", sandbox)
    elif _has_test_part(options):
        test = _load(options.task, options.dataset, "test", sandbox)
    if options.num_shots:
        shots = choose_shots(pool.problems, num_shots=options.num_shots)
        pool = replace(_without(pool, shots), prefix=few_shot_prefix(shots))
    validation = _choose(pool, "num_validation", options.num_validation or _NUM_VALIDATION)
    train = _without(pool, validation.problems)
    if test is not None:
        test = replace(test, prefix=pool.prefix)
        test = test if options.max_test is None else test.take(options.max_test)
    elif options.max_test is not None:
        test = _choose(train, "max_test", options.max_test)
        train = _without(train, test.problems)
    if options.max_train is not None:
        train = train.take(options.max_train)
    return LoopTasks(train=train, validation=validation, test=test, worked=None)


def _has_test_part(options: TaskOptions) -> bool:
    if options.task == "mbpp":
        return True  # its split goes by the numbers of the problems, in a file as well
    if options.task == "humaneval":
        return False  # it is a test set: who trains on it has to set problems aside
    return options.dataset is None or not Path(options.dataset).expanduser().is_file()


def _load(name: str, source: str | None, split: str, sandbox: Any) -> Task:
    """Load one split of a published set, programs judged in ``sandbox``."""
    from selftrain import tasks
    from selftrain.tasks.code import CodeGrader

    given: dict[str, Any] = {} if source is None else {"source": source}
    is_file = source is not None and Path(source).expanduser().is_file()
    if name == "humaneval":
        split = "test"
    if name == "mbpp" or not is_file:
        given["split"] = split
    if sandbox is not None:
        given["grader"] = CodeGrader(sandbox=sandbox)
    task: Task = getattr(tasks, f"load_{name}")(**given)
    if sandbox is not None and any(problem.hidden_tests for problem in task.problems):
        return replace(task, hidden_grader=CodeGrader(sandbox=sandbox, hidden=True))
    return task


def _choose(task: Task, option: str, count: int) -> Task:
    if count >= len(task):
        raise ValueError(
            f"{option} is {count}, and {len(task)} problems are all there are, of which some must "
            f"be left to train on; give a smaller --{option.replace('_', '-')}, or more data."
        )
    return task.take(count)


def _without(task: Task, problems: tuple[Problem, ...]) -> Task:
    gone = {problem.id for problem in problems}
    return replace(task, problems=tuple(p for p in task.problems if p.id not in gone))


def _check_sandbox(tasks: LoopTasks) -> None:
    """Judge one text now, so that a sandbox that cannot start is not found after the sampling."""
    try:
        tasks.train.grader.grade([tasks.train.problems[0]], ["0"])
    except SandboxError as error:
        raise SandboxError(
            f"{error} On the command line that is --allow-code-execution: it runs what the model "
            "writes among your files."
        ) from error
