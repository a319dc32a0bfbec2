"""Wordle, letter by letter, as a Gymnasium environment.

An action is the next letter of the guess, so that a game of G guesses of L letters has at most G*L
steps, and a policy over words is one over 26 letters. Shape letters: E environments, G guesses,
L letters of a word.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from selftrain._core.checks import check_int
from selftrain.envs.wordle_words import CORRECT, NUM_LETTERS, WordList, feedback

__all__ = ["WordleEnv", "WordleVectorEnv"]

_METADATA = {"render_modes": ["ansi"], "render_fps": 1}


class _Boards:
    """The boards of E games side by side: everything that the rules say, and no episodes."""

    def __init__(self, words: WordList, num: int, max_guesses: int) -> None:
        check_int("max_guesses", max_guesses, low=1, high=100)
        self.words, self.max_guesses = words, max_guesses
        self.num_cells = max_guesses * words.num_letters
        self.answers = np.zeros(num, np.int64)
        self.cells = np.zeros((num, 2, self.num_cells), np.uint8)
        self.cursors = np.zeros(num, np.int64)
        self.nodes = np.zeros(num, np.int64)

    def begin(self, rows: np.ndarray, answers: np.ndarray) -> None:
        """Begin new games in some rows."""
        self.answers[rows] = answers
        self.cells[rows] = 0
        self.cursors[rows] = 0
        self.nodes[rows] = 0

    def type(self, rows: np.ndarray, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Type one letter in each of some rows; return rewards and which games have ended."""
        nodes = self.words.tree[self.nodes[rows], letters]
        fits = nodes >= 0
        failed = self.cursors[rows] // self.words.num_letters
        # A letter that leads to no word ends the game as if all guesses left were wrong.
        rewards = np.where(fits, 0.0, failed - self.max_guesses)
        terminated = ~fits
        typed = rows[fits]
        self.cells[typed, 0, self.cursors[typed]] = letters[fits] + 1
        self.cursors[typed] += 1
        self.nodes[typed] = nodes[fits]
        whole = fits & (self.cursors[rows] % self.words.num_letters == 0)
        won = self._mark(rows[whole])
        rewards[whole] = np.where(won, 0.0, -1.0)
        terminated[whole] = won | (self.cursors[rows[whole]] == self.num_cells)
        return rewards, terminated

    def mask(self) -> np.ndarray:
        """Return the letters that lead to a word, bool ``[E, 26]``."""
        return self.words.tree[self.nodes] >= 0

    def _mark(self, rows: np.ndarray) -> np.ndarray:
        """Mark the guesses that have become whole; return which of them are the answer."""
        places = self.cursors[rows, None] + np.arange(-self.words.num_letters, 0)
        guesses = self.cells[rows[:, None], 0, places] - 1
        marks = feedback(guesses, self.words.letters[self.answers[rows]])
        self.cells[rows[:, None], 1, places] = marks
        self.nodes[rows] = 0
        return (marks == CORRECT).all(-1)


def _observation_space(boards: _Boards) -> gym.spaces.Box:
    high = np.repeat(np.array([[NUM_LETTERS], [CORRECT]], np.uint8), boards.num_cells, axis=1)
    return gym.spaces.Box(np.zeros_like(high), high, dtype=np.uint8)


class WordleVectorEnv(VectorEnv):
    """Many games of Wordle at once, without a loop over them.

    The observation is the board, uint8 ``[2, G*L]``: letters (0 where none is yet, 1 for a to 26
    for z), and their marks (0 until the guess is whole, then 1 absent, 2 present, 3 correct). An
    action is a letter, 0 to 25. Every wrong guess costs 1, so the return is minus their number. A
    letter that leads to no word of the list ends the game as lost, with the return of a game in
    which all guesses were wrong; ``info["action_mask"]`` (bool ``[E, 26]``) says which letters
    lead to one. A game that ended begins anew with the next step, whose action is ignored.

    Args:
        num_envs: Number of games E.
        words: The words; None for the embedded list.
        max_guesses: Number of guesses G.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If it is no integer.

    Example:
        >>> env = WordleVectorEnv(2, words=WordList(["so", "to"]), max_guesses=3)
        >>> observations, info = env.reset(seed=0)
        >>> observations.shape, info["action_mask"].sum(1).tolist()
        ((2, 2, 6), [2, 2])
    """

    metadata = {**_METADATA, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        *,
        words: WordList | None = None,
        max_guesses: int = 6,
        render_mode: str | None = None,
    ) -> None:
        check_int("num_envs", num_envs, low=1)
        self.words = WordList() if words is None else words
        self.num_envs, self.max_guesses, self.render_mode = num_envs, max_guesses, render_mode
        self._boards = _Boards(self.words, num_envs, max_guesses)
        self._ended = np.zeros(num_envs, bool)
        self.single_observation_space = _observation_space(self._boards)
        self.single_action_space = gym.spaces.Discrete(NUM_LETTERS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new games.

        Args:
            seed: Of the answers.
            options: ``{"answers": [...]}`` gives the word of each game.

        Raises:
            ValueError: If the answers are not one word of the list for each game, or there is
                another option.
        """
        super().reset(seed=seed)
        given = _option(options, "answers")
        if given is None:
            answers = self._draw(self.num_envs)
        elif isinstance(given, str) or len(given) != self.num_envs:
            raise ValueError(f"answers must be {self.num_envs} words, got {given!r}.")
        else:
            answers = np.array([self.words.index(word) for word in given])
        self._ended[:] = False
        self._boards.begin(np.arange(self.num_envs), answers)
        return self._boards.cells.copy(), self._info()

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Type one letter in every game, and begin those anew that had ended.

        Raises:
            ValueError: If the actions are not letters 0 to 25, one a game.
        """
        actions = _letters(actions, self.num_envs)
        again, playing = np.flatnonzero(self._ended), np.flatnonzero(~self._ended)
        rewards, terminated = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        rewards[playing], terminated[playing] = self._boards.type(playing, actions[playing])
        self._boards.begin(again, self._draw(len(again)))
        self._ended = terminated.copy()
        truncated = np.zeros(self.num_envs, bool)
        return self._boards.cells.copy(), rewards, terminated, truncated, self._info()

    def render(self) -> tuple[str, ...] | None:  # pyrefly: ignore[bad-override]
        """Return the boards as text, if the mode is "ansi"."""
        if self.render_mode is None:
            return None
        return tuple(show_board(cells, self.words.num_letters) for cells in self._boards.cells)

    def _draw(self, num: int) -> np.ndarray:
        choices = self.words.answer_indices
        return choices[self.np_random.integers(len(choices), size=num)]

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self._boards.mask()}


class WordleEnv(gym.Env):
    """One game of Wordle; see :class:`WordleVectorEnv` for observations, actions and rewards.

    ``info["action_mask"]`` is bool ``[26]``; ``reset(options={"answer": word})`` gives the word.

    Args:
        words: The words; None for the embedded list.
        max_guesses: Number of guesses.
        render_mode: "ansi" or None.

    Raises:
        ValueError: If ``max_guesses`` is out of range.

    Example:
        >>> env = WordleEnv(words=WordList(["so", "to"]))
        >>> _ = env.reset(options={"answer": "to"})
        >>> [env.step(ord(letter) - ord("a"))[1] for letter in "soto"]
        [0.0, -1.0, 0.0, 0.0]
    """

    metadata = _METADATA

    def __init__(
        self,
        *,
        words: WordList | None = None,
        max_guesses: int = 6,
        render_mode: str | None = None,
    ) -> None:
        self.words = WordList() if words is None else words
        self.max_guesses, self.render_mode = max_guesses, render_mode
        self._boards = _Boards(self.words, 1, max_guesses)
        self._over = True
        self.observation_space = _observation_space(self._boards)
        self.action_space = gym.spaces.Discrete(NUM_LETTERS)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a new game.

        Args:
            seed: Of the answers.
            options: ``{"answer": word}`` gives the word.

        Raises:
            ValueError: If the word is not in the list, or there is another option.
        """
        super().reset(seed=seed)
        word, choices = _option(options, "answer"), self.words.answer_indices
        drawn = choices[self.np_random.integers(len(choices))]
        answer = drawn if word is None else self.words.index(word)
        self._boards.begin(np.arange(1), np.array([answer]))
        self._over = False
        return self._boards.cells[0].copy(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Type one letter.

        Raises:
            ValueError: If the action is no letter 0 to 25.
            RuntimeError: If the game is over.
        """
        if self._over:
            raise RuntimeError("the game is over: call reset() to begin another.")
        rewards, terminated = self._boards.type(np.arange(1), _letters(np.array([action]), 1))
        self._over = bool(terminated[0])
        return self._boards.cells[0].copy(), float(rewards[0]), self._over, False, self._info()

    def render(self) -> str | None:  # pyrefly: ignore[bad-override]
        """Return the board as text, if the mode is "ansi"."""
        if self.render_mode is None:
            return None
        return show_board(self._boards.cells[0], self.words.num_letters)

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self._boards.mask()[0]}


def show_board(cells: np.ndarray, num_letters: int) -> str:
    r"""Return a board as text: a row for each guess begun, and its marks as ``.?!`` below it.

    Args:
        cells: An observation, ``[2, G*L]``.
        num_letters: Letters of a word L.

    Example:
        >>> show_board(np.array([[20, 15, 0, 0], [1, 3, 0, 0]]), 2)
        'to\n.!'
    """
    letters, marks = (row.reshape(-1, num_letters) for row in np.asarray(cells))
    lines = []
    for typed, given in zip(letters, marks, strict=True):
        if typed.any():
            lines.append("".join(chr(ord("a") - 1 + int(letter)) for letter in typed if letter))
        if given.any():
            lines.append("".join(" .?!"[int(mark)] for mark in given))
    return "\n".join(lines)


def _letters(actions: np.ndarray, num: int) -> np.ndarray:
    actions = np.asarray(actions)
    if actions.shape != (num,) or not np.issubdtype(actions.dtype, np.integer):
        raise ValueError(
            f"actions must be {num} integers, got shape {actions.shape} of {actions.dtype}."
        )
    if ((actions < 0) | (actions >= NUM_LETTERS)).any():
        raise ValueError(f"actions must be letters from 0 (a) to 25 (z), got {actions.tolist()}.")
    return actions.astype(np.int64)


def _option(options: dict[str, Any] | None, name: str) -> Any:
    unknown = sorted(set(options or {}) - {name})
    if unknown:
        raise ValueError(f"options knows only {name!r}, got {', '.join(map(repr, unknown))}.")
    return (options or {}).get(name)
