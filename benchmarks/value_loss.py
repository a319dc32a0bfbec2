"""HL-Gauss targets and their cross entropy, forward and backward, beside hl-gauss-pytorch.

    python benchmarks/value_loss.py            # about a minute on two cores
    python benchmarks/value_loss.py --quick    # seconds, to see that it runs

One step is the mean loss of B values under logits of 101 bins and its gradient. The methods take
turns in one process; each turn makes several steps, and the median turn counts. Both clamp values
to the support, a part of which lie outside, and use one sigma; hl-gauss-pytorch has its warning
about such values switched off. "Written down" is what one would write with torch and let automatic
differentiation go through: erf at the edges, differences, log-softmax, dot product. The losses and
gradients of all are compared before they are timed. With a CUDA device it is measured as well.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro
from harness import ROOT, Goal, environment_line, save_rows, table

from selftrain._core.io import read_json, write_text
from selftrain.bench.timing import quartiles, take_turns
from selftrain.ops import HLGauss, Support

SIZES = [32, 128, 512, 1024, 4096]
QUICK_SIZES = [32, 512]
LOW, HIGH, BINS, RATIO = -10.0, 10.0, 101, 0.75
WANTED_SPEEDUP = 2.0
# Values of a turn, so that every turn takes milliseconds.
VALUES_A_TURN = 2**14
# The peer's targets are exact to 1e-10 of the mass, and all losses to float32.
TOLERANCE = 1e-5

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Args:
    """Command line."""

    quick: bool = False
    """Two sizes, few repetitions."""
    rounds: int = 15
    """Turns of each method."""
    json: Path = ROOT / "benchmarks/results/value_loss.json"
    """Where the rows go."""


def ours(device: torch.device) -> Loss:
    """Return the loss of this library, with the centres made beforehand as a head has them."""
    transform = HLGauss(Support(LOW, HIGH, BINS), RATIO)
    grid = transform.grid(device=device)
    return lambda logits, values: transform.cross_entropy(logits, values, grid=grid).mean()


def peer(device: torch.device) -> Loss | None:
    """Return the loss of hl-gauss-pytorch; None without it."""
    try:
        from hl_gauss_pytorch import HLGaussLoss
    except ImportError as error:
        print(f"hl-gauss-pytorch is not measured: {error}; pip install 'selftrain[bench]'.")
        return None
    return HLGaussLoss(
        LOW,
        HIGH,
        BINS,
        sigma_to_bin_ratio=RATIO,
        clamp_to_range=True,
        warn_out_of_range=False,
    ).to(device)


def written_down(device: torch.device) -> Loss:
    """Return the loss as one would write it."""
    edges = torch.linspace(LOW, HIGH, BINS + 1, device=device)
    scale = math.sqrt(2) * RATIO * (HIGH - LOW) / BINS

    def loss(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        cumulative = torch.erf((edges - values.clamp(LOW, HIGH)[:, None]) / scale)
        masses = cumulative.diff(dim=-1) / (cumulative[:, -1:] - cumulative[:, :1])
        return -(masses * torch.log_softmax(logits, -1)).sum(-1).mean()

    return loss


def step_of(loss: Loss, logits: torch.Tensor, values: torch.Tensor) -> Callable[[], None]:
    """Return one step."""

    def step() -> None:
        logits.grad = None
        loss(logits, values).backward()

    return step


def differences(losses: dict[str, Loss], logits: torch.Tensor, values: torch.Tensor) -> float:
    """Return the largest difference of a method's loss or summed gradient from ours."""
    found = {}
    for name, loss in losses.items():
        leaf = logits.detach().clone().requires_grad_()
        value = loss(leaf, values)
        (grad,) = torch.autograd.grad(len(values) * value, leaf)
        found[name] = (value.detach(), grad)
    value, grad = found["ours"]
    return max(
        max((other - value).abs().item(), (other_grad - grad).abs().max().item())
        for other, other_grad in found.values()
    )


def measure(size: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """Return one row: all methods with batches of ``size``."""
    rng = torch.Generator(device).manual_seed(size)
    logits = torch.randn(size, BINS, generator=rng, device=device).requires_grad_()
    values = 5 * torch.randn(size, generator=rng, device=device)
    made = {"ours": ours(device), "hl-gauss-pytorch": peer(device)}
    losses = {name: loss for name, loss in made.items() if loss is not None}
    losses["written down"] = written_down(device)
    difference = differences(losses, logits, values)
    if not difference <= TOLERANCE:
        raise RuntimeError(f"the methods differ by {difference:.2g}: they do not do the same work.")
    repeats = max(4, VALUES_A_TURN // size)

    def turn(step: Callable[[], None]) -> None:
        for _ in range(repeats):
            step()

    steps = {name: step_of(loss, logits, values) for name, loss in losses.items()}
    timed = take_turns(
        {name: lambda _, step=step: turn(step) for name, step in steps.items()},
        rounds=rounds,
        device=device,
    )
    spread = {
        m: quartiles([1e6 * c.seconds / repeats for c in calls]) for m, calls in timed.items()
    }
    return {
        "device": device.type,
        "batch": size,
        "bins": BINS,
        "microseconds": {name: found.median for name, found in spread.items()},
        "quartiles": {name: [found.low, found.high] for name, found in spread.items()},
        "difference": difference,
        "peer_version": version("hl-gauss-pytorch") if "hl-gauss-pytorch" in losses else None,
    }


def goals_of(rows: list[dict[str, Any]]) -> list[Goal]:
    """Return the goals that the rows speak of."""
    goals = []
    for row in rows:
        times = row["microseconds"]
        if "hl-gauss-pytorch" in times:
            name = f"{row['device']}, B={row['batch']}, hl-gauss-pytorch / ours"
            goals.append(Goal(name, times["hl-gauss-pytorch"] / times["ours"], WANTED_SPEEDUP))
    return goals


def page(rows: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    """Return the table for the docs."""
    methods = ["ours", "hl-gauss-pytorch", "written down"]

    def cell(row: dict[str, Any], method: str) -> str:
        if method not in row["microseconds"]:
            return "-"
        low, high = row["quartiles"][method]
        return f"{row['microseconds'][method]:.0f} ({low:.0f} to {high:.0f})"

    def ratio(row: dict[str, Any], method: str) -> str:
        times = row["microseconds"]
        return f"{times[method] / times['ours']:.1f}" if method in times else "-"

    lines = [
        [row["device"], str(row["batch"]), *(cell(row, method) for method in methods)]
        + [ratio(row, method) for method in methods[1:]]
        for row in rows
    ]
    columns = ["device", "batch", *(f"{method}, us" for method in methods)]
    columns += [f"{method} / ours" for method in methods[1:]]
    peer_version = rows[0]["peer_version"] or "not installed"
    return (
        f"*{environment_line(environment)}; hl-gauss-pytorch {peer_version}; {BINS} bins; median "
        f"(quartiles); command `python benchmarks/value_loss.py`.*\n\n{table(columns, lines)}\n"
    )


def main(args: Args) -> None:
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    else:
        print("No CUDA device: the kernels are not measured.")
    rows = []
    for device in devices:
        for size in QUICK_SIZES if args.quick else SIZES:
            rows.append(measure(size, device, 3 if args.quick else args.rounds))
            print(rows[-1], flush=True)
    goals = goals_of(rows)
    path = args.json.with_stem(args.json.stem + "-quick") if args.quick else args.json
    save_rows(path, rows, seed=0, goals=goals)
    text = page(rows, read_json(path)["environment"])
    if not args.quick:
        write_text(ROOT / "docs/tables/value_loss.md", text)
    print(text)
    for goal in goals:
        print(goal.line())


if __name__ == "__main__":
    main(tyro.cli(Args))
