"""Improve a model by its own right answers, from scratch: ReST-EM on chains of modular arithmetic.

A chain such as `7+b*3-m=` is worked out step by step. A small model first learns from worked chains
that know only 60 % of the step facts and guess the others. Then it tries new chains of which only
the answers are known, keeps what came out right, and is trained on that from the same start, twice.
Expect pass@1 on test chains to rise by some tens of points, and the share of kept chains that are
right by luck to fall: the model has found the facts that nobody told it.

    python examples/self_train_arithmetic.py --modulus 11 --num-train 3000 --num-steps 800

On a GPU with a real model: examples/self_train_gsm8k.py.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from selftrain import ReSTEM, ReSTEMConfig, SamplingParams
from selftrain.loops import EvaluationConfig, ImproveConfig, RowWriter
from selftrain.tasks import character_tokenizer, modular_chains, small_llama
from selftrain.training import FinetuneConfig, OptimConfig, finetune


@dataclass(frozen=True)
class Args:
    """Command line."""

    modulus: int = 7
    """The prime; facts grow with its square."""
    num_train: int = 1500
    """Chains to learn on by trial."""
    num_rounds: int = 2
    """Rounds of trying and training."""
    num_steps: int = 300
    """Optimizer steps of each round; twice as many for the worked chains."""
    output_dir: Path | None = None
    """Keep the run there, and continue it; None: a temporary folder."""
    quick: bool = False
    """A few steps of everything."""


def optim(learning_rate: float) -> OptimConfig:
    return OptimConfig(
        learning_rate=learning_rate,
        warmup_steps=10,
        schedule="cosine",
        betas=(0.9, 0.98),
    )


def main(args: Args) -> None:
    steps, train = (args.num_steps, args.num_train) if not args.quick else (10, 48)
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # small tensors
    parts = modular_chains(
        modulus=args.modulus,
        num_sft=max(64, 8 * train),
        guessed_fraction=0.5,
        num_train=train,
        num_validation=100 if not args.quick else 8,
        num_test=400 if not args.quick else 8,
    )
    tokenizer = character_tokenizer()
    model = small_llama(tokenizer, num_layers=2, width=64)
    worked = RowWriter(parts.sft, model, tokenizer).of_solutions()
    training = FinetuneConfig(num_steps=2 * steps, batch_size=128, optim=optim(3e-3))
    finetune(model, worked, training, title="worked chains")

    sampling = SamplingParams(max_new_tokens=14)  # at temperature 1: it must try what is new
    config = ReSTEMConfig(
        num_rounds=args.num_rounds if not args.quick else 1,
        num_samples=16,
        sampling=sampling,
        cap=10,
        patience=None,
        improve=ImproveConfig(
            first_steps=steps,
            step_growth=1.0,
            batch_size=128,
            evaluations=1,
            optim=optim(2e-3),
        ),
        evaluation=EvaluationConfig(sampling=sampling),
        chunk_size=32,
        batch_size=512,
    )
    with tempfile.TemporaryDirectory() as folder:
        result = ReSTEM(
            model,
            tokenizer,
            parts.train,
            config,
            validation=parts.validation,
            test=parts.test,
            output_dir=args.output_dir or folder,
        ).run()
    for done in (result.start, *result.rounds):
        name = "base" if done is result.start else f"round {done.number}"
        test = done.evaluations["test"].greedy
        line = f"{name:8}: test pass@1 {test.mean:6.1%} (95 %: {test.low:.1%} to {test.high:.1%})"
        if done.false_positive_fraction is not None:
            line += f", kept {done.num_selected}, right by luck {done.false_positive_fraction:.1%}"
        print(line)
    print(f"ended because {result.stopped}")


if __name__ == "__main__":
    main(tyro.cli(Args))
