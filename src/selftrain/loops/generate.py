"""The E-step: draw completions of every problem and judge them, a chunk at a time.

What is drawn is a function of the problem, the round and the run's seed. A chunk is written whole
or not at all, so that after a crash the missing ones are drawn again, and nothing else.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from selftrain._core.checks import check_int
from selftrain._core.config import fingerprint
from selftrain._core.logging import progress
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.sampler import Sampler
from selftrain.loops.sample import Sample, SampleKey, sample_seed
from selftrain.loops.store import SampleStore
from selftrain.tasks.base import Grade, Grader, Problem, PromptText, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """What is drawn of every problem, and from whom."""

    round: int
    """The round, part of every sample's key."""
    num_samples: int
    """Completions of each problem."""
    params: SamplingParams
    """How to draw them."""
    seed: int
    """The run's seed, from which every sample's own is made."""
    policy: str
    """Fingerprint of the weights, written into every sample."""
    first_index: int = 0
    """The index of each problem's first sample: samples drawn otherwise may come before."""

    def __post_init__(self) -> None:
        check_int("num_samples", self.num_samples, low=1)
        if self.params.greedy and self.num_samples > 1:
            raise ValueError(
                f"num_samples={self.num_samples} at temperature 0 would be that many copies of one "
                "text; set num_samples=1 or raise the temperature."
            )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Problems that are sampled together."""

    id: str
    """The place of its first problem, and a fingerprint of them all."""
    problems: tuple[Problem, ...]
    """At most ``chunk_size`` of them."""


def chunks_of(task: Task, chunk_size: int) -> list[Chunk]:
    """Return the task's problems in chunks, the same ones in every process."""
    check_int("chunk_size", chunk_size, low=1)
    chunks = []
    for first in range(0, len(task), chunk_size):
        problems = task.problems[first : first + chunk_size]
        mark = fingerprint([problem.id for problem in problems])
        chunks.append(Chunk(f"{first:07d}-{mark[:8]}", problems))
    return chunks


def generate(
    store: SampleStore,
    task: Task,
    sampler: Sampler,
    draw: Draw,
    *,
    chunk_size: int = 16,
    prompt: Callable[[Problem], PromptText] | None = None,
    judge: bool = True,
    rank: int = 0,
    num_ranks: int = 1,
    on_samples: Callable[[Sequence[Sample]], None] | None = None,
    show_progress: bool = True,
    title: str = "generate",
) -> None:
    """Draw what the store does not hold yet.

    Args:
        store: Where samples and grades go; what it holds is not drawn again.
        task: The problems and their grader.
        sampler: Completes prompts.
        draw: What to draw of each problem.
        chunk_size: Problems sampled together; the same in every call for one store.
        prompt: What the model reads; None: ``task.prompt``.
        judge: Whether to grade each chunk at once, which :func:`grade` does afterwards otherwise.
        rank: The number of this process among those that share the work.
        num_ranks: Their number. Process r takes the chunks r, r + num_ranks, ...
        on_samples: Called with the samples of every chunk drawn, graded if ``judge``.
        show_progress: Whether to show a bar with samples a second and the share that is right.
        title: The name on the bar.

    Raises:
        ValueError: If the sampler or the grader returns other than what was asked for.
    """
    chunks = chunks_of(task, chunk_size)[rank::num_ranks]
    if judge:  # a crash may have come between a chunk's samples and its grades
        _judge_present(store, task, chunks, task.grader, title=title, show_progress=show_progress)
    present = store.closed_chunks()
    missing = [chunk for chunk in chunks if chunk.id not in present]
    done = sum(len(chunk.problems) for chunk in chunks if chunk.id in present)
    total = sum(len(chunk.problems) for chunk in chunks)
    rate = _Rate()
    with progress(title, total, done=done, show=show_progress) as bar:
        for chunk in missing:
            samples = _sample(chunk, sampler, draw, prompt or task.prompt)
            store.append(chunk.id, samples)
            if judge:
                samples = _grade(store, chunk.id, task, task.grader, samples)
            if on_samples is not None:
                on_samples(samples)
            done += len(chunk.problems)
            bar.update(done, rate.after(samples))


def grade(
    store: SampleStore,
    task: Task,
    *,
    grader: Grader | None = None,
    chunk_size: int = 16,
    show_progress: bool = True,
    title: str = "grade",
) -> None:
    """Judge the samples in the store that have no grade yet, of all processes.

    Args:
        store: The samples.
        task: Their problems.
        grader: The judge; None: the task's.
        chunk_size: As for :func:`generate`.
        show_progress: Whether to show a bar.
        title: The name on the bar.
    """
    chunks = chunks_of(task, chunk_size)
    _judge_present(
        store, task, chunks, grader or task.grader, title=title, show_progress=show_progress
    )


def _judge_present(
    store: SampleStore,
    task: Task,
    chunks: Sequence[Chunk],
    grader: Grader,
    *,
    title: str,
    show_progress: bool,
) -> None:
    """Grade those of some chunks that were sampled and not graded."""
    judged, present = store.graded_chunks(), store.closed_chunks()
    missing = [chunk for chunk in chunks if chunk.id in present and chunk.id not in judged]
    if not missing:
        return
    by_problem: dict[str, list[Sample]] = {}
    for sample in store.load():
        by_problem.setdefault(sample.problem_id, []).append(sample)
    rate = _Rate()
    with progress(title, len(missing), show=show_progress) as bar:
        for number, chunk in enumerate(missing, 1):
            samples = [s for problem in chunk.problems for s in by_problem.get(problem.id, [])]
            graded = _grade(store, chunk.id, task, grader, samples)
            bar.update(number, rate.after(graded))


def _sample(
    chunk: Chunk, sampler: Sampler, draw: Draw, prompt: Callable[[Problem], PromptText]
) -> list[Sample]:
    indices = range(draw.first_index, draw.first_index + draw.num_samples)
    seeds = [
        [sample_seed(draw.seed, draw.round, problem.id, i) for i in indices]
        for problem in chunk.problems
    ]
    found = sampler.sample(
        [prompt(problem) for problem in chunk.problems],
        num_samples=draw.num_samples,
        params=draw.params,
        seeds=seeds,
    )
    lengths = [len(completions) for completions in found]
    if lengths != [draw.num_samples] * len(chunk.problems):
        raise ValueError(
            f"the sampler returned {lengths} completions for {len(chunk.problems)} prompts, of "
            f"which num_samples={draw.num_samples} were asked for each."
        )
    sampling = fingerprint(draw.params)
    return [
        Sample(
            round=draw.round,
            problem_id=problem.id,
            index=index,
            seed=seed,
            text=completion.text,
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
            log_prob=None if completion.log_probs is None else sum(completion.log_probs),
            policy=draw.policy,
            sampling=sampling,
        )
        for problem, own_seeds, completions in zip(chunk.problems, seeds, found, strict=True)
        for index, seed, completion in zip(indices, own_seeds, completions, strict=True)
    ]


def _grade(
    store: SampleStore, chunk: str, task: Task, grader: Grader, samples: Sequence[Sample]
) -> list[Sample]:
    """Grade the samples of a chunk, write the grades, and return the samples with them."""
    problems = task.by_id()
    # A failed request is no answer, so it is not the grader's to judge.
    whole = [sample for sample in samples if sample.finish_reason != "error"]
    grades = grader.grade([problems[s.problem_id] for s in whole], [s.text for s in whole])
    if len(grades) != len(whole):
        raise ValueError(
            f"the grader of {task.name!r} returned {len(grades)} grades for {len(whole)} texts; "
            "it must return one for each."
        )
    found: dict[SampleKey, Grade] = {s.key: g for s, g in zip(whole, grades, strict=True)}
    failed = Grade(None, "not_sampled", "the request for this sample failed")
    graded = [sample.graded(found.get(sample.key, failed)) for sample in samples]
    store.append_grades(chunk, {s.key: s.grade for s in graded if s.grade is not None})
    return graded


class _Rate:
    """Samples a second and the share that is right, since the start."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._drawn = self._judged = 0
        self._right = 0.0

    def after(self, samples: Sequence[Sample]) -> str:
        """Count more samples and return the note for the bar."""
        scores = [sample.score for sample in samples if sample.score is not None]
        self._drawn += len(samples)
        self._judged += len(scores)
        self._right += sum(scores)
        speed = self._drawn / max(time.perf_counter() - self._start, 1e-9)
        share = f", {self._right / self._judged:.1%} right" if self._judged else ""
        return f"{speed:.3g} samples/s{share}"
