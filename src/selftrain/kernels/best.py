"""Greedy and coupled verification: the most likely token, or the one that noise prefers.

One launch reads the target's logits, adds the noise where there is any, and leaves each block's
highest value with its token; a second, of one small program a row, compares.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from selftrain.kernels._dispatch import launch, register
from selftrain.kernels.philox import gumbel
from selftrain.kernels.rows import Rows, cut_arguments, inverse_temperature, is_kept, read
from selftrain.kernels.threshold import warped_stats

COUPLED = tl.constexpr(3)  # ops.philox.Stream.COUPLED


@triton.jit
def best_kernel(
    target,
    temperatures,
    inverse,
    thresholds,
    last_tokens,
    seeds,
    starts,
    maxima,  # out [B * places, blocks]: the highest value, NaN if one is
    winners,  # out [B * places, blocks]: its token, the first among equals
    vocab,
    num_blocks,
    places,
    target_batch,
    target_place,
    NOISE: tl.constexpr,
    PER_ROW: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find the highest value of one block of one row."""
    row, block = tl.program_id(0), tl.program_id(1)
    batch = row // places
    place = row % places
    token = block * BLOCK + tl.arange(0, BLOCK)
    start = target + batch.to(tl.int64) * target_batch + place.to(tl.int64) * target_place
    x = read(start, token, vocab)
    broken = tl.max((x != x).to(tl.int32), 0) > 0
    if MASKED:
        kept = is_kept(x, token, tl.load(thresholds + row), tl.load(last_tokens + row))
        x = tl.where(kept, x, -float("inf"))
    if NOISE:
        inverse = inverse_temperature(temperatures, inverse, batch, PER_ROW)
        position = tl.load(starts + batch) + place
        noise = gumbel(tl.load(seeds + batch), COUPLED, position, block * BLOCK, BLOCK)
        x = x * inverse + noise
    highest = tl.max(x, 0)
    winner = tl.min(tl.where((x == highest) & (token < vocab), token, vocab), 0)
    tl.store(maxima + row * num_blocks + block, tl.where(broken, float("nan"), highest))
    tl.store(winners + row * num_blocks + block, winner)


@triton.jit
def compare_kernel(
    maxima,
    winners,
    tokens,
    accepted,  # out [B]
    next_tokens,  # out [B]
    agreement,  # out [B, K]
    vocab,
    num_blocks,
    places,
    BLOCKS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Compare the drafted tokens of one row of the batch with the rows' best ones."""
    batch = tl.program_id(0)
    place = tl.arange(0, PLACES)
    block = tl.arange(0, BLOCKS)[None, :]
    inside = (place < places)[:, None] & (block < num_blocks)
    cell = (batch * places + place)[:, None] * num_blocks + block
    value = tl.load(maxima + cell, mask=inside, other=-float("inf"))
    winner = tl.load(winners + cell, mask=inside, other=0)
    broken = tl.max((value != value).to(tl.int32), 1) > 0
    highest = tl.max(value, 1)
    best = tl.min(tl.where(value == highest[:, None], winner, vocab), 1)
    finite = (highest > -float("inf")) & (highest < float("inf"))
    best = tl.where(finite & ~broken, best, -1)

    drafted = places - 1
    token = tl.load(tokens + batch * drafted + place, mask=place < drafted, other=-1)
    agrees = (token >= 0) & (token == best)
    stand = tl.min(tl.where(agrees, PLACES, place), 0)
    tl.store(accepted + batch, stand.to(tl.int64))
    following = tl.sum(tl.where(place == stand, best, 0), 0)
    tl.store(next_tokens + batch, following.to(tl.int64))
    tl.store(agreement + batch * drafted + place, agrees.to(tl.float32), mask=place < drafted)


def _fake(
    target: Tensor, tokens: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor, Tensor]:
    batch = tokens.new_empty(tokens.shape[0])
    return batch, torch.empty_like(batch), tokens.new_empty(tokens.shape, dtype=torch.float32)


@register("selftrain::verify_best", _fake)
def verify_best(
    target: Tensor,
    tokens: Tensor,
    seeds: Tensor,
    starts: Tensor,
    temperature: float,
    temperatures: Tensor | None,
    top_k: int | None,
    top_p: float,
    min_p: float,
    noise: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return accepted tokens, next token and agreement; see :func:`selftrain.ops.verify_draft`."""
    rows = Rows(target, None, temperature, temperatures)
    batch, drafted = tokens.shape
    cut = None
    if noise and (top_k is not None or top_p < 1 or min_p > 0):
        cut = warped_stats(rows, top_k, top_p, min_p)[2]
    maxima = rows.empty(rows.num_rows, rows.num_blocks)
    winners = torch.empty_like(maxima, dtype=torch.int32)
    launch(best_kernel)[(rows.num_rows, rows.num_blocks)](
        target=target,
        **rows.temperature_arguments(),
        **cut_arguments(rows, cut),
        seeds=seeds,
        starts=starts,
        maxima=maxima,
        winners=winners,
        vocab=rows.vocab,
        num_blocks=rows.num_blocks,
        places=drafted + 1,
        target_batch=target.stride(0),
        target_place=target.stride(1),
        NOISE=noise,
        PER_ROW=temperatures is not None,
        BLOCK=rows.block,
        num_warps=4,
    )
    accepted, next_tokens = torch.empty_like(seeds), torch.empty_like(seeds)
    agreement = rows.empty(batch, drafted)
    launch(compare_kernel)[(batch,)](
        maxima=maxima,
        winners=winners,
        tokens=tokens,
        accepted=accepted,
        next_tokens=next_tokens,
        agreement=agreement,
        vocab=rows.vocab,
        num_blocks=rows.num_blocks,
        places=drafted + 1,
        BLOCKS=triton.next_power_of_2(rows.num_blocks),
        PLACES=triton.next_power_of_2(drafted + 1),
        num_warps=4,
    )
    return accepted, next_tokens, agreement
