"""Gymnasium's two faces of a game that is written for many copies at once.

Shape letters: E copies of the game. A state is a dictionary of arrays, each ``[E, ...]``.
"""

from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from selftrain._core.checks import check_int

State = dict[str, np.ndarray]


class Game(Protocol):
    """Rules of a game, without anything that changes: states go in and come out.

    Each method draws as many random numbers whatever the states and actions are. So no copy's
    course depends on what happens in another.
    """

    @property
    def observation_space(self) -> Space[Any]:
        """The space of one observation."""
        ...

    @property
    def num_actions(self) -> int:
        """The number of actions."""
        ...

    def start(self, num_envs: int, rng: np.random.Generator) -> State:
        """Return the states of so many new episodes."""
        ...

    def advance(
        self, state: State, actions: np.ndarray, rng: np.random.Generator
    ) -> tuple[State, np.ndarray, np.ndarray]:
        """Return the next states, rewards and which episodes have ended."""
        ...

    def observe(self, state: State) -> np.ndarray:
        """Return new arrays of observations."""
        ...


class GameVectorEnv(VectorEnv):
    """Copies of a game, all advanced by the same array operations.

    After the step that ends an episode, the copy's next step ignores its action, gives reward 0 and
    returns the first observation of a new episode (Gymnasium's ``NEXT_STEP``).

    Args:
        game: The rules.
        num_envs: Number of copies.
        max_episode_steps: Steps after which an episode is truncated; None is never.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is below 1.
    """

    def __init__(self, game: Game, num_envs: int, *, max_episode_steps: int | None) -> None:
        check_int("num_envs", num_envs, low=1)
        if max_episode_steps is not None:
            check_int("max_episode_steps", max_episode_steps, low=1)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}
        self.game, self.num_envs, self.max_episode_steps = game, num_envs, max_episode_steps
        self.single_observation_space = game.observation_space
        self.single_action_space = Discrete(game.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._state: State | None = None
        self._lengths = np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes and return their first observations, and an empty dictionary.

        Args:
            seed: Decides all that follows, together with the actions; None goes on with the random
                numbers of before.
            options: ``{"reset_mask": [E] bool}`` leaves the copies that are False as they are.

        Raises:
            ValueError: If the mask has another shape or dtype, or leaves a copy without an episode.
        """
        super().reset(seed=seed, options=options)
        everything = np.ones(self.num_envs, bool)
        mask = (options or {}).get("reset_mask", everything)
        if not isinstance(mask, np.ndarray) or mask.shape != everything.shape or mask.dtype != bool:
            raise ValueError(
                f"options['reset_mask'] must be a boolean array of shape ({self.num_envs},), got "
                f"{mask!r}."
            )
        if self._state is None and not mask.all():
            raise ValueError(
                "options['reset_mask'] leaves copies out that have no episode yet; reset all first."
            )
        self._begin(mask)
        assert self._state is not None  # noqa: S101 - begun just now
        return self.game.observe(self._state), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Do one action in each copy.

        Args:
            actions: Integers ``[E]``.

        Returns:
            Observations, rewards (float32), terminated, truncated and an empty dictionary.

        Raises:
            ResetNeeded: If there was no reset before.
            ValueError: If the actions have another shape or dtype, or one is out of range.
        """
        if self._state is None:
            raise ResetNeeded("call reset() before step().")
        actions = self._checked(actions)
        fresh = self._ended
        state, rewards, terminated = self.game.advance(self._state, actions, self.np_random)
        self._state, self._lengths = state, self._lengths + 1
        # Drawn whether or not it is used, so that copies do not depend on each other.
        self._begin(fresh)
        rewards = np.where(fresh, 0.0, rewards).astype(np.float32)
        terminated = terminated & ~fresh
        limit = self.max_episode_steps
        truncated = np.zeros_like(terminated) if limit is None else self._lengths >= limit
        truncated &= ~terminated
        self._ended = terminated | truncated
        return self.game.observe(self._state), rewards, terminated, truncated, {}

    def _begin(self, mask: np.ndarray) -> None:
        start = self.game.start(self.num_envs, self.np_random)
        if self._state is not None:
            start = {name: _choose(mask, start[name], old) for name, old in self._state.items()}
        self._state = start
        self._lengths = np.where(mask, 0, self._lengths)
        self._ended = self._ended & ~mask

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        actions, num_actions = np.asarray(actions), self.game.num_actions
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(
                f"actions must be integers of shape ({self.num_envs},), got {actions.dtype} of "
                f"shape {actions.shape}."
            )
        if actions.min() < 0 or actions.max() >= num_actions:
            raise ValueError(
                f"actions must lie between 0 and {num_actions - 1}, got {actions.tolist()}."
            )
        return actions


class GameEnv(gymnasium.Env):
    """One copy of a game, as an ordinary environment.

    Args:
        vector: A vector environment of one copy.
    """

    def __init__(self, vector: GameVectorEnv) -> None:
        self.metadata = {"render_modes": []}
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space
        self.game = vector.game
        self._vector = vector
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode and return its first observation, and an empty dictionary."""
        super().reset(seed=seed)
        self._vector._np_random = self.np_random
        observations, info = self._vector.reset()
        self._running = True
        return observations[0], info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Do one action.

        Raises:
            ResetNeeded: If the episode has ended, or none was begun.
            ValueError: If there is no such action.
        """
        if not self._running:
            raise ResetNeeded("the episode has ended or none was begun; call reset().")
        observations, rewards, terminated, truncated, info = self._vector.step(np.array([action]))
        self._running = not (terminated[0] or truncated[0])
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info


def _choose(mask: np.ndarray, new: np.ndarray, old: np.ndarray) -> np.ndarray:
    return np.where(mask.reshape(-1, *[1] * (old.ndim - 1)), new, old)
