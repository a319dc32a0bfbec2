"""Benchmarks that are commands, and what they are made of: pairs, decoders in turn, cost models."""

from selftrain.bench.costs import BareForwards, ForwardCosts
from selftrain.bench.pair import Pair
from selftrain.bench.specdec import Case, measure_case
from selftrain.bench.sweep import SpecdecConfig, run_sweep
from selftrain.bench.synthetic import PairShape, synthetic_pair

__all__ = [
    "BareForwards",
    "Case",
    "ForwardCosts",
    "Pair",
    "PairShape",
    "SpecdecConfig",
    "measure_case",
    "run_sweep",
    "synthetic_pair",
]
