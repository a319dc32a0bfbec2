"""A model's forward over slots, compiled, for steps of a few tokens: Python costs most there."""

from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from selftrain.decoding.cache.masks import MaskPlan
from selftrain.nn.packed import pack_weights

CAPACITY_STEP = 128  # slots come in multiples of this, so that calls share their graphs


class CompiledStep:
    """A forward of a few tokens over slots, compiled by inductor on first use.

    Every call attends to all slots under a mask, so that shapes do not change as rows grow. On a
    GPU the graph is recorded and replayed (CUDA graphs); on a CPU the weights are packed as well.
    The first calls compile, for a minute or more; graphs are kept with this object, one for each
    number of rows, of tokens, and of slots.

    Args:
        model: A causal model in evaluation mode; neither it nor its weights may change afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        weight = next(model.parameters())
        on_gpu = weight.device.type == "cuda"
        packable = not on_gpu and weight.dtype in (torch.float32, torch.bfloat16)
        self.model = pack_weights(model) if packable else model
        self._plan = MaskPlan(model)
        # The model does not change, so only the shapes of what goes in need to be looked at: to
        # check all its modules again takes as long as a layer does.
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe}
        if on_gpu:
            options |= {"triton.cudagraphs": True}
        step = _own_code(_step, f"step_{id(self):x}")
        self._compiled = torch.compile(step, dynamic=False, options=options)

    def __call__(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        visible: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> Tensor:
        """Return logits ``[batch, new, vocab]``; ``keys`` and ``values`` are written in place.

        Args:
            tokens: Ids ``[batch, new]``.
            positions: Their positions ``[batch, new]``.
            slots: Where they are stored ``[batch, new]``.
            visible: Which slots each sees ``[batch, new, capacity]``.
            keys: One tensor a layer ``[batch, heads, capacity, head_dim]``.
            values: The same.
        """
        # Each shape is a graph of its own; eight are not always enough.
        with torch._dynamo.config.patch(recompile_limit=64):
            logits = self._compiled(
                self.model, self._plan, tokens, positions, slots, visible, keys, values
            )
        # The next replay of a CUDA graph writes to the same memory.
        return logits.clone() if logits.is_cuda else logits


def _step(
    model: nn.Module,
    plan: MaskPlan,
    tokens: Tensor,
    positions: Tensor,
    slots: Tensor,
    visible: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
) -> Tensor:
    pairs = zip(keys, values, strict=True)
    layers = [_StaticLayer(key, value, slots) for key, value in pairs]
    return model(
        input_ids=tokens,
        attention_mask=plan.build(positions, keys[0].shape[2], visible=visible),
        position_ids=positions,
        past_key_values=Cache(layers=layers),
        use_cache=True,
    ).logits


def _own_code(function: FunctionType, name: str) -> FunctionType:
    """Return the function with a code object of its own: that is where compiled graphs are kept.

    With guards on tensors alone, one model's graph would be taken for another's of equal shapes.
    """
    return FunctionType(function.__code__.replace(co_name=name), function.__globals__, name)


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
