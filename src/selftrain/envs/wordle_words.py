"""The words of Wordle: a list, its prefix tree, and the marks that a guess gets.

Shape letters: W words, L letters of a word, N pairs.
"""

import re
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from selftrain._core.checks import check_int, check_not_empty

ABSENT, PRESENT, CORRECT = 1, 2, 3
"""The marks of a letter: not in the answer (or used up), elsewhere in it, at its place."""

NUM_LETTERS = 26


class WordList:
    """The words that may be guessed, those that may be the answer, and how the words begin.

    Args:
        words: Words of one length of the letters a to z, without repetition. None takes
            :func:`embedded_words`.
        answers: Those of them that are drawn as answers; None for all.

    Raises:
        ValueError: If there are no words, a word is no such word or repeated, or an answer is not
            among the words.

    Example:
        >>> WordList(["so", "to", "we"]).next_letters("")
        'stw'
    """

    def __init__(
        self, words: Iterable[str] | None = None, *, answers: Iterable[str] | None = None
    ) -> None:
        self.words: tuple[str, ...] = embedded_words() if words is None else tuple(words)
        """All words, in the order given."""
        check_not_empty("words", self.words)
        self.num_letters = len(self.words[0])
        """Length of each word."""
        for word in self.words:
            if not re.fullmatch("[a-z]+", word) or len(word) != self.num_letters:
                raise ValueError(
                    f"words must all be of the letters a to z and as long as the first "
                    f"({self.words[0]!r}), got {word!r}."
                )
        self._index = {word: i for i, word in enumerate(self.words)}
        if len(self._index) < len(self.words):
            twice = next(w for i, w in enumerate(self.words) if self._index[w] != i)
            raise ValueError(f"words holds {twice!r} twice; each word may be there once.")
        chosen = self.words if answers is None else tuple(answers)
        check_not_empty("answers", chosen)
        self.answers: tuple[str, ...] = chosen
        """The words that may be the answer."""
        self.answer_indices = np.array([self.index(word) for word in chosen])
        """Where they are in ``words``."""

    def index(self, word: str) -> int:
        """Return where a word is in the list.

        Raises:
            ValueError: If it is not there.
        """
        if word not in self._index:
            raise ValueError(f"{word!r} is not one of the {len(self.words)} words of the list.")
        return self._index[word]

    @cached_property
    def letters(self) -> np.ndarray:
        """The letters of the words as numbers from 0 (a) to 25 (z), uint8 ``[W, L]``."""
        text = "".join(self.words).encode("ascii")
        return (np.frombuffer(text, np.uint8) - ord("a")).reshape(len(self.words), -1)

    @cached_property
    def tree(self) -> np.ndarray:
        """The prefix tree: int32 ``[nodes, 26]``, the node after each letter, -1 where none is.

        Node 0 is the empty prefix. Whole words have nodes of their own, without letters after them.
        """
        nodes: list[list[int]] = [[-1] * NUM_LETTERS]
        for letters in self.letters.tolist():
            node = 0
            for letter in letters:
                if nodes[node][letter] < 0:
                    nodes[node][letter] = len(nodes)
                    nodes.append([-1] * NUM_LETTERS)
                node = nodes[node][letter]
        return np.array(nodes, np.int32)

    def next_letters(self, prefix: str) -> str:
        """Return the letters that lead from a prefix towards a word, in alphabetic order."""
        node = 0
        for letter in prefix:
            node = int(self.tree[node, ord(letter) - ord("a")])
            if node < 0:
                return ""
        return "".join(chr(ord("a") + int(i)) for i in np.flatnonzero(self.tree[node] >= 0))

    def spell(self, letters: np.ndarray) -> str:
        """Return the text of letters given as numbers from 0."""
        return "".join(chr(ord("a") + int(letter)) for letter in letters)


def embedded_words(num_letters: int = 5) -> tuple[str, ...]:
    """Return words of Python's own language documentation, in alphabetic order.

    About 230 words of five letters, as they come with every installation: what stands in the text
    between white space and punctuation, in lower case, twice or more. The list depends on the
    version of Python, so a comparison across versions needs a list of its own.

    Args:
        num_letters: Length of the words.

    Raises:
        ValueError: If ``num_letters`` is not between 2 and 12.
    """
    from pydoc_data.topics import topics

    check_int("num_letters", num_letters, low=2, high=12)
    pattern = re.compile(rf"(?<!\S)[a-z]{{{num_letters}}}(?=[,.;:]?\s)")
    counts: dict[str, int] = {}
    for text in topics.values():
        for word in pattern.findall(text):
            counts[word] = counts.get(word, 0) + 1
    return tuple(sorted(word for word, count in counts.items() if count > 1))


def feedback(guesses: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Return the marks of guesses: ``CORRECT``, ``PRESENT`` or ``ABSENT`` for each letter.

    A letter of the answer marks one letter of the guess: first those at their place, then the
    others from the left, so that of a letter guessed more often than it occurs the last are absent.

    Args:
        guesses: Integers ``[*N, L]``.
        answers: Integers of a shape that broadcasts with it.

    Returns:
        uint8 ``[*N, L]``.

    Example:
        >>> words = WordList(["geese", "these"]).letters
        >>> feedback(words[0], words[1])  # two e are at their places, none is left
        array([1, 1, 3, 3, 3], dtype=uint8)
    """
    guesses, answers = np.broadcast_arrays(guesses, answers)
    correct = guesses == answers
    free = ~correct[..., None, :]
    supply = ((guesses[..., :, None] == answers[..., None, :]) & free).sum(-1)
    rivals = (guesses[..., :, None] == guesses[..., None, :]) & free
    earlier = np.tril(rivals, -1).sum(-1)
    present = ~correct & (earlier < supply)
    return (ABSENT + present + (CORRECT - ABSENT) * correct).astype(np.uint8)
