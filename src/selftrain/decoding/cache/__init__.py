"""Key-value caches with per-row lengths, and the one place that knows transformers' caches."""

from selftrain.decoding.cache.fit import (
    CacheKind,
    DecodingCache,
    decoding_cache,
    dynamic_obstacle,
    is_encoder_decoder,
    max_positions,
    sampling_lanes,
    seq2seq_obstacle,
    sharing_obstacle,
    slot_obstacle,
)
from selftrain.decoding.cache.holes import HoleyCache
from selftrain.decoding.cache.lanes import Lanes, PaddedLanes, SlotLanes
from selftrain.decoding.cache.masks import MaskPlan, slot_mask
from selftrain.decoding.cache.opening import CacheOpener
from selftrain.decoding.cache.padded import PaddedCache
from selftrain.decoding.cache.prompts import PromptCache, prompts_obstacle
from selftrain.decoding.cache.seq2seq import Seq2SeqCache
from selftrain.decoding.cache.shared import SharedLanes
from selftrain.decoding.cache.slots import SlotCache

__all__ = [
    "CacheKind",
    "CacheOpener",
    "DecodingCache",
    "HoleyCache",
    "Lanes",
    "MaskPlan",
    "PaddedCache",
    "PaddedLanes",
    "PromptCache",
    "Seq2SeqCache",
    "SharedLanes",
    "SlotCache",
    "SlotLanes",
    "decoding_cache",
    "dynamic_obstacle",
    "is_encoder_decoder",
    "max_positions",
    "prompts_obstacle",
    "sampling_lanes",
    "seq2seq_obstacle",
    "sharing_obstacle",
    "slot_mask",
    "slot_obstacle",
]
