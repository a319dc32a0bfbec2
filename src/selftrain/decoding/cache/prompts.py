"""Prompts that are read once, by a model that goes on from each many times and learns from it all.

Shape letters: B rows, P prompts, T time.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from selftrain.decoding.cache.fit import dynamic_obstacle
from selftrain.ops.masking import pad_sequences


def prompts_obstacle(model: nn.Module) -> str | None:
    """Return why ``model`` cannot use :class:`PromptCache`, or None if it can."""
    adapters = getattr(model, "peft_config", {})
    if any(getattr(adapter, "is_prompt_learning", False) for adapter in adapters.values()):
        return "it has virtual tokens in front of its input"
    # A wrapper of adapters hides the arguments of the model that they sit in.
    base: Any = model
    return dynamic_obstacle(base.get_base_model() if adapters else model)


class PromptCache:
    """The keys and values of prompts, with the graph that leads back to the parameters.

    What goes on from a prompt gets the same logits and gradients as prompt and continuation in one
    piece, up to rounding.

    Args:
        model: A model for which :func:`prompts_obstacle` returns None, in evaluation mode:
            transformers drops caches of layers that compute their activations again. Not what wraps
            it for several processes, whose forward passes are counted.
        prompts: Token ids; none may be empty.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]]) -> None:
        device = next(model.parameters()).device
        padded = pad_sequences(prompts)
        self._mask_PT = padded.mask.long().to(device)
        self._lengths_P = self._mask_PT.sum(1)
        self._cache: Any = DynamicCache(config=model.config)  # pyrefly: ignore
        model(
            input_ids=padded.token_ids.to(device),
            attention_mask=self._mask_PT,
            past_key_values=self._cache,
            use_cache=True,
        )

    def inputs(self, prompts_B: Tensor, attention_mask_BT: Tensor) -> dict[str, Any]:
        """Return the arguments, beside ``input_ids``, with which rows go on from prompts.

        They can be used in one forward pass, which appends to the keys and values.

        Args:
            prompts_B: The prompt of each row, by its number.
            attention_mask_BT: 1 at the tokens of the rows, 0 at padding on the right.
        """
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer in cache.layers:
            if layer.keys is not None:  # else it looks at another layer's
                layer.keys = layer.keys.index_select(0, prompts_B)
                layer.values = layer.values.index_select(0, prompts_B)
        time = torch.arange(attention_mask_BT.shape[1], device=prompts_B.device)
        return {
            "attention_mask": torch.cat([self._mask_PT[prompts_B], attention_mask_BT], 1),
            "position_ids": self._lengths_P[prompts_B].unsqueeze(1) + time,
            "past_key_values": cache,
        }
