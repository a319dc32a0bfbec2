"""Games of Wordle as they are logged: played by policies of graded skill, to files and back.

Shape letters: N games, W words, L letters of a word, E games side by side.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selftrain._core.checks import check_int, check_range
from selftrain._core.io import read_jsonl, write_jsonl
from selftrain._core.rng import derive
from selftrain.envs.wordle import WordleVectorEnv
from selftrain.envs.wordle_words import WordList, feedback

__all__ = ["WordleGame", "load_wordle", "log_wordle", "play_wordle", "save_wordle"]

Policy = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Letters ``[E]`` for boards ``[E, 2, G*L]`` and the letters allowed ``[E, 26]``."""


@dataclass(frozen=True, slots=True)
class WordleGame:
    """One game: the answer, and the guesses up to the answer or to the last one allowed."""

    answer: str
    """The word to be found."""
    guesses: tuple[str, ...]
    """What was guessed; only the last can be the answer. Of a game that ended by letters that lead
    to no word, the guesses before."""
    skill: float | None = None
    """Of the policy that played it, where it had one."""

    @property
    def solved(self) -> bool:
        """Whether the answer was found."""
        return self.guesses[-1:] == (self.answer,)


def log_wordle(
    words: WordList,
    num_games: int,
    *,
    skill: float | Sequence[float] = 0.5,
    max_guesses: int = 6,
    seed: int = 0,
) -> list[WordleGame]:
    """Play games with policies that make use of the marks more or less often.

    At each guess a policy of skill p takes with probability p a word that agrees with all marks so
    far, and else any word; both uniformly.

    Args:
        words: The words; answers are drawn from ``words.answers``.
        num_games: Number of games N.
        skill: From 0 (guesses at random) to 1 (never against the marks). Several numbers are taken
            in turn: a log by players of different strength.
        max_guesses: Guesses in a game at most.
        seed: Sets answers and guesses.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> games = log_wordle(WordList(["so", "to", "we"]), 100, skill=1.0)
        >>> all(game.solved for game in games), max(len(game.guesses) for game in games)
        (True, 3)
    """
    check_int("num_games", num_games, low=1)
    check_int("max_guesses", max_guesses, low=1, high=100)
    skills = np.array([skill] if isinstance(skill, (int, float)) else list(skill), np.float64)
    for value in skills.tolist():
        check_range("skill", value, low=0.0, high=1.0)
    skill_N = np.resize(skills, num_games)
    rng = np.random.default_rng(derive(seed, "wordle"))
    answer_N = rng.choice(words.answer_indices, num_games)
    fits_NW = np.ones((num_games, len(words.words)), bool)
    guess_NG = np.full((num_games, max_guesses), -1)
    playing = np.arange(num_games)
    for turn in range(max_guesses):
        guided = rng.random(len(playing)) < skill_N[playing]
        choices = fits_NW[playing] | ~guided[:, None]
        guesses = _draw(choices, rng)
        guess_NG[playing, turn] = guesses
        fits_NW[playing] &= _agreeing(words, guesses, answer_N[playing])
        playing = playing[guesses != answer_N[playing]]
    return [
        WordleGame(
            words.words[answer], tuple(words.words[g] for g in row if g >= 0), float(skill_N[i])
        )
        for i, (answer, row) in enumerate(zip(answer_N, guess_NG.tolist(), strict=True))
    ]


def play_wordle(
    policy: Policy,
    words: WordList,
    *,
    answers: Sequence[str] | None = None,
    max_guesses: int = 6,
) -> list[WordleGame]:
    """Let a policy play one game for each answer, all side by side.

    Args:
        policy: Takes boards ``[E, 2, G*L]`` as :class:`WordleVectorEnv` gives them and the letters
            allowed ``[E, 26]``; returns letters ``[E]``. Games that have ended are among them.
        words: The words.
        answers: One game for each; None for all of ``words.answers``.
        max_guesses: Guesses in a game at most.

    Raises:
        ValueError: If an answer is not in the list, or the policy returns no letters.
    """
    answers = words.answers if answers is None else tuple(answers)
    env = WordleVectorEnv(len(answers), words=words, max_guesses=max_guesses)
    boards, info = env.reset(options={"answers": answers})
    last, playing = boards.copy(), np.ones(len(answers), bool)
    while playing.any():
        boards, _, terminated, _, info = env.step(policy(boards, info["action_mask"]))
        last[playing] = boards[playing]
        playing &= ~terminated
    return [
        WordleGame(answer, tuple(_guesses(words, cells)))
        for answer, cells in zip(answers, last, strict=True)
    ]


def save_wordle(path: str | Path, games: Iterable[WordleGame]) -> None:
    """Write games to a JSONL file, atomically: a row has "answer", "guesses" and "skill"."""
    rows = [{"answer": g.answer, "guesses": list(g.guesses), "skill": g.skill} for g in games]
    write_jsonl(path, rows)


def load_wordle(path: str | Path) -> list[WordleGame]:
    """Read games from a JSONL file, such as :func:`save_wordle` writes.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If a row is no game; the message gives its line.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}.")
    games = []
    for number, row in enumerate(read_jsonl(path, complete=True), 1):
        answer, guesses = row.get("answer"), row.get("guesses")
        listed = isinstance(guesses, list) and all(isinstance(g, str) for g in guesses)
        if not isinstance(answer, str) or not listed:
            raise ValueError(
                f"{path}:{number} must hold an answer (text) and guesses (a list of texts), got "
                f"{row!r}."
            )
        games.append(WordleGame(answer, tuple(guesses or ()), row.get("skill")))
    return games


def _draw(choices_NW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one of the marked words of each row, uniformly."""
    counts = choices_NW.cumsum(1)
    ranks = rng.integers(counts[:, -1])
    return (counts > ranks[:, None]).argmax(1)


def _agreeing(words: WordList, guesses: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Return which words would have given guesses the marks that the answers gave: ``[N, W]``."""
    fits = np.empty((len(guesses), len(words.words)), bool)
    letters = words.letters
    for guess in np.unique(guesses):
        rows = np.flatnonzero(guesses == guess)
        marks_WL = feedback(letters[guess], letters)
        fits[rows] = (marks_WL[None] == marks_WL[answers[rows], None]).all(-1)
    return fits


def _guesses(words: WordList, cells: np.ndarray) -> list[str]:
    """Return the whole guesses on a board."""
    letters, marks = (row.reshape(-1, words.num_letters) for row in cells)
    return [words.spell(row - 1) for row in letters[marks.all(1)]]
