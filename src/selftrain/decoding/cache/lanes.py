"""Lanes: the places of a batch in which rows are decoded, one token a row at each step.

A row that has ended makes room for another. What is stored of a prompt is read once, however many
rows continue it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from selftrain.decoding.cache.padded import PaddedCache
from selftrain.decoding.cache.slots import SlotCache


class Lanes(Protocol):
    """A model and the rows that it is decoding, in lanes that are numbered from 0."""

    refills: bool
    """Whether single lanes can be given to new rows while the others go on."""

    def read(self, prompts: Sequence[Sequence[int]], *, num_rows: int) -> list[Any]:
        """Read prompts, each of which ``num_rows`` rows will continue; return their contexts.

        A prompt's last token is not among them: it is the first that :meth:`step` is given.
        """
        ...

    def together(self, first: Any, second: Any) -> bool:
        """Return whether rows of these two contexts can be in one batch."""
        ...

    def open(self, contexts: Sequence[Any]) -> None:
        """Begin a batch with a row of each of these contexts, in place of all there were."""
        ...

    def replace(self, lanes: Sequence[int], contexts: Sequence[Any]) -> None:
        """Give these lanes to new rows."""
        ...

    def select(self, lanes: Sequence[int]) -> None:
        """Keep these lanes alone, in ascending order; they are numbered anew."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to every row, ``[lanes]``; return the logits after it ``[lanes, vocab]``.

        The lengths of the rows are known to the host, so that nothing waits for the device.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """The keys and values of a prompt, ``[heads, length, head_dim]`` for each layer."""

    length: int
    layers: tuple[tuple[Tensor, Tensor] | None, ...]


class SlotLanes:
    """Lanes over :class:`SlotCache`: each has a copy of its row's prompt.

    Args:
        model: A model for which :func:`slot_obstacle` returns None.
        trunk: Tokens with which all prompts begin. They are read once.
        capacity: Most tokens that a row can hold.
    """

    refills = True

    def __init__(self, model: nn.Module, *, trunk: Sequence[int], capacity: int) -> None:
        self.model, self._trunk, self._capacity = model, len(trunk), capacity
        self._beginning = SlotCache(model, capacity=capacity)
        self._beginning.prefill([trunk])
        self._device: torch.device = self._beginning.device

    def read(self, prompts: Sequence[Sequence[int]], *, num_rows: int) -> list[StoredPrompt]:
        """Read prompts; see :meth:`Lanes.read`."""
        batch = torch.zeros(len(prompts), dtype=torch.long, device=self._device)
        cache = self._beginning.fork(batch)
        cache.prefill([p[self._trunk :] for p in prompts], start=self._trunk)
        return [StoredPrompt(len(p), cache.stored(row, len(p))) for row, p in enumerate(prompts)]

    def together(self, first: StoredPrompt, second: StoredPrompt) -> bool:
        """Return True; see :meth:`Lanes.together`."""
        return True

    def open(self, contexts: Sequence[StoredPrompt]) -> None:
        """Begin a batch; see :meth:`Lanes.open`."""
        self._cache = SlotCache(self.model, capacity=self._capacity)
        self._lengths = [0] * len(contexts)
        self.replace(range(len(contexts)), contexts)

    def replace(self, lanes: Sequence[int], contexts: Sequence[StoredPrompt]) -> None:
        """Give lanes to new rows; see :meth:`Lanes.replace`."""
        for lane, context in zip(lanes, contexts, strict=True):
            self._cache.place(lane, context.layers, num_rows=len(self._lengths))
            self._lengths[lane] = context.length
        self._locate()

    def select(self, lanes: Sequence[int]) -> None:
        """Keep lanes; see :meth:`Lanes.select`."""
        self._cache.select(torch.tensor(lanes, device=self._device))
        self._lengths = [self._lengths[lane] for lane in lanes]
        self._locate()

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to every row; see :meth:`Lanes.step`."""
        extent = max(self._lengths) + 1
        logits = self._cache.forward(
            tokens.unsqueeze(1), self._positions.unsqueeze(1), extent=extent, last_only=True
        )
        self._lengths = [length + 1 for length in self._lengths]
        self._positions = self._positions + 1
        return logits[:, -1]

    def _locate(self) -> None:
        self._positions = torch.tensor(self._lengths, device=self._device)


@dataclass(frozen=True, slots=True)
class PaddedRow:
    """One row of a batch of prompts that were padded together."""

    batch: PaddedCache
    row: int
    length: int


class PaddedLanes:
    """Lanes over :class:`PaddedCache`, for models that cannot use slots; they cannot be refilled.

    Args:
        model: A model that :class:`PaddedCache` can drive.
        trunk: Tokens with which all prompts begin. They are read with each prompt.
        capacity: Most tokens that a row can hold.
    """

    refills = False

    def __init__(self, model: nn.Module, *, trunk: Sequence[int], capacity: int) -> None:
        self.model, self._capacity = model, capacity
        self._device: torch.device = next(model.parameters()).device

    def read(self, prompts: Sequence[Sequence[int]], *, num_rows: int) -> list[PaddedRow]:
        """Read prompts; see :meth:`Lanes.read`."""
        cache = PaddedCache(self.model, capacity=self._capacity)
        cache.prefill(prompts)
        return [PaddedRow(cache, row, len(p)) for row, p in enumerate(prompts)]

    def together(self, first: PaddedRow, second: PaddedRow) -> bool:
        """Return whether both were read in one call; see :meth:`Lanes.together`."""
        return first.batch is second.batch

    def open(self, contexts: Sequence[PaddedRow]) -> None:
        """Begin a batch; see :meth:`Lanes.open`."""
        rows = torch.tensor([c.row for c in contexts], device=self._device)
        self._cache = contexts[0].batch.fork(rows)
        self._positions = torch.tensor([c.length for c in contexts], device=self._device)

    def replace(self, lanes: Sequence[int], contexts: Sequence[PaddedRow]) -> None:
        """Refuse: the padding of one row is that of all."""
        raise NotImplementedError("padded lanes are opened together.")

    def select(self, lanes: Sequence[int]) -> None:
        """Keep lanes; see :meth:`Lanes.select`."""
        kept = torch.tensor(lanes, device=self._device)
        self._cache.select(kept)
        self._positions = self._positions[kept]

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to every row; see :meth:`Lanes.step`."""
        places = self._positions.unsqueeze(1)
        logits = self._cache.forward(tokens.unsqueeze(1), places, extent=0, last_only=True)
        self._positions = self._positions + 1
        return logits[:, -1]
