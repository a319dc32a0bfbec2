from . import decoding
from .decoding.params import Completion, SamplingParams

__version__: str

__all__ = ["Completion", "SamplingParams", "decoding"]
