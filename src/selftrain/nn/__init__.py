"""Modules, and what is done to any module."""

from selftrain.nn.ema import EMA
from selftrain.nn.modes import training_mode
from selftrain.nn.packed import PackedLinear, pack_weights
from selftrain.nn.value_heads import CategoricalValueHead, ScalarValueHead

__all__ = [
    "EMA",
    "CategoricalValueHead",
    "PackedLinear",
    "ScalarValueHead",
    "pack_weights",
    "training_mode",
]
