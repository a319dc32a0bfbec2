from . import decoding, distill, ops, plots, report, stats, tasks, training
from .decoding.endpoint import EndpointSampler
from .decoding.outcome import SpeculativeOutput, SpeculativeStats
from .decoding.params import Completion, SamplingParams
from .decoding.sampler import HFSampler, Sampler
from .decoding.speculative import SpeculativeDecoder
from .distill.config import DistillConfig
from .distill.distiller import Distiller
from .distill.drafts import measure_draft
from .ops.divergence import divergence

__version__: str

__all__ = [
    "Completion",
    "DistillConfig",
    "Distiller",
    "EndpointSampler",
    "HFSampler",
    "Sampler",
    "SamplingParams",
    "SpeculativeDecoder",
    "SpeculativeOutput",
    "SpeculativeStats",
    "decoding",
    "distill",
    "divergence",
    "measure_draft",
    "ops",
    "plots",
    "report",
    "stats",
    "tasks",
    "training",
]
