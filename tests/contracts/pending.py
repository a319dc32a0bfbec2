"""What documents already speak of and another change brings.

The contract tests fail as soon as one of these exists, so that the lists are emptied in time.
"""

PENDING = frozenset(
    {
        "selftrain.Distiller",
        "selftrain.DistillConfig",
        "selftrain.HFSampler",
        "selftrain.Sampler",
        "selftrain.SpeculativeDecoder",
        "selftrain.SpeculativeOutput",
        "selftrain.SpeculativeStats",
        "selftrain.cli.distillspec",
        "selftrain.divergence",
        "selftrain.measure_draft",
    }
)

# Source files that documents link to and that another change brings.
PENDING_FILES = frozenset(
    {
        "src/selftrain/cli/distillspec.py",
        "src/selftrain/decoding/planner.py",
        "src/selftrain/decoding/proof.py",
        "src/selftrain/decoding/sampler.py",
        "src/selftrain/decoding/speculative.py",
        "src/selftrain/distill/distiller.py",
        "src/selftrain/distill/pipeline.py",
        "src/selftrain/ops/divergence.py",
        "src/selftrain/ops/philox.py",
        "src/selftrain/ops/verify.py",
        "src/selftrain/ops/warp.py",
    }
)
