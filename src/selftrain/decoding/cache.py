"""Key-value slots with per-row lengths: the only module that knows transformers' cache classes.

A row's token at index ``t`` of its own sequence lives in slot ``t``, whatever the other rows do,
and a query at position ``t`` sees slots ``0..t``. Rolling a row back is therefore free: the next
tokens overwrite what was rejected, and until then no query can see it. Prompts of different length
need no padding rules: what lies beyond a row's length is overwritten before it becomes visible.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from selftrain.nn.modes import training_mode

_PROBE_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
_PROBE_TOLERANCE_HALF = 0.1


class _Write:
    """Where the forward that is under way puts its keys and values."""

    positions: Tensor  # [batch, new]
    rows: Tensor  # [batch, 1]
    extent: int  # slots in use afterwards


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
            rows, positions = self.write.rows, self.write.positions
            self.keys[rows, :, positions] = key_states.transpose(1, 2)
            self.values[rows, :, positions] = value_states.transpose(1, 2)
        return self.keys[:, :, :extent], self.values[:, :, :extent]

    def get_seq_length(self) -> int:
        return self.write.extent

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.write.extent, 0

    def get_max_length(self) -> int:
        return self.capacity


class SlotCache:
    """A causal language model together with its slots for a batch of rows.

    Args:
        model: A model for which :func:`slot_obstacle` returns None.
        capacity: Most tokens that a row can hold.
    """

    def __init__(self, model: nn.Module, *, capacity: int) -> None:
        self.model = model
        self.capacity = capacity
        self._write = _Write()
        config = model.config.get_text_config(decoder=True)  # pyrefly: ignore
        self._additive = config._attn_implementation != "sdpa"
        self._layers = [_SlotLayer(capacity, self._write) for _ in range(config.num_hidden_layers)]
        self._cache = Cache(layers=list(self._layers))
        self._last_logits = _last_logits_argument(model)

    def forward(
        self, tokens: Tensor, positions: Tensor, *, extent: int, last_only: bool = False
    ) -> Tensor:
        """Feed tokens at the given positions of their rows and return the logits after each.

        Args:
            tokens: Ids ``[batch, new]``.
            positions: Their indices in their own rows ``[batch, new]``. For a single row they must
                be consecutive and end at ``extent - 1``.
            extent: One more than the largest position: known to the host, so that reading it from
                the device is not needed.
            last_only: Spare the head the other positions; the result then has ``new = 1``.

        Returns:
            Logits ``[batch, new, vocab]`` in the model's dtype.
        """
        self._write.positions, self._write.extent = positions, extent
        self._write.rows = torch.arange(tokens.shape[0], device=tokens.device).unsqueeze(1)
        slots = torch.arange(extent, device=tokens.device)
        mask = (slots <= positions.unsqueeze(-1)).unsqueeze(1)
        if self._additive:
            dtype = next(self.model.parameters()).dtype
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
        keep = {self._last_logits: 1} if last_only and self._last_logits else {}
        logits = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **keep,
        ).logits
        return logits[:, -1:] if last_only else logits

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Store the keys and values of ``prompts``, one row each; empty prompts are allowed."""
        longest = max(map(len, prompts))
        if longest == 0:
            return
        device = next(self.model.parameters()).device
        rows = [[*p, *([0] * (longest - len(p)))] for p in prompts]
        tokens = torch.tensor(rows, device=device)
        positions = torch.arange(longest, device=device).expand_as(tokens)
        self.forward(tokens, positions, extent=longest, last_only=True)

    def fork(self, rows: Tensor) -> "SlotCache":
        """Return a new cache holding a copy of the given rows, repeated as often as they occur."""
        other = SlotCache(self.model, capacity=self.capacity)
        for mine, theirs in zip(self._layers, other._layers, strict=True):
            if mine.is_initialized:
                theirs.keys, theirs.values = mine.keys[rows], mine.values[rows]
                theirs.is_initialized = True
        return other

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows by index; a no-op before anything was stored."""
        for layer in self._layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]


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


def slot_obstacle(model: nn.Module) -> str | None:
    """Return why ``model`` cannot use :class:`SlotCache`, or None if it can.

    Besides reading the configuration it tries: two ragged rows fed piece by piece must give the
    logits of a plain forward. That catches models that ignore the mask or the positions.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return "it has no transformers configuration"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model"
    layers = DynamicCache(config=config).layers
    other = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
    if other:
        names = ", ".join(other)
        return f"it has sliding-window or recurrent layers ({names}), which cannot roll back"
    attention = config.get_text_config(decoder=True)._attn_implementation
    if attention not in ("sdpa", "eager"):
        return (
            f"its attention is {attention!r}, which takes no per-row mask; load it with "
            "attn_implementation='sdpa'"
        )
    return _probe(model, SlotCache)


def sampling_cache(model: nn.Module) -> type[SlotCache] | type[PaddedCache]:
    """Return the cache class to sample from ``model`` with.

    Raises:
        TypeError: If neither gives the logits of a plain forward.
    """
    slots = slot_obstacle(model)
    if slots is None:
        return SlotCache
    padded = _probe(model, PaddedCache)
    if padded is None:
        return PaddedCache
    raise TypeError(f"cannot sample from this model. Slots: {slots}. Padded cache: {padded}.")


def max_positions(model: nn.Module) -> int | None:
    """Return how many positions the model's table or training covers; None if it does not say."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return None
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@torch.no_grad()
def _probe(model: nn.Module, cache_type: type[SlotCache] | type[PaddedCache]) -> str | None:
    """Say what goes wrong when two ragged rows go through the cache piece by piece, or None."""
    weight = next(model.parameters())
    vocab = model.config.get_text_config(decoder=True).vocab_size  # pyrefly: ignore
    tokens = (torch.arange(12, device=weight.device).view(2, 6) * 7 + 1) % vocab
    starts = torch.tensor([[2], [3]], device=weight.device)
    with training_mode(False, model):
        try:
            plain = model(input_ids=tokens, use_cache=False).logits
            cache = cache_type(model, capacity=8)
            cache.prefill([tokens[0, :2].tolist(), tokens[1, :3].tolist()])
            cache.forward(tokens.gather(1, starts), starts, extent=4)
            new = 1
            if cache_type is SlotCache:  # roll the last token back, then feed two
                starts, new = starts - 1, 3
            positions = starts + 1 + torch.arange(new, device=weight.device)
            got = cache.forward(tokens.gather(1, positions), positions, extent=6)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            return f"a trial forward failed ({type(error).__name__}: {error})"
    want = plain.gather(1, positions.unsqueeze(-1).expand_as(got))
    tolerance = _PROBE_TOLERANCE.get(weight.dtype, _PROBE_TOLERANCE_HALF)
    off = (got.double() - want.double()).abs().max() / want.double().std().clamp(min=1e-6)
    if not off <= tolerance:
        return f"it ignores the cache, mask or positions (logits off by {off:.1e} deviations)"
    return None


def _last_logits_argument(model: nn.Module) -> str | None:
    parameters = inspect.signature(model.forward).parameters
    return "logits_to_keep" if "logits_to_keep" in parameters else None
