"""Key-value caches with per-row lengths, and the one place that knows transformers' caches."""

from selftrain.decoding.cache.fit import (
    CacheKind,
    DecodingCache,
    decoding_cache,
    dynamic_obstacle,
    is_encoder_decoder,
    max_positions,
    sampling_cache,
    seq2seq_obstacle,
    slot_obstacle,
)
from selftrain.decoding.cache.holes import HoleyCache
from selftrain.decoding.cache.masks import MaskPlan, slot_mask
from selftrain.decoding.cache.opening import CacheOpener
from selftrain.decoding.cache.padded import PaddedCache
from selftrain.decoding.cache.prompts import PromptCache, prompts_obstacle
from selftrain.decoding.cache.seq2seq import Seq2SeqCache
from selftrain.decoding.cache.slots import SlotCache

__all__ = [
    "CacheKind",
    "CacheOpener",
    "DecodingCache",
    "HoleyCache",
    "MaskPlan",
    "PaddedCache",
    "PromptCache",
    "Seq2SeqCache",
    "SlotCache",
    "decoding_cache",
    "dynamic_obstacle",
    "is_encoder_decoder",
    "max_positions",
    "prompts_obstacle",
    "sampling_cache",
    "seq2seq_obstacle",
    "slot_mask",
    "slot_obstacle",
]
