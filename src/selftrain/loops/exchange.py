"""Prompts for other engines, and what these made of them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from selftrain._core.checks import check_choice, check_int, check_not_empty
from selftrain._core.io import read_jsonl, write_jsonl
from selftrain.loops.sample import Sample, SampleKey, sample_seed
from selftrain.tasks.base import Task

FinishReason = Literal["stop", "length", "error"]


def export_prompts(
    task: Task, path: str | Path, *, num_samples: int, seed: int = 0, round: int = 0
) -> None:
    """Write a JSONL file with one line for every completion wanted from another engine.

    A line has ``problem_id``, ``index``, ``seed`` and ``prompt`` (text or chat messages). Seeds are
    those that the loops would use. :func:`import_completions` reads the answers.

    Args:
        task: The problems; its prefix is part of the prompts.
        path: The file, written atomically.
        num_samples: Completions of each problem.
        seed: The run's seed.
        round: Which round they are for.
    """
    check_int("num_samples", num_samples, low=1)
    check_int("round", round, low=0)
    write_jsonl(
        path,
        (
            {
                "problem_id": problem.id,
                "index": index,
                "seed": sample_seed(seed, round, problem.id, index),
                "prompt": task.prompt(problem),
            }
            for problem in task.problems
            for index in range(num_samples)
        ),
    )


def import_completions(
    path: str | Path,
    *,
    policy: str,
    sampling: str,
    task: Task | None = None,
    round: int = 0,
    finish_reason: FinishReason | None = None,
) -> list[Sample]:
    """Read completions that another engine wrote, as samples without grades.

    Each line is an object with ``problem_id`` and ``text``, and where known ``index`` (default:
    counted up for every problem), ``seed`` (0), ``token_ids``, ``log_prob`` and ``finish_reason``.
    Other fields are ignored. ``SampleStore.append`` takes the result as a chunk.

    Args:
        path: The JSONL file.
        policy: What to call the weights that wrote them; goes into every sample.
        sampling: What to call the sampling parameters.
        task: Checks that the problems are known.
        round: Which round they are for.
        finish_reason: For lines that do not say. None: these are an error, since a model should not
            learn from what was cut off.

    Raises:
        ValueError: If a line lacks something, its problem is unknown, or a key occurs twice; the
            message names file and row.

    Example:
        >>> import json, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "done.jsonl"
        ...     row = {"problem_id": "a", "text": "2", "finish_reason": "stop"}
        ...     _ = path.write_text(json.dumps(row))
        ...     import_completions(path, policy="other", sampling="T=1")[0].text
        '2'
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: there is no file {path}.")
    known = None if task is None else task.by_id()
    samples: dict[SampleKey, Sample] = {}
    counted: Counter[str] = Counter()
    rows = read_jsonl(path, complete=True)
    check_not_empty(str(path), rows)
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        _check(place, row, finish_reason)
        if known is not None and task is not None and row["problem_id"] not in known:
            raise ValueError(
                f"{place}: the task {task.name!r} has no problem {row['problem_id']!r}."
            )
        index = row.get("index", counted[row["problem_id"]])
        counted[row["problem_id"]] += 1
        sample = Sample(
            round=round,
            problem_id=row["problem_id"],
            index=index,
            seed=row.get("seed", 0),
            text=row["text"],
            token_ids=tuple(row["token_ids"]) if row.get("token_ids") is not None else None,
            finish_reason=row.get("finish_reason", finish_reason),
            log_prob=row.get("log_prob"),
            policy=policy,
            sampling=sampling,
        )
        if sample.key in samples:
            raise ValueError(f"{place}: problem {sample.problem_id!r} has index {index} twice.")
        samples[sample.key] = sample
    return sorted(samples.values(), key=lambda sample: sample.key)


def _check(place: str, row: Mapping[str, Any], finish_reason: FinishReason | None) -> None:
    for name in ("problem_id", "text"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"{place} has no {name!r} that is text; it has {', '.join(row)}.")
    reason = row.get("finish_reason", finish_reason)
    if reason is None:
        raise ValueError(
            f'{place} has no \'finish_reason\'; write it ("stop", "length" or "error"), or pass '
            'finish_reason="stop" if nothing was cut off.'
        )
    check_choice(f"{place}: finish_reason", reason, ("stop", "length", "error"))
