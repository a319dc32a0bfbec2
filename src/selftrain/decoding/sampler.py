"""Samplers: prompts in, completions out."""

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_int, check_not_empty
from selftrain._core.rng import derive
from selftrain.decoding.cache import max_positions, sampling_lanes
from selftrain.decoding.params import Completion, SamplingParams
from selftrain.decoding.prompts import Prompt, encode_prompt
from selftrain.decoding.refill import Decoding, Row
from selftrain.decoding.stopping import Stopping, resolve_eos
from selftrain.nn.modes import training_mode


class Sampler(Protocol):
    """Anything that completes prompts: a local model, a server, a recording."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        params: SamplingParams,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """Return ``num_samples`` completions of every prompt, in order.

        Args:
            prompts: Text, token ids or chat messages.
            num_samples: Completions of each prompt.
            params: How to draw them.
            seeds: One seed per prompt and completion; then ``params.seed`` must be None.
        """
        ...


class HFSampler:
    """Sample from a Hugging Face causal language model in batches, with a key-value cache.

    A completion is a function of the model, its prompt and its own seed: which rows share its
    batch makes no difference (beyond the rounding of differently shaped matrix products). The
    model is used as it is at the time of the call, so one that is being trained is sampled from
    on-policy; it is put into eval mode meanwhile, and no gradient is recorded.

    Args:
        model: Any causal language model of transformers. Models that take no slots, recurrent ones
            for example, run through a slower, padded cache.
        tokenizer: Encodes prompts, decodes completions, finds stop strings; None where prompts are
            token ids and no text is wanted.
        batch_size: Most rows that are decoded together.
        eos_token_ids: Ids that end a completion; default: the model's generation config, then the
            tokenizer's.

    Raises:
        TypeError: If the model is an encoder-decoder, or its cache cannot be driven.

    Example:
        >>> from selftrain import HFSampler, SamplingParams
        >>> sampler = HFSampler(model, tokenizer)  # doctest: +SKIP
        >>> params = SamplingParams(max_new_tokens=32, seed=0)
        >>> sampler.sample(["def main("], num_samples=4, params=params)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        batch_size: int = 8,
        eos_token_ids: int | Sequence[int] | None = None,
    ) -> None:
        check_int("batch_size", batch_size, low=1)
        if getattr(model.config, "is_encoder_decoder", False):
            raise TypeError("HFSampler samples from causal models; this one is encoder-decoder.")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.eos_token_ids = resolve_eos(model, tokenizer, eos_token_ids)
        self._lanes_type = sampling_lanes(model)

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int = 1,
        params: SamplingParams | None = None,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """Return ``num_samples`` completions of every prompt; see :meth:`Sampler.sample`.

        Each prompt is prefilled once, however many completions are drawn from it. Log-probabilities
        are those of the law sampled from (after warping; 0 when greedy).

        Raises:
            ValueError: If there is no prompt, one is empty or leaves no room for ``max_new_tokens``
                in the model's positions, ``seeds`` has the wrong shape, or the logits become NaN.
        """
        params = params or SamplingParams()
        check_not_empty("prompts", prompts)
        check_int("num_samples", num_samples, low=1)
        encoded = [encode_prompt(self.tokenizer, p) for p in prompts]
        check_room(encoded, params.max_new_tokens, self.model, "model")
        row_seeds = row_seeds_of(len(prompts), num_samples, params, seeds)
        stopping = Stopping(self.eos_token_ids, params.stop, self.tokenizer)

        lengths = [len(p) - 1 for p in encoded]
        with torch.inference_mode(), training_mode(False, self.model):
            lanes = self._lanes_type(
                self.model,
                trunk=common_beginning([p[:-1] for p in encoded]),
                capacity=max(lengths) + params.max_new_tokens,
            )
            decoding = Decoding(
                lanes, params, stopping, batch_size=self.batch_size, device=self.model.device
            )
            rows = decoding.run(encoded, row_seeds)
        return [[_completion(row, stopping, params) for row in of_prompt] for of_prompt in rows]


def common_beginning(rows: Sequence[list[int]]) -> list[int]:
    """Return the tokens with which all of the rows begin."""
    low, high = min(rows), max(rows)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:length]


def row_seeds_of(
    num_prompts: int,
    num_samples: int,
    params: SamplingParams,
    seeds: Sequence[Sequence[int]] | None,
) -> list[list[int]]:
    """Return one seed per prompt and completion, from ``seeds``, ``params.seed``, or fresh.

    Raises:
        ValueError: If both are given, or ``seeds`` has another shape.
    """
    if seeds is not None:
        if params.seed is not None:
            raise ValueError("seeds and params.seed are both given; give one of them.")
        if len(seeds) != num_prompts or any(len(s) != num_samples for s in seeds):
            raise ValueError(
                f"seeds must hold {num_prompts} lists of {num_samples} seeds, one per completion; "
                f"got lengths {[len(s) for s in seeds]}."
            )
        return [list(s) for s in seeds]
    # A fresh seed comes from torch's generator, so that torch.manual_seed repeats a script.
    seed = int(torch.randint(2**62, ())) if params.seed is None else params.seed
    return [[derive(seed, i, j) for j in range(num_samples)] for i in range(num_prompts)]


def check_room(
    prompts: Sequence[Sequence[int]], new_tokens: int, model: torch.nn.Module, role: str
) -> None:
    """Raise ``ValueError`` if a prompt and its continuation exceed the model's positions."""
    limit, longest = max_positions(model), max(map(len, prompts))
    if limit is not None and longest + new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens={new_tokens} need "
            f"{longest + new_tokens} positions; the {role} has {limit}. "
            "Shorten the prompt or lower max_new_tokens."
        )


def _completion(row: Row, stopping: Stopping, params: SamplingParams) -> Completion:
    ending = stopping.ending(row.token_ids, budget=params.max_new_tokens)
    return Completion(
        text=ending.text,
        token_ids=tuple(row.token_ids[: ending.num_tokens]),
        log_probs=tuple(row.log_probs[: ending.num_tokens]),
        finish_reason=ending.reason or "length",
    )
