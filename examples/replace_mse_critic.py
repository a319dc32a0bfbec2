"""Replace the squared error of a critic by a categorical head, in three lines.

A small network learns values of states from noisy returns, once with each head: the network, the
data, the order of batches and the optimizer are the same. It prints the error on clean values of
new states, and for the categorical heads the share of returns outside of their support. Which head
is best depends on the task; this one is clean and smooth but for the noise that you choose.

    python examples/replace_mse_critic.py                    # half a minute on one core
    python examples/replace_mse_critic.py --noise 3.0
    python examples/replace_mse_critic.py --device cuda --width 1024 --num-steps 20000
"""

from dataclasses import dataclass

import torch
import tyro
from torch import nn

from selftrain.nn import CategoricalValueHead, ScalarValueHead
from selftrain.ops import HLGauss, Support, TwoHot


@dataclass(frozen=True)
class Args:
    """Command line."""

    num_steps: int = 1500
    """Optimizer steps of each head."""
    width: int = 128
    """Units of each of three layers."""
    noise: float = 0.5
    """Standard deviation of the noise in the returns."""
    device: str = "cpu"
    """Where to train."""
    seed: int = 0
    """Of data and weights."""
    quick: bool = False
    """A few steps, to see that it runs."""


def true_value(state: torch.Tensor) -> torch.Tensor:
    """Return the value of states, between about -6 and 6."""
    return 4 * torch.sin(6 * state[:, 0]) * torch.cos(4 * state[:, 1]) + 2 * state[:, 0]


def train(head: nn.Module, args: Args) -> tuple[float, dict[str, float]]:
    """Return the squared error on new states, and what the head measures on the training data."""
    rng = torch.Generator().manual_seed(args.seed)
    states = 2 * torch.rand(4096, 2, generator=rng) - 1
    returns = true_value(states) + args.noise * torch.randn(4096, generator=rng)
    states, returns = states.to(args.device), returns.to(args.device)
    torch.manual_seed(args.seed)
    body = nn.Sequential(
        *(nn.Linear(2, args.width), nn.ReLU()),
        *(nn.Linear(args.width, args.width), nn.ReLU()),
        *(nn.Linear(args.width, args.width), nn.ReLU()),
    )
    body, head = body.to(args.device), head.to(args.device)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3)
    for _ in range(20 if args.quick else args.num_steps):
        batch = torch.randint(2048, (128,), generator=rng)
        logits = head(body(states[batch]))
        loss = head.loss(logits, returns[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = head(body(states))
        error = (head.value(logits) - true_value(states))[2048:].square().mean().item()
        measured = head.measure(logits[:2048], returns[:2048])
    return error, {name: value.item() for name, value in measured.items()}


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    support = Support(-8.0, 8.0, 51)
    heads = {
        # The three lines: the layer, its loss and its readout. All heads are used alike.
        "squared error": ScalarValueHead(args.width),
        "HL-Gauss": CategoricalValueHead(args.width, HLGauss(support)),
        "two-hot": CategoricalValueHead(args.width, TwoHot(support)),
    }
    for name, head in heads.items():
        error, measured = train(head, args)
        clipped = measured.get("clip_fraction")
        note = "" if clipped is None else f", {clipped:.1%} of the returns clipped"
        print(f"{name + ':':15s} error {error:.4f}{note}")


if __name__ == "__main__":
    main(tyro.cli(Args))
