"""Modules, and what is done to any module."""

from selftrain.nn.ema import EMA
from selftrain.nn.modes import training_mode
from selftrain.nn.packed import PackedLinear, pack_weights

__all__ = ["EMA", "PackedLinear", "pack_weights", "training_mode"]
