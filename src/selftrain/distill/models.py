"""Small language models made from a shape."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from selftrain._core.checks import check_int


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
    """Return an untrained Llama for a tokenizer, with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = shape.width // 32
    # transformers' default deviation of 0.02 suits widths of thousands; a narrow and deep model
    # begins to learn late with it.
    deviation = 0.7 * shape.width**-0.5
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=8 * shape.width // 3 // 8 * 8,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=deviation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
