"""Decoding with a draft, and comparing it with its target along texts (DistillSpec, section 3).

Shape letters: N scored tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_int, check_not_empty
from selftrain._core.rng import derive
from selftrain.decoding.law import warp
from selftrain.decoding.outcome import SpeculativeStats
from selftrain.decoding.params import SamplingParams
from selftrain.decoding.prompts import Prompt, encode_prompt
from selftrain.decoding.sampler import HFSampler
from selftrain.decoding.seq2seq_sampler import EncoderDecoderSampler
from selftrain.decoding.speculative import SpeculativeDecoder
from selftrain.nn.modes import training_mode
from selftrain.ops.divergence import divergence
from selftrain.ops.masking import pad_sequences
from selftrain.training.batch import (
    MicroBatch,
    TokenRow,
    collate,
    scored_logits,
    takes_logits_to_keep,
)

# Elements of a block of logits in float32, so that the temporaries stay small.
_BLOCK = 2**20


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
    """Return one text that the target writes after every prompt (ids, the end included).

    Args:
        target: Decoder-only, or an encoder-decoder that reads the prompts with its encoder.
        prompts: Token ids.
        params: How to draw; its own seed plays no part.
        seed: A text is a function of it and its prompt's place.
        batch_size: Prompts sampled together.
    """
    seeds = [[derive(seed, "text", i)] for i in range(len(prompts))]
    params = replace(params, seed=None)
    sampler_type = EncoderDecoderSampler if target.config.is_encoder_decoder else HFSampler
    sampler = sampler_type(target, None, batch_size=batch_size)
    completions = sampler.sample(prompts, num_samples=1, params=params, seeds=seeds)
    return [c.token_ids or () for (c,) in completions]


def forced_acceptance(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    params: SamplingParams | None = None,
    micro_batch_size: int = 16,
) -> list[Tensor]:
    """Return min(1, q(y_t) / p(y_t)) along given texts of the target, by teacher forcing.

    For :func:`selftrain.decoding.predict_block_efficiency`. When greedy, 1 where both
    models prefer the same token.

    Args:
        target: The target model.
        draft: The draft model. Logits that only one model has are tokens it alone can write.
        prompts: Token ids before each text.
        completions: Texts that the target itself wrote under ``params``.
        params: How tokens are drawn.
        micro_batch_size: Texts per forward pass; the result does not depend on it.

    Returns:
        One tensor ``[time]`` per text.
    """
    rows = [
        TokenRow(prompt_ids=tuple(prompt), completion_ids=tuple(completion))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    values = forced_values(target, draft, rows, params=params, micro_batch_size=micro_batch_size)
    return [row["forced"] for row in values]


@torch.inference_mode()
def forced_values(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    texts: Sequence[TokenRow],
    *,
    params: SamplingParams | None = None,
    micro_batch_size: int = 16,
    detailed: bool = False,
) -> list[dict[str, Tensor]]:
    """Compare the two models at every token of the texts.

    Args:
        target: The target model, decoder-only or encoder-decoder.
        draft: The draft model, of the same kind.
        texts: Prompts and completions; their masks and weights play no part.
        params: How tokens are drawn; the models are compared after the same warping.
        micro_batch_size: Texts per forward pass of either model.
        detailed: Whether to compute all values or ``forced`` only.

    Returns:
        For every text, each ``[time]`` in float64 on the CPU: ``forced``, min(1, q(y) / p(y));
        ``acceptance``, sum_v min(p, q); ``top1_agreement``; ``forward_kl``, ``reverse_kl`` and
        ``jsd`` in nats.
    """
    params = params or SamplingParams()
    check_int("micro_batch_size", micro_batch_size, low=1)
    lengths = [len(row.prompt_ids) + len(row.completion_ids) for row in texts]
    order = sorted(range(len(texts)), key=lambda i: -lengths[i])  # little padding, soonest failure
    values: list[dict[str, Tensor]] = [{} for _ in texts]
    with training_mode(False, target, draft):
        for start in range(0, len(order), micro_batch_size):
            chosen = order[start : start + micro_batch_size]
            rows = [replace(texts[i], mask=None) for i in chosen]
            batch = collate(rows, decoder_start_id=_decoder_start(target))
            merged = _compare(target, draft, batch, params, detailed)
            for name, merged_N in merged.items():
                for i, part in zip(chosen, merged_N.split(batch.counts), strict=True):
                    values[i][name] = part
    return values


def _decoder_start(model: PreTrainedModel) -> int | None:
    config = model.config
    return config.decoder_start_token_id if config.is_encoder_decoder else None


def _compare(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    batch: MicroBatch,
    params: SamplingParams,
    detailed: bool,
) -> dict[str, Tensor]:
    p_NV, q_NV = (
        scored_logits(m, batch.to(m.device), slices_logits=takes_logits_to_keep(m)).to(
            target.device
        )
        for m in (target, draft)
    )
    labels_N = batch.labels.to(target.device)
    # The projections are as the model made them; only a few rows at a time are widened to float32.
    rows = max(1, _BLOCK // max(1, p_NV.shape[-1]))
    parts = [
        _compare_rows(p, q, labels, params, detailed)
        for p, q, labels in zip(
            p_NV.split(rows), q_NV.split(rows), labels_N.split(rows), strict=True
        )
    ]
    return {name: torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}


def _compare_rows(
    p_NV: Tensor, q_NV: Tensor, labels_N: Tensor, params: SamplingParams, detailed: bool
) -> dict[str, Tensor]:
    p_NV, q_NV = _same_tokens(p_NV, q_NV)
    agreement_N = (p_NV.argmax(-1) == q_NV.argmax(-1)).double()
    p_NV, q_NV = warp(p_NV, params), warp(q_NV, params)
    log_p_NV, log_q_NV = p_NV.log_softmax(-1), q_NV.log_softmax(-1)
    if params.greedy:
        # By preference, not by the text: of two equal logits a decoder may have taken the other.
        forced_N = agreement_N
    else:
        log_p_N, log_q_N = (
            x.gather(-1, labels_N[:, None])[:, 0].double() for x in (log_p_NV, log_q_NV)
        )
        forced_N = (log_q_N - log_p_N).exp().clamp(max=1)
    if not detailed:
        return {"forced": forced_N}
    return {
        "forced": forced_N,
        "acceptance": torch.minimum(log_p_NV.exp(), log_q_NV.exp()).sum(-1),
        "top1_agreement": agreement_N,
        "forward_kl": divergence(q_NV, p_NV, kind="forward_kl"),
        "reverse_kl": divergence(q_NV, p_NV, kind="reverse_kl"),
        "jsd": divergence(q_NV, p_NV, kind="jsd", beta=0.5),
    }


def _same_tokens(p_NV: Tensor, q_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Give a model that lacks tokens logits of minus infinity for them."""
    missing = p_NV.shape[-1] - q_NV.shape[-1]
    if missing == 0:
        return p_NV, q_NV
    padded = [
        torch.nn.functional.pad(x, (0, max(0, lacking)), value=-torch.inf)
        for x, lacking in ((p_NV, -missing), (q_NV, missing))
    ]
    return padded[0], padded[1]
