"""A cache for models that cannot use slots: transformers' own, with holes where tokens fell.

Nothing is ever cut off. New tokens are appended, tokens that are fed again leave a hole that the
attention mask hides, and when there is more hole than substance the rest is moved together. It asks
of a model only that it honours a two-dimensional mask and, through it or through ``position_ids``,
counts positions without the holes.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

_HOLE = -1
_SLACK = 32  # holes that are worth keeping, however short the rows are


class HoleyCache:
    """A causal language model together with transformers' cache of a batch of rows.

    It has the interface and the meaning of :class:`SlotCache`, and is slower: the cache is copied
    as it grows.

    Args:
        model: A model for which :func:`dynamic_obstacle` returns None.
        capacity: Most tokens that a row can hold.
    """

    def __init__(self, model: nn.Module, *, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        self._cache: Any = DynamicCache(config=model.config)  # pyrefly: ignore
        self._places: Tensor | None = None  # [batch, slots]: the position of what a slot holds
        parameters = inspect.signature(model.forward).parameters
        self._keeps_last = "logits_to_keep" in parameters

    def forward(
        self, tokens: Tensor, positions: Tensor, *, extent: int, last_only: bool = False
    ) -> Tensor:
        """Feed tokens at the given positions of their rows; see :meth:`SlotCache.forward`.

        The positions of a row must not decrease. Of a position that is fed twice in one call the
        first token stands, so that every query sees at least one key.
        """
        repeated = torch.zeros_like(positions, dtype=torch.bool)
        repeated[:, 1:] = positions[:, 1:] == positions[:, :-1]
        fresh = positions.masked_fill(repeated, _HOLE)
        if self._places is not None:
            stands = self._places.masked_fill(self._places >= positions[:, :1], _HOLE)
            if stands.shape[1] + tokens.shape[1] > 2 * extent + _SLACK:
                stands = self._compact(stands, extent)
            fresh = torch.cat([stands, fresh], dim=1)
        self._places = fresh
        keep = {"logits_to_keep": 1} if last_only and self._keeps_last else {}
        logits = self.model(
            input_ids=tokens,
            attention_mask=(fresh != _HOLE).long(),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **keep,
        ).logits
        return logits[:, -1:] if last_only else logits

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Store ``prompts``, one row each; empty prompts are allowed.

        Shorter ones are filled up on the right, with tokens that fall as soon as the row goes on.
        """
        longest = max(map(len, prompts))
        if longest == 0:
            return
        device = next(self.model.parameters()).device
        rows = [[*p, *([0] * (longest - len(p)))] for p in prompts]
        tokens = torch.tensor(rows, device=device)
        positions = torch.arange(longest, device=device).expand_as(tokens)
        self.forward(tokens, positions, extent=longest, last_only=True)

    def fork(self, rows: Tensor) -> "HoleyCache":
        """Return a new cache holding a copy of the given rows, repeated as often as they occur."""
        other = copy.copy(self)
        other._cache = copy.deepcopy(self._cache)
        other.select(rows)
        return other

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows by index; a no-op before anything was stored."""
        if self._places is not None:
            self._places = self._places[rows]
            self._cache.reorder_cache(rows)

    def _compact(self, places: Tensor, width: int) -> Tensor:
        """Move what stands to the first ``width`` slots, in order; no row holds more."""
        order = (places == _HOLE).long().argsort(dim=1, stable=True)[:, :width]
        index = order[:, None, :, None]
        for layer in self._cache.layers:
            if layer.keys is None:  # it looks at another layer's
                continue
            layer.keys, layer.values = (
                x.gather(2, index.to(x.device).expand(-1, x.shape[1], -1, x.shape[3]))
                for x in (layer.keys, layer.values)
            )
        return places.gather(1, order)
