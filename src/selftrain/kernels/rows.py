"""Statistics of rows of logits: the first pass of every kernel that needs a normaliser.

A call works on ``R`` rows: those of the target, ``[batch, place]`` flattened, then those of the
draft, ``[batch, drafted]``. Each is cut into blocks of the vocabulary. What a program finds in its
block goes to its own cell of ``[R, blocks]``; whoever needs the row combines its cells in a fixed
order, so results do not depend on which program was first.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from selftrain.kernels._dispatch import launch


@triton.jit
def row_of(
    target, draft, row, target_rows, places, target_batch, target_place, draft_batch, draft_place
):
    """Return where a row's logits begin, and which row of the batch it belongs to."""
    if row < target_rows:
        batch = row // places
        place = row % places
        start = target + batch.to(tl.int64) * target_batch + place.to(tl.int64) * target_place
    else:
        batch = (row - target_rows) // (places - 1)
        place = (row - target_rows) % (places - 1)
        start = draft + batch.to(tl.int64) * draft_batch + place.to(tl.int64) * draft_place
    return start, batch


@triton.jit
def inverse_temperature(temperatures, inverse, batch, PER_ROW: tl.constexpr):
    """Return 1 / temperature of a row of the batch."""
    if PER_ROW:
        return 1.0 / tl.load(temperatures + batch)
    return inverse


@triton.jit
def read(start, token, vocab):
    """Load logits as float32; -inf beyond the vocabulary."""
    return tl.load(start + token, mask=token < vocab, other=-float("inf")).to(tl.float32)


@triton.jit
def is_kept(x, token, threshold, last_token):
    """Return which tokens the warp keeps: above the threshold, or equal to it and early enough."""
    return (x > threshold) | ((x == threshold) & (token <= last_token))


@triton.jit
def weights(x, token, highest, inverse, threshold, last_token, MASKED: tl.constexpr):
    """Return exp((x - highest) / temperature) of tokens that the warp keeps, 0 for the others."""
    # A row without any finite logit has no mass; NaN stays NaN.
    weight = tl.exp((x - tl.where(highest == -float("inf"), 0.0, highest)) * inverse)
    if MASKED:
        weight = tl.where(is_kept(x, token, threshold, last_token) | (x != x), weight, 0.0)
    return weight


@triton.jit
def combine(highest, mass, inverse, axis: tl.constexpr):
    """Return the maximum, and the sum relative to it, from those of a row's blocks."""
    top = tl.max(highest, axis)
    finite = tl.where(top == -float("inf"), 0.0, top)
    finite = tl.expand_dims(finite, axis)
    return top, tl.sum(mass * tl.exp((highest - finite) * inverse), axis)


@triton.jit
def row_total(maxima, sums, row, num_blocks, inverse, BLOCKS: tl.constexpr):
    """Return the maximum of a row, and its sum relative to that."""
    block = tl.arange(0, BLOCKS)
    inside = block < num_blocks
    highest = tl.load(maxima + row * num_blocks + block, mask=inside, other=-float("inf"))
    mass = tl.load(sums + row * num_blocks + block, mask=inside, other=0.0)
    return combine(highest, mass, inverse, 0)


@triton.jit
def stats_kernel(
    target,
    draft,
    temperatures,
    inverse,
    thresholds,
    last_tokens,
    maxima,  # out [R, blocks]: the highest logit
    sums,  # out [R, blocks]: sum of the weights relative to it
    vocab,
    num_blocks,
    target_rows,
    places,
    target_batch,
    target_place,
    draft_batch,
    draft_place,
    PER_ROW: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Leave the statistics of one block of one row."""
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
    threshold = -float("inf")
    last_token = vocab
    if MASKED:
        threshold = tl.load(thresholds + row)
        last_token = tl.load(last_tokens + row)
    token = block * BLOCK + tl.arange(0, BLOCK)
    x = read(start, token, vocab)
    highest = tl.max(x, 0)
    mass = tl.sum(weights(x, token, highest, inverse, threshold, last_token, MASKED), 0)
    tl.store(maxima + row * num_blocks + block, highest)
    tl.store(sums + row * num_blocks + block, mass)


def block_size(vocab: int) -> int:
    """Return how many logits one program reads: enough programs for one row to fill a GPU."""
    return 1024 if vocab <= 16384 else 4096


@dataclass(frozen=True)
class Rows:
    """Rows of logits to work on, with how they are warped."""

    target: Tensor
    """``[B, places, V]``, last dimension contiguous."""
    draft: Tensor | None
    """``[B, places - 1, V]`` of the same type."""
    temperature: float
    temperatures: Tensor | None
    """``[B]`` float32, in the place of ``temperature``."""

    @property
    def vocab(self) -> int:
        """Return the size of the vocabulary."""
        return self.target.shape[2]

    @property
    def num_targets(self) -> int:
        """Return how many rows the target has."""
        return self.target.shape[0] * self.target.shape[1]

    @property
    def num_rows(self) -> int:
        """Return how many rows there are in all."""
        drafts = 0 if self.draft is None else self.draft.shape[0] * self.draft.shape[1]
        return self.num_targets + drafts

    @property
    def block(self) -> int:
        """Return how many logits one program reads."""
        return block_size(self.vocab)

    @property
    def num_blocks(self) -> int:
        """Return how many programs that makes for a row."""
        return -(-self.vocab // self.block)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a tensor beside the logits, not initialised."""
        return torch.empty(shape, dtype=dtype, device=self.target.device)

    def logits(self) -> dict[str, Tensor | float]:
        """Return the arguments that say where the logits are, and at which temperature."""
        return {
            "target": self.target,
            "draft": self.target if self.draft is None else self.draft,
            **self.temperature_arguments(),
        }

    def temperature_arguments(self) -> dict[str, Tensor | float]:
        """Return the arguments that say at which temperature each row is read."""
        return {
            "temperatures": self.target if self.temperatures is None else self.temperatures,
            "inverse": 1.0 / self.temperature,
        }

    def layout(self) -> dict[str, int | bool]:
        """Return the arguments that say how the logits lie."""
        draft = self.target if self.draft is None else self.draft
        return {
            "vocab": self.vocab,
            "num_blocks": self.num_blocks,
            "target_rows": self.num_targets,
            "places": self.target.shape[1],
            "target_batch": self.target.stride(0),
            "target_place": self.target.stride(1),
            "draft_batch": draft.stride(0),
            "draft_place": draft.stride(1),
            "PER_ROW": self.temperatures is not None,
            "BLOCK": self.block,
        }


@dataclass(frozen=True)
class Cut:
    """Which tokens of each row the warp keeps: above a threshold, and the first equal to it."""

    thresholds: Tensor
    """``[R]`` float32, in units of the raw logits."""
    last_tokens: Tensor
    """``[R]`` int32: the last token kept among those equal to the threshold."""


def stats(rows: Rows, cut: Cut | None = None) -> tuple[Tensor, Tensor]:
    """Return the maxima of all blocks ``[R, blocks]``, and the sums of weights relative to them."""
    maxima = rows.empty(rows.num_rows, rows.num_blocks)
    sums = torch.empty_like(maxima)
    launch(stats_kernel)[(rows.num_rows, rows.num_blocks)](
        **rows.logits(),
        **cut_arguments(rows, cut),
        maxima=maxima,
        sums=sums,
        **rows.layout(),
        num_warps=4,
    )
    return maxima, sums


def cut_arguments(rows: Rows, cut: Cut | None) -> dict[str, Tensor | bool]:
    """Return the arguments that say which tokens are kept."""
    return {
        "thresholds": rows.target if cut is None else cut.thresholds,
        "last_tokens": rows.target if cut is None else cut.last_tokens,
        "MASKED": cut is not None,
    }
