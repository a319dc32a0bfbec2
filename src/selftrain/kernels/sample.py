"""Drawing one token a row: what :func:`selftrain.ops.warp_logits` and ``inverse_cdf`` do."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from selftrain.kernels._dispatch import launch, register
from selftrain.kernels.philox import uniform
from selftrain.kernels.pick import block_masses, choose, is_law
from selftrain.kernels.rows import Rows, cut_arguments, inverse_temperature, read, weights
from selftrain.kernels.threshold import warped_stats


@triton.jit
def sample_kernel(
    target,
    temperatures,
    inverse,
    thresholds,
    last_tokens,
    maxima,
    sums,
    seeds,
    positions,
    stream,
    slot,
    tokens,  # out [B]
    vocab,
    num_blocks,
    target_batch,
    PER_ROW: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Draw the token of one row."""
    row = tl.program_id(0)
    inverse = inverse_temperature(temperatures, inverse, row, PER_ROW)
    threshold = -float("inf")
    last_token = vocab
    if MASKED:
        threshold = tl.load(thresholds + row)
        last_token = tl.load(last_tokens + row)
    u = uniform(tl.load(seeds + row), stream, tl.load(positions + row), slot)
    masses, top = block_masses(maxima, sums, row, num_blocks, inverse, BLOCKS)
    block, u = choose(masses, u, BLOCKS)
    token = block * BLOCK + tl.arange(0, BLOCK)
    x = read(target + row.to(tl.int64) * target_batch, token, vocab)
    weight = weights(x, token, top, inverse, threshold, last_token, MASKED)
    place, _ = choose(weight, u, BLOCK)
    chosen = tl.where(is_law(masses, top), block * BLOCK + place, -1)
    tl.store(tokens + row, chosen.to(tl.int64))


def _fake(logits: Tensor, seeds: Tensor, *_: object, **__: object) -> Tensor:
    return torch.empty_like(seeds)


@register("selftrain::sample_rows", _fake)
def sample_rows(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    stream: int,
    slot: int,
    temperature: float,
    temperatures: Tensor | None,
    top_k: int | None,
    top_p: float,
    min_p: float,
) -> Tensor:
    """Return one token for each row of ``logits`` ``[B, V]``; -1 where they are no law."""
    rows = Rows(logits.unsqueeze(1), None, temperature, temperatures)
    maxima, sums, cut = warped_stats(rows, top_k, top_p, min_p)
    tokens = torch.empty_like(seeds)
    launch(sample_kernel)[(len(seeds),)](
        target=rows.target,
        **rows.temperature_arguments(),
        **cut_arguments(rows, cut),
        maxima=maxima,
        sums=sums,
        seeds=seeds,
        positions=positions,
        stream=stream,
        slot=slot,
        tokens=tokens,
        vocab=rows.vocab,
        num_blocks=rows.num_blocks,
        target_batch=logits.stride(0),
        PER_ROW=temperatures is not None,
        BLOCK=rows.block,
        BLOCKS=triton.next_power_of_2(rows.num_blocks),
        num_warps=8,
    )
    return tokens
