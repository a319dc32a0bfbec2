"""Sampling from encoder-decoder models."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_int, check_not_empty
from selftrain.decoding.drafters.ngram import NGramDrafter
from selftrain.decoding.params import Completion, SamplingParams
from selftrain.decoding.prompts import Prompt, encode_prompt
from selftrain.decoding.sampler import row_seeds_of
from selftrain.decoding.speculative import SpeculativeDecoder
from selftrain.decoding.stopping import Stopping, resolve_eos
from selftrain.ops.masking import pad_sequences


class EncoderDecoderSampler:
    """Sample from an encoder-decoder model (T5, BART, ...) in batches, with key-value caches.

    The prompts are what the encoder reads. As with :class:`selftrain.HFSampler`, a completion is a
    function of the model, its prompt and its own seed, and the model is used as it is at the time
    of the call. Completions carry no log-probabilities.

    Args:
        model: The model.
        tokenizer: Encodes prompts and decodes completions; None where prompts are token ids.
        batch_size: Most rows that are decoded together.

    Raises:
        TypeError: If the model's cache cannot be driven.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        batch_size: int = 8,
    ) -> None:
        check_int("batch_size", batch_size, low=1)
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        # Speculation with no draft tokens is plain decoding.
        self._decoder = SpeculativeDecoder(
            model, NGramDrafter(), tokenizer=tokenizer, num_draft_tokens=0
        )

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int = 1,
        params: SamplingParams | None = None,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """Return ``num_samples`` completions of every prompt; see :meth:`Sampler.sample`.

        Raises:
            ValueError: If there is no prompt, one is empty, ``seeds`` has the wrong shape, or the
                logits become NaN.
        """
        params = params or SamplingParams()
        check_not_empty("prompts", prompts)
        check_int("num_samples", num_samples, low=1)
        row_seeds = row_seeds_of(len(prompts), num_samples, params, seeds)
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        rows = [(encoded[i], seed) for i, per in enumerate(row_seeds) for seed in per]
        eos = resolve_eos(self.model, self.tokenizer, None)
        stopping = Stopping(eos, params.stop, self.tokenizer)
        completions: list[Completion] = []
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            padded = pad_sequences([ids for ids, _ in part])
            output = self._decoder.generate(
                padded.token_ids.to(self.model.device),
                attention_mask=padded.mask.long().to(self.model.device),
                params=replace(params, seed=None),
                seeds=[seed for _, seed in part],
            )
            for token_ids in output.new_tokens():
                ending = stopping.ending(token_ids, budget=params.max_new_tokens)
                completions.append(
                    Completion(
                        text=ending.text,
                        token_ids=tuple(token_ids[: ending.num_tokens]),
                        log_probs=None,
                        finish_reason=ending.reason or "length",
                    )
                )
        return [completions[i : i + num_samples] for i in range(0, len(completions), num_samples)]
