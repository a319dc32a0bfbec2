"""The fused distillation loss in milliseconds and bytes, beside TRL's and beside full logits.

    python benchmarks/distill_loss.py            # about 8 minutes on two cores
    python benchmarks/distill_loss.py --quick    # half a minute, to see that it runs

One step is the loss of N tokens and its gradients with respect to the student's hidden states and
head. All methods take turns in one process and the fastest call of each counts. "Products" are the
matrix products alone that no method can do without: three with the student's head, one with the
teacher's. Ours returns acceptance, agreement and both entropies as well, TRL the student's entropy.
On a CPU peak memory is that of a fresh process, less that of one which does everything but the
step; on a GPU it is what the step allocates. TRL has no total variation. With a CUDA device the
sizes of large models are measured too, in bfloat16.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from harness import ROOT, Goal, environment_line, save_rows, table

from selftrain._core.io import read_json, write_text
from selftrain.bench.memory import peak_memory
from selftrain.bench.timing import take_turns
from selftrain.ops import Head, linear_divergence

# Tokens, features of student and teacher, vocabulary: the second is T5-Small under T5-XL.
SIZES = [(512, 512, 512, 32768), (512, 512, 2048, 32128)]
QUICK_SIZES = [(128, 128, 128, 8192)]
GPU_SIZES = [(8192, 4096, 4096, 151936), (8192, 896, 3584, 151936), (8192, 2048, 4096, 128256)]
KINDS = ["forward_kl", "reverse_kl", "jsd", "total_variation"]
TRL_BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
WANTED_SPEEDUP = {"forward_kl": 2.0, "reverse_kl": 2.0, "jsd": 3.0}
WANTED_FLOOR_SHARE = 0.75

Step = Callable[[], None]


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """A small size, few repetitions."""
    rounds: int = 6
    """Calls of each method; the fastest counts."""
    json: Path = ROOT / "benchmarks/results/distill_loss.json"
    """Where the rows go."""


class Problem:
    """Both models' last layers, and the steps of the methods."""

    def __init__(self, size: tuple[int, int, int, int], device: str) -> None:
        num, student_features, teacher_features, vocab = size
        rng = torch.Generator(device).manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32

        def randn(rows: int, columns: int, spread: float) -> torch.Tensor:
            made = torch.empty(rows, columns, device=device, dtype=dtype)
            return made.normal_(0.0, spread, generator=rng)

        # Logits of standard deviation 2.
        self.hidden = randn(num, student_features, 1.0).requires_grad_()
        self.weight = randn(vocab, student_features, 2 * student_features**-0.5).requires_grad_()
        self.teacher_hidden = randn(num, teacher_features, 1.0)
        self.teacher_weight = randn(vocab, teacher_features, 2 * teacher_features**-0.5)
        self.weights = torch.full((num,), 1.0 / num, device=device)
        self.device = device

    def step(self, method: str, kind: str) -> Step:
        """Return one step of a method."""
        if method == "products":
            return self._products()
        loss = {"ours": self._ours, "TRL": self._trl, "full logits": self._full}[method](kind)

        def run() -> None:
            self.hidden.grad = self.weight.grad = None
            loss().backward()

        return run

    def _ours(self, kind: str) -> Callable[[], torch.Tensor]:
        teacher = Head(self.teacher_weight)
        return lambda: (
            linear_divergence(
                self.hidden,
                Head(self.weight),
                self.teacher_hidden,
                teacher,
                self.weights,
                kind=kind,
            ).loss
        )

    def _trl(self, kind: str) -> Callable[[], torch.Tensor]:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        student = (self.hidden, self.weight, None)
        teacher = (self.teacher_hidden, self.teacher_weight, None)
        beta = TRL_BETA[kind]
        return lambda: ChunkedDivergenceFunction.apply(*student, *teacher, beta)[0] @ self.weights

    def _full(self, kind: str) -> Callable[[], torch.Tensor]:
        def loss() -> torch.Tensor:
            student_logits = (self.hidden @ self.weight.T).float()
            teacher_logits = (self.teacher_hidden @ self.teacher_weight.T).float()
            return from_logits(student_logits, teacher_logits, kind) @ self.weights

        return torch.compile(loss) if self.device == "cuda" else loss

    def _products(self) -> Step:
        hidden, weight = self.hidden.detach(), self.weight.detach()
        rows = min(len(hidden), 2**29 // len(weight))
        out = {} if hidden.dtype == torch.float32 else {"out_dtype": torch.float32}
        logits = torch.empty(rows, len(weight), device=self.device)
        grad = logits.to(hidden.dtype)
        sums = torch.zeros(weight.shape, device=self.device)

        def run() -> None:
            for start in range(0, len(hidden), rows):
                h, u = hidden[start : start + rows], self.teacher_hidden[start : start + rows]
                torch.mm(u, self.teacher_weight.T, **out, out=logits[: len(h)])
                torch.mm(h, weight.T, **out, out=logits[: len(h)])
                torch.mm(grad[: len(h)], weight, **out)
                torch.addmm(sums, grad[: len(h)].T, h, **out, out=sums)

        return run


def from_logits(s: torch.Tensor, t: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the divergence of each row as one would write it down, for autograd."""
    log_q, log_p = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    if kind == "forward_kl":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if kind == "reverse_kl":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    if kind == "total_variation":
        return 0.5 * (log_q.exp() - log_p.exp()).abs().sum(-1)
    log_m = torch.logaddexp(log_q, log_p) - math.log(2)
    sums = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return 0.5 * sums.sum(-1)


def has_trl() -> bool:
    """Say whether TRL has the function that we compare with."""
    try:
        from trl.kernels import chunked_divergence  # noqa: F401
    except ImportError as error:
        print(f"TRL is not measured: {error}; pip install 'selftrain[bench]'.")
        return False
    return True


def memory_of(size: tuple[int, int, int, int], method: str, kind: str, calls: int) -> None:
    """Do what ``peak_memory`` measures: all but the step, and the step ``calls`` times."""
    problem = Problem(size, "cpu")
    small = Problem((4, 8, 8, 16), "cpu")
    small.step(method, kind)()  # what a library loads at its first call is not of the step
    step = problem.step(method, kind)
    for _ in range(calls):
        step()


def measure(
    size: tuple[int, int, int, int], kind: str, methods: list[str], device: str, rounds: int
) -> dict[str, Any]:
    """Return one row: all methods at one size with one kind."""
    problem = Problem(size, device)
    if kind not in TRL_BETA:
        methods = [method for method in methods if method != "TRL"]
    steps = {method: problem.step(method, kind) for method in methods}
    timed = take_turns(
        {method: lambda _, step=step: step() for method, step in steps.items()},
        rounds=rounds,
        device=torch.device(device),
    )
    times = {m: 1000 * min(call.seconds for call in calls) for m, calls in timed.items()}
    if device == "cuda":
        peaks = {m: max(call.peak_bytes or 0 for call in calls) for m, calls in timed.items()}
    else:
        peaks = {
            method: peak_memory(memory_of, size, method, kind, 1)
            - peak_memory(memory_of, size, method, kind, 0)
            for method in methods
            if method != "products"
        }
    names = ("tokens", "student_features", "teacher_features", "vocab")
    return {
        "device": device,
        **dict(zip(names, size, strict=True)),
        "kind": kind,
        "milliseconds": times,
        "peak_bytes": peaks,
        "floor_share": times["products"] / times["ours"],
    }


def goals_of(rows: list[dict[str, Any]]) -> list[Goal]:
    """Return the goals that the rows speak of."""
    goals = []
    for row in rows:
        kind, times, peaks = row["kind"], row["milliseconds"], row["peak_bytes"]
        name = f"{kind}, {label_of(row)}"
        if row["device"] == "cuda":
            goals.append(Goal(f"{name}, products / ours", row["floor_share"], WANTED_FLOOR_SHARE))
        elif "TRL" in times:
            speedup = times["TRL"] / times["ours"]
            goals.append(Goal(f"{name}, TRL / ours", speedup, WANTED_SPEEDUP[kind]))
        elif kind == "total_variation":
            same = [r for r in rows if label_of(r) == label_of(row) and r["kind"] == "jsd"]
            ratio = times["ours"] / same[0]["milliseconds"]["ours"]
            goals.append(Goal(f"{name}, ours / our jsd", ratio, 1.1, at_least=False))
            speedup = times["full logits"] / times["ours"]
            goals.append(Goal(f"{name}, full logits / ours", speedup, 1.0))
        if "TRL" in peaks:
            ratio = peaks["ours"] / peaks["TRL"]
            goals.append(Goal(f"{name}, memory, ours / TRL", ratio, 1.0, at_least=False))
    return goals


def label_of(row: dict[str, Any]) -> str:
    """Name the size of a row."""
    numbers = [row[key] for key in ("tokens", "student_features", "teacher_features", "vocab")]
    return f"{row['device']} {' x '.join(map(str, numbers))}"


def page(rows: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    """Return the table for the docs."""
    methods = ["ours", "TRL", "full logits", "products"]

    def cell(numbers: dict[str, float], method: str, unit: float) -> str:
        return f"{numbers[method] / unit:.0f}" if method in numbers else "-"

    lines = [
        [
            label_of(row),
            row["kind"],
            *(cell(row["milliseconds"], method, 1) for method in methods),
            f"{row['floor_share']:.0%}",
            *(cell(row["peak_bytes"], method, 1e6) for method in methods[:3]),
        ]
        for row in rows
    ]
    columns = ["tokens x student x teacher x vocabulary", "kind"]
    columns += [f"{method}, ms" for method in methods] + ["products / ours"]
    columns += [f"{method}, MB" for method in methods[:3]]
    return (
        f"*{environment_line(environment)}; fastest call; command "
        f"`python benchmarks/distill_loss.py`.*\n\n{table(columns, lines)}\n"
    )


def main(args: Args) -> None:
    methods = ["ours", *(["TRL"] if has_trl() else []), "full logits", "products"]
    sizes = [("cpu", size) for size in (QUICK_SIZES if args.quick else SIZES)]
    if torch.cuda.is_available():
        sizes += [("cuda", size) for size in (GPU_SIZES[1:2] if args.quick else GPU_SIZES)]
    else:
        print("No CUDA device: the sizes of large models are not measured.")
    rows = []
    for (device, size), kind in itertools.product(sizes, KINDS):
        rows.append(measure(size, kind, methods, device, 2 if args.quick else args.rounds))
        print(rows[-1], flush=True)
    goals = goals_of(rows)
    path = args.json.with_stem(args.json.stem + "-quick") if args.quick else args.json
    save_rows(path, rows, seed=0, goals=goals)
    text = page(rows, read_json(path)["environment"])
    if not args.quick:
        write_text(ROOT / "docs/tables/distill_loss.md", text)
    print(text)
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
