"""Top-k, top-p and min-p without sorting: the logit from which on tokens are kept.

A float32 whose bits are reordered is an integer key of the same order. The key of the threshold is
found four bits at a time, from the top: a pass counts the tokens, and sums their mass, by the next
digit of their key, among those that agree with the digits found so far. Half-precision logits have
few significant bits as float32, so that four or five passes will do; float32 takes eight. The raw
logits are compared, which a positive temperature leaves in order.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from selftrain.kernels._dispatch import INTERPRETED, launch
from selftrain.kernels.rows import Cut, Rows, inverse_temperature, read, row_of, row_total, stats

DIGITS = tl.constexpr(16)
_BITS = 4
# Bits of a float32 from the sign on that tell all values of a type apart.
_KEY_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}


@triton.jit
def key_of(x):
    """Return an unsigned integer that grows with ``x``."""
    x = tl.where(x == 0.0, 0.0, x)  # -0 is 0
    bits = x.to(tl.uint32, bitcast=True)
    return bits ^ tl.where(bits >> 31 == 1, 0xFFFFFFFF, 0x80000000).to(tl.uint32)


@triton.jit
def value_of(key):
    """Return the float32 of a key."""
    bits = key ^ tl.where(key >> 31 == 1, 0x80000000, 0xFFFFFFFF).to(tl.uint32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def goal_of(maxima, sums, kept, row, num_blocks, inverse, top_p, MODE: tl.constexpr, BLOCKS):
    """Return the row's maximum, and the mass that top-p must reach: of all, or of the top k."""
    highest, mass = row_total(maxima, sums, row, num_blocks, inverse, BLOCKS)
    if MODE == "mass_of_kept":
        mass = tl.load(kept + row)
    return highest, mass * top_p


@triton.jit
def narrow(
    counts, masses, keys, num_above, mass_above, row, rows, num_blocks, PASS: tl.constexpr,
    top_k, goal, MODE: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Return what is known after ``PASS`` passes: the key's first digits, and what lies above."""
    if PASS == 0:
        return tl.full((), 0, tl.uint32), tl.full((), 0, tl.int32), tl.full((), 0.0, tl.float32)
    before = (PASS - 1) * rows + row
    digit = tl.arange(0, DIGITS)
    block = tl.arange(0, BLOCKS)[:, None]
    cell = (before * num_blocks + block) * DIGITS + digit[None, :]
    count = tl.sum(tl.load(counts + cell, mask=block < num_blocks, other=0), 0)
    mass = tl.sum(tl.load(masses + cell, mask=block < num_blocks, other=0.0), 0)
    above_count = tl.load(num_above + before)
    above_mass = tl.load(mass_above + before)
    if MODE == "count":
        reached = above_count + tl.cumsum(count, 0, reverse=True) >= top_k
    else:
        reached = above_mass + tl.cumsum(mass, 0, reverse=True) >= goal
    # The mass of all tokens may miss its own sum by rounding; then everything is kept.
    lowest = tl.min(tl.where(count > 0, digit, DIGITS - 1), 0)
    chosen = tl.maximum(tl.max(tl.where(reached & (count > 0), digit, 0), 0), lowest)
    above_count += tl.sum(tl.where(digit > chosen, count, 0), 0)
    above_mass += tl.sum(tl.where(digit > chosen, mass, 0.0), 0)
    key = (tl.load(keys + before).to(tl.uint32) << 4) | chosen.to(tl.uint32)
    return key, above_count, above_mass


@triton.jit
def digit_kernel(
    target,
    draft,
    temperatures,
    inverse,
    maxima,
    sums,
    kept,
    top_k,
    top_p,
    counts,  # out [passes, R, blocks, digits]
    masses,  # out [passes, R, blocks, digits]
    keys,  # out [passes, R]: the digits found before each pass
    num_above,  # out [passes, R]: tokens above those digits
    mass_above,  # out [passes, R]
    rows,
    vocab,
    num_blocks,
    target_rows,
    places,
    target_batch,
    target_place,
    draft_batch,
    draft_place,
    PASS: tl.constexpr,
    MODE: tl.constexpr,
    PER_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count and weigh the tokens of one block by the next digit of their key."""
    row, block = tl.program_id(0), tl.program_id(1)
    start, batch = row_of(
        target,
        draft,
        row,
        target_rows,
        places,
        target_batch,
        target_place,
        draft_batch,
        draft_place,
    )
    inverse = inverse_temperature(temperatures, inverse, batch, PER_ROW)
    highest, goal = goal_of(maxima, sums, kept, row, num_blocks, inverse, top_p, MODE, BLOCKS)
    # Every program of the row comes to the same; the first one leaves it for the next pass.
    prefix, above_count, above_mass = narrow(
        counts, masses, keys, num_above, mass_above, row, rows, num_blocks, PASS,
        top_k, goal, MODE, BLOCKS,
    )  # fmt: skip
    if block == 0:
        tl.store(keys + PASS * rows + row, prefix.to(tl.int64))
        tl.store(num_above + PASS * rows + row, above_count)
        tl.store(mass_above + PASS * rows + row, above_mass)
    digit = tl.arange(0, DIGITS)[None, :]
    count = tl.zeros((TILE, DIGITS), tl.int32)
    mass = tl.zeros((TILE, DIGITS), tl.float32)
    for first in range(block * BLOCK, (block + 1) * BLOCK, TILE):
        token = first + tl.arange(0, TILE)
        x = read(start, token, vocab)
        part = key_of(x) >> (28 - 4 * PASS)
        inside = (token < vocab) & ((part >> 4) == prefix)
        weight = tl.exp((x - highest) * inverse)
        here = inside[:, None] & ((part & 15).to(tl.int32)[:, None] == digit)
        count += here.to(tl.int32)
        mass += tl.where(here, weight[:, None], 0.0)
    cell = ((PASS * rows + row) * num_blocks + block) * DIGITS + tl.arange(0, DIGITS)
    tl.store(counts + cell, tl.sum(count, 0))
    tl.store(masses + cell, tl.sum(mass, 0))


@triton.jit
def threshold_kernel(
    target,
    draft,
    temperatures,
    inverse,
    maxima,
    sums,
    kept,  # in and out [R]: mass of what is kept
    top_k,
    top_p,
    log_min_p,
    counts,
    masses,
    keys,
    num_above,
    mass_above,
    thresholds,  # out [R]
    last_tokens,  # out [R]
    rows,
    vocab,
    num_blocks,
    target_rows,
    places,
    target_batch,
    target_place,
    draft_batch,
    draft_place,
    PASS: tl.constexpr,
    MODE: tl.constexpr,
    MIN_P: tl.constexpr,
    PER_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Turn the key that was found into a threshold, one program a row."""
    row = tl.program_id(0)
    start, batch = row_of(
        target,
        draft,
        row,
        target_rows,
        places,
        target_batch,
        target_place,
        draft_batch,
        draft_place,
    )
    inverse = inverse_temperature(temperatures, inverse, batch, PER_ROW)
    highest, goal = goal_of(maxima, sums, kept, row, num_blocks, inverse, top_p, MODE, BLOCKS)
    threshold = -float("inf")
    last_token = vocab
    if PASS > 0:
        key, above_count, above_mass = narrow(
            counts, masses, keys, num_above, mass_above, row, rows, num_blocks, PASS,
            top_k, goal, MODE, BLOCKS,
        )  # fmt: skip
        # The bits below those of a half-precision type are zeros, inverted in a negative number.
        missing: tl.constexpr = 32 - 4 * PASS
        digit = key & 15
        if missing > 0:
            negative = (key >> (4 * PASS - 1)) == 0
            filled = (key.to(tl.uint64) << missing).to(tl.uint32)
            ones = tl.full((), 0xFFFFFFFF, tl.uint32) >> (4 * PASS)
            key = filled | tl.where(negative, ones, 0)
        threshold = value_of(key)
        block = tl.arange(0, BLOCKS)
        cell = (((PASS - 1) * rows + row) * num_blocks + block) * DIGITS + digit.to(tl.int32)
        equal = tl.load(counts + cell, mask=block < num_blocks, other=0)
        weight = tl.exp((threshold - highest) * inverse)
        if MODE == "count":
            num_equal = top_k - above_count
        else:
            num_equal = tl.ceil((goal - above_mass) / weight).to(tl.int32)
        num_equal = tl.minimum(tl.maximum(num_equal, 1), tl.sum(equal, 0))
        tl.store(kept + row, above_mass + num_equal * weight)
        # Which token is the last of them: first its block, then its place there.
        running = tl.cumsum(equal, 0)
        there = tl.min(tl.where(running >= num_equal, block, BLOCKS - 1), 0)
        rest = num_equal - tl.sum(tl.where(block < there, equal, 0), 0)
        token = there * BLOCK + tl.arange(0, BLOCK)
        same = (read(start, token, vocab) == threshold) & (token < vocab)
        running = tl.cumsum(same.to(tl.int32), 0)
        last_token = tl.min(tl.where(same & (running == rest), token, vocab), 0)
    if MIN_P:
        floor = highest + log_min_p / inverse
        last_token = tl.where(floor > threshold, vocab, last_token)
        threshold = tl.maximum(floor, threshold)
    tl.store(thresholds + row, threshold)
    tl.store(last_tokens + row, last_token)


def warped_stats(
    rows: Rows, top_k: int | None, top_p: float, min_p: float
) -> tuple[Tensor, Tensor, Cut | None]:
    """Return the statistics of what the warp keeps, and what that is (None: everything)."""
    maxima, sums = stats(rows)
    cut = _cut(rows, maxima, sums, top_k, top_p, min_p)
    if cut is not None:
        maxima, sums = stats(rows, cut)
    return maxima, sums, cut


def _cut(
    rows: Rows, maxima: Tensor, sums: Tensor, top_k: int | None, top_p: float, min_p: float
) -> Cut | None:
    """Return which tokens :func:`selftrain.ops.warp_logits` keeps, given statistics of all."""
    # Top-p looks at what top-k has left, so the two thresholds are found one after the other.
    modes = ["count"] if top_k is not None and top_k < rows.vocab else []
    if top_p < 1:
        modes.append("mass_of_kept" if modes else "mass")
    if not modes and min_p == 0:
        return None
    num_passes = _KEY_BITS[rows.target.dtype] // _BITS if modes else 0
    cells = (max(1, num_passes), rows.num_rows)
    found = Cut(rows.empty(rows.num_rows), rows.empty(rows.num_rows, dtype=torch.int32))
    common = {
        **rows.logits(),
        **rows.layout(),
        "maxima": maxima,
        "sums": sums,
        "kept": rows.empty(rows.num_rows),
        "top_k": top_k or rows.vocab,
        "top_p": top_p,
        "counts": rows.empty(*cells, rows.num_blocks, 16, dtype=torch.int32),
        "masses": rows.empty(*cells, rows.num_blocks, 16),
        "keys": rows.empty(*cells, dtype=torch.int64),
        "num_above": rows.empty(*cells, dtype=torch.int32),
        "mass_above": rows.empty(*cells),
        "rows": rows.num_rows,
        "BLOCKS": triton.next_power_of_2(rows.num_blocks),
    }
    # The interpreter pays by the operation, a GPU by the register.
    tile = rows.block if INTERPRETED else 128
    for mode in modes or ["count"]:
        for index in range(num_passes):
            launch(digit_kernel)[(rows.num_rows, rows.num_blocks)](
                **common, PASS=index, MODE=mode, TILE=tile, num_warps=4
            )
        launch(threshold_kernel)[(rows.num_rows,)](
            **common,
            log_min_p=math.log(min_p) if min_p > 0 else 0.0,
            thresholds=found.thresholds,
            last_tokens=found.last_tokens,
            PASS=num_passes,
            MODE=mode,
            MIN_P=min_p > 0 and (not modes or mode == modes[-1]),
            num_warps=4,
        )
    return found
