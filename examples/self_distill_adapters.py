"""Teach a model, through adapters, to do without its prompt what it does with it.

Shows `CallableTeacher` and a student with LoRA adapters (peft): context distillation. The teacher
is the student's own base, its adapters off, that reads a hint before every prompt; the student does
not read it. A tiny model is first trained to count up or down by the hint, and without one to do
either. Expect its share of answers that count down to go from about a half to nearly all.

    python examples/self_distill_adapters.py --num-steps 100
"""

import random
from dataclasses import dataclass

import peft
import torch
import tyro
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selftrain import DistillConfig, Distiller, HFSampler, SamplingParams
from selftrain.distill.models import ModelShape, new_llama
from selftrain.distill.teachers import CallableTeacher
from selftrain.training import FinetuneConfig, OptimConfig, finetune

END, UP, DOWN, START = 1, 2, 3, 4  # then the numbers 0 to 39
LENGTH = 6


@dataclass(frozen=True)
class Args:
    """Command line."""

    num_steps: int = 60
    """Steps of distillation."""
    quick: bool = False
    """A few steps of everything."""


def counting(rng: random.Random, hint: int | None) -> dict[str, list[int]]:
    """Return a row that counts from a number; without a hint in a direction drawn by lot."""
    first, way = rng.randrange(10, 30), hint or rng.choice([UP, DOWN])
    numbers = [first + (i if way == UP else -i) for i in range(1, LENGTH)]
    prompt = [hint] * (hint is not None) + [START, 5 + first]
    return {"prompt_ids": prompt, "completion_ids": [5 + n for n in numbers] + [END]}


def share_down(model, tokenizer, prompts: list[list[int]]) -> float:
    params = SamplingParams(max_new_tokens=LENGTH, seed=0)
    texts = HFSampler(model, tokenizer, batch_size=64).sample(prompts, num_samples=1, params=params)
    right = [[p[-1] - i for i in range(1, LENGTH)] + [END] for p in prompts]
    pairs = zip(texts, right, strict=True)
    return sum(list(t.token_ids) == r for (t,), r in pairs) / len(prompts)


def main(args: Args) -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    words = ["<pad>", "<end>", "<up>", "<down>", "<start>", *map(str, range(40))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<pad>"
    )
    base = new_llama(ModelShape(num_layers=2, width=64), tokenizer)
    rows = [counting(rng, rng.choice([UP, DOWN, None])) for _ in range(2000)]
    rows = [{"input_ids": row["prompt_ids"] + row["completion_ids"]} for row in rows]
    optim = OptimConfig(learning_rate=5e-3, warmup_steps=10, schedule="cosine")
    num_steps = 10 if args.quick else 300
    finetune(base, rows, FinetuneConfig(num_steps=num_steps, optim=optim), title="base")

    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    student = peft.get_peft_model(base, lora)

    def hinted(input_ids, attention_mask, positions):
        """Return the base's logits for the same text behind the hint."""
        ids = torch.nn.functional.pad(input_ids, (1, 0), value=DOWN)
        mask = torch.nn.functional.pad(attention_mask, (1, 0), value=1)
        was_training = student.training
        student.eval()
        with student.disable_adapter():
            logits = student(input_ids=ids, attention_mask=mask).logits[:, 1:]
        student.train(was_training)
        return logits.flatten(0, 1)[positions]

    prompts = [[START, 5 + first] for first in range(10, 30) for _ in range(10)]
    hinted_prompts = [[DOWN, *prompt] for prompt in prompts]
    with student.disable_adapter():
        share = share_down(student, tokenizer, hinted_prompts)
    print(f"counts down, base with the hint:  {share:.0%}")
    print(f"counts down, base without it:     {share_down(student, tokenizer, prompts):.0%}")
    config = DistillConfig(
        divergence="reverse_kl",
        sampling=SamplingParams(max_new_tokens=LENGTH),
        num_steps=5 if args.quick else args.num_steps,
        optim=OptimConfig(learning_rate=5e-3, warmup_steps=5, schedule="cosine"),
    )
    distiller = Distiller(student, CallableTeacher(hinted), tokenizer, config)
    distiller.fit([{"prompt_ids": prompt} for prompt in prompts])
    print(f"counts down, adapted, without it: {share_down(student, tokenizer, prompts):.0%}")


if __name__ == "__main__":
    main(tyro.cli(Args))
