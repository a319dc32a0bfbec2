"""The runs of ``stop_regressing.py``: heads on maps, gridworlds, Catch and chess, kept on disk."""

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selftrain._core.config import fingerprint
from selftrain._core.io import read_json, write_json
from selftrain._core.rng import derive, seeded_torch, torch_generator
from selftrain.nn import CategoricalValueHead, MLPEncoder, ScalarValueHead
from selftrain.ops import C51, HLGauss, OneHot, Support, TwoHot, ValueTransform

Row = dict[str, Any]

MSE, HL_GAUSS, TWO_HOT, ONE_HOT, C51_HEAD = "MSE", "HL-Gauss", "two-hot", "one-hot", "C51"
SUPERVISED = (MSE, HL_GAUSS, TWO_HOT, ONE_HOT)
BOOTSTRAPPED = (MSE, HL_GAUSS, TWO_HOT, C51_HEAD)
RATIO = 0.75
RATIOS = (0.25, 0.5, 0.75, 1.5, 3.0)
SWEPT_BINS = (21, 51, 101)
STAGES = 6


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training with one head and one seed."""

    part: str
    """Which part of the benchmark: a key of :data:`RUNNERS`."""
    condition: str
    """What the task is, in the words of the table."""
    head: str
    seed: int
    options: tuple[tuple[str, float], ...] = ()
    """What is changed from the part's defaults."""
    quick: bool = False
    """A few steps, to see that it runs."""

    def option(self, name: str, default: float) -> float:
        """Return a number that the condition sets, or the part's default."""
        return dict(self.options).get(name, default)

    def steps(self, num: int) -> int:
        """Return the number of steps, or a few."""
        return max(8, num // 40) if self.quick else num


def jobs_of(parts: Sequence[str], seeds: Sequence[int], *, quick: bool) -> list[Job]:
    """Return the jobs of some parts, the longest first, so that two workers end together."""
    makers: dict[str, Callable[[], list[Job]]] = {
        "chess": lambda: _each("chess", SUPERVISED, [("positions by Stockfish", {})]),
        "grid": _grid_jobs,
        "catch": lambda: _each("catch", BOOTSTRAPPED, [("Catch", {})]),
        "regression": _regression_jobs,
        "capacity": _capacity_jobs,
        "sigma": _sigma_jobs,
        "plasticity": lambda: _each("plasticity", SUPERVISED[:3], [("targets that move", {})]),
    }
    made = [job for part in makers if part in parts for job in makers[part]()]
    return [replace(job, seed=seed, quick=quick) for job in made for seed in seeds]


def _each(
    part: str, heads: Sequence[str], conditions: Sequence[tuple[str, dict[str, float]]]
) -> list[Job]:
    return [
        Job(part=part, condition=name, head=head, seed=0, options=tuple(options.items()))
        for name, options in conditions
        for head in heads
    ]


def _regression_jobs() -> list[Job]:
    conditions: list[tuple[str, dict[str, float]]] = [
        ("smooth", {"frequency": 0.5}),
        ("medium", {}),
        ("rough", {"frequency": 2.0}),
        ("medium, noise 0.5", {"noise": 0.5}),
        ("medium, noise 1", {"noise": 1.0}),
        ("medium, 500 samples", {"samples": 500}),
        ("medium, 8,000 samples", {"samples": 8000}),
    ]
    return _each("regression", SUPERVISED, conditions)


def _capacity_jobs() -> list[Job]:
    conditions = [(f"width {width}", {"width": float(width)}) for width in (16, 64, 256)]
    return _each("capacity", SUPERVISED[:3], conditions)


def _sigma_jobs() -> list[Job]:
    conditions = [
        (f"{bins} bins, sigma {ratio:g}", {"bins": float(bins), "ratio": ratio})
        for bins in SWEPT_BINS
        for ratio in RATIOS
    ]
    return _each("sigma", (HL_GAUSS,), conditions)


def _grid_jobs() -> list[Job]:
    conditions: list[tuple[str, dict[str, float]]] = [
        ("no noise", {}),
        ("reward noise 1", {"reward_noise": 1.0}),
        ("reward noise 2", {"reward_noise": 2.0}),
        ("sticky 0.25", {"sticky": 0.25}),
        ("sticky 0.5", {"sticky": 0.5}),
    ]
    return _each("grid", BOOTSTRAPPED, conditions)


def run_job(job: Job, work: Path) -> Row:
    """Return the row of a job, from the disk if it was done before."""
    path = work / job.part / f"{fingerprint(asdict(job))}.json"
    if path.exists():
        return read_json(path)
    torch.set_num_threads(1)
    start = time.process_time()
    measured = RUNNERS[job.part](job, work)
    seconds = time.process_time() - start  # of this process, whatever else the machine does
    row = {
        "part": job.part,
        "condition": job.condition,
        "head": job.head,
        "seed": job.seed,
        "seconds": seconds,
        **measured,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, row)
    return row


def missing(part: str) -> str | None:
    """Return why a part cannot run here, or None."""
    if part == "chess":
        if importlib.util.find_spec("chess") is None:
            return "the package chess is not installed: pip install 'selftrain[chess]'"
        from selftrain.tasks.chess import find_engine

        return None if find_engine() else "no Stockfish on PATH: apt-get install stockfish"
    return None


def transform_of(head: str, support: Support, *, ratio: float = RATIO) -> ValueTransform | None:
    """Return the transform of a head, None for the squared error."""
    makers: dict[str, Callable[[], ValueTransform | None]] = {
        MSE: lambda: None,
        HL_GAUSS: lambda: HLGauss(support, ratio),
        TWO_HOT: lambda: TwoHot(support),
        ONE_HOT: lambda: OneHot(support),
        C51_HEAD: lambda: C51(support),
    }
    return makers[head]()


# Regression of known maps


class WavyMap:
    """A sum of 16 waves in random directions, of variance 1: how rough it is, is an argument."""

    def __init__(self, num_inputs: int, frequency: float, rng: torch.Generator) -> None:
        self.directions = frequency * torch.randn(num_inputs, 16, generator=rng)
        self.phases = 2 * torch.pi * torch.rand(16, generator=rng)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the values ``[N]`` of points ``[N, inputs]``."""
        return torch.sin(x @ self.directions + self.phases).sum(-1) / 8**0.5


def _network(job: Job, num_inputs: int, width: int, support: Support) -> nn.Sequential:
    """Return an encoder and a head whose weights depend on the seed, the body not on the head."""
    with seeded_torch(job.seed, "weights"):
        body = MLPEncoder(num_inputs, hidden=(width,) * 3)
        transform = transform_of(job.head, support, ratio=job.option("ratio", RATIO))
        head = (
            ScalarValueHead(width) if transform is None else CategoricalValueHead(width, transform)
        )
    return nn.Sequential(body, head)


def _fit(
    network: nn.Sequential,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    num_steps: int,
    rng: torch.Generator,
) -> None:
    head = network[-1]
    for _ in range(num_steps):
        batch = torch.randint(len(x), (128,), generator=rng)
        loss = head.loss(network(x[batch]), y[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _rmse(network: nn.Sequential, x: Tensor, y: Tensor) -> float:
    error = network[-1].value(network(x)) - y
    return error.square().mean().sqrt().item()


def regression(job: Job, work: Path) -> Row:
    """Learn a map from samples with noise; the error is that on clean values elsewhere."""
    num, num_inputs = int(job.option("samples", 2000)), 3
    rng = torch_generator(job.seed, "data")
    target = WavyMap(num_inputs, job.option("frequency", 1.0), rng)
    x = torch.randn(num + 2000, num_inputs, generator=rng)
    y = target(x)
    noisy = y + job.option("noise", 0.0) * torch.randn(len(y), generator=rng)
    support = Support(-6.0, 6.0, int(job.option("bins", 51)))
    network = _network(job, num_inputs, int(job.option("width", 128)), support)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    _fit(network, optimizer, x[:num], noisy[:num], job.steps(1500), rng)
    return {
        "rmse": _rmse(network, x[num:], y[num:]),
        "train_rmse": _rmse(network, x[:num], y[:num]),
        "bins": support.num_bins,
        "ratio": job.option("ratio", RATIO),
    }


def plasticity(job: Job, work: Path) -> Row:
    """Fit sin(1e5 f(x)) + b again and again, b and the map f renewed at each stage.

    The targets are as good as random numbers, so that only their memory is measured. The error of
    a stage is held against that of a new network, which has seen no other stage.
    """
    rng = torch_generator(job.seed, "data")
    x = torch.randn(256, 8, generator=rng)
    support = Support(-3.0, 3.0 + 2 * STAGES, 51 + 17 * STAGES // 3)
    old = _network(job, 8, 128, support)
    optimizer = torch.optim.Adam(old.parameters(), lr=1e-3)
    errors, fresh = [], float("nan")
    for stage in range(STAGES):
        f = WavyMap(8, 1.0, rng)
        y = torch.sin(1e5 * f(x)) + 2 * stage
        _fit(old, optimizer, x, y, job.steps(400), rng)
        errors.append(_rmse(old, x, y))
        if stage == STAGES - 1:
            new = _network(replace(job, seed=derive(job.seed, "fresh")), 8, 128, support)
            new_optimizer = torch.optim.Adam(new.parameters(), lr=1e-3)
            _fit(new, new_optimizer, x, y, job.steps(400), rng)
            fresh = _rmse(new, x, y)
    return {"errors": errors, "rmse": errors[-1], "first": errors[0], "fresh": fresh}


# Agents


def _agent(job: Job, env: Any, support: Support) -> Any:
    from selftrain.rl import DQN, DQNConfig

    config = replace(
        DQNConfig.small(),
        warmup_steps=500,
        epsilon_steps=job.steps(4000),
        batch_size=64,
        update_every=4,
    )
    return DQN(
        env.single_observation_space,
        env.single_action_space,
        config,
        head=transform_of(job.head, support),
        seed=job.seed,
    )


def _train(job: Job, agent: Any, env: Any, eval_env: Any, num_steps: int) -> tuple[list, list]:
    from selftrain.rl import train

    result = train(
        agent,
        env,
        num_steps,
        eval_env=eval_env,
        eval_every=max(1, num_steps // 10),
        num_eval_episodes=16 if job.quick else 64,
        show_progress=False,
    )
    steps = [found.step for found in result.evaluations]
    return steps, [float(found.evaluation.mean) for found in result.evaluations]


def grid(job: Job, work: Path) -> Row:
    """Learn the values of a gridworld whose optimal values are known."""
    from selftrain.envs import NoisyGridVectorEnv

    options = {name: job.option(name, 0.0) for name in ("reward_noise", "sticky")}
    env = NoisyGridVectorEnv(8, size=5, **options)
    quiet = NoisyGridVectorEnv(16, size=5, sticky=options["sticky"])
    agent = _agent(job, env, Support(-2.0, 3.0, 51))
    _train(job, agent, env, quiet, 500 + job.steps(8_000))
    wanted = torch.from_numpy(env.optimal_values(agent.config.discount)).flatten(0, 2)
    seen = torch.from_numpy(env.state_observations()).flatten(0, 2)
    with torch.no_grad():
        values = agent.values(seen.float()).double()
    wanted, values = wanted[:-5], values[:-5]  # the goal is the last cell, with five pasts
    best = wanted.amax(-1)
    chosen = wanted.gather(-1, values.argmax(-1, keepdim=True))[:, 0]
    return {
        "rmse": (values - wanted).square().mean().sqrt().item(),
        "regret": (best - chosen).mean().item(),
    }


def catch(job: Job, work: Path) -> Row:
    """Learn Catch from pixels."""
    from selftrain.envs import CatchVectorEnv

    env, eval_env = CatchVectorEnv(8), CatchVectorEnv(64)
    agent = _agent(job, env, Support(-2.0, 2.0, 51))
    steps, scores = _train(job, agent, env, eval_env, 500 + job.steps(12_000))
    return {"steps": steps, "scores": scores, "score": float(np.mean(scores)), "last": scores[-1]}


# Chess


def label_chess(work: Path, *, quick: bool) -> None:
    """Write the labelled positions that all jobs learn from; goes on where it was stopped."""
    from selftrain.tasks.chess import Engine, label_games

    with Engine(depth=4) as engine:
        label_games(
            engine,
            150 if quick else 2000,
            output_dir=work / "chess-positions",
            shard_size=50 if quick else 500,
            show_progress=True,
        )


def chess(job: Job, work: Path) -> Row:
    """Learn action values of Stockfish, and rank moves of other games."""
    from selftrain.rl.chess import ChessConfig, learn_chess
    from selftrain.tasks.chess import load_positions, puzzles_from_labels, split_by_game

    rows = load_positions(work / "chess-positions")
    rows, test_rows = split_by_game(rows, 0.2, seed=job.seed)
    test_rows = test_rows.select(range(min(300, len(test_rows))))
    config = ChessConfig(
        num_layers=2, width=32, batch_size=64, num_steps=job.steps(600), seed=job.seed
    )
    transform = transform_of(job.head, Support(0.0, 1.0, 128))
    puzzles = puzzles_from_labels(test_rows)
    found = learn_chess(rows, transform, config, test_rows=test_rows, puzzles=puzzles)
    tau = found.metrics["kendall_tau"]
    none = {"puzzle_accuracy": float("nan")}  # few positions may hold no puzzle
    return {**none, **found.metrics, "tau": tau, "num_puzzles": len(puzzles)}


RUNNERS: dict[str, Callable[[Job, Path], Row]] = {
    "regression": regression,
    "capacity": regression,
    "sigma": regression,
    "plasticity": plasticity,
    "grid": grid,
    "catch": catch,
    "chess": chess,
}
