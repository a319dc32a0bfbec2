"""Teach a model with adapters to behave as if it had been given a prompt, from its own base.

Shows `CallableTeacher`: the teacher is the student's own base (its adapters are off while it
teaches), which sees an instruction in front of every prompt; the student does not. A tiny model is
trained first on counting: "up 3 :" is continued upwards, "down 3 :" downwards, and "3 :" either
way. Then adapters learn the instruction "up" from the student's own continuations of "3 :". Expect
the share of continuations that count upwards without an instruction to rise from less than a half
to nearly all, while the base stays as it is.

On a GPU take any causal model with `peft.get_peft_model`, an instruction and prompts of your own.
"""

from dataclasses import dataclass

import torch
import tyro
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selftrain import DistillConfig, Distiller, HFSampler, SamplingParams
from selftrain.distill.teachers import CallableTeacher
from selftrain.training import FinetuneConfig, OptimConfig, finetune

WORDS = ["<pad>", "<eos>", "up", "down", ":", *(str(i) for i in range(10))]
LENGTH = 5  # numbers to continue with


@dataclass(frozen=True)
class Args:
    """Command line."""

    num_steps: int = 40
    """Steps of distillation."""
    num_samples: int = 20
    """Continuations of each of ten prompts to measure with."""
    quick: bool = False
    """A few steps of everything."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def counting(start: int, step: int) -> str:
    return " ".join(str((start + step * i) % 10) for i in range(1, LENGTH + 1))


def train_base(tokenizer: PreTrainedTokenizerFast, num_steps: int) -> LlamaForCausalLM:
    rows = []
    for start in range(10):
        for instruction, step in (("up ", 1), ("down ", -1), ("", 1), ("", -1)):
            text = f"{instruction}{start} : {counting(start, step)} <eos>"
            rows.append({"input_ids": tokenizer(text).input_ids})
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    base = LlamaForCausalLM(config)
    optim = OptimConfig(learning_rate=3e-3, warmup_steps=10, schedule="cosine")
    finetune(base, rows, FinetuneConfig(num_steps=num_steps, optim=optim), title="base")
    return base


def share_upwards(model, tokenizer, num_samples: int, instruction: str = "") -> float:
    prompts = [f"{instruction}{start} :" for start in range(10)]
    params = SamplingParams(max_new_tokens=LENGTH + 1, seed=0)
    sampler = HFSampler(model, tokenizer, batch_size=64)
    found = sampler.sample(prompts, num_samples=num_samples, params=params)
    right = [c.text.strip() == counting(i, 1) for i, row in enumerate(found) for c in row]
    return sum(right) / len(right)


def main(args: Args) -> None:
    tokenizer = make_tokenizer()
    base = train_base(tokenizer, 100 if args.quick else 200)
    instructed = share_upwards(base, tokenizer, args.num_samples, "up ")
    student = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))
    before = share_upwards(student, tokenizer, args.num_samples)
    instruction = torch.tensor(tokenizer("up").input_ids)

    def with_instruction(input_ids, attention_mask, positions):
        front = instruction.to(input_ids.device).expand(len(input_ids), -1)
        ids = torch.cat([front, input_ids], 1)
        mask = torch.cat([torch.ones_like(front), attention_mask], 1)
        with student.disable_adapter():
            logits = student(input_ids=ids, attention_mask=mask).logits
        return logits[:, front.shape[1] :].flatten(0, 1)[positions]

    config = DistillConfig(
        divergence="forward_kl",
        on_policy_fraction=1.0,
        sampling=SamplingParams(max_new_tokens=LENGTH + 1),
        num_steps=5 if args.quick else args.num_steps,
        batch_size=32,
        optim=OptimConfig(learning_rate=5e-3, warmup_steps=5, schedule="cosine"),
    )
    rows = [{"prompt": f"{start} :"} for start in range(10)]
    Distiller(student, CallableTeacher(with_instruction), tokenizer, config).fit(rows)
    print(f"upwards, base with the instruction:       {instructed:.2f}")
    print(f"upwards, student without it, before:      {before:.2f}")
    after = share_upwards(student, tokenizer, args.num_samples)
    print(f"upwards, student without it, afterwards:  {after:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Args))
