"""Verification on a GPU in microseconds, and in GB/s beside the bandwidth of a copy.

    python benchmarks/verify_kernels.py            # needs a CUDA device, a few minutes
    python benchmarks/verify_kernels.py --quick    # two sizes, to see that it runs

For each size the same block is verified by the Triton kernels, by eager torch and by torch.compile
of that, interleaved, the kernels also as a CUDA graph. GB/s count the bytes that cannot be avoided:
every logit of target and draft once, batch x vocabulary x bytes x (2 x drafted + 1). Logits that
fit the L2 cache may come from there, in the copy as well. Without a GPU nothing is measured.
"""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from harness import ROOT, Goal, environment_line, save_rows, table

from selftrain._core.io import read_json, write_text
from selftrain.ops.philox import Stream
from selftrain.ops.verification import sample_tokens, verify_draft

# Batch, drafted, vocabulary, type: the table of the specification.
SIZES = [
    (1, 5, 128256, torch.bfloat16),
    (8, 5, 151936, torch.bfloat16),
    (32, 5, 151936, torch.float32),
    (64, 7, 128256, torch.bfloat16),
    (64, 7, 262144, torch.bfloat16),
]
RULES = ["token", "block", "greedy", "coupled"]
WARPS = {"plain": {}, "top-k 50, top-p 0.9": {"top_k": 50, "top_p": 0.9}}
LARGE_BYTES = 100e6
BANDWIDTH_SHARE, GRAPH_MICROSECONDS = 0.70, 12.0
GOALS = [
    "large cases, share of copy bandwidth",
    "batch 1 under a CUDA graph, microseconds",
]


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """Two sizes, few repetitions."""
    repeats: int = 30
    """Timings of each; the median counts."""
    json: Path = ROOT / "benchmarks/results/verify_kernels.json"
    """Where the rows go."""


def block_of(batch: int, drafted: int, vocab: int, dtype: torch.dtype, warp: dict) -> tuple:
    """Return one block of random logits with drafted tokens of the draft's law."""
    rng = torch.Generator("cuda").manual_seed(0)
    options = {"generator": rng, "device": "cuda"}
    target = torch.randn(batch, drafted + 1, vocab, **options).to(dtype)
    draft = (target[:, :-1].float() + torch.randn(batch, drafted, vocab, **options)).to(dtype)
    seeds = torch.randint(2**62, (batch,), **options)
    starts = torch.randint(4096, (batch,), **options)
    tokens = [
        sample_tokens(
            draft[:, i], seeds=seeds, positions=starts, stream=Stream.DRAFT, slot=i, **warp
        )
        for i in range(drafted)
    ]
    return target, draft, torch.stack(tokens, 1), seeds, starts


def graph_of(run: Callable[[], Any]) -> Callable[[], Any]:
    """Record ``run`` as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def microseconds(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median time of each, one after the other in turn, ten calls a timing."""
    calls = 10
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(5):
            run()
    for _ in range(repeats):
        for name, run in runs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(calls):
                run()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) * 1000 / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def copy_of(num_bytes: int) -> Callable[[], Any]:
    """Return a copy that moves ``num_bytes`` in all, half of them read and half written."""
    source = torch.empty(num_bytes // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def measure(size: tuple, rule: str, warp: str, repeats: int) -> dict[str, Any]:
    """Return one row: all implementations of one rule at one size."""
    batch, drafted, vocab, dtype = size
    target, draft, tokens, seeds, starts = block_of(*size, WARPS[warp])

    def verify(backend: str) -> Callable[..., Any]:
        # The overlap is a second pass that the token rule does without.
        return lambda target, draft: verify_draft(
            target,
            draft,
            tokens,
            rule=rule,
            seeds=seeds,
            starts=starts,
            overlap=rule != "token",
            backend=backend,
            **WARPS[warp],
        )

    compiled = torch.compile(verify("eager"))
    read_draft = rule in ("token", "block")
    rows_read = drafted + 1 + (drafted if read_draft else 0)
    num_bytes = batch * rows_read * vocab * target.element_size()
    runs = {
        "triton": lambda: verify("triton")(target, draft),
        "triton, graph": graph_of(lambda: verify("triton")(target, draft)),
        "eager": lambda: verify("eager")(target, draft),
        "compiled": lambda: compiled(target, draft),
        "copy": copy_of(num_bytes),
        "copy, large": copy_of(2**30),
    }
    times = microseconds(runs, repeats)
    bandwidth = 2**30 / times.pop("copy, large") / 1000
    return {
        "batch": batch,
        "drafted": drafted,
        "vocab": vocab,
        "dtype": str(dtype).removeprefix("torch."),
        "rule": rule,
        "warp": warp,
        "bytes": num_bytes,
        "copy_gb_per_second": bandwidth,
        "microseconds": times,
        "gb_per_second": num_bytes / times["triton, graph"] / 1000,
    }


def goals_of(rows: list[dict[str, Any]]) -> list[Goal]:
    """The token rule without warping reads every logit once: that is what the goals are about."""
    token = [row for row in rows if row["rule"] == "token" and row["warp"] == "plain"]
    shares = [
        row["gb_per_second"] / row["copy_gb_per_second"]
        for row in token
        if row["bytes"] >= LARGE_BYTES
    ]
    single = [row["microseconds"]["triton, graph"] for row in token if row["batch"] == 1]
    goals = []
    if shares:
        goals.append(Goal(GOALS[0], min(shares), BANDWIDTH_SHARE))
    if single:
        goals.append(Goal(GOALS[1], max(single), GRAPH_MICROSECONDS, at_least=False))
    return goals


def page(rows: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    """Return the table for the docs."""
    names = ["triton", "triton, graph", "eager", "compiled", "copy"]
    lines = [
        [
            *(row[key] for key in ("batch", "drafted", "vocab", "dtype", "rule", "warp")),
            *(f"{row['microseconds'][name]:.1f}" for name in names),
            f"{row['gb_per_second']:.0f} of {row['copy_gb_per_second']:.0f}",
        ]
        for row in rows
    ]
    columns = ["batch", "drafted", "vocabulary", "type", "rule", "warp"]
    columns += [f"{name}, µs" for name in names] + ["GB/s of a copy's"]
    return (
        f"*{environment_line(environment)}; medians; command "
        f"`python benchmarks/verify_kernels.py`.*\n\n{table(columns, lines)}\n"
    )


def main(args: Args) -> None:
    if not torch.cuda.is_available():
        print("No CUDA device: nothing was measured.")
        for name, bound in zip(GOALS, (BANDWIDTH_SHARE, GRAPH_MICROSECONDS), strict=True):
            print(f"goal {name}: not measured (wanted {bound:g})")
        return
    sizes = [SIZES[0], SIZES[3]] if args.quick else SIZES
    repeats = 5 if args.quick else args.repeats
    rows = []
    for size, rule, warp in itertools.product(sizes, RULES, WARPS):
        if rule == "greedy" and WARPS[warp]:
            continue  # it does not look at them
        rows.append(measure(size, rule, warp, repeats))
        print(rows[-1])
    goals = goals_of(rows)
    path = args.json.with_stem(args.json.stem + "-quick") if args.quick else args.json
    save_rows(path, rows, seed=0, goals=goals)
    text = page(rows, read_json(path)["environment"])
    if not args.quick:
        write_text(ROOT / "docs/tables/verify_kernels.md", text)
    print(text)
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
