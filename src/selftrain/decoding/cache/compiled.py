"""A model's forward over slots, compiled, for steps of a few tokens: Python costs most there."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from selftrain.decoding.cache.masks import MaskPlan

MAX_TOKENS = 32  # per row; longer inputs are prompts, whose forwards need no compiling
CAPACITY_STEP = 128  # slots come in multiples of this, so that calls share their graphs


class CompiledStep:
    """One forward of a few tokens over slots, compiled by inductor on first use.

    Every call attends to all slots under a mask, so that shapes do not change as rows grow. On a
    GPU the graph is recorded and replayed (CUDA graphs); on a CPU the weights are packed as well,
    which takes the memory of a second copy. The first calls compile, for a minute or more; graphs
    are kept with this object, one for each number of rows and kind of step.

    Args:
        model: A causal model in evaluation mode; its weights must not change afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._plan = MaskPlan(model)
        if next(model.parameters()).device.type == "cuda":
            self._compiled = torch.compile(self._forward, mode="reduce-overhead")
        else:
            self._compiled = torch.compile(self._forward, options={"freezing": True})

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        visible: Tensor | None,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        """Return logits ``[batch, new, vocab]``; ``keys`` and ``values`` are written in place.

        Args:
            tokens: Ids ``[batch, new]``.
            positions: Their positions ``[batch, new]``.
            slots: Where they are stored ``[batch, new]``.
            visible: Which slots each sees ``[batch, new, capacity]``; None: up to its position.
            keys: One tensor a layer ``[batch, heads, capacity, head_dim]``.
            values: The same.
        """
        # Each number of rows and kind of step is a graph of its own; eight are not always enough.
        with torch._dynamo.config.patch(recompile_limit=64):
            return self._compiled(tokens, positions, slots, visible, keys, values).clone()

    def _forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        visible: Tensor | None,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        capacity = keys[0].shape[2]
        if visible is None:
            places = torch.arange(capacity, device=tokens.device)
            visible = places <= positions.unsqueeze(-1)
        pairs = zip(keys, values, strict=True)
        layers = [_StaticLayer(key, value, slots) for key, value in pairs]
        return self.model(
            input_ids=tokens,
            attention_mask=self._plan.build(positions, capacity, visible=visible),
            position_ids=positions,
            past_key_values=Cache(layers=layers),
            use_cache=True,
        ).logits


class _StaticLayer(CacheLayerMixin):
    """One layer's slots, all of them shown to the attention."""

    is_sliding = False
    keys: Tensor  # pyrefly: ignore[bad-override]
    values: Tensor  # pyrefly: ignore[bad-override]

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.slots = keys, values, slots
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.slots.shape[0] == 1:
            self.keys.index_copy_(2, self.slots[0], key_states)
            self.values.index_copy_(2, self.slots[0], value_states)
        else:
            rows = torch.arange(self.slots.shape[0], device=self.slots.device).unsqueeze(1)
            self.keys[rows, :, self.slots] = key_states.transpose(1, 2)
            self.values[rows, :, self.slots] = value_states.transpose(1, 2)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]
