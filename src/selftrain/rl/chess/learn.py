"""Training of networks on labelled positions, and one comparison of heads in a call."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from torch import Tensor, nn

from selftrain._core.checks import check_int
from selftrain._core.config import fingerprint
from selftrain._core.logging import MetricLog, progress
from selftrain._core.rng import seeded_torch, torch_generator
from selftrain._core.run import open_run
from selftrain.ops.value_transforms import ValueTransform
from selftrain.rl.chess.config import ChessConfig
from selftrain.rl.chess.measure import measure_chess
from selftrain.rl.chess.network import ChessValueNet
from selftrain.tasks.chess.labels import split_by_game
from selftrain.tasks.chess.puzzles import Puzzle
from selftrain.tasks.chess.tensors import PositionTensors, encode_positions
from selftrain.training.checkpoint import load_checkpoint, save_checkpoint
from selftrain.training.optim import OptimConfig, learning_rate_at


@dataclass(frozen=True, slots=True)
class ChessResult:
    """A trained network, and how good it is on games that it has not seen."""

    network: ChessValueNet
    """Trained, in evaluation mode."""
    metrics: dict[str, float]
    """See :func:`measure_chess`."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What determines a run's weights."""

    config: ChessConfig
    transform: str
    data: str


def learn_chess(
    rows: datasets.Dataset,
    transform: ValueTransform | None,
    config: ChessConfig = ChessConfig(),  # noqa: B008 - frozen
    *,
    test_rows: datasets.Dataset | None = None,
    puzzles: Sequence[Puzzle] = (),
    device: str | torch.device = "cpu",
    show_progress: bool = False,
) -> ChessResult:
    """Train a network with one head, and measure it on other games.

    With the same rows and configuration all heads get the same network (but for the last layer),
    the same batches in the same order and the same number of steps.

    Args:
        rows: Labelled positions to learn from.
        transform: Of the head; None for squared errors.
        config: Network and training.
        test_rows: Positions to measure on; None to keep back a tenth of the games of ``rows``.
        puzzles: To solve as well.
        device: Where to compute.
        show_progress: Whether to show a bar.
    """
    if test_rows is None:
        rows, test_rows = split_by_game(rows)
    network = fit_chess(rows, transform, config, device=device, show_progress=show_progress)
    return ChessResult(network, measure_chess(network, test_rows, puzzles=puzzles))


def fit_chess(
    rows: datasets.Dataset,
    transform: ValueTransform | None,
    config: ChessConfig = ChessConfig(),  # noqa: B008 - frozen
    *,
    device: str | torch.device = "cpu",
    output_dir: str | Path | None = None,
    save_every: int = 1000,
    log_every: int = 50,
    show_progress: bool = False,
) -> ChessValueNet:
    """Return a network trained on labelled positions by the loss of its head.

    Each step draws positions, or pairs of a position and a legal move, evenly and with replacement.
    The draws of a step depend on the seed and its number only, so that a run that goes on behind a
    checkpoint gives what it would have given.

    Args:
        rows: Labelled positions.
        transform: Of the head; None for squared errors.
        config: Network and training.
        device: Where to compute.
        output_dir: Where to keep metrics and checkpoints; the same call goes on there.
        save_every: Steps between checkpoints.
        log_every: Steps between rows of metrics.
        show_progress: Whether to show a bar.

    Raises:
        RunConflictError: If the folder holds a run with other settings or data.
        ValueError: If a number is out of range, or there are no rows.
    """
    check_int("save_every", save_every, low=1)
    check_int("log_every", log_every, low=1)
    data = encode_positions(rows)
    with seeded_torch(config.seed, "weights"):
        network = ChessValueNet(transform, config)
    network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    first, log = 0, None
    if output_dir is not None:
        run = _Run(config, repr(transform), fingerprint([rows["fen"][:], data.values.tolist()]))
        open_run(output_dir, run, seed=config.seed)
        found = load_checkpoint(output_dir, network, optimizer)
        first = found.step if found else 0
        path = Path(output_dir) / "metrics.jsonl"
        log = MetricLog(path, stage="train", first_step=first + 1)
    with progress("training", config.num_steps, done=first, show=show_progress) as bar:
        for step in range(first + 1, config.num_steps + 1):
            metrics = _step(network, optimizer, data, config, step, measured=step % log_every == 0)
            if metrics:
                read = {name: value.item() for name, value in metrics.items()}
                bar.update(step, f"loss {read['loss']:.3f}")
                if log:
                    log.log(step, read)
            if output_dir is not None and (step % save_every == 0 or step == config.num_steps):
                save_checkpoint(output_dir, step, network, optimizer)
    return network.eval()


def _step(
    network: ChessValueNet,
    optimizer: torch.optim.Optimizer,
    data: PositionTensors,
    config: ChessConfig,
    step: int,
    *,
    measured: bool,
) -> dict[str, Tensor]:
    """Take one optimizer step; return what is measured of its batch, if it is wanted."""
    inputs, targets = _batch(data, config, step, next(network.parameters()).device)
    logits = network(*inputs)
    loss = network.head.loss(logits, targets).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step - 1, config.num_steps, _optim(config))
    optimizer.step()
    if not measured:
        return {}
    return {"loss": loss.detach(), **network.head.measure(logits.detach(), targets)}


def _batch(
    data: PositionTensors, config: ChessConfig, step: int, device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the inputs of the network and the targets of one step."""
    rng = torch_generator(config.seed, "batch", step)
    size = (config.batch_size,)
    if config.predicts == "state_value":
        rows = torch.randint(len(data.values), size, generator=rng)
        return (data.tokens[rows].to(device),), data.values[rows].to(device)
    pairs = torch.randint(len(data.moves), size, generator=rng)
    tokens = data.tokens[data.owners[pairs]].to(device)
    return (tokens, data.moves[pairs].to(device)), data.move_values[pairs].to(device)


def _optim(config: ChessConfig) -> OptimConfig:
    return OptimConfig(
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        schedule="linear",
        final_fraction=0.0,
    )
