"""Sampling many completions of the same prompts: ours beside ``generate(num_return_sequences=n)``.

    python benchmarks/sampling.py            # about 5 minutes on two cores
    python benchmarks/sampling.py --quick    # half a minute, to see that it runs

The model is a Llama with random weights, of 6 layers and 256 features; no weights are needed to
measure speed. Completions end by themselves at one of several end-of-sequence ids, after about 80
tokens, or at their budget. Both sides draw as many from the same law (temperature 0.7, top-k 40,
those of ReST^EM), and at the same largest batch. All methods take turns in one process, each with
the same seed every time, and the fastest call of each counts. Processor seconds stand beside: they
say how much work it is where other processes slow down a call. "Copied" is our sampler where every
row has a copy of its prompt, as for models whose attention cannot be exchanged.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from harness import ROOT, Goal, environment_line, save_rows, table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from selftrain._core.io import read_json, write_text
from selftrain.bench.memory import peak_memory
from selftrain.bench.timing import take_turns
from selftrain.decoding import HFSampler, SamplingParams
from selftrain.decoding.cache import SlotLanes

VOCAB = 4096
EOS = list(range(100, VOCAB, 80))  # so many that about one token in eighty ends a completion
WANTED_SPEEDUP = 5.0


@dataclass(frozen=True)
class Case:
    """What is sampled."""

    name: str
    num_common: int
    """Tokens with which all prompts begin."""
    num_prompts: int
    rest: tuple[int, int]
    """The fewest and the most tokens of a prompt after that."""
    num_samples: int
    batch_size: int
    """Most rows at a time, on both sides."""
    max_new_tokens: int = 64

    def prompts(self) -> list[list[int]]:
        """Return the prompts, random tokens of which none ends a sequence."""
        rng = torch.Generator().manual_seed(0)
        usable = torch.tensor(sorted(set(range(3, VOCAB)) - set(EOS)))

        def draw(num: int) -> list[int]:
            return usable[torch.randint(len(usable), (num,), generator=rng)].tolist()

        common = draw(self.num_common)
        lengths = torch.randint(self.rest[0], self.rest[1] + 1, (self.num_prompts,), generator=rng)
        return [common + draw(length) for length in lengths.tolist()]


CASES = [
    Case("one prompt of 1024 tokens, n=32", 0, 1, (1024, 1024), 32, 32),
    Case("16 prompts of 16 to 48 tokens, n=8", 0, 16, (16, 48), 8, 32, 128),
    Case("8 prompts with 768 tokens in common, n=4", 768, 8, (16, 48), 4, 32),
]
QUICK_CASES = [
    Case("one prompt of 256 tokens, n=16", 0, 1, (256, 256), 16, 16, 48),
    Case("8 prompts of 16 to 48 tokens, n=4", 0, 8, (16, 48), 4, 16, 48),
    Case("8 prompts with 192 tokens in common, n=4", 192, 8, (16, 48), 4, 16, 48),
]


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """Small sizes, few repetitions."""
    rounds: int = 2
    """Calls of each method; the fastest counts."""
    json: Path = ROOT / "benchmarks/results/sampling.json"
    """Where the rows go."""


def build_model() -> PreTrainedModel:
    """Return the model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


Draw = Callable[[], list[int]]


@dataclass(frozen=True)
class Drawn:
    """What a call drew."""

    lengths: list[int]
    processor_seconds: float


def on_the_clock(draw: Draw) -> Drawn:
    """Call ``draw`` and take the time of the processor."""
    start = time.process_time()
    lengths = draw()
    return Drawn(lengths, time.process_time() - start)


def by_generate(model: PreTrainedModel, case: Case) -> Draw:
    """Return a call of transformers that draws all completions and returns their lengths."""
    prompts = case.prompts()
    at_once = max(1, case.batch_size // case.num_samples)

    def draw() -> list[int]:
        torch.manual_seed(0)
        lengths: list[int] = []
        for first in range(0, len(prompts), at_once):
            part = prompts[first : first + at_once]
            longest = max(map(len, part))
            out = model.generate(
                torch.tensor([[0] * (longest - len(p)) + p for p in part]),
                attention_mask=torch.tensor(
                    [[0] * (longest - len(p)) + [1] * len(p) for p in part]
                ),
                do_sample=True,
                temperature=0.7,
                top_k=40,
                top_p=1.0,
                max_new_tokens=case.max_new_tokens,
                num_return_sequences=case.num_samples,
                pad_token_id=0,
            )
            lengths += [length_of(row) for row in out[:, longest:].tolist()]
        return lengths

    return draw


def length_of(tokens: Sequence[int]) -> int:
    """Return how many tokens come before and with the first that ends the sequence."""
    ends = set(EOS)
    return next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))


def by_us(model: PreTrainedModel, case: Case, *, copied: bool) -> Draw:
    """Return the same by our sampler."""
    sampler = HFSampler(model, None, batch_size=case.batch_size)
    if copied:
        sampler._lanes_type = SlotLanes
    prompts = case.prompts()
    params = SamplingParams(max_new_tokens=case.max_new_tokens, temperature=0.7, top_k=40, seed=0)

    def draw() -> list[int]:
        found = sampler.sample(prompts, num_samples=case.num_samples, params=params)
        return [len(c.token_ids or ()) for row in found for c in row]

    return draw


def methods_of(model: PreTrainedModel, case: Case) -> dict[str, Draw]:
    """Return the methods by name."""
    return {
        "ours": by_us(model, case, copied=False),
        "copied": by_us(model, case, copied=True),
        "generate": by_generate(model, case),
    }


def memory_of(case: Case, method: str | None) -> None:
    """Do what ``peak_memory`` measures: build the model, and draw unless ``method`` is None."""
    model = build_model()
    model(torch.zeros(1, 8, dtype=torch.long))
    if method is not None:
        methods_of(model, case)[method]()


def measure(model: PreTrainedModel, case: Case, rounds: int) -> dict[str, Any]:
    """Return one row: the times of all methods on one case."""
    methods = methods_of(model, case)
    timed = take_turns(
        {name: lambda _, draw=draw: on_the_clock(draw) for name, draw in methods.items()},
        rounds=rounds,
        device=torch.device("cpu"),
    )
    row: dict[str, Any] = {"case": case.name, "methods": {}}
    for name, calls in timed.items():
        best = min(calls, key=lambda call: call.seconds)
        num, tokens = len(best.result.lengths), sum(best.result.lengths)
        row["methods"][name] = {
            "seconds": best.seconds,
            "all_seconds": [call.seconds for call in calls],
            "processor_seconds": min(call.result.processor_seconds for call in calls),
            "completions_per_second": num / best.seconds,
            "tokens_per_second": tokens / best.seconds,
            "mean_length": tokens / num,
        }
    return row


def measure_memory(case: Case, row: dict[str, Any]) -> None:
    """Add to a row the peak memory of each method, less that of the model alone."""
    before = peak_memory(memory_of, case, None)
    for name, found in row["methods"].items():
        found["peak_bytes"] = peak_memory(memory_of, case, name) - before


def speedup(row: dict[str, Any]) -> float:
    """Return how many times as many completions ours draws in a second as ``generate``."""
    ours, theirs = row["methods"]["ours"], row["methods"]["generate"]
    return ours["completions_per_second"] / theirs["completions_per_second"]


def page(rows: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    """Return the table for the docs."""
    lines = []
    for row, name in itertools.product(rows, ("ours", "copied", "generate")):
        found = row["methods"][name]
        reference = row["methods"]["generate"]
        ratio = found["completions_per_second"] / reference["completions_per_second"]
        lines.append(
            [
                row["case"] if name == "ours" else "",
                name,
                f"{found['completions_per_second']:.2f}",
                f"{found['tokens_per_second']:.0f}",
                f"{found['mean_length']:.1f}",
                f"{ratio:.2f}",
                f"{found['processor_seconds']:.1f}",
                f"{found['peak_bytes'] / 1e6:.0f}",
            ]
        )
    columns = [
        "case",
        "method",
        "completions/s",
        "tokens/s",
        "mean length",
        "times generate",
        "CPU s",
        "MB",
    ]
    return (
        f"*{environment_line(environment)}; fastest call; command "
        f"`python benchmarks/sampling.py`.*\n\n{table(columns, lines)}\n"
    )


def main(args: Args) -> None:
    model = build_model()
    rows = []
    cases = QUICK_CASES if args.quick else CASES
    for case in cases:
        rows.append(measure(model, case, 1 if args.quick else args.rounds))
        print(rows[-1], flush=True)
    print("All is timed; the memory is measured next.", flush=True)
    for case, row in zip(cases, rows, strict=True):
        measure_memory(case, row)
    goals = [
        Goal(
            f"{rows[0]['case']}, completions/s, ours / generate",
            speedup(rows[0]),
            WANTED_SPEEDUP,
        )
    ]
    path = args.json.with_stem(args.json.stem + "-quick") if args.quick else args.json
    save_rows(path, rows, seed=0, goals=goals)
    text = page(rows, read_json(path)["environment"])
    if not args.quick:
        write_text(ROOT / "docs/tables/sampling.md", text)
    print(text)
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
