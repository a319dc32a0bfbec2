"""Attention over stretches of which some are stored once for many rows.

A row attends to a chain of up to three stretches: the trunk, with which all prompts begin, its
branch, which is the rest of its prompt, and its own tokens. Trunk and branch are stored once, and
the queries of all their rows meet them in one matrix product. One softmax over the scores of all
three makes it the attention to a single sequence.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Stretch = tuple[Tensor, ...]
"""Keys and values of consecutive tokens, ``[kv_heads, length, head_dim]`` each; or nothing."""

_NAME = "stretches_"
# What some models add to plain attention; none of it is done here.
_MORE_THAN_PLAIN = ("softcap", "s_aux", "position_bias", "sliding_window")


@dataclass(frozen=True, eq=False, slots=True)
class Branch:
    """What follows the trunk in a prompt, as far as it was read."""

    length: int
    layers: tuple[Stretch, ...]
    """One for each layer; none if the length is 0."""
    shared: bool
    """Whether it is stored once; else each row has a copy among its own tokens."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where the rows stand when each appends one token."""

    slots: Tensor
    """Where each stores it among its own ``[lanes]``."""
    extent: int
    """How many own slots are in use afterwards."""
    hidden: Tensor | None
    """What to add to the scores of own slots ``[lanes, 1, extent]``; None where all are seen."""
    groups: Sequence[tuple[Branch, Tensor | slice]]
    """The shared branches and the lanes of their rows."""
    room: int
    """How many own slots there should be."""


@dataclass(slots=True)
class Now:
    """What the layers of one forward have in common."""

    step: Step | None = None
    """None while prompts are read."""
    layer: int = 0
    """The layer that stored something last: it is the one that attends next."""
    layers: list["StretchLayer"] = field(default_factory=list)

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Return attention ``[batch, new, heads, head_dim]``, as transformers asks for it."""
        more = [name for name in _MORE_THAN_PLAIN if kwargs.get(name) is not None]
        if more:
            raise NotImplementedError(f"attention with {', '.join(more)} is more than plain.")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        layer = self.layers[self.layer]
        if self.step is None:
            return _read(query, key, value, layer.trunk, scale), None
        return _attend_step(query, layer, self.step, scale), None

    @contextlib.contextmanager
    def attention_of(self, config: PreTrainedConfig) -> Iterator[None]:
        """Let the models of ``config`` attend by :meth:`attend`, inside the block alone.

        The name is not among those that transformers makes masks for, so it makes none.

        Raises:
            RuntimeError: If the model is in such a block already, in another thread.
        """
        name, before = f"{_NAME}{id(self):x}", config._attn_implementation
        if str(before).startswith(_NAME):
            raise RuntimeError(
                "the model is being sampled from in another thread; give each thread its own, or "
                "let them take turns."
            )
        ALL_ATTENTION_FUNCTIONS[name] = self.attend
        config._attn_implementation = name
        try:
            yield
        finally:
            config._attn_implementation = before
            del ALL_ATTENTION_FUNCTIONS[name]


class StretchLayer(CacheLayerMixin):
    """One layer's trunk, and the rows' own tokens."""

    is_sliding = False

    def __init__(self, now: Now) -> None:
        super().__init__()
        self._now, self.index = now, len(now.layers)
        now.layers.append(self)
        self.trunk: Stretch = ()
        self.own: Stretch = ()
        """Keys and values ``[kv_heads, lanes, room, head_dim]``; nothing at the beginning."""
        self._fresh: Stretch = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: room is made when it is known how much."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values, and announce this layer's attention."""
        self._now.layer, step = self.index, self._now.step
        if step is None:
            self._fresh = key_states, value_states
            return key_states, value_states
        lanes = torch.arange(len(step.slots), device=step.slots.device)
        own = self.reserve((key_states[0], value_states[0]), len(lanes), step.room)
        for mine, new in zip(own, (key_states, value_states), strict=True):
            mine[:, lanes, step.slots] = new[:, :, 0].transpose(0, 1)
        return key_states, value_states

    def take(self) -> Stretch:
        """Return what was read last ``[batch, kv_heads, length, head_dim]``, and forget it."""
        fresh, self._fresh = self._fresh, ()
        return fresh

    def reserve(self, like: Stretch, num_lanes: int, room: int) -> Stretch:
        """Return ``own`` with at least so much room a lane, for tokens like those of ``like``."""
        if not self.own or self.own[0].shape[2] < room:
            before = self.own
            # Zeros, not empty: a hidden slot still meets the softmax, where 0 * NaN would be NaN.
            self.own = tuple(x.new_zeros(x.shape[0], num_lanes, room, x.shape[2]) for x in like)
            for mine, old in zip(self.own, before, strict=False):
                mine[:, :, : old.shape[2]] = old
        return self.own

    def copy(self, stretch: Stretch, lanes: Tensor) -> None:
        """Write a stretch as the first own tokens of some lanes."""
        for mine, given in zip(self.own, stretch, strict=True):
            mine[:, lanes, : given.shape[1]] = given.unsqueeze(1)

    def select(self, lanes: Tensor, extent: int) -> None:
        """Keep these lanes alone, and their first ``extent`` own tokens."""
        before, self.own = self.own, ()
        if before:
            like = tuple(x[:, 0] for x in before)
            own = self.reserve(like, len(lanes), before[0].shape[2])
            for mine, old in zip(own, before, strict=True):
                mine[:, :, :extent] = old[:, lanes, :extent]

    def get_seq_length(self) -> int:
        """Return 0: rows have lengths of their own, and positions are always given."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the size of a mask that nothing looks at."""
        return query_length, 0

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1


def _read(query: Tensor, key: Tensor, value: Tensor, trunk: Stretch, scale: float) -> Tensor:
    """Return the attention of prompts' rests ``[batch, heads, new, head_dim]`` to trunk and selves.

    They are filled up on the right, where nothing that counts looks.
    """
    batch, new = query.shape[0], query.shape[2]
    seen = None
    if trunk:
        before = trunk[0].shape[1]
        # The trunk is repeated here, but in one layer at a time.
        key, value = (
            torch.cat([stored.expand(batch, -1, -1, -1), fresh], dim=2)
            for stored, fresh in zip(trunk, (key, value), strict=True)
        )
        seen = torch.ones(new, before + new, dtype=torch.bool, device=query.device).tril_(before)
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=seen,
        is_causal=seen is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


# Shapes below: G key-value heads, B lanes, Q queries that share a head, D features, W keys.
def _attend_step(query: Tensor, layer: StretchLayer, step: Step, scale: float) -> Tensor:
    """Return the attention of one token a row ``[lanes, heads, 1, head_dim]`` to its stretches."""
    lanes, features = query.shape[0], query.shape[-1]
    own_keys, own_values = (x[:, :, : step.extent].flatten(0, 1) for x in layer.own)
    heads = layer.own[0].shape[0]
    query_GBQD = (query * scale).view(lanes, heads, -1, features).transpose(0, 1).contiguous()
    each = query_GBQD.flatten(0, 1)
    if step.hidden is None:
        own = each @ own_keys.mT
    else:
        own = torch.baddbmm(step.hidden.repeat(heads, 1, 1), each, own_keys.mT)
    scores = [own.unflatten(0, (heads, lanes))]
    if layer.trunk:
        scores.append(_shared_scores(query_GBQD, layer.trunk[0]))
    if step.groups:
        scores.append(_branch_scores(query_GBQD, layer, step))
    weights = _softmax(torch.cat(scores, -1) if len(scores) > 1 else scores[0])
    parts = list(weights.split([x.shape[-1] for x in scores], -1))
    out = (parts.pop(0).flatten(0, 1) @ own_values).unflatten(0, (heads, lanes))
    if layer.trunk:
        out += _weighted(parts.pop(0), layer.trunk[1])
    for branch, rows in step.groups:
        values = branch.layers[layer.index][1]
        out[:, rows] += _weighted(parts[0][:, rows, :, : branch.length], values)
    return out.transpose(0, 1).reshape(lanes, 1, -1, features)


def _branch_scores(query_GBQD: Tensor, layer: StretchLayer, step: Step) -> Tensor:
    """Return the scores of each row's branch, -inf beyond its end and where there is none."""
    longest = max(branch.length for branch, _ in step.groups)
    scores = query_GBQD.new_full((*query_GBQD.shape[:3], longest), -torch.inf)
    for branch, rows in step.groups:
        keys = branch.layers[layer.index][0]
        scores[:, rows, :, : branch.length] = _shared_scores(query_GBQD[:, rows], keys)
    return scores


def _shared_scores(query_GBQD: Tensor, keys_GWD: Tensor) -> Tensor:
    return (query_GBQD.flatten(1, 2) @ keys_GWD.mT).view(*query_GBQD.shape[:3], -1)


def _weighted(weights_GBQW: Tensor, values_GWD: Tensor) -> Tensor:
    out = weights_GBQW.flatten(1, 2) @ values_GWD
    return out.view(*weights_GBQW.shape[:3], -1)


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax, computed in float32 where that is more."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=dtype).to(scores.dtype)
