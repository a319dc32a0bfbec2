"""Train a generator and a verifier on one model's own answers, and let the verifier choose: V-STaR.

In the numbers game (`3 7 12:24=`) most problems have many solutions and a wrong one is hard to tell
at a glance. A small model first learns from worked problems; then it samples answers to others,
learns from the right ones, and a verifier learns from right against wrong. Expect the verifier's
choice among k candidates to lie well above one answer at random, and to grow with k.

    python examples/train_verifier.py --num-train 4000 --num-candidates 64

The command line does the same with a model of your own: selftrain vstar --help.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from selftrain import HFSampler, ReSTEMConfig, SamplingParams, VSTaR, VSTaRConfig
from selftrain.loops import BestOfK, EvaluationConfig, ImproveConfig, RowWriter
from selftrain.tasks import character_tokenizer, countdown, small_llama
from selftrain.training import FinetuneConfig, OptimConfig, PreferenceConfig, finetune


@dataclass(frozen=True)
class Args:
    """Command line."""

    num_train: int = 2000
    """Problems to learn on by trial."""
    num_steps: int = 150
    """Optimizer steps of each training."""
    num_candidates: int = 16
    """Candidates of each test problem."""
    quick: bool = False
    """A few steps of everything."""


def optim(learning_rate: float) -> OptimConfig:
    return OptimConfig(
        learning_rate=learning_rate, warmup_steps=5, schedule="cosine", betas=(0.9, 0.98)
    )


def main(args: Args) -> None:
    steps, train = (args.num_steps, args.num_train) if not args.quick else (30, 32)
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # small tensors
    parts = countdown(num_sft=1500, num_train=train, num_validation=50, num_test=8 * train // 32)
    tokenizer = character_tokenizer()
    model = small_llama(tokenizer, num_layers=2, width=64)
    worked = RowWriter(parts.sft, model, tokenizer).of_solutions()
    training = FinetuneConfig(num_steps=2 * steps, batch_size=128, optim=optim(3e-3))
    finetune(model, worked, training, title="worked problems")

    sampling = SamplingParams(max_new_tokens=14)
    generator = ReSTEMConfig(
        num_rounds=1,
        num_samples=16,
        sampling=sampling,
        cap=None,
        dedupe="text",
        data="all",
        with_solutions=True,
        patience=None,
        improve=ImproveConfig(first_steps=steps, batch_size=128, evaluations=1, optim=optim(2e-3)),
        evaluation=EvaluationConfig(sampling=sampling),
        chunk_size=32,
        batch_size=512,
    )
    config = VSTaRConfig(
        generator=generator,
        preference=PreferenceConfig(
            beta=0.5,
            num_steps=steps,
            batch_size=16,
            problem_weighting="problem",
            optim=optim(1e-3),
        ),
        max_per_class=8,
        num_candidates=args.num_candidates,
    )
    with tempfile.TemporaryDirectory() as folder:
        result = VSTaR(
            model,
            tokenizer,
            parts.train,
            config,
            validation=parts.validation,
            test=parts.test,
            solved=parts.sft,
            output_dir=Path(folder),
        ).run()
    report = result.reports["test"]
    print("  k  at random  verifier  majority  perfect judge")
    for k, best in report.best_of_k["log_prob"].items():
        vote, judge = report.majority_at_k[k].mean, report.pass_at_k[k].mean
        cells = (report.pass_at_1.mean, best.mean, vote, judge)
        print(f"{k:3}  {cells[0]:9.1%}  {cells[1]:8.1%}  {cells[2]:8.1%}  {cells[3]:13.1%}")
    chooser = BestOfK(HFSampler(model, tokenizer), result.verifier)
    problem = parts.test.problems[0]
    print(problem.prompt, chooser.sample([problem.prompt], num_samples=16, params=sampling)[0].text)


if __name__ == "__main__":
    main(tyro.cli(Args))
