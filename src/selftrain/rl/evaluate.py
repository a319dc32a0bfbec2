"""What a value agent scores, with every episode counted that was begun.

Shape letters: E environments, N episodes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from selftrain._core.checks import check_int, check_range
from selftrain._core.rng import derive, torch_generator
from selftrain.rl.dqn import DQN
from selftrain.rl.stacking import ObservationStack


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Returns and lengths of episodes."""

    returns: NDArray[np.float64]
    """``[N]``: the sum of rewards of each episode, not discounted and not clipped."""
    lengths: NDArray[np.int64]
    """``[N]``: its steps."""

    @property
    def mean(self) -> float:
        """The mean return."""
        return float(self.returns.mean())


def evaluate(
    agent: DQN,
    env: VectorEnv,
    num_episodes: int,
    *,
    seed: int = 0,
    epsilon: float | None = None,
    max_episode_steps: int | None = None,
) -> Evaluation:
    """Play whole episodes and return what they gave; the agent is not changed.

    Each environment plays one episode from a reset, all wait for the longest, and the next round
    begins. Were each to begin anew at once, and counting to stop at the N-th end, short episodes
    would be counted more often than they are begun.

    Args:
        agent: Whose values decide.
        env: Environments with whole episodes and rewards as they are.
        num_episodes: How many, N.
        seed: Of environments and random actions: the same seed gives the same episodes.
        epsilon: Share of random actions; None: the agent's ``eval_epsilon``.
        max_episode_steps: Steps after which an episode is cut off; None: as the environment says.

    Raises:
        ValueError: If a number is out of range.
    """
    check_int("num_episodes", num_episodes, low=1)
    if max_episode_steps is not None:
        check_int("max_episode_steps", max_episode_steps, low=1)
    epsilon = agent.config.eval_epsilon if epsilon is None else epsilon
    check_range("epsilon", epsilon, low=0.0, high=1.0)
    returns, lengths = [], []
    for round in range(-(-num_episodes // env.num_envs)):
        found = _play(agent, env, derive(seed, "evaluate", round), epsilon, max_episode_steps)
        returns.append(found.returns)
        lengths.append(found.lengths)
    return Evaluation(
        np.concatenate(returns)[:num_episodes], np.concatenate(lengths)[:num_episodes]
    )


def environment_seed(seed: int, num_envs: int) -> int:
    """Return a seed for a vector environment: its parts get this one and those after it.

    Some environments keep seeds in 32 bits with a sign.
    """
    return seed % (2**31 - num_envs)


def games_over(terminated: NDArray, truncated: NDArray, infos: dict[str, Any]) -> NDArray[np.bool_]:
    """Return which environments reset themselves next: where an episode ended, as a rule.

    Atari games that terminate at the loss of a life go on, and say so (:func:`make_atari`).
    """
    return infos.get("game_over", terminated | truncated)


def _play(
    agent: DQN, env: VectorEnv, seed: int, epsilon: float, max_episode_steps: int | None
) -> Evaluation:
    """Play one episode in each environment."""
    rng = torch_generator(seed, "actions")
    observations, _ = env.reset(seed=environment_seed(seed, env.num_envs))
    stack = ObservationStack(
        env.num_envs, observations.shape[1:], observations.dtype, stack=agent.config.stack
    )
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    running = np.ones(env.num_envs, dtype=bool)
    while running.any():
        actions = agent.choose(stack.with_latest(observations), epsilon=epsilon, rng=rng)
        stack.push(observations, ~running)
        observations, rewards, terminated, truncated, infos = env.step(actions)
        returns[running] += rewards[running]
        lengths[running] += 1
        running &= ~games_over(terminated, truncated, infos)
        if max_episode_steps is not None:
            running &= lengths < max_episode_steps
    return Evaluation(returns, lengths)
