from . import decoding, distill, nn, ops, plots, report, stats, tasks, training
from .decoding.endpoint import EndpointSampler
from .decoding.outcome import SpeculativeOutput, SpeculativeStats
from .decoding.params import Completion, SamplingParams
from .decoding.sampler import HFSampler, Sampler
from .decoding.speculative import SpeculativeDecoder
from .distill.config import DistillConfig
from .distill.distiller import Distiller
from .distill.drafts import measure_draft
from .nn.value_heads import CategoricalValueHead, ScalarValueHead
from .ops.divergence import divergence
from .ops.value_transforms import HLGauss, Support

__version__: str

__all__ = [
    "CategoricalValueHead",
    "Completion",
    "DistillConfig",
    "Distiller",
    "EndpointSampler",
    "HFSampler",
    "HLGauss",
    "Sampler",
    "SamplingParams",
    "ScalarValueHead",
    "SpeculativeDecoder",
    "SpeculativeOutput",
    "SpeculativeStats",
    "Support",
    "decoding",
    "distill",
    "divergence",
    "measure_draft",
    "nn",
    "ops",
    "plots",
    "report",
    "stats",
    "tasks",
    "training",
]
