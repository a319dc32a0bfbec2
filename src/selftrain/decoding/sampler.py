"""Samplers: prompts in, completions out."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_int, check_not_empty
from selftrain._core.rng import derive
from selftrain.decoding.cache import (
    PaddedCache,
    SlotCache,
    max_positions,
    sampling_cache,
)
from selftrain.decoding.params import Completion, SamplingParams
from selftrain.decoding.prompts import Prompt, encode_prompt
from selftrain.decoding.stopping import Stopping, resolve_eos
from selftrain.nn.modes import training_mode
from selftrain.ops.philox import Stream, uniform
from selftrain.ops.warp import inverse_cdf, warp_logits

_CHECK_EVERY = 8  # steps between looks at what has finished: each look syncs with the device


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
        self._cache_type = sampling_cache(model)

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

        completions: list[Completion] = []
        group = max(1, self.batch_size // num_samples)  # prompts prefilled together
        with torch.inference_mode(), training_mode(False, self.model):
            for first in range(0, len(prompts), group):
                chosen = encoded[first : first + group]
                prefix = self._cache_type(
                    self.model, capacity=max(map(len, chosen)) + params.max_new_tokens
                )
                prefix.prefill([p[:-1] for p in chosen])
                rows = [i for i in range(len(chosen)) for _ in range(num_samples)]
                flat_seeds = [s for per in row_seeds[first : first + group] for s in per]
                for start in range(0, len(rows), self.batch_size):
                    part = rows[start : start + self.batch_size]
                    completions += self._decode(
                        prefix.fork(torch.tensor(part, device=self.model.device)),
                        [chosen[i] for i in part],
                        flat_seeds[start : start + self.batch_size],
                        params,
                        stopping,
                    )
        step = num_samples
        return [completions[i : i + step] for i in range(0, len(completions), step)]

    def _decode(
        self,
        cache: SlotCache | PaddedCache,
        prompts: list[list[int]],
        seeds: list[int],
        params: SamplingParams,
        stopping: Stopping,
    ) -> list[Completion]:
        """Decode one batch of rows whose prompts, but for the last token, are in ``cache``."""
        device, budget = self.model.device, params.max_new_tokens
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        positions = lengths.unsqueeze(1) + torch.arange(budget, device=device)
        keys = torch.tensor(seeds, device=device).unsqueeze(1)
        noise = uniform(keys, stream=Stream.EMIT, position=positions)
        extent = max(map(len, prompts))

        active = torch.arange(len(prompts), device=device)  # rows still in the batch
        tokens = torch.zeros(len(prompts), budget, dtype=torch.long, device=device)
        log_probs = torch.zeros(len(prompts), budget, device=device)
        pending = torch.tensor([[p[-1]] for p in prompts], device=device)
        eos = torch.tensor(sorted(stopping.eos_token_ids), dtype=torch.long, device=device)
        lengths_drawn: dict[int, int] = {}
        for step in range(budget):
            place = (lengths[active] - 1 + step).unsqueeze(1)
            logits = cache.forward(pending, place, extent=extent + step, last_only=True)[:, -1]
            drawn = draw(logits, noise[active, step], params)
            tokens[active, step] = drawn.tokens
            log_probs[active, step] = drawn.log_probs
            pending = drawn.tokens.unsqueeze(1)
            if (step + 1) % _CHECK_EVERY == 0 or step + 1 == budget:
                check_finite(log_probs[active])
                recent = tokens[active, max(0, step + 1 - _CHECK_EVERY) : step + 1]
                over = torch.isin(recent, eos).any(1).tolist()
                if stopping.stop:
                    rows = tokens[active, : step + 1].tolist()
                    over = [
                        o or stopping.ending(row, budget=budget).reason is not None
                        for o, row in zip(over, rows, strict=True)
                    ]
                if step + 1 == budget:
                    over = [True] * len(over)
                ended = zip(active.tolist(), over, strict=True)
                lengths_drawn.update((row, step + 1) for row, o in ended if o)
                if all(over):
                    break
                if any(over):
                    kept = torch.tensor([not o for o in over], device=device).nonzero().squeeze(1)
                    cache.select(kept)
                    active, pending = active[kept], pending[kept]
        rows, row_log_probs = tokens.tolist(), log_probs.tolist()
        return [
            _completion(rows[i][: lengths_drawn[i]], row_log_probs[i], stopping, budget)
            for i in range(len(prompts))
        ]


class Drawn(NamedTuple):
    """One sampled token a row, and its log-probability under the law sampled from."""

    tokens: Tensor
    log_probs: Tensor


def draw(logits: Tensor, noise: Tensor, params: SamplingParams) -> Drawn:
    """Draw one token a row from raw ``logits`` with uniforms ``noise`` under ``params``."""
    if params.greedy:
        best = logits.max(-1)
        return Drawn(logits.argmax(-1), best.values.float() * 0)
    probs = torch.softmax(warp(logits, params), dim=-1)
    tokens = inverse_cdf(probs, noise)
    return Drawn(tokens, probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).log().float())


def warp(logits: Tensor, params: SamplingParams) -> Tensor:
    """Warp logits by ``params``; see :func:`selftrain.ops.warp_logits`."""
    return warp_logits(
        logits,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
    )


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


def check_finite(log_probs: Tensor) -> None:
    """Raise ``ValueError`` if a sampled token's log-probability is NaN: its logits were."""
    if log_probs.isnan().any():
        raise ValueError(
            "the model's logits are NaN or all -inf; check its weights and dtype "
            "(float16 overflows where bfloat16 does not)."
        )


def _completion(
    token_ids: list[int], log_probs: list[float], stopping: Stopping, budget: int
) -> Completion:
    ending = stopping.ending(token_ids, budget=budget)
    return Completion(
        text=ending.text,
        token_ids=tuple(token_ids[: ending.num_tokens]),
        log_probs=tuple(log_probs[: ending.num_tokens]),
        finish_reason=ending.reason or "length",
    )
