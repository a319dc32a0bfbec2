"""Distil an encoder-decoder (T5 v1.1) for translation: fine-tune both, then learn on-policy.

Shows `finetune` and `Distiller` on encoder-decoder models. Without arguments the language pair is
made up (adjectives follow their noun, the verb comes last): the teacher learns from many pairs, the
student from few, and then from the teacher on its own translations: the right words rise.

On a GPU, with real models and your own pairs, one {"prompt": ..., "completion": ...} a line:

    python examples/distill_t5.py --teacher google/t5-v1_1-xl --student google/t5-v1_1-small \
        --dataset pairs.jsonl --num-steps 2000
"""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSeq2SeqLM as AutoModel
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Config

from selftrain import DistillConfig, Distiller, SamplingParams
from selftrain.decoding import EncoderDecoderSampler
from selftrain.training import FinetuneConfig, OptimConfig, finetune

ADJECTIVES, VERBS = ["small", "red", "old", "new"], ["sees", "finds", "likes", "paints"]
NOUNS = ["cat", "house", "river", "book", "child", "stone"]


@dataclass(frozen=True)
class Args:
    """Command line."""

    teacher: str | None = None
    """Hub name or folder of the teacher; None trains a small one."""
    student: str | None = None
    """Hub name or folder of the student; None trains a small one."""
    dataset: Path | None = None
    """JSONL of prompts and completions; None makes sentences up."""
    num_steps: int = 300
    """Steps of the student's fine-tuning, and of its distillation."""
    quick: bool = False
    """A few steps of everything."""


def made_up_pairs(num: int) -> list[dict[str, str]]:
    rng, pairs = random.Random(0), []
    for _ in range(num):
        (*before, noun), (*after, thing) = (
            [*rng.sample(ADJECTIVES, rng.randint(0, 2)), rng.choice(NOUNS)] for _ in range(2)
        )
        verb = rng.choice(VERBS)
        foreign = [word[::-1] for word in (noun, *before, thing, *after, verb)]
        words = [*before, noun, verb, *after, thing]
        pairs.append({"prompt": " ".join(words), "completion": " ".join(foreign)})
    return pairs


def word_tokenizer(pairs: list[dict[str, str]]) -> PreTrainedTokenizerFast:
    words = sorted({word for pair in pairs for text in pair.values() for word in text.split()})
    vocab = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def small_t5(vocab_size: int, num_layers: int, width: int) -> AutoModel:
    shape = {"d_model": width, "d_ff": 2 * width, "num_layers": num_layers}
    heads = {"d_kv": 32, "num_heads": width // 32, "decoder_start_token_id": 0}
    kind = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "dropout_rate": 0.0}
    return AutoModel.from_config(T5Config(vocab_size=vocab_size, **shape, **heads, **kind))


def right_words(model: AutoModel, rows: list[dict[str, list[int]]]) -> float:
    sampler = EncoderDecoderSampler(model, None, batch_size=64)
    params = SamplingParams(max_new_tokens=64, temperature=0)
    written = sampler.sample([row["prompt_ids"] for row in rows], params=params)
    pairs = zip((c.token_ids for (c,) in written), (r["completion_ids"] for r in rows), strict=True)
    shares = [sum(map(int.__eq__, ours, right)) / len(right) for ours, right in pairs]
    return sum(shares) / len(shares)


def main(args: Args) -> None:
    torch.manual_seed(0)
    pairs = list(map(json.loads, args.dataset.open())) if args.dataset else made_up_pairs(4000)
    if args.teacher and args.student:
        tokenizer = AutoTokenizer.from_pretrained(args.teacher)
        teacher, student = map(AutoModel.from_pretrained, (args.teacher, args.student))
    else:
        tokenizer = word_tokenizer(pairs)
        teacher, student = small_t5(len(tokenizer), 2, 32), small_t5(len(tokenizer), 1, 32)
    parts = ("prompt", "completion")
    rows = [{f"{part}_ids": tokenizer(pair[part]).input_ids for part in parts} for pair in pairs]
    held_out, rows, few = rows[:200], rows[200:], rows[200 : 200 + len(rows) // 10]

    optim = OptimConfig(learning_rate=5e-3, warmup_steps=20, betas=(0.9, 0.95))
    num_steps = 5 if args.quick else args.num_steps
    sft = FinetuneConfig(num_steps=num_steps, optim=optim)
    if not args.teacher:
        finetune(teacher, rows, replace(sft, num_steps=3 * num_steps), title="teacher")
    finetune(student, few, sft, title="student")
    teacher.requires_grad_(False)
    before = [f"{right_words(model, held_out):.0%}" for model in (teacher, student)]
    print("right words, teacher: {}, student, fine-tuned: {}".format(*before))
    config = DistillConfig(
        divergence="forward_kl",
        sampling=SamplingParams(max_new_tokens=64 if args.dataset else 12),
        num_steps=num_steps,
        optim=replace(optim, learning_rate=3e-3),
    )
    Distiller(student, teacher, tokenizer, config).fit(rows)
    print(f"student, then distilled on-policy: {right_words(student, held_out):.0%}")


if __name__ == "__main__":
    main(tyro.cli(Args))
