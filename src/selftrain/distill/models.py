"""Small language models made from a shape."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_int
from selftrain.tasks.characters import small_llama


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """The size of a Llama that is trained from scratch."""

    num_layers: int = 12
    """Transformer layers: on a CPU, time per token grows with them more than with the width."""
    width: int = 128
    """Hidden size; heads have 32 channels."""

    def __post_init__(self) -> None:
        check_int("num_layers", self.num_layers, low=1)
        check_int("width", self.width, low=32)
        if self.width % 32:
            raise ValueError(f"width must be a multiple of 32 (the head size), got {self.width}.")


def new_llama(shape: ModelShape, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return an untrained Llama for a tokenizer; torch's global generator draws the weights."""
    return small_llama(
        tokenizer,
        num_layers=shape.num_layers,
        width=shape.width,
        max_positions=1024,
        seed=None,
    )
