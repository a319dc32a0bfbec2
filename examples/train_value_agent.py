"""Train a value agent on a small game, once with each value head.

Catch shows its agent ten by ten pixels: a ball falls, a paddle has to be under it. The agents
differ in the head alone. It prints the mean return of 100 new episodes, between -1 (never caught)
and 1 (always), that of a random player first. All heads learn this game: which one is better on
harder ones is what benchmarks/stop_regressing.py looks at.

    python examples/train_value_agent.py                     # a minute and a half on one core
    python examples/train_value_agent.py --env CartPole-v1 --low 0 --high 100 --num-env-steps 30000
    python examples/train_value_agent.py --device cuda --num-envs 64 --num-env-steps 200000
"""

from dataclasses import dataclass, replace

import gymnasium
import tyro

import selftrain.envs  # noqa: F401 - registers "selftrain/Catch-v0"
from selftrain.ops import C51, HLGauss, Support, TwoHot
from selftrain.rl import DQN, DQNConfig, evaluate, train


@dataclass(frozen=True)
class Args:
    """Command line."""

    env: str = "selftrain/Catch-v0"
    """A Gymnasium id."""
    low: float = -1.5
    """Lower bound of the values, with some room."""
    high: float = 1.5
    """Upper bound."""
    num_env_steps: int = 16_000
    """Steps of the environments for each head."""
    num_envs: int = 8
    """Environments that are played at once."""
    device: str = "cpu"
    """Where to train."""
    seed: int = 0
    """Of weights, games and exploration."""
    quick: bool = False
    """A few steps, to see that it runs."""


def main(args: Args) -> None:
    env = gymnasium.make_vec(args.env, num_envs=args.num_envs)
    eval_env = gymnasium.make_vec(args.env, num_envs=20)
    support = Support(args.low, args.high, 51)
    heads = {
        "squared error": None,
        "two-hot": TwoHot(support),
        "HL-Gauss": HLGauss(support),
        "C51": C51(support),
    }
    config = replace(DQNConfig.small(), learning_rate=1e-3, update_every=2)
    num_env_steps = args.num_env_steps
    if args.quick:
        config, num_env_steps = replace(config, warmup_steps=100), 300
    for name, head in heads.items():
        agent = DQN(
            env.single_observation_space,
            env.single_action_space,
            config,
            head=head,
            device=args.device,
            seed=args.seed,
        )
        if head is None:
            random = evaluate(agent, eval_env, 100, seed=args.seed, epsilon=1.0)
            print(f"{'random player:':15s} return {random.mean:.2f}")
        train(agent, env, num_env_steps, show_progress=False)
        found = evaluate(agent, eval_env, 20 if args.quick else 100, seed=args.seed)
        print(f"{name + ':':15s} return {found.mean:.2f} after {agent.num_updates} updates")


if __name__ == "__main__":
    main(tyro.cli(Args))
