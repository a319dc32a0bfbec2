"""Which slots each query sees: attention masks for keys that lie at their own positions.

With slots a sliding window is a matter of the mask alone. All keys stay where they are, and a query
at position ``t`` sees slots ``t - window + 1 .. t``, so that rolling back stays free.
"""

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicSlidingWindowLayer

Mask = Tensor | dict[str, Tensor | None] | None
"""What a model's ``attention_mask`` argument takes: one mask, or one for each kind of layer."""


def slot_mask(
    positions: Tensor,
    extent: int,
    *,
    window: int | None = None,
    visible: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the mask of queries at ``positions`` over the slots before ``extent``.

    Args:
        positions: Where the queries stand in their own rows ``[batch, new]``.
        extent: How many slots are in use.
        window: How many tokens a query sees, itself included; None for all.
        visible: Which slots each query may see ``[batch, new, extent]``; default: all up to its
            own position.
        dtype: None for a boolean mask, True where a query looks; else an additive one in it.

    Returns:
        The mask ``[batch, 1, new, extent]``.
    """
    slots = torch.arange(extent, device=positions.device)
    query = positions.unsqueeze(-1)
    seen = slots <= query if visible is None else visible
    if window is not None and extent > window:
        seen = seen & (slots > query - window)
    seen = seen.unsqueeze(1)
    if dtype is None:
        return seen
    hidden = torch.finfo(dtype).min  # not -inf: a query that sees nothing must not become NaN
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, hidden)


class MaskPlan:
    """How to mask one model: which of its layers have a window, and the form it takes masks in.

    Args:
        model: A causal model of transformers with sdpa or eager attention.
    """

    def __init__(self, model: nn.Module) -> None:
        config = model.config.get_text_config(decoder=True)  # pyrefly: ignore
        windows = attention_windows(config)
        sliding = {w for w in windows if w is not None}
        self.window = min(sliding, default=None)
        """The number of tokens that sliding layers see; None if there are none."""
        self.mixed = bool(sliding) and None in windows
        """Whether there are sliding and full layers, so that each kind needs a mask."""
        additive = config._attn_implementation != "sdpa"
        self.dtype = next(model.parameters()).dtype if additive else None
        """The dtype of additive masks; None where boolean ones are taken."""

    def build(self, positions: Tensor, extent: int, *, visible: Tensor | None = None) -> Mask:
        """Return the mask of queries at ``positions``, in the form that the model takes.

        Where a single row sees all that there is, sdpa gets no mask, which opens its fast kernels.
        That is so for a single query and for a whole prompt; as in :meth:`SlotCache.forward`, the
        positions of a single row must therefore be consecutive and end at ``extent - 1``.

        Args:
            positions: Where the queries stand in their own rows ``[batch, new]``.
            extent: How many slots are in use.
            visible: Which slots each query may see ``[batch, new, extent]``, for trees of drafts;
                default: all up to its own position. Windows are counted in slots, which is exact
                for trees less deep than the window.
        """
        # At extent == window all is still visible, but transformers would add a mask of its own.
        beyond = self.window is not None and extent >= self.window
        sliding = self._mask(positions, extent, self.window, visible) if beyond else None
        if beyond and not self.mixed:
            return sliding
        full = self._mask(positions, extent, None, visible)
        if not self.mixed:
            return full
        return {"full_attention": full, "sliding_attention": sliding if beyond else full}

    def _mask(
        self, positions: Tensor, extent: int, window: int | None, visible: Tensor | None
    ) -> Tensor | None:
        batch, new = positions.shape
        if batch > 1 or visible is not None:
            return slot_mask(positions, extent, window=window, visible=visible, dtype=self.dtype)
        if window is None and self.dtype is None and new in (1, extent):
            return None
        return _band(new, extent, window, self.dtype, positions.device)


def _band(
    new: int, extent: int, window: int | None, dtype: torch.dtype | None, device: torch.device
) -> Tensor:
    """Return :func:`slot_mask` of one row whose positions end at ``extent - 1``, by fewer steps."""
    shape, before = (1, 1, new, extent), extent - new
    if dtype is None:
        seen = torch.ones(shape, dtype=torch.bool, device=device).tril_(before)
        return seen if window is None else seen.triu_(before - window + 1)
    hidden = torch.full(shape, torch.finfo(dtype).min, dtype=dtype, device=device)
    later = hidden.triu(before + 1)
    return later if window is None else later + hidden.tril_(before - window)


def attention_windows(config: PreTrainedConfig) -> list[int | None]:
    """Return the window of every layer, None where attention is full.

    This is how transformers itself reads the configuration to decide what each layer caches.
    """
    return [
        layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None
        for layer in DynamicCache(config=config).layers
    ]
