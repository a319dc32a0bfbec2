"""Rows of a data set to token ids: text, chat messages or ids in, one form out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from selftrain._core.checks import check_range
from selftrain.distill.pair import end_tokens
from selftrain.training.batch import TokenRow
from selftrain.training.finetune import Rows


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row of a data set as token ids."""

    prompt_ids: tuple[int, ...] | None
    """None where the row has no prompt."""
    completion_ids: tuple[int, ...] | None
    """Up to the first end of sequence; None where the row has no completion."""
    weight: float


def has_completion(row: Mapping[str, Any]) -> bool:
    """Return whether a row comes with its text."""
    return row.get("completion") is not None or row.get("completion_ids") is not None


class RowEncoder:
    """Turns rows into ids.

    Text prompts are tokenised as the tokenizer does by default, chat messages through its template
    with the generation prompt, and text completions without special tokens and with the end of
    sequence added. Ids are taken as they are, cut after the first end of sequence.

    Args:
        tokenizer: The tokenizer both models share.
        eos_token_ids: What ends a completion.
        max_prompt_tokens: Keep the last so many tokens of a prompt; None: all.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        eos_token_ids: frozenset[int],
        max_prompt_tokens: int | None,
    ) -> None:
        self.eos_token_ids = eos_token_ids
        self._tokenizer = tokenizer
        self._max_prompt_tokens = max_prompt_tokens

    def __call__(self, row: Mapping[str, Any]) -> EncodedRow:
        """Encode one row.

        Raises:
            TypeError: If a prompt or completion is of the wrong kind.
            ValueError: If the row's weight is negative or not finite.
        """
        prompt_ids = self._prompt(row)
        if prompt_ids is not None and self._max_prompt_tokens is not None:
            prompt_ids = prompt_ids[-self._max_prompt_tokens :]
        weight = float(row.get("weight", 1.0))
        check_range("weight", weight, low=0.0, high=math.inf, high_open=True)
        return EncodedRow(prompt_ids, self._completion(row), weight)

    def _prompt(self, row: Mapping[str, Any]) -> tuple[int, ...] | None:
        if row.get("prompt_ids") is not None:
            return tuple(row["prompt_ids"])
        prompt = row.get("prompt")
        if prompt is None:
            return None
        if isinstance(prompt, str):
            return tuple(self._tokenizer(prompt).input_ids)
        if isinstance(prompt, (list, tuple)) and all(isinstance(m, Mapping) for m in prompt):
            encoded = self._tokenizer.apply_chat_template(
                list(prompt), add_generation_prompt=True, return_dict=True
            )
            return tuple(encoded["input_ids"])  # pyrefly: ignore[bad-index]
        raise TypeError(
            f'a row\'s "prompt" must be a string or a list of messages, got {prompt!r}. '
            'Token ids go under "prompt_ids".'
        )

    def _completion(self, row: Mapping[str, Any]) -> tuple[int, ...] | None:
        if row.get("completion_ids") is not None:
            return self._cut(tuple(row["completion_ids"]))
        completion = row.get("completion")
        if completion is None:
            return None
        if not isinstance(completion, str):
            raise TypeError(
                f'a row\'s "completion" must be a string, got {completion!r}. '
                'Token ids go under "completion_ids".'
            )
        ids = tuple(self._tokenizer(completion, add_special_tokens=False).input_ids)
        if self._tokenizer.eos_token_id is not None:
            ids += (self._tokenizer.eos_token_id,)
        return self._cut(ids)

    def _cut(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        for position, token_id in enumerate(ids):
            if token_id in self.eos_token_ids:
                return ids[: position + 1]
        return ids


def encode_rows(
    dataset: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    student: nn.Module,
    max_prompt_tokens: int | None = None,
) -> list[TokenRow]:
    """Return a data set's rows as the tokens that a Distiller trains on, for a teacher's cache.

    Args:
        dataset: Rows with prompts and completions, as for :meth:`selftrain.Distiller.fit`.
        tokenizer: The Distiller's.
        student: The student, whose generation config may name ends of completions.
        max_prompt_tokens: As in its ``DistillConfig``.

    Raises:
        ValueError: If a row has no completion.
    """
    encode = RowEncoder(
        tokenizer,
        eos_token_ids=end_tokens(student, tokenizer),
        max_prompt_tokens=max_prompt_tokens,
    )
    rows = []
    for i in range(len(dataset)):
        row = encode(dataset[i])
        if not row.completion_ids:
            raise ValueError(
                f"row {i} has no completion, so there is nothing for a teacher to judge. Give it "
                'one ("completion" or "completion_ids"), or leave it out.'
            )
        rows.append(
            TokenRow(
                prompt_ids=row.prompt_ids or (),
                completion_ids=row.completion_ids,
                weight=row.weight,
            )
        )
    return rows
