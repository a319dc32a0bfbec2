"""Scorers of several answers to one prompt, and the choice of the best."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from selftrain._core.checks import check_int, check_not_empty
from selftrain.decoding.params import Completion, SamplingParams
from selftrain.decoding.prompts import Prompt
from selftrain.decoding.sampler import Sampler
from selftrain.loops.rows import TextEncoder
from selftrain.loops.sample import Sample
from selftrain.tasks.base import Problem, Task
from selftrain.training.batch import TokenRow

Candidate = str | Completion | Sample
"""An answer: its text, or what a sampler made."""


class CandidateScorer(Protocol):
    """Anything that says how good answers are: higher is better."""

    def score_all(
        self, prompts: Sequence[Prompt | Problem], completions: Sequence[Sequence[Candidate]]
    ) -> list[Tensor]:
        """Return the scores of every prompt's completions."""
        ...


class CandidateReader:
    """Turns prompts and their answers into rows, and numbers for rows back into lists.

    Args:
        model: Says what ends a sequence.
        tokenizer: Encodes.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self._encoder = TextEncoder(model, tokenizer)

    def score_all(
        self,
        prompts: Sequence[Prompt | Problem],
        completions: Sequence[Sequence[Candidate]],
        score_rows: Callable[[Sequence[TokenRow]], Tensor],
    ) -> list[Tensor]:
        """Return the scores of every prompt's completions, -inf where there is no answer.

        Equal answers are scored once, so that they get the same bits.

        Args:
            prompts: Text, token ids, messages, or problems (their prompts without the task's
                prefix).
            completions: The answers to each.
            score_rows: Scores rows ``[rows]``, all different.
        """
        if len(prompts) != len(completions):
            raise ValueError(
                f"completions has {len(completions)} lists for {len(prompts)} prompts; it needs "
                "one list for each prompt."
            )
        numbers: dict[TokenRow, int] = {}
        places: list[list[int | None]] = []
        for prompt, answers in zip(prompts, completions, strict=True):
            prompt_ids = self._prompt_ids(prompt)
            places.append([])
            for answer in answers:
                row = self._row(prompt_ids, answer)
                places[-1].append(None if row is None else numbers.setdefault(row, len(numbers)))
        scores = score_rows(list(numbers)) if numbers else torch.zeros(0)
        scores = torch.cat([scores.double().cpu(), torch.tensor([-torch.inf]).double()])
        return [
            scores[torch.tensor([-1 if i is None else i for i in own], dtype=torch.long)]
            for own in places
        ]

    def _prompt_ids(self, prompt: Prompt | Problem) -> tuple[int, ...]:
        plain: Any = prompt.prompt if isinstance(prompt, Problem) else prompt
        return tuple(self._encoder.prompt_ids(plain))

    def _row(self, prompt_ids: tuple[int, ...], answer: Candidate) -> TokenRow | None:
        if isinstance(answer, str):
            ids = self._encoder.text_ids(answer)
        elif answer.finish_reason == "error":
            return None
        else:
            ids = self._encoder.completion_ids(answer)
        return TokenRow(prompt_ids=prompt_ids, completion_ids=tuple(ids))


def best_of(scores: Tensor) -> int:
    """Return the place of the highest score, the first of equal ones.

    Raises:
        ValueError: If there is no score, one is NaN, or none is above -inf.
    """
    check_not_empty("completions", scores)
    if scores.isnan().any():
        raise ValueError("a score is NaN; look at the verifier's weights and dtype.")
    if scores.max() == -torch.inf:
        raise ValueError("completions: every one of them ended in an error; there is no answer.")
    return int((scores == scores.max()).nonzero()[0])


def score_samples(scorer: CandidateScorer, samples: Sequence[Sample], task: Task) -> Tensor:
    """Return the score of every sample, in their order, under the task's own prompts.

    Args:
        scorer: Such as a :class:`selftrain.loops.Verifier`.
        samples: Answers to problems of the task.
        task: Its prefix stands in front of every prompt.

    Raises:
        ValueError: If a sample's problem is none of the task's.
    """
    check_not_empty("samples", samples)
    problems = task.by_id()
    groups: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        if sample.problem_id not in problems:
            raise ValueError(
                f"sample {sample.key} answers problem {sample.problem_id!r}, which task "
                f"{task.name!r} does not have; give the task that was sampled."
            )
        groups.setdefault(sample.problem_id, []).append(i)
    prompts: list[Any] = [task.prompt(problems[problem_id]) for problem_id in groups]
    found = scorer.score_all(prompts, [[samples[i] for i in own] for own in groups.values()])
    scores = torch.zeros(len(samples), dtype=torch.float64)
    for own, values in zip(groups.values(), found, strict=True):
        scores[torch.tensor(own)] = values
    return scores


class BestOfK:
    """Answers prompts with the best of several completions.

    Args:
        sampler: Draws the completions.
        scorer: Says which is best, such as a :class:`selftrain.loops.Verifier`.

    Example:
        >>> chooser = BestOfK(HFSampler(model, tokenizer), verifier)  # doctest: +SKIP
        >>> chooser.sample(["12+7*3="], num_samples=16)[0].text  # doctest: +SKIP
        '33'
    """

    def __init__(self, sampler: Sampler, scorer: CandidateScorer) -> None:
        self.sampler, self.scorer = sampler, scorer

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int = 16,
        params: SamplingParams | None = None,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[Completion]:
        """Return the best of ``num_samples`` completions of every prompt.

        Args:
            prompts: Text, token ids or chat messages.
            num_samples: Completions drawn for each prompt.
            params: How to draw them; None: the defaults, at temperature 1.
            seeds: One seed per prompt and completion; then ``params.seed`` must be None.

        Raises:
            ValueError: If all completions of a prompt failed, or an argument is not valid.
        """
        check_int("num_samples", num_samples, low=1)
        drawn = self.sampler.sample(
            prompts, num_samples=num_samples, params=params or SamplingParams(), seeds=seeds
        )
        scores = self.scorer.score_all(prompts, drawn)
        return [own[best_of(values)] for own, values in zip(drawn, scores, strict=True)]
