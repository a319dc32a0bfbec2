"""A gridworld with noisy rewards and sticky actions whose optimal values are known exactly.

Shape letters: E copies of the game.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from gymnasium.spaces import Box

from selftrain._core.checks import check_choice, check_int, check_range
from selftrain.envs._games import GameEnv, GameVectorEnv, State

__all__ = ["NoisyGridEnv", "NoisyGridVectorEnv"]

# Row and column steps of actions: up, right, down, left.
_MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])
_NO_ACTION = len(_MOVES)


class NoisyGridVectorEnv(GameVectorEnv):
    """Walk to the goal in a square grid; many walkers at once.

    Walkers start in any cell but the goal, which is the last cell of the last row. Actions are up
    (0), right (1), down (2) and left (3); one that would leave the grid does nothing. Arriving at
    the goal gives 1 and terminates. Two disturbances make values hard to learn, after the analysis
    in arXiv 2403.03950:

    - ``reward_noise`` (eta): every reward, the goal's too, has noise added from the uniform law on
      [-eta/2, eta/2], which is U(0, eta) less its mean. So the optimal values are those without.
    - ``sticky``: with this probability the walker does again what it did in the step before,
      whatever the action (never in an episode's first step).

    Observations of kind "one_hot" are float32 ``[E, size * size + 4]``: the cell, then what was
    done in the step before (zeros at the start), so that they say all there is to know. "pixels"
    are uint8 ``[E, size, size]``, 255 for the walker and 128 for the goal, without what was done.
    After an episode's end a copy's next step ignores its action and begins a new episode
    (``NEXT_STEP``).

    Args:
        num_envs: Number of walkers.
        size: Cells of a side, at least 2.
        reward_noise: Width of the noise, at least 0.
        sticky: Probability, from 0 to below 1.
        observation: Kind of observations.
        max_episode_steps: Steps after which an episode is truncated; None is never.

    Raises:
        TypeError: If a number is of another kind.
        ValueError: If a number lies outside its range, or there is no such observation.

    Example:
        >>> env = NoisyGridVectorEnv(2, size=3)
        >>> values = env.optimal_values(discount=0.9)  # [row, column, done before, action]
        >>> float(values[2, 1, 4, 1])  # one step to the right of it is the goal
        1.0
    """

    game: "_NoisyGrid"

    def __init__(
        self,
        num_envs: int,
        *,
        size: int = 5,
        reward_noise: float = 0.0,
        sticky: float = 0.0,
        observation: Literal["one_hot", "pixels"] = "one_hot",
        max_episode_steps: int | None = 100,
    ) -> None:
        game = _NoisyGrid(
            size=size, reward_noise=reward_noise, sticky=sticky, observation=observation
        )
        super().__init__(game, num_envs, max_episode_steps=max_episode_steps)

    def optimal_values(self, discount: float = 0.99) -> np.ndarray:
        """Return the value of each action in each state, for a player who plays on optimally.

        Computed by value iteration to an error below 1e-9, without a limit of steps.

        Args:
            discount: Factor of a reward for each step that it lies ahead, from 0 to below 1.

        Returns:
            Values ``[size, size, 5, 4]`` (float64) by row, column, what was done in the step before
            (4: nothing, as at the start) and action. Those of the goal are 0.

        Raises:
            ValueError: If ``discount`` lies outside its range.
        """
        return self.game.optimal_values(discount)

    def state_observations(self) -> np.ndarray:
        """Return the observation of each state ``[size, size, 5, *observation]``.

        The axes are those of :meth:`optimal_values`, to compare an agent's values with.
        """
        return self.game.state_observations()


class NoisyGridEnv(GameEnv):
    """The gridworld as an ordinary environment, ``selftrain/NoisyGrid-v0``.

    Args:
        size: Cells of a side.
        reward_noise: Width of the rewards' noise.
        sticky: Probability that the walker repeats what it did before.
        observation: Kind of observations.
        max_episode_steps: Steps after which an episode is truncated; None is never.

    See :class:`NoisyGridVectorEnv`.
    """

    def __init__(
        self,
        *,
        size: int = 5,
        reward_noise: float = 0.0,
        sticky: float = 0.0,
        observation: Literal["one_hot", "pixels"] = "one_hot",
        max_episode_steps: int | None = 100,
    ) -> None:
        super().__init__(
            NoisyGridVectorEnv(
                1,
                size=size,
                reward_noise=reward_noise,
                sticky=sticky,
                observation=observation,
                max_episode_steps=max_episode_steps,
            )
        )


@dataclass(frozen=True)
class _NoisyGrid:
    size: int
    reward_noise: float
    sticky: float
    observation: Literal["one_hot", "pixels"]
    num_actions: int = len(_MOVES)

    def __post_init__(self) -> None:
        check_int("size", self.size, low=2)
        check_range("reward_noise", self.reward_noise, low=0.0)
        check_range("sticky", self.sticky, low=0.0, high=1.0, high_open=True)
        check_choice("observation", self.observation, ("one_hot", "pixels"))

    @property
    def observation_space(self) -> Box:
        if self.observation == "pixels":
            return Box(0, 255, (self.size, self.size), np.uint8)
        return Box(0.0, 1.0, (self.size**2 + self.num_actions,), np.float32)

    def start(self, num_envs: int, rng: np.random.Generator) -> State:
        cell = rng.integers(self.size**2 - 1, size=num_envs)  # all but the last, the goal
        return {"cell": cell, "before": np.full(num_envs, _NO_ACTION, np.int64)}

    def advance(
        self, state: State, actions: np.ndarray, rng: np.random.Generator
    ) -> tuple[State, np.ndarray, np.ndarray]:
        repeats = rng.random(len(actions)) < self.sticky
        noise = self.reward_noise * (rng.random(len(actions)) - 0.5)
        executed = np.where(repeats & (state["before"] != _NO_ACTION), state["before"], actions)
        cell = self._next_cells()[state["cell"], executed]
        terminated = cell == self.size**2 - 1
        return {"cell": cell, "before": executed}, terminated + noise, terminated

    def observe(self, state: State) -> np.ndarray:
        cells = np.eye(self.size**2, dtype=np.float32)[state["cell"]]
        if self.observation == "one_hot":
            before = np.eye(_NO_ACTION + 1, _NO_ACTION, dtype=np.float32)[state["before"]]
            return np.concatenate([cells, before], -1)
        frames = (255 * cells).astype(np.uint8)
        frames[..., -1] = np.maximum(frames[..., -1], 128)
        return frames.reshape(*frames.shape[:-1], self.size, self.size)

    def optimal_values(self, discount: float) -> np.ndarray:
        check_range("discount", discount, low=0.0, high=1.0, high_open=True)
        after = self._next_cells()  # [cells, executed]
        goal = self.size**2 - 1
        values = np.zeros((self.size**2, _NO_ACTION + 1, self.num_actions))
        moved = np.arange(self.num_actions)
        change = 1.0
        while discount * change > 1e-9 * (1 - discount):
            ahead = values.max(-1)[after, moved]  # what was done becomes part of the next state
            executed = np.where(after == goal, 1.0, discount * ahead)
            executed[goal] = 0.0
            updated = np.repeat(executed[:, None], _NO_ACTION + 1, 1)
            repeated = executed[:, :, None]  # by what was done before, for each action
            updated[:, :_NO_ACTION] = (1 - self.sticky) * updated[
                :, :_NO_ACTION
            ] + self.sticky * repeated
            change = np.abs(updated - values).max()
            values = updated
        return values.reshape(self.size, self.size, _NO_ACTION + 1, self.num_actions)

    def state_observations(self) -> np.ndarray:
        cell, before = np.indices((self.size**2, _NO_ACTION + 1)).reshape(2, -1)
        observations = self.observe({"cell": cell, "before": before})
        shape = (self.size, self.size, _NO_ACTION + 1, *self.observation_space.shape)
        return observations.reshape(shape)

    def _next_cells(self) -> np.ndarray:
        """Return the cell after each executed action, ``[cells, actions]``."""
        places = np.stack(np.divmod(np.arange(self.size**2), self.size), -1)
        moved = np.clip(places[:, None] + _MOVES, 0, self.size - 1)
        return moved[..., 0] * self.size + moved[..., 1]
