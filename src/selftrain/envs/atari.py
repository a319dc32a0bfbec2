"""Atari games through ale-py's vector environment, one frame at a time.

Shape letters: E games that are played at once.
"""

import difflib
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from selftrain._core.checks import check_int, check_range
from selftrain._core.optional import require

__all__ = ["make_atari"]

_SIDE = 84


def make_atari(
    game: str,
    num_envs: int,
    *,
    sticky: float = 0.25,
    frame_skip: int = 4,
    noop_max: int = 30,
    life_loss_terminates: bool = False,
    full_action_space: bool = False,
    max_episode_steps: int = 27_000,
    num_threads: int = 0,
) -> VectorEnv:
    """Return Atari games that are played at once, with the usual preprocessing.

    Observations are single gray frames, uint8 ``[E, 84, 84]``: the larger of the last two frames of
    a step, pixel by pixel. Stacks of frames are the business of the replay and the agent. Rewards
    are the game's own, float32; nothing is clipped, and FIRE is not pressed at the start.

    After the step that ends a game, the next step ignores its action and begins a new game
    (``NEXT_STEP``). Infos of a step say, for each game:

    - ``"valid"``: False where the step was such a beginning, which is no transition;
    - ``"game_over"``: True where the game ended or was cut off, whatever ``terminated`` says;
    - ``"lives"``: those that are left (0 throughout in games that have none).

    The defaults are the protocol of arXiv 1709.06009 with 30 no-ops at most, that of Dopamine and
    of arXiv 2403.03950. The protocol of Atari 100k is ``sticky=0.0, life_loss_terminates=True``.

    Args:
        game: Name in snake case, such as "pong" or "ms_pacman".
        num_envs: Number of games.
        sticky: Probability that a frame repeats the action of the frame before, from 0 to 1.
        frame_skip: Frames of a step, in which the action is held.
        noop_max: A game begins with at most so many frames without an action, a random number.
        life_loss_terminates: Report ``terminated`` where a life is lost as well. The game goes on:
            the next step is a valid one. For training only.
        full_action_space: All 18 actions, not only those that the game knows.
        max_episode_steps: Steps after which a game is truncated; 27,000 are 108,000 frames.
        num_threads: Threads that emulate; 0 lets ale-py choose. Results do not depend on it.

    Raises:
        MissingExtraError: If ale-py is not installed.
        TypeError: If a number is of another kind.
        ValueError: If there is no such game, or a number lies outside its range.

    Example:
        >>> env = make_atari("pong", 2)  # doctest: +SKIP
        >>> frames, infos = env.reset(seed=0)  # doctest: +SKIP
    """
    check_int("num_envs", num_envs, low=1)
    check_range("sticky", sticky, low=0.0, high=1.0)
    check_int("frame_skip", frame_skip, low=1)
    check_int("noop_max", noop_max, low=0)
    check_int("max_episode_steps", max_episode_steps, low=1)
    check_int("num_threads", num_threads, low=0)
    _check_game(game)
    vector = require("ale_py.vector_env", extra="atari").AtariVectorEnv(
        game,
        num_envs,
        repeat_action_probability=sticky,
        frameskip=frame_skip,
        noop_max=noop_max,
        full_action_space=full_action_space,
        max_num_frames_per_episode=max_episode_steps * frame_skip,
        num_threads=num_threads,
        img_height=_SIDE,
        img_width=_SIDE,
        stack_num=1,
        reward_clipping=False,
        use_fire_reset=False,
    )
    return _AtariVectorEnv(vector, life_loss_terminates=life_loss_terminates)


def _check_game(game: str) -> None:
    games = require("ale_py.roms", extra="atari").get_all_rom_ids()
    if game not in games:
        near = difflib.get_close_matches(str(game).lower(), games, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        raise ValueError(
            f"game must be the name of an Atari game in snake case, such as 'ms_pacman', got "
            f"{game!r}{hint}"
        )


class _AtariVectorEnv(VectorEnv):
    """What :func:`make_atari` returns.

    ale-py's own report of lost lives does not tell a lost life from the end of a game (in a game
    without lives both read 0), so that the step after cannot be told from a valid one. Therefore
    ale-py reports ends of games here, and lost lives are counted from the lives.
    """

    def __init__(self, vector: Any, *, life_loss_terminates: bool) -> None:
        self._vector = vector
        self._life_loss_terminates = life_loss_terminates
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}
        self.num_envs = vector.num_envs
        self.single_observation_space = Box(0, 255, (_SIDE, _SIDE), np.uint8)
        self.single_action_space = Discrete(int(vector.single_action_space.n))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._over = np.zeros(self.num_envs, bool)
        self._lives = np.zeros(self.num_envs, np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new games; options may hold ``"reset_mask"``, ``[E]``, True where one begins."""
        super().reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        # Drawn, for ale-py counts up from one seed: the second game of seed 0 would be the first
        # of seed 1. Without a seed ale-py would draw what nobody could draw again.
        seeds = self.np_random.integers(2**31 - 1, size=self.num_envs)
        frames, infos = self._vector.reset(seed=seeds[mask], options=options)
        self._over = self._over & ~mask
        self._lives = np.array(infos["lives"])
        return frames[:, 0].copy(), {"lives": self._lives.copy()}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Do one action in each game; see :func:`make_atari`."""
        frames, rewards, terminated, truncated, infos = self._vector.step(self._checked(actions))
        valid, lives = ~self._over, np.array(infos["lives"])
        self._over = terminated | truncated
        lost = valid & (lives < self._lives)
        self._lives = lives
        if self._life_loss_terminates:
            terminated = terminated | lost
        says = {"valid": valid, "game_over": self._over.copy(), "lives": lives.copy()}
        rewards = np.where(valid, rewards, 0).astype(np.float32)
        return frames[:, 0].copy(), rewards, terminated.copy(), truncated.copy(), says

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the emulators."""
        self._vector.close(**kwargs)

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        actions, num_actions = np.asarray(actions), int(self.single_action_space.n)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(
                f"actions must be integers of shape ({self.num_envs},), got {actions.dtype} of "
                f"shape {actions.shape}."
            )
        if actions.min() < 0 or actions.max() >= num_actions:
            raise ValueError(
                f"actions must lie between 0 and {num_actions - 1}, got {actions.tolist()}."
            )
        return actions.astype(np.int64)
