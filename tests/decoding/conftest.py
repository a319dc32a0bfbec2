"""What several tests of decoding share: a tokenizer whose tokens are no characters, and pairs."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Pair = tuple[LlamaForCausalLM, LlamaForCausalLM]


@pytest.fixture(scope="session")
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Tokens are bytes and strings of bytes; a character may take four. Ids 0 to 2 are special."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<eos>", "<sep>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["the cat sat on the mat, then the rat ate the cat\n"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<sep>"],
    )


@pytest.fixture(scope="session")
def make_pair(make_llama) -> Callable[..., Pair]:
    """Build a target in float64, and a draft that agrees often: its own weights, disturbed."""

    def make(*, disturbance: float = 0.3, **settings) -> Pair:
        settings = {"sharpness": 2.5, **settings}
        target, draft = make_llama(**settings).double(), make_llama(**settings).double()
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in draft.parameters():
                noise = torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype)
                parameter.add_(noise * parameter.std().nan_to_num() * disturbance)
        return target, draft

    return make


@pytest.fixture(scope="session")
def pair(make_pair) -> Pair:
    """A target and its draft over the characters of ``char_tokenizer``."""
    return make_pair()
