"""Tiny models and a tokenizer, built in memory; no test touches the network."""

import string
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = string.ascii_letters + string.digits + " .,;:!?-+*/=()[]<>_\n"
EOS, PAD = "<eos>", "<pad>"


@pytest.fixture(autouse=True, scope="session")
def _pinned_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def char_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; id 0 pads, id 1 ends."""
    vocab = {token: i for i, token in enumerate([PAD, EOS, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., LlamaForCausalLM]:
    """Build a tiny Llama; ``seed`` and ``sharpness`` (scale of the weights) besides its config."""

    def make(*, seed: int = 0, sharpness: float = 1.0, **overrides) -> LlamaForCausalLM:
        settings = {
            "vocab_size": len(CHARACTERS) + 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(**{**settings, **overrides}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(sharpness)
        return model.eval()

    return make
