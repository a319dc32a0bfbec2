"""Left padding and transformers' own cache, for sampling from models that cannot use slots."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache


class PaddedCache:
    """The fall-back for models that cannot use slots: left padding and transformers' own cache.

    It appends one token a row at a time and cannot roll back, so it serves plain sampling only.
    It has the interface of :class:`SlotCache`, and works for sliding windows and recurrent layers.
    """

    def __init__(self, model: nn.Module, *, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        self._cache: Any = DynamicCache(config=model.config)  # pyrefly: ignore
        parameters = inspect.signature(model.forward).parameters
        self._argument = "cache_params" if "cache_params" in parameters else "past_key_values"
        self._mask: Tensor | None = None

    def forward(
        self, tokens: Tensor, positions: Tensor, *, extent: int, last_only: bool = False
    ) -> Tensor:
        """Append ``tokens`` to every row; see :meth:`SlotCache.forward`."""
        fresh = torch.ones_like(tokens)
        self._mask = fresh if self._mask is None else torch.cat([self._mask, fresh], dim=1)
        return self._run(tokens, positions)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Store ``prompts``, padded on the left."""
        longest = max(map(len, prompts))
        if longest == 0:
            return
        device = next(self.model.parameters()).device
        gaps = torch.tensor([longest - len(p) for p in prompts], device=device).unsqueeze(1)
        tokens = torch.tensor([[*([0] * (longest - len(p))), *p] for p in prompts], device=device)
        index = torch.arange(longest, device=device)
        self._mask = (index >= gaps).long()
        self._run(tokens, (index - gaps).clamp(min=0))

    def fork(self, rows: Tensor) -> "PaddedCache":
        """Return a new cache holding a copy of the given rows, repeated as often as they occur."""
        other = copy.copy(self)
        other._cache = copy.deepcopy(self._cache)
        other.select(rows)
        return other

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows by index."""
        if self._mask is not None:
            self._mask = self._mask[rows]
            self._cache.reorder_cache(rows)

    def _run(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.model(
            input_ids=tokens,
            attention_mask=self._mask,
            position_ids=positions,
            use_cache=True,
            **{self._argument: self._cache},
        ).logits
