"""From graded samples to preferences: every correct answer to a problem against every wrong one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from selftrain._core.checks import check_int, check_not_empty, check_range
from selftrain._core.config import from_dict, to_dict
from selftrain._core.io import read_jsonl, write_jsonl
from selftrain._core.rng import derive
from selftrain.loops.rows import RowWriter
from selftrain.loops.sample import Sample
from selftrain.training.batch import TokenRow
from selftrain.training.log_probs import sequence_log_probs
from selftrain.training.preference_loss import PreferenceGroup


@dataclass(frozen=True, slots=True)
class Answers:
    """The correct and the wrong answers to one problem, different texts all."""

    problem_id: str
    """The problem."""
    correct: tuple[TokenRow, ...]
    """At least one."""
    wrong: tuple[TokenRow, ...]
    """At least one."""


@dataclass(frozen=True, slots=True)
class AnswerGroups:
    """The problems that have answers of both classes, by their ids."""

    groups: tuple[Answers, ...]
    """One for each problem."""
    counts: dict[str, int]
    """What became of the samples and problems: ``num_samples`` (solutions included), of which
    ``num_ungraded`` had no score, ``num_truncated`` would be correct but never ended,
    ``num_duplicates`` said what another said, ``num_over_cap`` were not chosen; ``num_problems``
    with a usable answer, of which ``num_without_correct`` and ``num_without_wrong`` give no pair;
    and ``num_pairs``."""


def answer_groups(
    samples: Sequence[Sample],
    writer: RowWriter,
    *,
    solutions: Sequence[Mapping[str, Any]] = (),
    max_per_class: int | None = None,
    min_score: float = 1.0,
    seed: int = 0,
) -> AnswerGroups:
    """Collect the answers that preferences are made of, problem by problem.

    The data of V-STaR's verifier (arXiv 2402.06457): all graded samples of all rounds, and the
    solutions of supervised training as correct ones. Texts that occur more than once count once. A
    sample that was cut off at the token budget may be a wrong answer, never a correct one.

    Args:
        samples: Graded samples; the result does not depend on their order.
        writer: Encodes them.
        solutions: Rows of :meth:`RowWriter.of_solutions`, taken as correct.
        max_per_class: Most correct and most wrong answers kept of a problem, chosen at random;
            None: all.
        min_score: A score from which an answer is correct.
        seed: Of the random choice.

    Raises:
        ValueError: If a text is graded both ways, an argument is out of range, or no problem has
            both correct and wrong answers.
    """
    check_range("min_score", min_score, low=0.0, low_open=True, high=1.0)
    if max_per_class is not None:
        check_int("max_per_class", max_per_class, low=1)
    counts: Counter[str] = Counter(num_samples=len(samples) + len(solutions))
    texts = _texts(samples, solutions, min_score, counts)
    groups = []
    for problem_id in sorted(texts):
        classes: dict[bool, list[Mapping[str, Any] | Sample]] = {True: [], False: []}
        for is_correct, source in texts[problem_id].values():
            classes[is_correct].append(source)
        counts["num_problems"] += 1
        counts["num_without_correct"] += not classes[True]
        counts["num_without_wrong"] += not classes[False]
        if not (classes[True] and classes[False]):
            continue
        kept = [_capped(classes[c], max_per_class, (seed, problem_id, c)) for c in (True, False)]
        counts["num_over_cap"] += sum(map(len, classes.values())) - sum(map(len, kept))
        counts["num_pairs"] += len(kept[0]) * len(kept[1])
        rows = [tuple(_row(source, writer) for source in part) for part in kept]
        groups.append(Answers(problem_id, *rows))
    if not groups:
        raise ValueError(
            f"samples give no pair: of {counts['num_problems']} problems with usable answers "
            f"{counts['num_without_correct']} have no correct and {counts['num_without_wrong']} no "
            "wrong one. Draw more samples of each, or at a higher temperature."
        )
    names = ("num_ungraded", "num_truncated", "num_duplicates", "num_over_cap")
    return AnswerGroups(tuple(groups), {**dict.fromkeys(names, 0), **counts})


def with_reference(
    groups: Sequence[Answers],
    reference: nn.Module,
    *,
    max_tokens: int = 16384,
    accelerator: Accelerator | None = None,
    show_progress: bool = False,
) -> list[PreferenceGroup]:
    """Add the log-probability of every answer under the reference: computed once, then stored.

    Args:
        groups: From :func:`answer_groups`.
        reference: The model that training starts from, with the weights it starts with. With
            adapters: as they are, not switched off.
        max_tokens: As in :func:`selftrain.training.sequence_log_probs`.
        accelerator: Likewise.
        show_progress: Likewise.
    """
    check_not_empty("groups", groups)
    rows = [row for group in groups for row in (*group.correct, *group.wrong)]
    log_probs = sequence_log_probs(
        reference,
        rows,
        max_tokens=max_tokens,
        accelerator=accelerator,
        show_progress=show_progress,
    ).tolist()
    result, start = [], 0
    for group in groups:
        middle = start + len(group.correct)
        stop = middle + len(group.wrong)
        result.append(
            PreferenceGroup(
                chosen=group.correct,
                rejected=group.wrong,
                chosen_reference=tuple(log_probs[start:middle]),
                rejected_reference=tuple(log_probs[middle:stop]),
                name=group.problem_id,
            )
        )
        start = stop
    return result


def save_groups(groups: Sequence[PreferenceGroup], path: str | Path) -> None:
    """Write groups, their reference log-probabilities included, as JSON lines, atomically."""
    write_jsonl(path, map(to_dict, groups))


def load_groups(path: str | Path) -> list[PreferenceGroup]:
    """Read what :func:`save_groups` wrote."""
    return [from_dict(PreferenceGroup, row) for row in read_jsonl(path)]


def _texts(
    samples: Sequence[Sample],
    solutions: Sequence[Mapping[str, Any]],
    min_score: float,
    counts: Counter[str],
) -> dict[str, dict[str, tuple[bool, Mapping[str, Any] | Sample]]]:
    """Return by problem and text whether the text is correct, and one source of it."""
    found: dict[str, dict[str, tuple[bool, Mapping[str, Any] | Sample]]] = {}

    def add(
        problem_id: str, text: str, is_correct: bool, source: Mapping[str, Any] | Sample
    ) -> None:
        known = found.setdefault(problem_id, {})
        if text not in known:
            known[text] = is_correct, source
        elif known[text][0] != is_correct:
            raise ValueError(
                f"problem {problem_id!r}: one text is graded both correct and wrong: {text!r}. "
                "Grade it again: the grader may depend on time or chance."
            )
        else:
            counts["num_duplicates"] += 1

    for row in solutions:
        add(row["problem_id"], row["text"], True, row)
    for sample in sorted(samples, key=lambda s: s.key):
        if sample.score is None or sample.finish_reason == "error":
            counts["num_ungraded"] += 1
        elif sample.score >= min_score and sample.finish_reason == "length":
            counts["num_truncated"] += 1
        else:
            add(sample.problem_id, sample.text, sample.score >= min_score, sample)
    return found


def _capped(
    sources: list[Mapping[str, Any] | Sample], cap: int | None, path: tuple[int, str, bool]
) -> list[Mapping[str, Any] | Sample]:
    if cap is None or len(sources) <= cap:
        return sources
    seed, problem_id, is_correct = path
    ranked = sorted(
        range(len(sources)),
        key=lambda i: derive(seed, "pairs", problem_id, int(is_correct), _text(sources[i])),
    )
    return [sources[i] for i in sorted(ranked[:cap])]


def _text(source: Mapping[str, Any] | Sample) -> str:
    return source.text if isinstance(source, Sample) else source["text"]


def _row(source: Mapping[str, Any] | Sample, writer: RowWriter) -> TokenRow:
    row = writer.of_samples([source], [1.0], [1])[0] if isinstance(source, Sample) else source
    return TokenRow(
        prompt_ids=tuple(row["prompt_ids"]), completion_ids=tuple(row["completion_ids"])
    )
