"""Slots for encoder-decoder models: the encoder runs once, the decoder's own attention rolls back.

The keys and values of cross-attention never change. What stands in the way of ragged rows is that
these decoders derive positions from the length of the cache, one for all rows. So that part of the
decoder is given a table of zeros, and each row's own term is added where the decoder lets it in:
T5's relative position bias with the attention mask, BART's absolute positions with the embeddings.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import DynamicCache
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from selftrain.decoding.cache.masks import Mask
from selftrain.decoding.cache.slots import SlotCache


class Seq2SeqCache:
    """An encoder-decoder model, its encoded inputs and the slots of a batch of decoder rows.

    It has the interface and the meaning of :class:`SlotCache`; the rows are decoder sequences, each
    of which begins with the model's ``decoder_start_token_id``. The encoder runs at construction,
    so the model must be in eval mode by then.

    Args:
        model: A model for which :func:`seq2seq_obstacle` returns None.
        capacity: Most decoder tokens that a row can hold.
        encoder_input_ids: What the rows are decoded from ``[batch, source]``.
        encoder_attention_mask: 1 at the tokens, 0 at padding ``[batch, source]``; default: all 1.

    Raises:
        ValueError: If the mask has another shape than the ids, or hides a whole row.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        *,
        capacity: int,
        encoder_input_ids: Tensor,
        encoder_attention_mask: Tensor | None = None,
    ) -> None:
        if encoder_attention_mask is None:
            encoder_attention_mask = torch.ones_like(encoder_input_ids)
        _check_source(encoder_input_ids, encoder_attention_mask)
        encoded = model.get_encoder()(  # pyrefly: ignore
            input_ids=encoder_input_ids, attention_mask=encoder_attention_mask
        ).last_hidden_state
        self.model, self.capacity = model, capacity
        self._decoder = _Decoder(model, capacity, encoded, encoder_attention_mask)
        self._slots = SlotCache(self._decoder, capacity=capacity)

    def forward(
        self, tokens: Tensor, positions: Tensor, *, extent: int, last_only: bool = False
    ) -> Tensor:
        """Feed decoder tokens at the given positions; see :meth:`SlotCache.forward`."""
        return self._slots.forward(tokens, positions, extent=extent, last_only=last_only)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Store decoder prefixes, one row each; see :meth:`SlotCache.prefill`."""
        self._slots.prefill(prompts)

    def fork(self, rows: Tensor) -> "Seq2SeqCache":
        """Return a new cache holding a copy of the given rows, repeated as often as they occur."""
        other = copy.copy(self)
        other._decoder = self._decoder.fork(rows)
        other._slots = self._slots.fork(rows)
        other._slots.model = other._decoder
        return other

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows by index, with what they are decoded from."""
        self._decoder.select(rows)
        self._slots.select(rows)


class _Decoder(nn.Module):
    """The decoder as a causal model, which is what :class:`SlotCache` drives."""

    def __init__(
        self, model: nn.Module, capacity: int, encoded: Tensor, encoder_mask: Tensor
    ) -> None:
        super().__init__()
        self.model = model
        self.config = model.get_decoder().config  # pyrefly: ignore
        self.encoded = encoded
        self.encoder_mask = _cross_mask(encoder_mask.bool(), encoded.dtype, self.config)
        self._cross: Any = DynamicCache()  # without windows: all of the source is seen
        self._positions = _positions_of(model, capacity)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        past_key_values: Cache,
        **kwargs: Any,
    ) -> Any:
        inputs = {
            "attention_mask": self.encoder_mask,
            "encoder_outputs": BaseModelOutput(last_hidden_state=self.encoded),
            "past_key_values": EncoderDecoderCache(past_key_values, self._cross),
            **kwargs,
            **self._positions.inputs(input_ids, attention_mask, position_ids, past_key_values),
        }
        return functional_call(
            self.model, self._positions.zeros, args=(), kwargs=inputs, tie_weights=False
        )

    def fork(self, rows: Tensor) -> "_Decoder":
        other = copy.copy(self)
        other._cross = copy.copy(self._cross)  # its tensors are replaced, never written to
        other._cross.layers = [copy.copy(layer) for layer in self._cross.layers]
        other.select(rows)
        return other

    def select(self, rows: Tensor) -> None:
        self.encoded = self.encoded[rows]
        if self.encoder_mask is not None:
            self.encoder_mask = self.encoder_mask[rows]
        self._cross.reorder_cache(rows)


class _RelativeBias:
    """T5: a bias by distance, added to the scores of every layer; it goes with the mask."""

    def __init__(self, attention: Any, name: str, capacity: int) -> None:
        table = attention.relative_attention_bias.weight
        self.zeros = {f"{name}.relative_attention_bias.weight": torch.zeros_like(table)}
        last = attention.compute_bias(
            1, capacity, device=table.device, past_seen_tokens=capacity - 1
        )
        self._by_distance = last[0, :, 0].flip(-1).T.contiguous()  # [capacity, heads]

    def inputs(
        self, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache
    ) -> dict[str, Tensor | None]:
        extent, _ = cache.get_mask_sizes(tokens.shape[1], 0)
        distance = positions.unsqueeze(-1) - torch.arange(extent, device=tokens.device)
        bias = self._by_distance[distance.clamp(min=0)].permute(0, 3, 1, 2)
        if mask is None:
            mask = (distance >= 0).unsqueeze(1)
        if mask.dtype == torch.bool:
            bias = bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
        else:
            bias = bias + mask  # [batch, heads, new, extent]
        return {"decoder_input_ids": tokens, "decoder_attention_mask": bias}


class _AbsolutePositions:
    """BART, Marian, Pegasus: a vector by position, added to the token's embedding."""

    def __init__(self, decoder: Any, name: str, capacity: int) -> None:
        self._decoder = decoder
        table = decoder.embed_positions.weight
        # As long as the longest position that the decoder can derive from the cache.
        rows = table.shape[0] + 2 * capacity
        self.zeros = {
            f"{name}.embed_positions.weight": table.new_zeros(1, 1).expand(rows, table.shape[1])
        }
        self._scale = getattr(decoder, "embed_scale", 1.0)  # the decoder's own, applied later

    def inputs(
        self, tokens: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache
    ) -> dict[str, Tensor | None]:
        embedded = self._decoder.embed_tokens(tokens)
        place = self._decoder.embed_positions(tokens.shape, position_ids=positions.flatten())
        embedded = embedded + place.view_as(embedded) / self._scale
        return {"decoder_inputs_embeds": embedded, "decoder_attention_mask": mask}


class _PositionIds:
    """T5Gemma: the decoder takes positions as they are."""

    zeros: ClassVar[dict[str, Tensor]] = {}

    def inputs(self, tokens: Tensor, mask: Mask, positions: Tensor, cache: Cache) -> dict[str, Any]:
        return {
            "decoder_input_ids": tokens,
            "decoder_attention_mask": mask,
            "decoder_position_ids": positions,
        }


def _check_source(input_ids: Tensor, mask: Tensor) -> None:
    if mask.shape != input_ids.shape or input_ids.ndim != 2:
        raise ValueError(
            f"encoder_input_ids has shape {tuple(input_ids.shape)}, encoder_attention_mask "
            f"{tuple(mask.shape)}; both must be [batch, source]."
        )
    empty = (~mask.bool().any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"encoder_attention_mask hides all of rows {empty}: nothing to decode.")


def _cross_mask(mask: Tensor, dtype: torch.dtype, config: Any) -> Tensor | None:
    """Prepare the mask over the source once; a plain one would be read back in every forward."""
    if mask.all():
        return None
    mask = mask[:, None, None]  # [batch, 1, 1, source]
    if config._attn_implementation == "sdpa":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


def _positions_of(model: Any, capacity: int) -> _RelativeBias | _AbsolutePositions | _PositionIds:
    if "decoder_position_ids" in inspect.signature(model.forward).parameters:
        return _PositionIds()
    decoder = model.get_decoder()
    names = {module: name for name, module in model.named_modules()}
    biased = [m for m in decoder.modules() if getattr(m, "has_relative_attention_bias", False)]
    if len(biased) == 1:
        return _RelativeBias(biased[0], names[biased[0]], capacity)
    if biased:
        raise TypeError(
            "every layer of its decoder has a position bias of its own, and one mask serves all"
        )
    if not hasattr(decoder, "embed_positions"):
        raise TypeError("its decoder has neither relative position biases nor embed_positions")
    return _AbsolutePositions(decoder, names[decoder], capacity)
