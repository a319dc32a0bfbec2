"""A character tokenizer and a small model for the tasks that are learnt from scratch."""

import contextlib
import string
from typing import TYPE_CHECKING

from selftrain._core.checks import check_int
from selftrain._core.rng import seeded_torch

if TYPE_CHECKING:
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )

CHARACTERS = string.digits + string.ascii_lowercase + " +-*/%()[],:;=<>#.?\n"
"""What :func:`character_tokenizer` knows by default; with the special tokens 59 symbols."""

_PAD, _EOS, _UNKNOWN = "<pad>", "<eos>", "<unk>"
_HEAD_SIZE = 32


def character_tokenizer(characters: str = CHARACTERS) -> "PreTrainedTokenizerFast":
    """Return a tokenizer with one token a character, built in memory.

    Id 0 pads, 1 ends a text, 2 stands for every unknown character. No special token is added when
    text is encoded. It saves with ``save_pretrained`` and loads with ``AutoTokenizer``.

    Args:
        characters: What it knows, each character once; their ids follow the special ones in order.

    Raises:
        ValueError: If there is no character, or one occurs twice.

    Example:
        >>> tokenizer = character_tokenizer()
        >>> tokenizer.decode(tokenizer.encode("sorted(x)[:2]"))
        'sorted(x)[:2]'
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if not characters or len(set(characters)) != len(characters):
        raise ValueError(
            f"characters must be distinct and at least one, got {characters!r}; name each once."
        )
    vocab = {token: i for i, token in enumerate([_PAD, _EOS, _UNKNOWN, *characters])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=_UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=_EOS,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def small_llama(
    tokenizer: "PreTrainedTokenizerBase",
    *,
    num_layers: int = 2,
    width: int = 64,
    max_positions: int = 128,
    seed: int | None = 0,
) -> "PreTrainedModel":
    """Return an untrained Llama for a tokenizer: 0.1 million parameters by default.

    Heads have 32 channels; embeddings are tied.

    Args:
        tokenizer: Gives the size of the vocabulary and the special ids.
        num_layers: Transformer layers.
        width: Hidden size, a multiple of 32.
        max_positions: Longest text, prompt and completion, in tokens.
        seed: Sets the first weights, and torch's global generator is left as it is; None: that one
            draws them.

    Raises:
        ValueError: If a size is out of range.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    check_int("num_layers", num_layers, low=1)
    check_int("width", width, low=_HEAD_SIZE)
    check_int("max_positions", max_positions, low=1)
    if width % _HEAD_SIZE:
        raise ValueError(f"width must be a multiple of {_HEAD_SIZE} (the head size), got {width}.")
    heads = width // _HEAD_SIZE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3 // 8 * 8,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        # transformers' default of 0.02 suits widths of thousands; a narrow model learns late then.
        initializer_range=0.7 * width**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with contextlib.nullcontext() if seed is None else seeded_torch(seed, "small_llama"):
        return LlamaForCausalLM(config)
