"""What follows the tokens that stand: the residual's masses, and the token drawn from it."""

import triton
import triton.language as tl

from selftrain.kernels.accept import longest_prefix
from selftrain.kernels.philox import uniform
from selftrain.kernels.pick import block_masses, choose, is_law
from selftrain.kernels.rows import inverse_temperature, read, weights

EMIT = tl.constexpr(0)  # ops.philox.Stream.EMIT


@triton.jit
def law(
    start, token, vocab, row, row_max, row_mass, inverse, thresholds, last_tokens,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Return the warped probabilities of some tokens of a row."""
    threshold = -float("inf")
    last_token = vocab
    if MASKED:
        threshold = tl.load(thresholds + row)
        last_token = tl.load(last_tokens + row)
    x = read(start, token, vocab)
    highest = tl.load(row_max + row)
    weight = weights(x, token, highest, inverse, threshold, last_token, MASKED)
    return weight / tl.load(row_mass + row)


@triton.jit
def residual_kernel(
    target,
    draft,
    temperatures,
    inverse,
    thresholds,
    last_tokens,
    row_max,
    row_mass,
    prefix_probs,
    num_drafted,
    num_accepted,
    residuals,  # out [B, K, blocks]: sum of max(0, pi p - q)
    overlaps,  # out [B, K, blocks]: sum of min(p, q)
    vocab,
    num_blocks,
    target_rows,
    places,
    target_batch,
    target_place,
    draft_batch,
    draft_place,
    PREFIX: tl.constexpr,
    ALL: tl.constexpr,  # every place, not only the one that was rejected
    PER_ROW: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the residual and the overlap over one block of the vocabulary."""
    block = tl.program_id(1)
    drafted = places - 1
    if ALL:
        batch = tl.program_id(0) // drafted
        place = tl.program_id(0) % drafted
    else:
        batch = tl.program_id(0)
        place = tl.load(num_accepted + batch)
    if place < tl.load(num_drafted + batch):
        inverse = inverse_temperature(temperatures, inverse, batch, PER_ROW)
        token = block * BLOCK + tl.arange(0, BLOCK)
        start = target + batch.to(tl.int64) * target_batch + place.to(tl.int64) * target_place
        p = law(
            start, token, vocab, batch * places + place, row_max, row_mass, inverse,
            thresholds, last_tokens, MASKED,
        )  # fmt: skip
        start = draft + batch.to(tl.int64) * draft_batch + place.to(tl.int64) * draft_place
        q = law(
            start, token, vocab, target_rows + batch * drafted + place, row_max, row_mass,
            inverse, thresholds, last_tokens, MASKED,
        )  # fmt: skip
        cell = (batch * drafted + place) * num_blocks + block
        pi = 1.0
        if PREFIX:
            pi = tl.load(prefix_probs + batch * places + place)
        # The difference of floats within a factor of two is exact: no need for logarithms.
        tl.store(residuals + cell, tl.sum(tl.maximum(pi * p - q, 0.0), 0))
        if ALL:
            tl.store(overlaps + cell, tl.sum(tl.minimum(p, q), 0))


@triton.jit
def place_sums(cells, first, place, count, num_blocks, BLOCKS: tl.constexpr):
    """Return the sums over the vocabulary at the places below ``count``, 0 elsewhere."""
    block = tl.arange(0, BLOCKS)[None, :]
    inside = ((place >= 0) & (place < count))[:, None] & (block < num_blocks)
    cell = (first + place)[:, None] * num_blocks + block
    return tl.sum(tl.load(cells + cell, mask=inside, other=0.0), 1)


@triton.jit
def masses_without(
    banned, masses, start, vocab, row, row_max, row_mass, inverse, thresholds, last_tokens,
    MASKED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Return the masses of a row's blocks without one token, its own block summed anew."""
    home = banned // BLOCK
    token = home * BLOCK + tl.arange(0, BLOCK)
    p = law(start, token, vocab, row, row_max, row_mass, inverse, thresholds, last_tokens, MASKED)
    others = tl.sum(tl.where(token == banned, 0.0, p), 0) * tl.load(row_mass + row)
    return tl.where(tl.arange(0, BLOCKS) == home, others, masses)


@triton.jit
def emit_kernel(
    target, draft, temperatures, inverse, thresholds, last_tokens, maxima, sums, row_max, row_mass,
    tokens, seeds, starts, token_probs, prefix_probs, num_drafted, num_accepted, residuals,
    overlaps,
    accepted,  # out [B]
    next_tokens,  # out [B]
    overlap,  # out [B, K]
    vocab, num_blocks, target_rows, places, target_batch, target_place, draft_batch, draft_place,
    HAS_DRAFT: tl.constexpr,
    PREFIX: tl.constexpr,
    OVERLAP: tl.constexpr,
    PER_ROW: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PLACES: tl.constexpr,
):  # fmt: skip
    """End the test of whole prefixes, and draw the next token of one row of the batch."""
    batch = tl.program_id(0)
    drafted = places - 1
    inverse = inverse_temperature(temperatures, inverse, batch, PER_ROW)
    seed = tl.load(seeds + batch)
    position = tl.load(starts + batch)
    place = tl.arange(0, PLACES)
    count = tl.load(num_drafted + batch)
    token_prob = tl.load(token_probs + batch * drafted + place, mask=place < count, other=0.0)

    # How many tokens stand.
    if PREFIX:
        pi = tl.load(prefix_probs + batch * places + place, mask=place < places, other=0.0)
        if HAS_DRAFT:
            mass = place_sums(residuals, batch * drafted, place, count, num_blocks, BLOCKS)
        else:
            mass = pi * (1.0 - token_prob)
        stand = longest_prefix(mass, pi, count, place, seed, position, PLACES)
    else:
        stand = tl.load(num_accepted + batch)
    tl.store(accepted + batch, stand.to(tl.int64))

    # Which block of the vocabulary the next token lies in.
    row = batch * places + stand
    rejected = stand < count
    masses, top = block_masses(maxima, sums, row, num_blocks, inverse, BLOCKS)
    valid = is_law(masses, top)
    block = tl.arange(0, BLOCKS)
    start = target + batch.to(tl.int64) * target_batch + stand.to(tl.int64) * target_place
    banned = -1
    if HAS_DRAFT:
        cell = (batch * drafted + stand) * num_blocks + block
        left = tl.load(residuals + cell, mask=rejected & (block < num_blocks), other=0.0)
    else:
        # The residual of a one-hot draft is the target's law without the drafted token.
        banned = tl.load(tokens + batch * drafted + stand, mask=rejected, other=0).to(tl.int32)
        left = masses_without(
            banned, masses, start, vocab, row, row_max, row_mass, inverse, thresholds, last_tokens,
            MASKED, BLOCK, BLOCKS,
        )  # fmt: skip
        left = tl.where(rejected, left, 0.0)
    # Laws equal up to rounding leave nothing: then the next token is the target's.
    from_residual = tl.sum(left, 0) > 0
    u = uniform(seed, EMIT, position, stand)
    home, u = choose(tl.where(from_residual, left, masses), u, BLOCKS)

    # Which token of that block.
    token = home * BLOCK + tl.arange(0, BLOCK)
    p = law(start, token, vocab, row, row_max, row_mass, inverse, thresholds, last_tokens, MASKED)
    weight = p
    if HAS_DRAFT:
        if from_residual:
            scale = 1.0
            if PREFIX:
                scale = tl.load(prefix_probs + batch * places + stand)
            first = draft + batch.to(tl.int64) * draft_batch + stand.to(tl.int64) * draft_place
            q = law(
                first, token, vocab, target_rows + batch * drafted + stand, row_max, row_mass,
                inverse, thresholds, last_tokens, MASKED,
            )  # fmt: skip
            weight = tl.maximum(scale * p - q, 0.0)
    else:
        weight = tl.where(token == tl.where(from_residual, banned, -1), 0.0, p)
    chosen, _ = choose(weight, u, BLOCK)
    chosen = tl.where(valid, home * BLOCK + chosen, -1)
    tl.store(next_tokens + batch, chosen.to(tl.int64))

    # The chance of acceptance at each place.
    if OVERLAP:
        shared = token_prob
        if HAS_DRAFT:
            shared = place_sums(overlaps, batch * drafted, place, count, num_blocks, BLOCKS)
    else:
        shared = tl.full((PLACES,), float("nan"), tl.float32)
    tl.store(overlap + batch * drafted + place, shared, mask=place < drafted)
