"""Key-value caches with per-row lengths, and the one place that knows transformers' caches."""

from selftrain.decoding.cache.fit import max_positions, sampling_cache, slot_obstacle
from selftrain.decoding.cache.padded import PaddedCache
from selftrain.decoding.cache.slots import SlotCache

__all__ = ["PaddedCache", "SlotCache", "max_positions", "sampling_cache", "slot_obstacle"]
