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
_WINDOWED = {**_GROUPED, "sliding_window": 4}
_GEMMA2 = {
    **_WINDOWED,
    "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
_SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 0,
    "scale_embedding": True,
}
_T5 = {
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}
ARCHITECTURES |= {
    "Bart": _SEQ2SEQ,
    "Falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "Gemma2": _GEMMA2,
    "Gemma3": {**_WINDOWED, "layer_types": ["sliding_attention", "full_attention"]},
    "Gemma3n": {
        **_WINDOWED,
        "num_hidden_layers": 4,
        "intermediate_size": [48] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
    },
    "GPTNeo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
    },
    "GPTNeoX": {k: v for k, v in _GROUPED.items() if k not in ("num_key_value_heads", "head_dim")},
    "Jamba": _GROUPED,
    "Llama": _GROUPED,
    "Llama4": {**_GROUPED, "attention_chunk_size": 4},
    "Marian": _SEQ2SEQ,
    "Mistral": _WINDOWED,
    "Mixtral": {**_WINDOWED, "num_local_experts": 2},
    "Mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2},
    "OpenAIGPT": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "Phi3": _WINDOWED,
    "Qwen3": _GROUPED,
    "T5": _T5,
    "T5Gemma": {side: {"vocab_size": 64, **IDS, **_GEMMA2} for side in ("encoder", "decoder")},
    "UMT5": _T5,
}
CONFIGS = {k: f"{k}TextConfig" for k in ("Gemma3", "Gemma3n", "Llama4")}
MODELS = {
    "Bart": "BartForConditionalGeneration",
    "GPT2": "GPT2LMHeadModel",
    "Marian": "MarianMTModel",
    "OpenAIGPT": "OpenAIGPTLMHeadModel",
    "T5": "T5ForConditionalGeneration",
    "T5Gemma": "T5GemmaForConditionalGeneration",
    "UMT5": "UMT5ForConditionalGeneration",
}


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
    """Build a tiny model of another architecture, of 64 tokens: "gpt2", "mistral", ...

    ``sharpness`` scales the weights, besides what the configuration takes.
    """

    def make(name: str, *, sharpness: float = 1.0, **overrides) -> PreTrainedModel:
        kind = next(k for k in ARCHITECTURES if k.lower() == name)
        settings = {"vocab_size": 64, **IDS, **ARCHITECTURES[kind], **overrides}
        config = getattr(transformers, CONFIGS.get(kind, f"{kind}Config"))(**settings)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, MODELS.get(kind, f"{kind}ForCausalLM"))(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(sharpness)
        return model.eval()

    return make
