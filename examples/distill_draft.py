"""Distil a draft on text that it writes itself, and watch the target agree with it more.

Shows `finetune`, `Distiller` and `measure_draft` on text that every Python carries. A small target
and a one-layer draft are trained first; then the draft learns from the target's opinion of the
draft's own continuations. Expect acceptance and tokens per target call to rise.

On a GPU, with real models and your own text:

    python examples/distill_draft.py --target Qwen/Qwen3-8B --draft Qwen/Qwen3-0.6B \
        --dataset my_texts.jsonl --num-steps 2000
"""

from dataclasses import dataclass, replace

import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from selftrain import DistillConfig, Distiller, SamplingParams, measure_draft
from selftrain.tasks import (
    blocks,
    encode_documents,
    load_corpus,
    split_corpus,
    train_tokenizer,
    windows,
)
from selftrain.training import FinetuneConfig, OptimConfig, finetune


@dataclass(frozen=True)
class Args:
    """Command line."""

    target: str | None = None
    """Hub name or folder of the target; None trains a small one."""
    draft: str | None = None
    """Hub name or folder of the draft; None trains a small one."""
    dataset: str = "python-docs"
    """Embedded text, a file, a folder, or a hub data set."""
    num_steps: int = 60
    """Steps of distillation."""
    quick: bool = False
    """A few steps of everything."""


def small_model(tokenizer, num_layers: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=num_layers,
            num_attention_heads=3,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            tie_word_embeddings=True,
        )
    )


def main(args: Args) -> None:
    split = split_corpus(load_corpus(args.dataset))
    if args.target and args.draft:
        tokenizer = AutoTokenizer.from_pretrained(args.target)
        target, draft = map(AutoModelForCausalLM.from_pretrained, (args.target, args.draft))
    else:
        tokenizer = train_tokenizer((d.text for d in split.train), vocab_size=512)
        optim = OptimConfig(learning_rate=5e-3, warmup_steps=10, schedule="cosine")
        training = FinetuneConfig(num_steps=10 if args.quick else 120, batch_size=8, optim=optim)
        rows = blocks(encode_documents(tokenizer, split.train), length=96)
        target, draft = small_model(tokenizer, 6), small_model(tokenizer, 1)
        finetune(target, rows, training, title="target")
        finetune(draft, rows, replace(training, num_steps=training.num_steps // 2), title="draft")
    target.requires_grad_(False)

    rows = windows(encode_documents(tokenizer, split.train), prompt_tokens=24, completion_tokens=48)
    held_out = windows(
        encode_documents(tokenizer, split.test), prompt_tokens=24, completion_tokens=48
    )
    prompts = [row["prompt_ids"] for row in held_out[:24]]
    params = SamplingParams(max_new_tokens=48, seed=0)
    before = measure_draft(target, draft, prompts, params=params)

    config = DistillConfig(
        divergence="reverse_kl",
        on_policy_fraction=1.0,  # all text is the draft's own
        sampling=SamplingParams(max_new_tokens=48),
        num_steps=5 if args.quick else args.num_steps,
        batch_size=16,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=5, schedule="cosine"),
    )
    Distiller(draft, target, tokenizer, config).fit(rows)
    after = measure_draft(target, draft, prompts, params=params)
    for name, stats in (("before", before), ("after", after)):
        print(
            f"{name:6}: acceptance {stats.acceptance_rate:.3f}, "
            f"{stats.block_efficiency:.2f} tokens per target call"
        )


if __name__ == "__main__":
    main(tyro.cli(Args))
