"""Slots: keys and values at per-row places, so that rolling back is free.

A row's token at index ``t`` of its own sequence lives in slot ``t``, whatever the other rows do,
and a query at position ``t`` sees slots ``0..t``. Rolling a row back is therefore free: the next
tokens overwrite what was rejected, and until then no query can see it. Prompts of different length
need no padding rules: what lies beyond a row's length is overwritten before it becomes visible.
"""

import copy
import inspect
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from selftrain.decoding.cache.compiled import CAPACITY_STEP, CompiledStep
from selftrain.decoding.cache.masks import MaskPlan


class _Write:
    """Where the forward that is under way puts its keys and values."""

    slots: Tensor  # [batch, new]
    rows: Tensor  # [batch, 1]
    extent: int  # slots in use afterwards
    before: int  # and those before it, as far as transformers is concerned


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values, ``[batch, heads, capacity, head_dim]``."""

    is_sliding = False
    keys: Tensor  # pyrefly: ignore[bad-override]
    values: Tensor  # pyrefly: ignore[bad-override]

    def __init__(self, capacity: int, write: _Write) -> None:
        super().__init__()
        self.capacity, self.write = capacity, write

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch = key_states.shape[0]
        # Zeros, not empty: a masked slot still meets the softmax, where 0 * NaN would be NaN.
        self.keys, self.values = (
            x.new_zeros(batch, x.shape[1], self.capacity, x.shape[3])
            for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        extent, new = self.write.extent, key_states.shape[2]
        if key_states.shape[0] == 1:  # one row writes one stretch: several times cheaper
            self.keys[:, :, extent - new : extent] = key_states
            self.values[:, :, extent - new : extent] = value_states
        else:
            rows, slots = self.write.rows, self.write.slots
            self.keys[rows, :, slots] = key_states.transpose(1, 2)
            self.values[rows, :, slots] = value_states.transpose(1, 2)
        return self.keys[:, :, :extent], self.values[:, :, :extent]

    def get_seq_length(self) -> int:
        return self.write.before

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.write.extent, 0

    def get_max_length(self) -> int:
        return self.capacity


class SlotCache:
    """A causal language model together with its slots for a batch of rows.

    Args:
        model: A model for which :func:`slot_obstacle` returns None.
        capacity: Most tokens that a row can hold.
        step: The model's compiled forward.
        sizes: For which numbers of tokens a row to use it; each is a graph of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        capacity: int,
        step: CompiledStep | None = None,
        sizes: Collection[int] = (),
    ) -> None:
        self.model, self._step, self._sizes = model, step, frozenset(sizes)
        self.capacity = capacity
        if step is not None:
            capacity = self.capacity = -(-capacity // CAPACITY_STEP) * CAPACITY_STEP
        self._write = _Write()
        config = model.config.get_text_config(decoder=True)  # pyrefly: ignore
        self._plan = MaskPlan(model)
        self._layers = [_SlotLayer(capacity, self._write) for _ in range(config.num_hidden_layers)]
        self._cache = Cache(layers=list(self._layers))
        self._last_logits = _last_logits_argument(model)
        self.device = next(model.parameters()).device
        self._places = torch.arange(capacity, device=self.device)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        *,
        extent: int,
        last_only: bool = False,
        slots: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Feed tokens at the given positions of their rows and return the logits after each.

        Args:
            tokens: Ids ``[batch, new]``.
            positions: Their indices in their own rows ``[batch, new]``.
            extent: One more than the largest slot: known to the host, so that reading it from the
                device is not needed.
            last_only: Spare the head the other positions; the result then has ``new = 1``.
            slots: Where they are stored ``[batch, new]``; default: at their positions. For a single
                row slots must be consecutive and end at ``extent - 1``.
            visible: Which slots each of them sees ``[batch, new, extent]``; default: those up to
                its position.

        Returns:
            Logits ``[batch, new, vocab]`` in the model's dtype.
        """
        step = self._step
        if step is not None and tokens.shape[1] in self._sizes and self._stored():
            logits = self._compiled(step, tokens, positions, slots, visible)
            return logits[:, -1:] if last_only else logits
        self._write.slots, self._write.extent = positions if slots is None else slots, extent
        self._write.before = extent - tokens.shape[1]
        self._write.rows = torch.arange(tokens.shape[0], device=tokens.device).unsqueeze(1)
        keep = {self._last_logits: 1} if last_only and self._last_logits else {}
        logits = self.model(
            input_ids=tokens,
            attention_mask=self._plan.build(positions, extent, visible=visible),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **keep,
        ).logits
        return logits[:, -1:] if last_only else logits

    def _stored(self) -> bool:
        return self._layers[-1].is_initialized

    def _compiled(
        self,
        step: CompiledStep,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor | None,
        visible: Tensor | None,
    ) -> Tensor:
        if visible is None:
            visible = self._places <= positions.unsqueeze(-1)
        else:  # all slots are shown
            visible = nn.functional.pad(visible, (0, self.capacity - visible.shape[-1]))
        keys, values = [x.keys for x in self._layers], [x.values for x in self._layers]
        where = positions if slots is None else slots
        return step(tokens, positions, where, visible, keys, values)

    def prefill(self, prompts: Sequence[Sequence[int]], *, start: int = 0) -> None:
        """Store the keys and values of ``prompts``, one row each; empty prompts are allowed.

        Args:
            prompts: Token ids.
            start: How many tokens every row holds already, to which these are appended.
        """
        longest = max(map(len, prompts))
        if longest == 0:
            return
        device = next(self.model.parameters()).device
        rows = [[*p, *([0] * (longest - len(p)))] for p in prompts]
        tokens = torch.tensor(rows, device=device)
        positions = torch.arange(start, start + longest, device=device).expand_as(tokens)
        self.forward(tokens, positions, extent=start + longest, last_only=True)

    def stored(self, row: int, length: int) -> tuple[tuple[Tensor, Tensor] | None, ...]:
        """Return the keys and values of a row's first tokens, ``[heads, length, head_dim]`` each.

        They are views, one pair for every layer; None for a layer that stores nothing.
        """
        return tuple(
            (x.keys[row, :, :length], x.values[row, :, :length]) if x.is_initialized else None
            for x in self._layers
        )

    def place(
        self,
        row: int,
        stretches: Sequence[tuple[Tensor, Tensor] | None],
        *,
        num_rows: int,
    ) -> None:
        """Store what :meth:`stored` returned as the first tokens of a row.

        Args:
            row: Which one; what it held is overwritten as it grows.
            stretches: One for each layer.
            num_rows: How many rows the cache has, which it may not have been told yet.
        """
        for layer, stretch in zip(self._layers, stretches, strict=True):
            if stretch is None:
                continue
            keys, values = stretch
            if not layer.is_initialized:
                layer.lazy_initialization(
                    *(x.unsqueeze(0).expand(num_rows, -1, -1, -1) for x in stretch)
                )
            layer.keys[row, :, : keys.shape[1]] = keys
            layer.values[row, :, : values.shape[1]] = values

    def fork(self, rows: Tensor) -> "SlotCache":
        """Return a new cache holding a copy of the given rows, repeated as often as they occur."""
        other = SlotCache(self.model, capacity=self.capacity)
        for mine, theirs in zip(self._layers, other._layers, strict=True):
            if mine.is_initialized:
                theirs.keys, theirs.values = mine.keys[rows], mine.values[rows]
                theirs.is_initialized = True
        return other

    def view(self, model: nn.Module) -> "SlotCache":
        """Return a cache for ``model``, this one's first layers, over the same slots.

        What one of the two writes, the other reads. Rows are selected in this one, not in the view.
        """
        other = copy.copy(self)
        other.model, other._plan, other._step = model, MaskPlan(model), None
        config = model.config.get_text_config(decoder=True)  # pyrefly: ignore
        other._layers = self._layers[: config.num_hidden_layers]
        other._cache = Cache(layers=list(other._layers))
        return other

    def move(self, sources: Tensor, destinations: Tensor) -> None:
        """Copy what is stored from slots to other slots of the same row, both ``[batch, n]``."""
        rows = torch.arange(len(sources), device=sources.device).unsqueeze(1)
        for layer in self._layers:
            layer.keys[rows, :, destinations] = layer.keys[rows, :, sources]
            layer.values[rows, :, destinations] = layer.values[rows, :, sources]

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows by index; a no-op before anything was stored."""
        for layer in self._layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]


def _last_logits_argument(model: nn.Module) -> str | None:
    parameters = inspect.signature(model.forward).parameters
    return "logits_to_keep" if "logits_to_keep" in parameters else None
