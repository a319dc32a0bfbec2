"""The tests that drafted tokens must pass, after the statistics and before the emission."""

import triton
import triton.language as tl

from selftrain.kernels.philox import uniform
from selftrain.kernels.rows import combine, inverse_temperature, is_kept

ACCEPT = tl.constexpr(1)  # ops.philox.Stream.ACCEPT


@triton.jit
def totals(maxima, sums, first, place, num_places, num_blocks, inverse, BLOCKS: tl.constexpr):
    """Return maximum and mass of the rows ``first + place``, for a block of places at once."""
    block = tl.arange(0, BLOCKS)[None, :]
    inside = (place < num_places)[:, None] & (block < num_blocks)
    cell = (first + place)[:, None] * num_blocks + block
    highest = tl.load(maxima + cell, mask=inside, other=-float("inf"))
    mass = tl.load(sums + cell, mask=inside, other=0.0)
    return combine(highest, mass, inverse, 1)


@triton.jit
def log_prob(
    start, place_stride, place, token, proposed, row, highest, mass, inverse,
    thresholds, last_tokens, MASKED: tl.constexpr,
):  # fmt: skip
    """Return the log-probability of each place's token under the warped law."""
    x = tl.load(start + place.to(tl.int64) * place_stride + token, mask=proposed, other=0.0)
    x = x.to(tl.float32)
    value = (x - highest) * inverse - tl.log(mass)
    if MASKED:
        threshold = tl.load(thresholds + row, mask=proposed, other=0.0)
        last_token = tl.load(last_tokens + row, mask=proposed, other=0)
        value = tl.where(is_kept(x, token, threshold, last_token), value, -float("inf"))
    return value


@triton.jit
def larger(a, b):
    """Return the larger one, for scans."""
    return tl.maximum(a, b)


@triton.jit
def decide_kernel(
    target,
    draft,
    temperatures,
    inverse,
    thresholds,
    last_tokens,
    maxima,
    sums,
    tokens,
    seeds,
    starts,
    row_max,  # out [R]: the highest logit
    row_mass,  # out [R]: sum of the weights relative to it
    token_probs,  # out [B, K]: target's probability of the drafted token
    prefix_probs,  # out [B, K + 1]: pi of block verification
    num_drafted,  # out [B]: tokens before the first void one
    num_accepted,  # out [B]: final for the token rule
    vocab,
    num_blocks,
    target_rows,
    places,
    target_batch,
    target_place,
    draft_batch,
    draft_place,
    HAS_DRAFT: tl.constexpr,
    PREFIX: tl.constexpr,
    PER_ROW: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCKS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Make the normalisers of one row of the batch, and test its tokens one by one."""
    batch = tl.program_id(0)
    inverse = inverse_temperature(temperatures, inverse, batch, PER_ROW)
    place = tl.arange(0, PLACES)
    drafted = places - 1
    token = tl.load(tokens + batch * drafted + place, mask=place < drafted, other=-1)
    proposed = (token >= 0) & (token < vocab)

    row = batch * places + place
    highest, mass = totals(maxima, sums, batch * places, place, places, num_blocks, inverse, BLOCKS)
    tl.store(row_max + row, highest, mask=place < places)
    tl.store(row_mass + row, mass, mask=place < places)
    start = target + batch.to(tl.int64) * target_batch
    log_p = log_prob(
        start, target_place, place, token, proposed, row, highest, mass, inverse,
        thresholds, last_tokens, MASKED,
    )  # fmt: skip
    tl.store(token_probs + batch * drafted + place, tl.exp(log_p), mask=place < drafted)
    log_q = tl.zeros((PLACES,), tl.float32)
    if HAS_DRAFT:
        first = target_rows + batch * drafted
        row = first + place
        highest, mass = totals(maxima, sums, first, place, drafted, num_blocks, inverse, BLOCKS)
        tl.store(row_max + row, highest, mask=place < drafted)
        tl.store(row_mass + row, mass, mask=place < drafted)
        start = draft + batch.to(tl.int64) * draft_batch
        log_q = log_prob(
            start, draft_place, place, token, proposed, row, highest, mass, inverse,
            thresholds, last_tokens, MASKED,
        )  # fmt: skip

    # NaN compares false: a place without a law, or a token of no mass under q, ends the draft.
    ratio = log_p.to(tl.float64) - log_q.to(tl.float64)
    fit = proposed & (ratio < float("inf"))
    count = tl.min(tl.where(fit, PLACES, place), 0)
    tl.store(num_drafted + batch, count)
    if PREFIX:
        # A walk of log ratios with a ceiling at 0 is the free walk less its running maximum.
        walk = tl.cumsum(tl.where(place < count, ratio, 0.0), 0)
        pi = tl.exp(walk - tl.maximum(tl.associative_scan(walk, 0, larger), 0.0)).to(tl.float32)
        tl.store(prefix_probs + batch * places, 1.0)
        tl.store(prefix_probs + batch * places + 1 + place, pi, mask=place < drafted)
    else:
        u = uniform(tl.load(seeds + batch), ACCEPT, tl.load(starts + batch), place)
        stands = (place < count) & (tl.log(u) < ratio)  # strict: p = 0 falls even for u = 0
        tl.store(num_accepted + batch, tl.min(tl.where(stands, PLACES, place), 0))


@triton.jit
def longest_prefix(mass, pi, count, place, seed, start, PLACES: tl.constexpr):
    """Return how many tokens block verification lets stand.

    ``place`` i stands for the first i tokens; ``mass`` is S_i there, ``pi`` its pi_i.
    """
    room = 1.0 - pi
    # 0/0, certain so far and p = q next: any answer will do, the residual has no mass.
    h = tl.where(mass > 0, mass / tl.where(mass > 0, mass + room, 1.0), 0.0)
    h = tl.where((mass <= 0) & (room <= 0), 1.0, h)
    h = tl.where(place == count, pi, h)
    # The test of the first i tokens has the uniform of the i-th.
    u = uniform(seed, ACCEPT, start, tl.maximum(place - 1, 0))
    stands = (place > 0) & (place <= count) & (u < h.to(tl.float64))
    return tl.max(tl.where(stands, place, 0), 0)
