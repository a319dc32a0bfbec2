"""Proofs that a verification rule is exact, or that it is not; for other people's rules too.

``prove`` takes a verifier and says where it fails. Under it lie: tabular language models, the exact
enumeration of what a verifier emits over every draft and all noise, long walks that show reuse of
noise, and negative controls, which show that a proof can fail.
"""

from selftrain.decoding.proof.controls import FAULTY_KEYINGS, Fault, faults
from selftrain.decoding.proof.enumeration import (
    Drafting,
    Outcomes,
    Verifier,
    block_outcomes,
    emitted_per_block,
    enumerate_block,
    enumerate_sequence,
)
from selftrain.decoding.proof.foreign import foreign, injected_noise
from selftrain.decoding.proof.laws import LawTest, compare_counts, count_texts
from selftrain.decoding.proof.proving import (
    Case,
    CoupledVerifier,
    Proof,
    Scenario,
    default_scenarios,
    prove,
    prove_coupled,
)
from selftrain.decoding.proof.tabular import (
    LanguageModel,
    TabularModel,
    all_texts,
    fixed_model,
    one_hot,
    random_model,
    sequence_law,
)
from selftrain.decoding.proof.walks import Keying, Reuse, Walk, measure_reuse, simulate

__all__ = [
    "FAULTY_KEYINGS",
    "Case",
    "CoupledVerifier",
    "Drafting",
    "Fault",
    "Keying",
    "LanguageModel",
    "LawTest",
    "Outcomes",
    "Proof",
    "Reuse",
    "Scenario",
    "TabularModel",
    "Verifier",
    "Walk",
    "all_texts",
    "block_outcomes",
    "compare_counts",
    "count_texts",
    "default_scenarios",
    "emitted_per_block",
    "enumerate_block",
    "enumerate_sequence",
    "faults",
    "fixed_model",
    "foreign",
    "injected_noise",
    "measure_reuse",
    "one_hot",
    "prove",
    "prove_coupled",
    "random_model",
    "sequence_law",
    "simulate",
]
