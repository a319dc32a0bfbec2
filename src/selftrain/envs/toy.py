"""Catch: a game of pixels that is learned in seconds.

Shape letters: E copies of the game.
"""

from dataclasses import dataclass

import numpy as np
from gymnasium.spaces import Box

from selftrain._core.checks import check_int
from selftrain.envs._games import GameEnv, GameVectorEnv, State

__all__ = ["CatchEnv", "CatchVectorEnv"]

LEFT, STAY, RIGHT = 0, 1, 2


class CatchVectorEnv(GameVectorEnv):
    """Catch falling balls with a paddle; many games at once (after bsuite, arXiv 1908.03568).

    A ball appears somewhere in the top row and falls one row a step. The paddle, one pixel in the
    bottom row, goes left (0), stays (1) or goes right (2). A ball that reaches the bottom row gives
    1 if the paddle is there and -1 if not, and the next one appears at once. The episode terminates
    after ``num_balls`` balls, that is after ``num_balls * (size - 1)`` steps. A perfect player
    catches all; with ``drift`` it must tell the direction from two frames, so that agents need a
    stack of frames.

    Observations are uint8 frames ``[E, size, size]``: 255 for ball and paddle, else 0. After an
    episode's end a copy's next step ignores its action and begins a new episode (``NEXT_STEP``).

    Args:
        num_envs: Number of games.
        size: Side of the frame in pixels, at least 3.
        num_balls: Balls in an episode.
        drift: Whether balls also move left or right, or neither, one column a step, and bounce off
            the sides.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is too small.

    Example:
        >>> env = CatchVectorEnv(2)
        >>> frames, _ = env.reset(seed=0)
        >>> frames.shape, frames.dtype
        ((2, 10, 10), dtype('uint8'))
    """

    def __init__(
        self, num_envs: int, *, size: int = 10, num_balls: int = 1, drift: bool = False
    ) -> None:
        game = _Catch(size=size, num_balls=num_balls, drift=drift)
        super().__init__(game, num_envs, max_episode_steps=None)


class CatchEnv(GameEnv):
    """Catch as an ordinary environment, ``selftrain/Catch-v0``; see :class:`CatchVectorEnv`.

    Args:
        size: Side of the frame in pixels.
        num_balls: Balls in an episode.
        drift: Whether balls also move sideways.
    """

    def __init__(self, *, size: int = 10, num_balls: int = 1, drift: bool = False) -> None:
        super().__init__(CatchVectorEnv(1, size=size, num_balls=num_balls, drift=drift))


@dataclass(frozen=True)
class _Catch:
    size: int
    num_balls: int
    drift: bool
    num_actions: int = 3

    def __post_init__(self) -> None:
        check_int("size", self.size, low=3)
        check_int("num_balls", self.num_balls, low=1)

    @property
    def observation_space(self) -> Box:
        return Box(0, 255, (self.size, self.size), np.uint8)

    def start(self, num_envs: int, rng: np.random.Generator) -> State:
        column, drift = self._new_balls(num_envs, rng)
        return {
            "row": np.zeros(num_envs, np.int64),
            "column": column,
            "drift": drift,
            "paddle": np.full(num_envs, self.size // 2, np.int64),
            "left": np.full(num_envs, self.num_balls, np.int64),
        }

    def advance(
        self, state: State, actions: np.ndarray, rng: np.random.Generator
    ) -> tuple[State, np.ndarray, np.ndarray]:
        last = self.size - 1
        paddle = np.clip(state["paddle"] + actions - STAY, 0, last)
        row, column = state["row"] + 1, state["column"] + state["drift"]
        drift = np.where((column < 0) | (column > last), -state["drift"], state["drift"])
        column = np.where(column < 0, 1, np.where(column > last, last - 1, column))
        landed = row == last
        rewards = np.where(landed, np.where(column == paddle, 1.0, -1.0), 0.0)
        left = state["left"] - landed
        terminated = landed & (left == 0)
        next_column, next_drift = self._new_balls(len(row), rng)
        follows = landed & ~terminated
        after = {
            "row": np.where(follows, 0, row),
            "column": np.where(follows, next_column, column),
            "drift": np.where(follows, next_drift, drift),
            "paddle": paddle,
            "left": left,
        }
        return after, rewards, terminated

    def observe(self, state: State) -> np.ndarray:
        games = np.arange(len(state["row"]))
        frames = np.zeros((len(games), self.size, self.size), np.uint8)
        frames[games, state["row"], state["column"]] = 255
        frames[games, self.size - 1, state["paddle"]] = 255
        return frames

    def _new_balls(self, num_envs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        column = rng.integers(self.size, size=num_envs)
        drift = rng.integers(-1, 2, size=num_envs)
        return column, drift if self.drift else np.zeros_like(drift)
