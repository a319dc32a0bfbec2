"""Values of letters in Wordle: a transformer over the board, legal letters, logged games as data.

Shape letters: B batch, C cells of a board (guesses times letters), G guesses, L letters of a word,
T steps of a game, D features.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selftrain._core.checks import check_int
from selftrain.envs.wordle_games import WordleGame
from selftrain.envs.wordle_words import CORRECT, NUM_LETTERS, WordList, feedback
from selftrain.rl.episodes import Episode

__all__ = ["LegalLetters", "WordleEncoder", "wordle_episodes"]


class WordleEncoder(nn.Module):
    """A transformer whose tokens are the letters on the board, to the features of what comes next.

    A cell is the sum of embeddings of its letter, its mark, its column and its row; one more token
    stands at the place of the next letter and is read out. Cells that are still empty are not
    attended to. With :class:`~selftrain.nn.QNetwork` and 26 actions it gives the values of the next
    letter.

    Args:
        num_letters: Letters of a word L.
        max_guesses: Guesses G.
        num_features: Width of the transformer, and of its output.
        num_layers: Number of blocks.
        num_heads: Heads of attention; they divide ``num_features``.

    Raises:
        ValueError: If a number is out of range.
        TypeError: If it is no integer.

    Example:
        >>> encoder = WordleEncoder(num_features=16)
        >>> encoder(torch.zeros(2, 2, 30, dtype=torch.uint8)).shape
        torch.Size([2, 16])
    """

    places: Tensor

    def __init__(
        self,
        *,
        num_letters: int = 5,
        max_guesses: int = 6,
        num_features: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        for name in ("num_letters", "max_guesses", "num_layers", "num_heads"):
            check_int(name, locals()[name], low=1)
        check_int("num_features", num_features, low=num_heads)
        if num_features % num_heads:
            raise ValueError(
                f"num_heads must divide num_features, got {num_heads} and {num_features}."
            )
        self.num_features, self.num_letters = num_features, num_letters
        self.num_cells = num_letters * max_guesses
        self.letters = nn.Embedding(NUM_LETTERS + 1, num_features)
        self.marks = nn.Embedding(CORRECT + 1, num_features)
        self.columns = nn.Embedding(num_letters, num_features)
        # One more row: the place after the last cell.
        self.rows = nn.Embedding(max_guesses + 1, num_features)
        self.readout = nn.Parameter(torch.zeros(num_features))
        block = nn.TransformerEncoderLayer(
            num_features,
            num_heads,
            4 * num_features,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(num_features)
        self.register_buffer("places", torch.arange(self.num_cells), persistent=False)
        for embedding in (self.letters, self.marks, self.columns, self.rows):
            nn.init.normal_(embedding.weight, std=0.5)

    def forward(self, boards: Int[Tensor, "batch 2 cells"]) -> Float[Tensor, "batch features"]:
        """Return the features of boards as :class:`~selftrain.envs.WordleEnv` gives them.

        Raises:
            ValueError: If a board has another size.
        """
        if boards.ndim != 3 or boards.shape[1:] != (2, self.num_cells):
            raise ValueError(
                f"boards must be [batch, 2, {self.num_cells}], got {tuple(boards.shape)}."
            )
        letters_BC, marks_BC = boards.long().unbind(1)
        filled_BC = letters_BC > 0
        cells_BCD = self.letters(letters_BC) + self.marks(marks_BC) + self._at(self.places)
        next_BD = self.readout + self._at(filled_BC.sum(-1))
        tokens = torch.cat((next_BD[:, None], cells_BCD), 1)
        empty = torch.cat((torch.zeros_like(filled_BC[:, :1]), ~filled_BC), 1)
        return self.norm(self.blocks(tokens, src_key_padding_mask=empty)[:, 0])

    def _at(self, places: Tensor) -> Tensor:
        return self.columns(places % self.num_letters) + self.rows(places // self.num_letters)


class LegalLetters:
    """Says for boards which letters lead to a word, as ``info["action_mask"]`` does while playing.

    Args:
        words: The words.

    Example:
        >>> legal = LegalLetters(WordList(["so", "to", "we"]))
        >>> legal(torch.zeros(1, 2, 6, dtype=torch.uint8)).nonzero()[:, 1].tolist()  # s, t, w
        [18, 19, 22]
    """

    def __init__(self, words: WordList) -> None:
        self._num_letters = words.num_letters
        self._tree = torch.from_numpy(words.tree).long()

    def __call__(self, boards: Int[Tensor, "batch 2 cells"]) -> Bool[Tensor, "batch letters"]:
        """Return which of the 26 letters may come next on each board.

        On a full board those that begin a word. After letters that lead to no word there are none.
        """
        self._tree = self._tree.to(boards.device)
        letters_BC = boards[:, 0].long()
        filled_B = (letters_BC > 0).sum(-1)
        start_B = filled_B - filled_B % self._num_letters
        nodes_B = torch.zeros_like(filled_B)
        for place in range(self._num_letters - 1):
            at_B = start_B + place
            typed_B = at_B < filled_B
            letter_B = letters_BC.gather(1, at_B.clamp(max=letters_BC.shape[1] - 1)[:, None])
            after_B = self._tree[nodes_B, letter_B.squeeze(1).sub(1).clamp(min=0)]
            nodes_B = torch.where(typed_B & (nodes_B >= 0), after_B, nodes_B)
        return (self._tree[nodes_B] >= 0) & (nodes_B >= 0)[:, None]


def wordle_episodes(
    games: Iterable[WordleGame], words: WordList, *, max_guesses: int = 6
) -> list[Episode]:
    """Return games as episodes of :class:`~selftrain.envs.WordleEnv`, letter by letter.

    A game that was left before its end becomes a truncated episode.

    Args:
        games: Played or logged games.
        words: The words of the game; all guesses are among them.
        max_guesses: Guesses allowed.

    Raises:
        ValueError: If a game has no guess, more than allowed, one that is not in the list, or one
            after the answer.

    Example:
        >>> words = WordList(["so", "to", "we"])
        >>> (episode,) = wordle_episodes([WordleGame("to", ("we", "to"))], words)
        >>> episode.rewards.tolist(), episode.terminated
        ([0.0, -1.0, 0.0, 0.0], True)
    """
    check_int("max_guesses", max_guesses, low=1)
    return [_episode(game, words, max_guesses) for game in games]


def _episode(game: WordleGame, words: WordList, max_guesses: int) -> Episode:
    num, size = len(game.guesses), words.num_letters
    if not 1 <= num <= max_guesses or game.answer in game.guesses[:-1]:
        raise ValueError(
            f"a game has 1 to {max_guesses} guesses and ends with the answer, got {game}."
        )
    guesses = words.letters[[words.index(guess) for guess in game.guesses]]
    marks = feedback(guesses, words.letters[words.index(game.answer)])
    steps, cells = np.arange(num * size + 1)[:, None], np.arange(max_guesses * size)
    full = np.zeros((2, max_guesses * size), np.uint8)
    full[:, : num * size] = guesses.ravel() + 1, marks.ravel()
    shown = np.stack((cells < steps, cells < steps // size * size), axis=1)
    rewards = np.zeros(num * size, np.float32)
    rewards[size - 1 :: size] = -1.0
    if game.solved:
        rewards[-1] = 0.0
    terminated = game.solved or num == max_guesses
    return Episode(
        observations=full * shown,
        actions=guesses.ravel().astype(np.int64),
        rewards=rewards,
        terminated=terminated,
        truncated=not terminated,
    )
