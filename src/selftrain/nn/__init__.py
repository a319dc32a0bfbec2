"""Modules, and what is done to any module."""

from selftrain.nn.ema import EMA
from selftrain.nn.impala import ImpalaEncoder
from selftrain.nn.mlp import MLPEncoder
from selftrain.nn.modes import training_mode
from selftrain.nn.nature import NatureEncoder
from selftrain.nn.packed import PackedLinear, pack_weights
from selftrain.nn.q_network import QNetwork, value_head
from selftrain.nn.resnet import ResNetEncoder
from selftrain.nn.soft_moe import SoftMoE
from selftrain.nn.value_heads import CategoricalValueHead, ScalarValueHead

__all__ = [
    "EMA",
    "CategoricalValueHead",
    "ImpalaEncoder",
    "MLPEncoder",
    "NatureEncoder",
    "PackedLinear",
    "QNetwork",
    "ResNetEncoder",
    "ScalarValueHead",
    "SoftMoE",
    "pack_weights",
    "training_mode",
    "value_head",
]
