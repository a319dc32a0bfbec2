"""Training examples from samples and from the problems' own solutions."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain.decoding.params import Completion
from selftrain.decoding.prompts import Prompt, encode_prompt
from selftrain.decoding.stopping import resolve_eos
from selftrain.loops.sample import Sample
from selftrain.tasks.base import Problem, Task


class TextEncoder:
    """Turns prompts and completions into the ids that models are trained on and scored by.

    Args:
        model: Says what ends a sequence.
        tokenizer: Encodes.

    Raises:
        ValueError: If neither model nor tokenizer knows an end-of-sequence token.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ends = frozenset(resolve_eos(model, tokenizer, None))
        own: Any = tokenizer.eos_token_id
        if not self._ends:
            raise ValueError(
                "the tokenizer has no eos_token and the model's generation config no eos_token_id: "
                "the model could not learn where a solution ends. Set one of them."
            )
        self._end = own if own in self._ends else min(self._ends)

    def completion_ids(self, completion: Sample | Completion) -> list[int]:
        """Return a completion's own ids if it ended by itself or was cut, else its text's."""
        ids = completion.token_ids
        if ids and (ids[-1] in self._ends or completion.finish_reason == "length"):
            return list(ids)
        return self.text_ids(completion.text)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a whole completion, the end-of-sequence token included."""
        return [*self._tokenizer(text, add_special_tokens=False)["input_ids"], self._end]  # pyrefly: ignore[bad-return]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt; messages go through the chat template."""
        return encode_prompt(self._tokenizer, prompt)


class RowWriter:
    """Turns texts into the token rows that :func:`selftrain.training.finetune` reads.

    A sample's own ids are taken where it has them and ended by itself; otherwise its text is
    encoded and closed with the end-of-sequence token.

    Args:
        task: The problems.
        model: Says what ends a sequence.
        tokenizer: Encodes prompts and texts.

    Raises:
        ValueError: If neither model nor tokenizer knows an end-of-sequence token.
    """

    def __init__(
        self, task: Task, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._task, self._problems = task, task.by_id()
        self._encoder = TextEncoder(model, tokenizer)

    def of_samples(
        self, samples: Sequence[Sample], weights: Sequence[float], multiplicity: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Return one row for each sample, with its weight and how many equal ones it stands for."""
        return [
            {
                "problem_id": sample.problem_id,
                "round": sample.round,
                "index": sample.index,
                "prompt_ids": self._prompt_ids(self._problems[sample.problem_id]),
                "completion_ids": self.completion_ids(sample),
                "weight": weight,
                "multiplicity": count,
                "text": sample.text,
            }
            for sample, weight, count in zip(samples, weights, multiplicity, strict=True)
        ]

    def of_solutions(self, task: Task | None = None) -> list[dict[str, Any]]:
        """Return one row for each problem that comes with a solution.

        Args:
            task: The problems; None: those of the writer.

        Raises:
            ValueError: If none does.
        """
        task = task or self._task
        solved = [p for p in task.problems if p.solution is not None]
        if not solved:
            raise ValueError(
                f"task {task.name!r} has no problem with a solution to train on; give "
                "Problem.solution, or settings with with_solutions=False and solutions_first=False."
            )
        return [
            {
                "problem_id": problem.id,
                "prompt_ids": self._encoder.prompt_ids(task.prompt(problem)),  # pyrefly: ignore[bad-argument-type]
                "completion_ids": self._encoder.text_ids(problem.solution or ""),
                "weight": 1.0,
                "multiplicity": 1,
                "text": problem.solution,
            }
            for problem in solved
        ]

    def completion_ids(self, sample: Sample) -> list[int]:
        """Return the ids a sample is trained on, the end-of-sequence token included."""
        return self._encoder.completion_ids(sample)

    def _prompt_ids(self, problem: Problem) -> list[int]:
        return self._encoder.prompt_ids(self._task.prompt(problem))  # pyrefly: ignore[bad-argument-type]
