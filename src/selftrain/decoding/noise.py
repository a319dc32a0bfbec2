"""The noise of speculative decoding, addressed by where a block starts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from selftrain.ops.philox import Stream, gumbel, uniform

_WINDOW = 64  # positions whose noise is computed at once: Philox is cheap only in bulk


class BlockNoise:
    """The noise of one block: uniforms ``[batch, slot]``, and Gumbel noise where asked for.

    ``seeds`` and ``starts`` address it, for kernels that make their own.
    """

    def __init__(self, uniforms: Tensor, seeds: Tensor, starts: Tensor) -> None:
        self._uniforms, self.seeds, self.starts = uniforms, seeds, starts
        self._gumbel: Tensor | None = None

    def cut(self, num_slots: int) -> "BlockNoise":
        """Return the noise of the first slots: the drafter proposed less than was asked for."""
        return BlockNoise(self._uniforms[:, :, :num_slots], self.seeds, self.starts)

    @property
    def draft(self) -> Tensor:
        """For drawing proposals ``[batch, drafted]``."""
        return self._uniforms[:, Stream.DRAFT, :-1]

    @property
    def accept(self) -> Tensor:
        """For the accept tests ``[batch, drafted]``."""
        return self._uniforms[:, Stream.ACCEPT, :-1]

    @property
    def emit(self) -> Tensor:
        """For the token that ends the block, wherever it ends ``[batch, drafted + 1]``."""
        return self._uniforms[:, Stream.EMIT]

    def gumbel(self, vocab_size: int, dtype: torch.dtype) -> Tensor:
        """Return what draft and target share when coupled ``[batch, drafted + 1, vocab]``.

        Keyed by each token's own position and nothing else: the same in every block that comes by.
        """
        if self._gumbel is None or self._gumbel.dtype != dtype:  # models may differ in theirs
            slots = torch.arange(self._uniforms.shape[2], device=self.starts.device)
            positions = self.starts.unsqueeze(1) + slots
            self._gumbel = gumbel(
                self.seeds.unsqueeze(1), position=positions, vocab_size=vocab_size, dtype=dtype
            )
        return self._gumbel


class Noise:
    """Uniforms for a block that starts at a given position of each row.

    Keyed by the block's start and the slot, never by the token's own position: a position that is
    drafted again in a later block then meets fresh noise. With noise kept from block to block, the
    block rule, which looks beyond the token that ends a block, would be biased.

    Args:
        seeds: One a row ``[batch]``.
        num_slots: The most slots of a block: draft tokens and the one that follows.
    """

    def __init__(self, seeds: Tensor, num_slots: int) -> None:
        self.seeds, self.num_slots = seeds, num_slots
        self._first: list[int] = []
        self._table = torch.empty(0)

    def at(self, starts: Sequence[int], num_slots: int) -> BlockNoise:
        """Return the noise of a block, ``starts`` being the index of each row's next token."""
        device = self.seeds.device
        if not self._first or any(
            s - f >= _WINDOW for s, f in zip(starts, self._first, strict=True)
        ):
            self._first = list(starts)
            window = torch.tensor(starts, device=device).unsqueeze(1)
            window = window + torch.arange(_WINDOW, device=device)
            self._table = uniform(
                self.seeds.view(-1, 1, 1, 1),
                stream=torch.arange(Stream.COUPLED, device=device).view(-1, 1),
                position=window.view(-1, _WINDOW, 1, 1),
                slot=torch.arange(self.num_slots, device=device),
            )
        offsets = [s - f for s, f in zip(starts, self._first, strict=True)]
        if len(offsets) == 1:
            uniforms = self._table[:, offsets[0]]
        else:
            rows = torch.arange(len(offsets), device=device)
            uniforms = self._table[rows, torch.tensor(offsets, device=device)]
        return BlockNoise(
            uniforms[:, :, :num_slots], self.seeds, torch.tensor(starts, device=device)
        )

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        index = torch.tensor(rows, dtype=torch.long, device=self.seeds.device)
        self.seeds = self.seeds[index]
        if self._first:
            self._first, self._table = [self._first[r] for r in rows], self._table[index]
