"""Tiny models and a tokenizer, built in memory."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Tiny models gain nothing from threads, and lose much where other processes hold the cores.
torch.set_num_threads(1)

CHARACTERS = "abcdefghijklmnopqrstuvwxyz 0123456789+-=.,?\n"


@pytest.fixture(scope="session")
def make_llama():
    """Return a factory of seeded tiny models: ``make_llama(seed=1, num_hidden_layers=4)``."""

    def make(*, seed: int = 0, **overrides) -> LlamaForCausalLM:
        settings = {
            "vocab_size": 48,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
            **overrides,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**settings))

    return make


@pytest.fixture(scope="session")
def char_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per character: 0 pad, 1 end of sequence, 2 unknown."""
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
