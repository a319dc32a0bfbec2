"""Which cache a model can be driven through, found out by trying."""

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from selftrain.decoding.cache.padded import PaddedCache
from selftrain.decoding.cache.slots import SlotCache
from selftrain.nn.modes import training_mode

_PROBE_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
_PROBE_TOLERANCE_HALF = 0.1


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
