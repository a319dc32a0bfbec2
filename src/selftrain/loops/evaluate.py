"""What a model can do on problems: pass@1, pass@k and majority votes, with their uncertainty."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from selftrain import stats
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.sampler import Sampler
from selftrain.loops.sample import Sample, sample_seed
from selftrain.tasks.base import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A mean over problems and its 95 % interval, by bootstrap over problems."""

    mean: float
    """The mean."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a model did on a task."""

    task: str
    """The task's name."""
    num_problems: int
    """Problems that could be judged; the means are over them."""
    num_ungradable: int
    """Problems left out, because no answer to them could be judged."""
    greedy: Measure
    """pass@1 of the most likely completion."""
    num_samples: int
    """Sampled completions of each problem; 0: there are none, and nothing below."""
    pass_at_k: dict[int, Measure]
    """By k: the chance that one of k samples is right."""
    majority_at_k: dict[int, Measure]
    """By k: the chance that the most frequent answer of k samples is right; empty for tasks whose
    texts have no final answer to count."""
    false_positive_fraction: float | None
    """Of the right samples, those that the stricter grader refuses; None where there is none."""
    mean_tokens: float | None
    """Mean length of the completions; None where a server gives no ids."""
    truncated_fraction: float
    """Completions that the token budget cut off."""

    def to_row(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Evaluation":
        """Read what :meth:`to_row` gave, also after a way through JSON."""
        data = dict(row)
        data["greedy"] = Measure(**row["greedy"])
        for name in ("pass_at_k", "majority_at_k"):
            data[name] = {int(k): Measure(**value) for k, value in row[name].items()}
        return cls(**data)


def summarize(
    task: Task, greedy: Sequence[Sample], sampled: Sequence[Sample] = (), *, seed: int = 0
) -> Evaluation:
    """Return what graded samples say of the model that wrote them.

    Problems whose samples could not be judged (score None) are left out and counted.

    Args:
        task: The problems.
        greedy: One sample a problem, of the most likely text.
        sampled: Equally many samples of each problem, for pass@k and majority votes.
        seed: Of the bootstrap.

    Raises:
        ValueError: If no problem could be judged at all.
    """
    scores = {s.problem_id: s.score for s in greedy if s.score is not None}
    if not scores:
        raise ValueError(
            f"none of the {len(greedy)} greedy samples of task {task.name!r} could be judged; look "
            "at their grades for the reason."
        )
    every = [*greedy, *sampled]
    lengths = [len(s.token_ids) for s in every if s.token_ids is not None]
    rows = by_problem(sampled)
    fewest = min(map(len, rows.values()), default=0)
    ks = powers(fewest)
    return Evaluation(
        task=task.name,
        num_problems=len(scores),
        num_ungradable=len(task) - len(scores),
        greedy=measure([float(score) for score in scores.values()], seed=seed),
        num_samples=fewest,
        pass_at_k=by_k(ks, pass_at_k(rows, ks), seed),
        majority_at_k=by_k(ks, majority_at_k(task, rows, ks), seed),
        false_positive_fraction=false_positives(task, every),
        mean_tokens=float(np.mean(lengths)) if lengths else None,
        truncated_fraction=float(np.mean([s.finish_reason == "length" for s in every])),
    )


def pass_rate(
    task: Task,
    sampler: Sampler,
    params: SamplingParams,
    *,
    accelerator: Accelerator | None = None,
) -> float:
    """Return the mean score of one completion of each problem, without writing anything down.

    Args:
        task: The problems.
        sampler: Completes them.
        params: How; greedy as a rule.
        accelerator: If given, its processes share the problems, and all get the same result.
    """
    rank = 0 if accelerator is None else accelerator.process_index
    world = 1 if accelerator is None else accelerator.num_processes
    problems = task.problems[rank::world]
    total = judged = 0.0
    if problems:
        found = sampler.sample(
            [task.prompt(problem) for problem in problems],
            num_samples=1,
            params=params,
            seeds=[[sample_seed(0, 0, problem.id, 0)] for problem in problems],
        )
        grades = task.grader.grade(problems, [completions[0].text for completions in found])
        scores = [grade.score for grade in grades if grade.score is not None]
        total, judged = sum(scores), float(len(scores))
    if accelerator is not None and world > 1:
        sums = torch.tensor([total, judged], device=accelerator.device)
        total, judged = accelerator.reduce(sums, "sum").tolist()
    if not judged:
        raise ValueError(f"no answer to the problems of task {task.name!r} could be judged.")
    return total / judged


def measure(values: Sequence[float] | NDArray[np.float64], *, seed: int = 0) -> Measure:
    """Return the mean of one number a problem and its interval, which a single problem lacks."""
    if len(values) < 2:
        return Measure(mean=float(values[0]), low=float("-inf"), high=float("inf"))
    found = stats.bootstrap_interval(values, seed=seed)
    return Measure(mean=float(found.mean), low=float(found.low), high=float(found.high))


def pass_at_k(rows: Mapping[str, Sequence[Sample]], ks: Sequence[int]) -> NDArray[np.float64]:
    """Return pass@k of each problem from its judged samples, [problems, ks]."""
    if not ks:
        return np.zeros((0, 0))
    right = [sum(sample.score == 1 for sample in samples) for samples in rows.values()]
    return stats.pass_at_k(right, [len(samples) for samples in rows.values()], ks)


@dataclass(frozen=True, slots=True)
class Ballot:
    """The final answers to one problem, and one of them that is right."""

    problem: int
    """The problem's place among those judged."""
    answers: list[str | None]
    """One for each sample; None where a text has none."""
    right: str
    """An answer that is right. Where several are (expressions that make a number), there is a
    ballot for each, and the chances that they win add up."""


def ballots(task: Task, rows: Mapping[str, Sequence[Sample]]) -> list[Ballot]:
    """Return what votes are counted on; nothing if the task has no final answers."""
    if task.final_answer is None:
        return []
    problems = task.by_id()
    found = []
    for number, (name, samples) in enumerate(rows.items()):
        answers = [task.final_answer(problems[name], sample.text) for sample in samples]
        classes = Counter(answer for answer in answers if answer is not None)
        passed = Counter(a for a, s in zip(answers, samples, strict=True) if s.score == 1)
        # An answer is as right as most of its texts: a grader may look at more than the answer.
        right = [answer for answer in classes if 2 * passed[answer] > classes[answer]]
        found += [Ballot(number, answers, answer) for answer in right]
    return found


def majority_at_k(
    task: Task, rows: Mapping[str, Sequence[Sample]], ks: Sequence[int]
) -> NDArray[np.float64]:
    """Return the chance that the most frequent answer of k samples is right, [problems, ks].

    Empty if the task has no final answers.
    """
    if task.final_answer is None or not ks:
        return np.zeros((0, 0))
    table = np.zeros((len(rows), len(ks)))
    found = ballots(task, rows)
    if found:
        chances = stats.majority_at_k([b.answers for b in found], [b.right for b in found], ks)
        np.add.at(table, [b.problem for b in found], chances)
    return table


def by_problem(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Return the samples that could be judged, by problem."""
    rows: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.score is not None:
            rows.setdefault(sample.problem_id, []).append(sample)
    return rows


def powers(most: int) -> list[int]:
    """Return the powers of two up to ``most``: the k that curves are drawn at."""
    return [2**i for i in range(most.bit_length())]


def by_k(ks: Sequence[int], table: NDArray[np.float64], seed: int) -> dict[int, Measure]:
    """Return the mean of each column of [problems, ks] with its interval; empty for no table."""
    if not table.size:
        return {}
    return {k: measure(table[:, i], seed=seed) for i, k in enumerate(ks)}


def false_positives(task: Task, samples: Sequence[Sample]) -> float | None:
    """Return the share of the right samples that the task's stricter grader refuses, if any."""
    right = [sample for sample in samples if sample.score == 1]
    if task.hidden_grader is None or not right:
        return None
    problems = task.by_id()
    grades = task.hidden_grader.grade(
        [problems[sample.problem_id] for sample in right], [sample.text for sample in right]
    )
    return stats.false_positive_rate([1.0] * len(right), [grade.score for grade in grades]).rate
