"""How good a draft is for its target (DistillSpec, arXiv 2310.08461, section 3)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_int, check_not_empty
from selftrain._core.rng import derive
from selftrain.decoding.outcome import SpeculativeStats
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.prompts import Prompt, encode_prompt
from selftrain.decoding.sampler import HFSampler, warp
from selftrain.decoding.speculative import SpeculativeDecoder
from selftrain.ops.masking import pad_sequences


def measure_draft(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    prompts: Sequence[Prompt],
    *,
    num_draft_tokens: int = 5,
    params: SamplingParams | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: int = 16,
) -> SpeculativeStats:
    """Decode ``prompts`` speculatively and return acceptance and block efficiency.

    Args:
        target: The model to sample from.
        draft: The draft to judge.
        prompts: Text, token ids or chat messages.
        num_draft_tokens: Tokens proposed per block.
        params: How to draw; with a seed, a row's noise depends on the seed and its place alone.
        tokenizer: Needed unless the prompts are token ids.
        batch_size: Rows decoded together; the result does not depend on it.

    Raises:
        ValueError: If there is no prompt or one is empty.
    """
    params = params or SamplingParams()
    check_not_empty("prompts", prompts)
    check_int("batch_size", batch_size, low=1)
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    decoder = SpeculativeDecoder(
        target, draft, tokenizer=tokenizer, num_draft_tokens=num_draft_tokens
    )
    seed = int(torch.randint(2**62, ())) if params.seed is None else params.seed
    parts = []
    for start in range(0, len(encoded), batch_size):
        rows = encoded[start : start + batch_size]
        padded = pad_sequences(rows, side="left")
        seeds = [derive(seed, "row", start + i) for i in range(len(rows))]
        output = decoder.generate(
            padded.token_ids.to(target.device),
            attention_mask=padded.mask.to(target.device),
            params=replace(params, seed=None),
            seeds=seeds,
        )
        parts.append(output.stats)
    return sum(parts[1:], parts[0])


def target_texts(
    target: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    params: SamplingParams,
    seed: int,
    batch_size: int = 32,
) -> list[tuple[int, ...]]:
    """Return one text that the target writes after every prompt (ids, the end included)."""
    sampler = HFSampler(target, None, batch_size=batch_size)
    seeds = [[derive(seed, "text", i)] for i in range(len(prompts))]
    params = replace(params, seed=None)
    completions = sampler.sample(prompts, num_samples=1, params=params, seeds=seeds)
    return [c.token_ids or () for (c,) in completions]


@torch.inference_mode()
def forced_acceptance(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    params: SamplingParams | None = None,
) -> list[Tensor]:
    """Return min(1, q(y_t) / p(y_t)) along given texts of the target, one forward each.

    For :func:`selftrain.decoding.predict_block_efficiency`. When greedy, 1 where both
    models prefer the same token.

    Args:
        target: The target model.
        draft: The draft model, with the same number of logits or more.
        prompts: Token ids before each text.
        completions: Texts that the target itself wrote under ``params``.
        params: How tokens are drawn.

    Returns:
        One tensor ``[time]`` per text.
    """
    params = params or SamplingParams()
    acceptances = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([[*prompt, *completion]], device=target.device)
        place = slice(len(prompt) - 1, -1)
        p, q = (model(input_ids=ids).logits[0, place] for model in (target, draft))
        q = q[:, : p.shape[-1]]
        if params.greedy:
            acceptances.append((p.argmax(-1) == q.argmax(-1)).double())
            continue
        token = ids[0, len(prompt) :].unsqueeze(-1)
        log_p, log_q = (warp(x, params).log_softmax(-1).gather(-1, token) for x in (p, q))
        acceptances.append((log_q - log_p).squeeze(-1).double().exp().clamp(max=1))
    return acceptances
