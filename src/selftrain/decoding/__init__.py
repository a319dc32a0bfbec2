"""Samplers and speculative decoding."""

from selftrain.decoding.cost_model import (
    expected_tokens,
    mbsu,
    operations_factor,
    optimal_num_draft_tokens,
    predict_block_efficiency,
    speedup,
)
from selftrain.decoding.drafters import (
    Drafter,
    LayerDrafter,
    ModelDrafter,
    NGramDrafter,
    TreeDrafter,
    VocabularyDrafter,
    first_layers,
)
from selftrain.decoding.endpoint import EndpointSampler
from selftrain.decoding.outcome import Block, SpeculativeOutput, SpeculativeStats
from selftrain.decoding.params import Completion, SamplingParams
from selftrain.decoding.planner import Costs, Plan, measure_costs, plan
from selftrain.decoding.sampler import HFSampler, Sampler
from selftrain.decoding.seq2seq_sampler import EncoderDecoderSampler
from selftrain.decoding.speculative import SpeculativeDecoder

__all__ = [
    "Block",
    "Completion",
    "Costs",
    "Drafter",
    "EncoderDecoderSampler",
    "EndpointSampler",
    "HFSampler",
    "LayerDrafter",
    "ModelDrafter",
    "NGramDrafter",
    "Plan",
    "Sampler",
    "SamplingParams",
    "SpeculativeDecoder",
    "SpeculativeOutput",
    "SpeculativeStats",
    "TreeDrafter",
    "VocabularyDrafter",
    "expected_tokens",
    "first_layers",
    "mbsu",
    "measure_costs",
    "operations_factor",
    "optimal_num_draft_tokens",
    "plan",
    "predict_block_efficiency",
    "speedup",
]
