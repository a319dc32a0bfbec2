"""Which cache a model can be driven through, found out from its configuration and by trying."""

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from selftrain.decoding.cache.holes import HoleyCache
from selftrain.decoding.cache.lanes import PaddedLanes, SlotLanes
from selftrain.decoding.cache.masks import attention_windows
from selftrain.decoding.cache.padded import PaddedCache
from selftrain.decoding.cache.seq2seq import Seq2SeqCache
from selftrain.decoding.cache.shared import SharedLanes
from selftrain.decoding.cache.slots import SlotCache
from selftrain.nn.modes import training_mode

CacheKind = Literal["slots", "dynamic"]
"""Rollback by slots, or by holes in transformers' own cache."""

DecodingCache = SlotCache | HoleyCache | Seq2SeqCache
"""The caches that can roll back: feeding a position discards what was there and beyond."""

_PROBE_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}  # eager softmax is float32 upstream
_PROBE_TOLERANCE_HALF = 0.1
# A DummyLayer stands where a layer has no keys of its own: it looks at those of another.
_DRIVEN = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}


def slot_obstacle(model: nn.Module) -> str | None:
    """Return why ``model`` cannot use :class:`SlotCache`, or None if it can.

    Besides reading the configuration it tries: ragged rows fed piece by piece, with a token that is
    rolled back, must give the logits of a plain forward. That catches models that ignore the mask
    or the positions.
    """
    if is_encoder_decoder(model):
        return "it is an encoder-decoder model"
    obstacle = _cache_obstacle(model)
    if obstacle is not None:
        return obstacle
    config = model.config.get_text_config(decoder=True)  # pyrefly: ignore
    windows = {w for w in attention_windows(config) if w is not None}
    if len(windows) > 1:
        return f"its layers have windows of different sizes ({sorted(windows)})"
    if _has_unmasked_windows(config):
        return "its local attention counts its window from the longest row, whatever the mask says"
    return _attention_obstacle(config) or _probe(model, SlotCache)


def dynamic_obstacle(model: nn.Module) -> str | None:
    """Return why ``model`` cannot use :class:`HoleyCache`, or None if it can."""
    if is_encoder_decoder(model):
        return "it is an encoder-decoder model, which is driven through slots"
    obstacle = _cache_obstacle(model)
    if obstacle is not None:
        return obstacle
    config = model.config.get_text_config(decoder=True)  # pyrefly: ignore
    if _has_unmasked_windows(config) or any(attention_windows(config)):
        return "it has sliding-window layers, whose window would count rejected tokens too"
    return _probe(model, HoleyCache)


def seq2seq_obstacle(model: nn.Module) -> str | None:
    """Return why the encoder-decoder ``model`` cannot use :class:`Seq2SeqCache`, or None."""
    if not is_encoder_decoder(model):
        return "it is not an encoder-decoder model"
    config = model.config.get_text_config(decoder=True)  # pyrefly: ignore
    return _cache_obstacle(model) or _attention_obstacle(config) or _probe(model, Seq2SeqCache)


def sharing_obstacle(model: nn.Module) -> str | None:
    """Return why ``model``, which can use slots, cannot use :class:`SharedLanes`, or None."""
    config = model.config.get_text_config(decoder=True)  # pyrefly: ignore
    if any(attention_windows(config)):
        return "it has sliding-window layers"
    if isinstance(model, torch._dynamo.OptimizedModule) or model._compiled_call_impl is not None:
        return "it is compiled, with its own attention in the graph"
    return _probe(model, SharedLanes)


def sampling_lanes(
    model: nn.Module,
) -> type[SharedLanes] | type[SlotLanes] | type[PaddedLanes]:
    """Return the kind of lanes to sample from ``model`` in, the fastest that gives its logits.

    Raises:
        TypeError: If none gives the logits of a plain forward.
    """
    slots = slot_obstacle(model)
    if slots is None:
        return SlotLanes if sharing_obstacle(model) else SharedLanes
    padded = _probe(model, PaddedCache)
    if padded is None:
        return PaddedLanes
    raise TypeError(f"cannot sample from this model. Slots: {slots}. Padded cache: {padded}.")


def decoding_cache(
    model: nn.Module, wanted: CacheKind = "slots", *, role: str = "model"
) -> type[SlotCache] | type[HoleyCache] | type[Seq2SeqCache]:
    """Return the cache class to decode speculatively with: one that can roll back.

    Args:
        model: A causal or encoder-decoder model.
        wanted: "slots" for :class:`SlotCache`, or :class:`Seq2SeqCache` where there is an encoder;
            "dynamic" for :class:`HoleyCache`.
        role: What errors call the model.

    Raises:
        TypeError: If the model cannot be driven through it; the message says why, and what can be
            done.
        ValueError: If ``wanted`` is something else.
    """
    if wanted == "slots" and is_encoder_decoder(model):
        obstacle, cache_type = seq2seq_obstacle(model), Seq2SeqCache
    elif wanted == "slots":
        obstacle, cache_type = slot_obstacle(model), SlotCache
    elif wanted == "dynamic":
        obstacle, cache_type = dynamic_obstacle(model), HoleyCache
    else:
        raise ValueError(f"cache must be 'slots' or 'dynamic', got {wanted!r}.")
    if obstacle is None:
        return cache_type
    message = f"the {role} cannot be used for speculative decoding: {obstacle}."
    other, other_obstacle = "dynamic", dynamic_obstacle
    if wanted == "dynamic":
        other = "slots"
        other_obstacle = seq2seq_obstacle if is_encoder_decoder(model) else slot_obstacle
    if other_obstacle(model) is None:
        message += f" cache={other!r} can drive it."
    raise TypeError(message)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Return whether ``model`` has an encoder whose output its decoder attends to."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def max_positions(model: nn.Module) -> int | None:
    """Return how many positions the model's table or training covers; None if it does not say."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return None
    config = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "max_target_positions"):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def _cache_obstacle(model: Any) -> str | None:
    """Say what about the model's own cache layers rules out rolling back."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return "it has no transformers configuration"
    config = config.get_text_config(decoder=True)
    try:
        layers = DynamicCache(config=config).layers
    except Exception as error:  # the layer types of remote code can be anything
        return f"transformers has no cache for it ({type(error).__name__}: {error})"
    recurrent = [x for x in layers if isinstance(x, LinearAttentionCacheLayerMixin)]
    if recurrent:
        kind = type(recurrent[0]).__name__
        return (
            f"it has recurrent layers ({kind}), whose state keeps no past to roll back to; use a "
            "model that has attention alone"
        )
    types = getattr(config, "layer_types", None) or ()
    if "chunked_attention" in types or getattr(config, "attention_chunk_size", None):
        return "its attention is chunked, which no mask over slots has been written for"
    other = sorted({type(x).__name__ for x in layers} - _DRIVEN)
    if other:
        return f"its cache has layers of a kind ({', '.join(other)}) that cannot be driven by row"
    parameters = inspect.signature(model.forward).parameters
    wrapped = "input_ids" not in parameters  # (*args, **kwargs) says nothing: the trial will tell
    if "past_key_values" not in parameters and not wrapped:
        return "its forward takes no past_key_values: it has no key-value cache"
    asked = getattr(getattr(model, "generation_config", None), "cache_implementation", None)
    if asked is not None and asked.startswith(("quantized", "offloaded")):
        return (
            f"its generation_config asks for a cache that is {asked}, and slots are not; set "
            "model.generation_config.cache_implementation = None to do without"
        )
    return None


def _has_unmasked_windows(config: Any) -> bool:
    """Whether attention has windows of its own besides the mask, as in GPT-Neo."""
    return "local" in (getattr(config, "attention_layers", None) or ())


def _attention_obstacle(config: Any) -> str | None:
    attention = config._attn_implementation
    if attention in ("sdpa", "eager"):
        return None
    return (
        f"its attention is {attention!r}, which takes no per-row mask; load it with "
        "attn_implementation='sdpa', or call model.set_attn_implementation('sdpa')"
    )


@torch.no_grad()
def _probe(model: nn.Module, cache_type: Any) -> str | None:
    """Say what goes wrong when ragged rows go through the cache piece by piece, or None."""
    weight = next(model.parameters())
    config = model.config.get_text_config(decoder=True)  # pyrefly: ignore
    tokens = torch.arange(12, device=weight.device).view(2, 6) * 7 + 1
    tokens = tokens % config.vocab_size
    # Without a cache, some models hide what looks like padding.
    tokens = (tokens + (tokens == getattr(config, "pad_token_id", None))) % config.vocab_size
    with training_mode(False, model):
        try:
            trial = _lanes_trial if cache_type is SharedLanes else _trial
            got, want = trial(model, cache_type, tokens)
        except Exception as error:  # whatever fails now would fail in the middle of decoding
            return f"a trial forward failed ({type(error).__name__}: {error})"
    tolerance = _PROBE_TOLERANCE.get(weight.dtype, _PROBE_TOLERANCE_HALF)
    off = (got.double() - want.double()).abs().max() / want.double().std().clamp(min=1e-6)
    if not off <= tolerance:
        return f"it ignores the cache, mask or positions (logits off by {off:.1e} deviations)"
    return None


def _trial(model: nn.Module, cache_type: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits ``[places, vocab]`` that came through the cache, and those of one forward."""
    source, inputs = {}, {"input_ids": tokens}
    if cache_type is Seq2SeqCache:
        source = {"input_ids": tokens.flip(1), "attention_mask": torch.ones_like(tokens)}
        source["attention_mask"][1, 4:] = 0
        inputs = {**source, "decoder_input_ids": tokens}
    plain = model(**inputs, use_cache=False).logits
    cache = cache_type(model, capacity=8, **{f"encoder_{k}": v for k, v in source.items()})
    cache.prefill([tokens[0, :2].tolist(), tokens[1, :3].tolist()])
    starts = torch.tensor([[2], [3]], device=tokens.device)
    if cache_type is PaddedCache:  # it cannot roll back
        cache.forward(tokens.gather(1, starts), starts, extent=4)
        got = cache.forward(tokens.gather(1, starts + 1), starts + 1, extent=5)
        return got[:, 0], plain[[0, 1], [3, 4]]
    cache.forward(tokens[:, :1], starts, extent=4)  # to be rolled back
    positions = starts + torch.arange(3, device=tokens.device)
    both = cache.forward(tokens.gather(1, positions), positions, extent=6)
    cache.select(starts.new_zeros(1))
    alone = cache.forward(tokens[:1, 5:], starts.new_full((1, 1), 5), extent=6)
    return torch.cat([both.flatten(0, 1), alone[0]]), torch.cat(
        [plain[0, 2:5], plain[1, 3:], plain[0, 5:]]
    )


def _lanes_trial(model: nn.Module, lanes_type: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The same for lanes: a shared branch beside a copied one, a new row, and one that is left."""
    tokens = torch.cat([tokens[:1, :1].expand(2, 1), tokens[:, 1:]], dim=1)
    plain = model(input_ids=tokens, use_cache=False).logits
    first, second = tokens.tolist()
    lanes = lanes_type(model, trunk=first[:1], capacity=8, worth_sharing=1)
    (copied,) = lanes.read([first[:3]], num_rows=1)
    (shared,) = lanes.read([second[:2]], num_rows=2)
    lanes.open([copied, shared])
    got = [lanes.step(tokens[[0, 1], [3, 2]]), lanes.step(tokens[[0, 1], [4, 3]])]
    lanes.replace([0], [shared])
    got.append(lanes.step(tokens[[1, 1], [2, 4]]))
    lanes.select([1])
    got.append(lanes.step(tokens[1:, 5]))
    return torch.cat(got), plain[[0, 1, 0, 1, 1, 1, 1], [3, 2, 4, 3, 2, 4, 5]]
