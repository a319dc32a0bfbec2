"""Decode with a draft, and see that the output is the target's own, only sooner.

Shows `SpeculativeDecoder` on any pair of models with one tokenizer. Without arguments it makes a
pair that needs no download: a random target whose later layers matter little, and as draft its
first layers. Expect the line "greedy tokens identical to plain decoding: True", and a few tokens
per target call.

On a GPU, with real models:

    python examples/decode_speculatively.py --target Qwen/Qwen3-8B --draft Qwen/Qwen3-0.6B \
        --device cuda --dtype bfloat16 --prompt "The three laws of thermodynamics are"
"""

import time
from dataclasses import dataclass
from typing import Literal

import torch
import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from selftrain import SamplingParams, SpeculativeDecoder


@dataclass(frozen=True)
class Args:
    """Command line."""

    target: str | None = None
    """Hub name or folder of the target."""
    draft: str | None = None
    """Hub name or folder of the draft."""
    prompt: str = "def main("
    """Text to continue, for models that come with a tokenizer."""
    max_new_tokens: int = 128
    """Tokens to generate."""
    num_draft_tokens: int = 5
    """Tokens proposed per block."""
    device: str = "cpu"
    """Where to run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of loaded models."""
    quick: bool = False
    """Fewer tokens."""


def made_up_pair() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """Return a random 12-layer target, and its first layer with the same head as draft."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=12,
        num_attention_heads=8,
        initializer_range=0.15,
    )
    target = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in target.model.layers[1:]:
            layer.self_attn.o_proj.weight.mul_(0.03)
            layer.mlp.down_proj.weight.mul_(0.03)
    draft = LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 1})).eval()
    draft.load_state_dict(target.state_dict(), strict=False)
    return target, draft


def main(args: Args) -> None:
    tokenizer = None
    if args.target and args.draft:
        dtype = getattr(torch, args.dtype)
        target, draft = (
            AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(args.device).eval()
            for name in (args.target, args.draft)
        )
        tokenizer = AutoTokenizer.from_pretrained(args.target)
        input_ids = tokenizer(args.prompt, return_tensors="pt").input_ids.to(args.device)
    else:
        target, draft = made_up_pair()
        input_ids = torch.arange(5, 21).unsqueeze(0)

    outputs = {}
    for temperature in (0.0, 1.0):
        params = SamplingParams(
            max_new_tokens=32 if args.quick else args.max_new_tokens,
            temperature=temperature,
            seed=0,
        )
        for num_draft_tokens in (0, args.num_draft_tokens):
            decoder = SpeculativeDecoder(
                target, draft, tokenizer=tokenizer, num_draft_tokens=num_draft_tokens
            )
            decoder.generate(input_ids, params=params)  # warm up
            start = time.perf_counter()
            output = outputs[temperature, num_draft_tokens] = decoder.generate(
                input_ids, params=params
            )
            rate = int(output.lengths.sum()) / (time.perf_counter() - start)
            name = "speculative" if num_draft_tokens else "plain"
            print(
                f"T={temperature:g} {name:11}: {rate:6.1f} tokens/s, "
                f"{output.stats.block_efficiency:.2f} tokens per target call"
            )
    greedy = [outputs[0.0, k].new_tokens() for k in (0, args.num_draft_tokens)]
    print("greedy tokens identical to plain decoding:", greedy[0] == greedy[1])
    if tokenizer is not None:
        print(tokenizer.decode(outputs[1.0, args.num_draft_tokens].sequences[0]))


if __name__ == "__main__":
    main(tyro.cli(Args))
