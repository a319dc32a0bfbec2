from . import decoding, distill, envs, loops, nn, ops, plots, report, stats, tasks, training
from .decoding.endpoint import EndpointSampler
from .decoding.outcome import SpeculativeOutput, SpeculativeStats
from .decoding.params import Completion, SamplingParams
from .decoding.sampler import HFSampler, Sampler
from .decoding.speculative import SpeculativeDecoder
from .distill.config import DistillConfig
from .distill.distiller import Distiller
from .distill.drafts import measure_draft
from .loops.config import ReSTEMConfig
from .loops.rest_em import ReSTEM
from .loops.verifier import Verifier
from .loops.vstar import VSTaR, VSTaRConfig
from .nn.value_heads import CategoricalValueHead, ScalarValueHead
from .ops.divergence import divergence
from .ops.value_transforms import HLGauss, Support
from .tasks.base import Grade, Problem, Task

__version__: str

__all__ = [
    "CategoricalValueHead",
    "Completion",
    "DistillConfig",
    "Distiller",
    "EndpointSampler",
    "Grade",
    "HFSampler",
    "HLGauss",
    "Problem",
    "ReSTEM",
    "ReSTEMConfig",
    "Sampler",
    "SamplingParams",
    "ScalarValueHead",
    "SpeculativeDecoder",
    "SpeculativeOutput",
    "SpeculativeStats",
    "Support",
    "Task",
    "VSTaR",
    "VSTaRConfig",
    "Verifier",
    "decoding",
    "distill",
    "divergence",
    "envs",
    "loops",
    "measure_draft",
    "nn",
    "ops",
    "plots",
    "report",
    "stats",
    "tasks",
    "training",
]
