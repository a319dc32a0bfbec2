"""Decode ahead with a draft, and see that the output is the target's own, only sooner.

Shows `SpeculativeDecoder` with a draft model, n-grams or the target's own first layers as drafter.
Without arguments it makes a random target whose later layers matter little, and takes the first as
draft. Expect "greedy tokens identical to plain decoding: True"; with the coupled verifier the same
is said of sampled tokens.

    python examples/decode_speculatively.py --drafter layers --num-draft-tokens auto --stream
    python examples/decode_speculatively.py --verifier coupled --pack-weights

On a GPU, with real models:

    python examples/decode_speculatively.py --target Qwen/Qwen3-8B --draft Qwen/Qwen3-0.6B \
        --device cuda --dtype bfloat16 --prompt "The three laws of thermodynamics are"
"""

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from selftrain import SamplingParams, SpeculativeDecoder
from selftrain.decoding import LayerDrafter, NGramDrafter, first_layers
from selftrain.nn import pack_weights


@dataclass(frozen=True)
class Args:
    """Command line."""

    target: str | None = None
    """Hub name or folder of the target; None makes a random one."""
    draft: str | None = None
    """Hub name or folder of the draft model; None takes the target's first layers as a model."""
    drafter: Literal["model", "ngram", "layers"] = "model"
    """What proposes tokens: the draft model, n-grams of the text, or the target's first layers."""
    verifier: Literal["block", "token", "coupled"] = "block"
    """How proposals are tested at temperatures above 0."""
    num_draft_tokens: int | Literal["auto"] = 5
    """Tokens proposed per block; "auto" measures while it decodes."""
    prompt: str = "def main("
    """Text to continue, for models that come with a tokenizer."""
    max_new_tokens: int = 128
    """Tokens to generate."""
    num_layers: int = 1
    """How many of the target's layers draft, with --drafter layers."""
    pack_weights: bool = False
    """Lay the weights out for the processor (CPUs only)."""
    stream: bool = False
    """Show tokens as they become final."""
    device: str = "cpu"
    """Where to run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the models."""
    quick: bool = False
    """Fewer tokens."""


def made_up_target() -> LlamaForCausalLM:
    """Return a random model whose first layer nearly decides."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 688}
    layers = {"num_hidden_layers": 12, "num_attention_heads": 8}
    target = LlamaForCausalLM(LlamaConfig(**sizes, **layers, initializer_range=0.15))
    with torch.no_grad():
        for layer in target.model.layers[1:]:
            layer.self_attn.o_proj.weight.mul_(0.03)
            layer.mlp.down_proj.weight.mul_(0.03)
    return target


def main(args: Args) -> None:
    def ready(model: Any) -> Any:
        model = model.to(args.device, getattr(torch, args.dtype)).eval()
        return pack_weights(model) if args.pack_weights else model

    tokenizer = AutoTokenizer.from_pretrained(args.target) if args.target else None
    prompt = tokenizer(args.prompt).input_ids if tokenizer else list(range(5, 21))
    load = AutoModelForCausalLM.from_pretrained
    target = ready(load(args.target) if args.target else made_up_target())
    drafter: Any = NGramDrafter() if args.drafter == "ngram" else LayerDrafter(args.num_layers)
    if args.drafter == "model":
        drafter = ready(load(args.draft)) if args.draft else first_layers(target, args.num_layers)

    def show(row: int, token_ids: list[int]) -> None:
        print(tokenizer.decode(token_ids) if tokenizer else token_ids, end=" ", flush=True)

    settings: dict[str, Any] = {"tokenizer": tokenizer, "verifier": args.verifier}
    input_ids = torch.tensor([prompt], device=args.device)
    tokens: dict[tuple[float, bool], list[list[int]]] = {}
    num_tokens = 32 if args.quick else args.max_new_tokens
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_new_tokens=num_tokens, temperature=temperature, seed=0)
        for plain in (True, False):
            num_drafted = 0 if plain else args.num_draft_tokens
            decoder = SpeculativeDecoder(target, drafter, num_draft_tokens=num_drafted, **settings)
            decoder.generate(input_ids, params=params)  # warm up
            start = time.perf_counter()
            streamer = show if args.stream and not plain else None
            output = decoder.generate(input_ids, params=params, streamer=streamer)
            rate = int(output.lengths.sum()) / (time.perf_counter() - start)
            tokens[temperature, plain] = output.new_tokens()
            print(
                f"T={temperature:g} {'plain' if plain else args.drafter:6}: {rate:6.1f} tokens/s, "
                f"{output.stats.block_efficiency:.2f} tokens per target call"
            )
    for temperature, name in ((0.0, "greedy"), (1.0, "sampled")):
        if temperature == 0 or args.verifier == "coupled":
            same = tokens[temperature, True] == tokens[temperature, False]
            print(f"{name} tokens identical to plain decoding: {same}")


if __name__ == "__main__":
    main(tyro.cli(Args))
