"""Tiny models and a tokenizer, built in memory; no test touches the network."""

import string
from collections.abc import Callable, Iterator

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

CHARACTERS = string.ascii_lowercase + string.digits + "+-=.,? \n"
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
IDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}

# The smallest sensible configuration of each architecture; its classes are named after it.
ARCHITECTURES = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "OPT": {
        "hidden_size": 32,
        "ffn_dim": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
}
_GROUPED = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
ARCHITECTURES["Mistral"] = {**_GROUPED, "sliding_window": 4}
ARCHITECTURES["Qwen3"] = _GROUPED


@pytest.fixture(autouse=True, scope="session")
def _pinned_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # the models are tiny, and several threads stall where cores are shared
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def char_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; id 0 pads, 1 ends, 2 is unknown."""
    vocab = {token: i for i, token in enumerate([PAD, EOS, UNKNOWN, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN
    )


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., LlamaForCausalLM]:
    """Build a tiny Llama; ``seed`` and ``sharpness`` (scale of the weights) besides its config."""

    def make(*, seed: int = 0, sharpness: float = 1.0, **overrides) -> LlamaForCausalLM:
        settings = {
            "vocab_size": len(CHARACTERS) + 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            **IDS,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(LlamaConfig(**{**settings, **overrides}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(sharpness)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """Build a tiny model of another architecture, of 64 tokens: "gpt2", "mistral", ..."""

    def make(name: str, **overrides) -> PreTrainedModel:
        kind = next(k for k in ARCHITECTURES if k.lower() == name)
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=64, **IDS, **{**ARCHITECTURES[kind], **overrides}
        )
        head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return getattr(transformers, f"{kind}{head}")(config).eval()

    return make
