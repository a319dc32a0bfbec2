"""Samplers and speculative decoding."""

from selftrain.decoding.outcome import Block, SpeculativeOutput, SpeculativeStats
from selftrain.decoding.params import Completion, SamplingParams
from selftrain.decoding.planner import (
    Costs,
    expected_tokens,
    mbsu,
    measure_costs,
    optimal_num_draft_tokens,
    predict_block_efficiency,
    speedup,
)
from selftrain.decoding.sampler import HFSampler, Sampler
from selftrain.decoding.speculative import SpeculativeDecoder

__all__ = [
    "Block",
    "Completion",
    "Costs",
    "HFSampler",
    "Sampler",
    "SamplingParams",
    "SpeculativeDecoder",
    "SpeculativeOutput",
    "SpeculativeStats",
    "expected_tokens",
    "mbsu",
    "measure_costs",
    "optimal_num_draft_tokens",
    "predict_block_efficiency",
    "speedup",
]
