"""``selftrain train-dqn``: train a value agent with any head, over several seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import gymnasium
import tyro
from gymnasium.vector import VectorEnv
from rich.console import Console
from torch import nn

from selftrain._core.checks import check_int
from selftrain._core.io import write_json
from selftrain._core.run import open_run
from selftrain.cli._value_report import SeedResult, show_seeds, write_seeds
from selftrain.cli._words import preset_in, presets_of, word_after
from selftrain.nn import ImpalaEncoder
from selftrain.ops import C51, HLGauss, Support, TwoHot
from selftrain.ops.value_transforms import ValueTransform
from selftrain.rl.config import DQNConfig
from selftrain.rl.dqn import DQN
from selftrain.rl.train import train

PRESETS = presets_of(DQNConfig)
"""The published settings, by the names of the configuration's class methods."""
ATARI = "atari:"
"""What the name of an Atari game begins with."""
_BOUNDS = {
    "CartPole-v1": (0.0, 100.0),
    "selftrain/Catch-v0": (-1.5, 1.5),
    "selftrain/NoisyGrid-v0": (-0.5, 1.5),
}
_ATARI_BOUNDS = (-10.0, 10.0)
HeadName = Literal["hl_gauss", "two_hot", "c51", "mse"]

if TYPE_CHECKING:
    Preset = str
else:
    Preset = tyro.extras.literal_type_from_choices(PRESETS)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of beside its settings: no folder is continued with another."""

    env: str
    """A Gymnasium id such as CartPole-v1 or selftrain/Catch-v0, or a game such as atari:pong."""
    head: HeadName = "hl_gauss"
    """How values are predicted: as a distribution over bins, or (mse) as a number."""
    low: float | None = None
    """Lower bound of the values; None: known for the environments of the examples, else needed."""
    high: float | None = None
    """Upper bound of the values."""
    num_bins: int = 51
    """Bins of a categorical head."""
    sigma_ratio: float = 0.75
    """Standard deviation of HL-Gauss, in bins."""
    encoder: Literal["auto", "impala"] = "auto"
    """auto: two linear layers, or DQN's convolutions for frames; impala: residual convolutions."""
    width: int = 1
    """Multiplies the channels of impala."""
    num_envs: int = 8
    """Environments that are played at once."""
    sticky: float = 0.25
    """Probability that an Atari game repeats the action before."""
    life_loss_terminates: bool = False
    """The loss of a life ends an Atari episode, for learning only."""
    eval_every: int = 5_000
    """Steps between evaluations."""
    num_eval_episodes: int = 20
    """Episodes of each."""
    save_every: int = 50_000
    """Steps between saves; all episodes are cut off there."""


@dataclass(frozen=True, kw_only=True)
class _Command:
    """Train a DQN agent whose value head classifies or regresses, once for each seed."""

    parts: Annotated[Parts, tyro.conf.arg(name="")]
    preset: Preset | None = None
    """Published settings, to start from; every other option overrides them. None: atari for Atari
    games, else small."""
    num_env_steps: int = 50_000
    """Steps of the environments for each seed; more continue a finished run."""
    num_seeds: int = 1
    """Runs that differ in nothing but the seed; from 2 on there are intervals."""
    seed: int = 0
    """The first of the seeds."""
    output_dir: Path = Path("runs/train-dqn")
    """Where everything goes. The same command continues a run that was stopped."""
    device: str = "cpu"
    """Where networks and replay lie."""
    config: Annotated[DQNConfig, tyro.conf.arg(name="")] = field(default_factory=DQNConfig)


def main(args: list[str]) -> int:
    """Run the command; ``selftrain train-dqn --help`` lists its options."""
    command = _parse(args)
    check_int("num_seeds", command.num_seeds, low=1)
    parts, folder = command.parts, command.output_dir
    head = make_head(parts)
    env, eval_env = (_make_env(parts, for_training=t) for t in (True, False))
    open_run(folder / "parts", parts, seed=command.seed)
    results = []
    for seed in range(command.seed, command.seed + command.num_seeds):
        agent = DQN(
            env.single_observation_space,
            env.single_action_space,
            command.config,
            head=head,
            encoder=_make_encoder(parts, env, command.config, seed),
            device=command.device,
            seed=seed,
        )
        if command.num_seeds > 1:
            Console().print(f"seed {seed}", highlight=False)
        result = train(
            agent,
            env,
            command.num_env_steps,
            output_dir=folder / f"seed-{seed:03d}",
            eval_env=eval_env,
            eval_every=parts.eval_every,
            num_eval_episodes=parts.num_eval_episodes,
            save_every=parts.save_every,
        )
        results.append(SeedResult(seed, agent.num_env_steps, agent.num_updates, result))
    report = write_seeds(folder, parts, command.config, results)
    write_json(folder / "summary.json", {str(r.seed): r.final.mean for r in results})
    show_seeds(results, report)
    return 0


def make_head(parts: Parts) -> ValueTransform | None:
    """Return the transform that the options name; None for a scalar head.

    Raises:
        ValueError: If the bounds of the values are neither given nor known.
    """
    if parts.head == "mse":
        return None
    known = _ATARI_BOUNDS if parts.env.startswith(ATARI) else _BOUNDS.get(parts.env, (None, None))
    low = known[0] if parts.low is None else parts.low
    high = known[1] if parts.high is None else parts.high
    if low is None or high is None:
        raise ValueError(
            f"--head {parts.head} needs --low and --high for {parts.env}: bounds of the discounted "
            "sums of rewards, with some room. Too narrow ones clip (see value/clip_fraction in "
            "metrics.jsonl); or take --head mse."
        )
    support = Support(low, high, parts.num_bins)
    if parts.head == "hl_gauss":
        return HLGauss(support, parts.sigma_ratio)
    return TwoHot(support) if parts.head == "two_hot" else C51(support)


def _make_env(parts: Parts, *, for_training: bool) -> VectorEnv:
    num_envs = parts.num_envs if for_training else min(parts.num_eval_episodes, 10)
    if parts.env.startswith(ATARI):
        from selftrain.envs.atari import make_atari

        return make_atari(
            parts.env.removeprefix(ATARI),
            num_envs,
            sticky=parts.sticky,
            life_loss_terminates=parts.life_loss_terminates and for_training,
        )
    import selftrain.envs  # noqa: F401 - registers our ids

    try:
        return gymnasium.make_vec(parts.env, num_envs=num_envs)
    except gymnasium.error.Error as error:
        raise ValueError(f"--env {parts.env}: {error}") from error


def _make_encoder(parts: Parts, env: VectorEnv, config: DQNConfig, seed: int) -> nn.Module | None:
    if parts.encoder == "auto":
        return None
    shape = env.single_observation_space.shape or ()
    if len(shape) != 2:
        raise ValueError(
            f"--encoder impala reads frames, but observations of {parts.env} have shape {shape}; "
            "leave it out."
        )
    from selftrain._core.rng import seeded_torch

    with seeded_torch(seed, "encoder"):
        return ImpalaEncoder((config.stack, *shape), width=parts.width)


def _parse(args: Sequence[str]) -> _Command:
    preset = preset_in(args, PRESETS)
    if preset is None:
        preset = "atari" if (word_after(args, "--env") or "").startswith(ATARI) else "small"
    default = _Command(parts=Parts(env=tyro.MISSING), config=getattr(DQNConfig, preset)())
    return tyro.cli(_Command, args=list(args), default=default, prog="selftrain train-dqn")
