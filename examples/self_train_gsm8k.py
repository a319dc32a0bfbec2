"""Let a Hugging Face model improve on GSM8K by its own right answers, with LoRA adapters.

Shows a published data set, worked examples in the prompt, adapters (peft) and what a run reports.
Models of a billion parameters solve some problems of grade-school maths; one that solves none, such
as the tiny model of --quick, finds nothing to learn from, and the loop ends and says so.

    python examples/self_train_gsm8k.py --model Qwen/Qwen3-0.6B --num-samples 16     # one GPU
    accelerate launch --num_processes 8 examples/self_train_gsm8k.py --model ...     # several

`--data FOLDER` reads train.jsonl and test.jsonl from a folder instead of the hub. `selftrain restem
--task gsm8k` does the same from the command line, with a report.
"""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import peft
import torch
import tyro
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

from selftrain import ReSTEM, ReSTEMConfig, SamplingParams
from selftrain.loops import EvaluationConfig, ImproveConfig
from selftrain.tasks import character_tokenizer, load_gsm8k, small_llama
from selftrain.training import OptimConfig


@dataclass(frozen=True)
class Args:
    """Command line."""

    model: str = "Qwen/Qwen3-0.6B"
    """Hub name or folder."""
    data: str = "openai/gsm8k:main"
    """Hub name, or a folder with train.jsonl and test.jsonl."""
    num_shots: int = 4
    """Worked examples before every prompt."""
    num_samples: int = 16
    """Completions of each problem in a round."""
    num_test: int = 500
    """Test problems to measure on."""
    lora_rank: int = 32
    """Rank of the adapters."""
    output_dir: Path = Path("runs/gsm8k")
    """Where the run is kept; the same command continues it."""
    quick: bool = False
    """A tiny model and a few rows made here: no download, seconds."""


def made_up(folder: Path) -> str:
    """Write a few problems in the form of GSM8K."""
    for split, first in (("train", 2), ("test", 30)):
        rows = [
            {"question": f"Ann has {n} pens. And Bo?", "answer": f"{n}-1={n - 1}\n#### {n - 1}"}
            for n in range(first, first + 12)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(folder)


def main(args: Args) -> None:
    folder = tempfile.TemporaryDirectory()
    if args.quick:
        args = replace(args, data=made_up(Path(folder.name)), num_shots=1, num_samples=2)
        args = replace(args, num_test=4, lora_rank=2, output_dir=Path(folder.name) / "run")
        tokenizer = character_tokenizer()
        model = small_llama(tokenizer, num_layers=1, width=32, max_positions=256)
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = AutoModelForCausalLM.from_pretrained(args.model)
    torch.manual_seed(0)  # the adapters' first weights: the same in every process
    adapters = peft.LoraConfig(
        r=args.lora_rank, lora_alpha=2 * args.lora_rank, target_modules="all-linear"
    )
    model = peft.get_peft_model(model, replace(adapters, task_type="CAUSAL_LM"))

    problems = load_gsm8k(args.data, split="train", num_shots=args.num_shots)
    validation = problems.take(4 if args.quick else 200)
    held_out = {problem.id for problem in validation.problems}
    train = replace(problems, problems=tuple(p for p in problems.problems if p.id not in held_out))
    test = replace(
        load_gsm8k(args.data, split="test", max_problems=args.num_test), prefix=problems.prefix
    )
    sampling = SamplingParams(
        max_new_tokens=16 if args.quick else 320, temperature=0.7, top_k=40, stop=("\nQuestion:",)
    )
    config = ReSTEMConfig(
        num_samples=args.num_samples,
        sampling=sampling,
        improve=ImproveConfig(num_epochs=2, optim=OptimConfig(learning_rate=1e-4)),
        evaluation=EvaluationConfig(sampling=replace(sampling, temperature=1.0, top_k=None)),
    )
    accelerator = Accelerator()
    result = ReSTEM(
        model,
        tokenizer,
        train,
        config,
        validation=validation,
        test=test,
        output_dir=args.output_dir,
        accelerator=accelerator,
    ).run()
    if accelerator.is_main_process:
        for done in (result.start, *result.rounds):
            right = done.evaluations["test"].greedy
            print(f"{done.number:2}: pass@1 {right.mean:.1%} ({right.low:.1%} to {right.high:.1%})")
        print(f"ended because {result.stopped}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    folder.cleanup()


if __name__ == "__main__":
    main(tyro.cli(Args))
