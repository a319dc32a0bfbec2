"""Which samples a model learns from."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from selftrain._core.checks import check_choice, check_int, check_range
from selftrain._core.rng import derive
from selftrain.loops.dedupe import (
    DedupeKey,
    DedupeName,
    equation_key,
    most_different,
    resolve_key,
)
from selftrain.loops.sample import Sample, SampleKey


@dataclass(frozen=True, slots=True)
class Selection:
    """The samples to train on, sorted by round, problem id and index."""

    samples: tuple[Sample, ...]
    """What was kept."""
    weights: tuple[float, ...]
    """How much each counts, 1 on average."""
    multiplicity: tuple[int, ...]
    """How many of the samples that could have been kept say the same as this one, itself
    included; 1 without removal of duplicates."""
    counts: dict[str, int]
    """How many samples there were, what became of them (``num_kept`` and the rest add up to
    ``num_samples``), and how many problems have one kept."""


def select(
    samples: Sequence[Sample],
    *,
    cap: int | None = None,
    dedupe: DedupeName | DedupeKey | None = None,
    min_score: float = 1.0,
    weighting: Literal["sample", "problem"] = "sample",
    keep_truncated: bool = False,
    seed: int = 0,
    round: int = 0,
) -> Selection:
    """Choose the samples to train on: those good enough, at most ``cap`` of every problem.

    The E-step of ReST-EM (arXiv 2312.06585). The cap is a random choice, since taking the first
    would prefer what a sampler finishes first. Which samples are kept depends on their keys and
    the seed alone, not on their order. A larger cap keeps what a smaller one does, and more.

    Args:
        samples: Graded samples, of one round or of several.
        cap: Most samples kept of a problem; None: all.
        dedupe: Keep one of those that say the same, before the cap. By "text" (white space and
            Unicode forms made equal), "tokens", "equations" (RFT, arXiv 2308.01825: samples with a
            false equation are dropped, and the wording furthest from the others is kept), or a
            function that returns a key, None to drop the sample. None keeps all: repeated correct
            samples are evidence, and removing them multiplies the share of false positives.
        min_score: The least score that is good enough.
        weighting: "sample" counts all kept samples alike (the paper's objective); "problem" counts
            all problems alike, as exact expectation-maximisation does.
        keep_truncated: Also keep what the token budget cut off. The model would learn to go on
            where it should stop.
        seed: The run's seed.
        round: Which round the choice is for.

    Raises:
        ValueError: If two samples have one key, or a setting is out of range.

    Example:
        >>> def right(i):
        ...     return Sample(round=0, problem_id="a", index=i, seed=i, text="2", token_ids=None,
        ...         finish_reason="stop", log_prob=None, policy="p", sampling="s",
        ...         grade=Grade(1.0, "correct"))
        >>> from selftrain.tasks.base import Grade
        >>> select([right(i) for i in range(8)], cap=4).counts["num_over_cap"]
        4
    """
    if cap is not None:
        check_int("cap", cap, low=1)
    check_range("min_score", min_score, low=0.0, high=1.0)
    check_choice("weighting", weighting, ("sample", "problem"))
    ordered = sorted(samples, key=lambda sample: sample.key)
    _check_keys(ordered)
    fates = [_fate(sample, min_score, keep_truncated) for sample in ordered]
    good = [sample for sample, fate in zip(ordered, fates, strict=True) if fate == "good"]
    distinct, multiplicity, num_keyless = _distinct(good, dedupe)
    kept = _capped(distinct, cap, seed, round)
    counts = {f"num_{f}": fates.count(f) for f in ("failed", "truncated", "ungraded", "below")}
    counts |= {
        "num_dropped_by_key": num_keyless,
        "num_duplicates": len(good) - num_keyless - len(distinct),
        "num_over_cap": len(distinct) - len(kept),
        "num_kept": len(kept),
        "num_samples": len(ordered),
        "num_problems": len({sample.problem_id for sample in ordered}),
        "num_problems_kept": len({sample.problem_id for sample in kept}),
    }
    multiplicities = tuple(multiplicity[sample.key] for sample in kept)
    return Selection(tuple(kept), _weights(kept, weighting), multiplicities, counts)


def _fate(sample: Sample, min_score: float, keep_truncated: bool) -> str:
    if sample.finish_reason == "error":
        return "failed"
    if sample.finish_reason == "length" and not keep_truncated:
        return "truncated"
    if sample.score is None:
        return "ungraded"
    return "good" if sample.score >= min_score else "below"


def _distinct(
    samples: Sequence[Sample], dedupe: DedupeName | DedupeKey | None
) -> tuple[list[Sample], Counter[SampleKey], int]:
    """Return one of every kind, how many there are of its kind, and how many had no key."""
    if dedupe is None:
        return list(samples), Counter(s.key for s in samples), 0
    key_of = resolve_key(dedupe)
    problems: dict[str, list[tuple[Sample, Hashable]]] = {}
    num_keyed = 0
    for sample in samples:
        if (key := key_of(sample)) is not None:
            problems.setdefault(sample.problem_id, []).append((sample, key))
            num_keyed += 1
    kept: list[Sample] = []
    multiplicity: Counter[SampleKey] = Counter()
    for pairs in problems.values():
        keys = [key for _, key in pairs]
        if key_of is equation_key:
            chosen = most_different([sample for sample, _ in pairs], keys)
        else:
            chosen = [keys.index(key) for key in dict.fromkeys(keys)]
        of_key = Counter(keys)
        for i in chosen:
            kept.append(pairs[i][0])
            multiplicity[pairs[i][0].key] = of_key[keys[i]]
    return kept, multiplicity, len(samples) - num_keyed


def _capped(samples: Sequence[Sample], cap: int | None, seed: int, round: int) -> list[Sample]:
    """Return at most ``cap`` samples of every problem, chosen at random, sorted by key."""
    problems: dict[str, list[Sample]] = {}
    for sample in samples:
        problems.setdefault(sample.problem_id, []).append(sample)
    kept = []
    for group in problems.values():
        ranked = sorted(group, key=lambda s: derive(seed, "cap", round, *s.key))
        kept += ranked[:cap]
    return sorted(kept, key=lambda s: s.key)


def _weights(kept: Sequence[Sample], weighting: str) -> tuple[float, ...]:
    """Return weights whose mean is 1, so that the learning rate keeps its meaning."""
    if weighting == "sample":
        return (1.0,) * len(kept)
    per_problem = Counter(sample.problem_id for sample in kept)
    return tuple(len(kept) / len(per_problem) / per_problem[s.problem_id] for s in kept)


def _check_keys(ordered: Sequence[Sample]) -> None:
    for one, two in pairwise(ordered):
        if one.key == two.key:
            raise ValueError(
                f"samples: the key {one.key} (round, problem id, index) occurs twice; a sample "
                "that is there twice would count twice."
            )
