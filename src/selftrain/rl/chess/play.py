"""Players of chess, and games between them."""

from collections.abc import Callable
from dataclasses import dataclass

import chess
import numpy as np

from selftrain._core.checks import check_int
from selftrain._core.rng import derive
from selftrain.nn.modes import training_mode
from selftrain.rl.chess.moves import score_moves
from selftrain.rl.chess.network import ChessValueNet
from selftrain.tasks.chess.engine import check_board

Player = Callable[[chess.Board], chess.Move]
"""Chooses a legal move of a board: ``ChessPlayer(network)``, ``Engine(...).choose``, a function."""


class ChessPlayer:
    """Plays the move that a network values most, without search.

    A move behind which the position stands on the board for the third time is worth 0.5, for the
    opponent may claim a draw; the network sees no history, and would repeat itself.

    Args:
        network: Trained; of action values, or of state values one move ahead.
    """

    def __init__(self, network: ChessValueNet) -> None:
        self.network = network

    def __call__(self, board: chess.Board) -> chess.Move:
        """Return the move; of equal ones the first in the alphabet.

        Raises:
            ValueError: If the position is illegal or has no legal move.
        """
        values = self.values(board)
        return chess.Move.from_uci(max(values, key=values.__getitem__))

    def values(self, board: chess.Board) -> dict[str, float]:
        """Return what each legal move is worth to the player, repetitions included."""
        with training_mode(False, self.network):
            (values,) = score_moves(self.network, [board])
        for move in values:
            board.push_uci(move)
            if board.is_repetition(3):
                values[move] = 0.5
            board.pop()
        return values


class RandomPlayer:
    """Plays any legal move.

    Args:
        seed: Of its choices.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(derive(seed, "random player"))

    def __call__(self, board: chess.Board) -> chess.Move:
        """Return a legal move, each with the same probability.

        Raises:
            ValueError: If the position is illegal or has no legal move.
        """
        check_board(board)
        moves = sorted(board.legal_moves, key=chess.Move.uci)
        return moves[self._rng.integers(len(moves))]


@dataclass(frozen=True, slots=True)
class MatchResult:
    """Games as the first player saw them, in pairs with the same opening and colours changed."""

    points: tuple[float, ...]
    """1 for each game won, 0.5 for a draw, 0 for a loss."""

    @property
    def score(self) -> float:
        """The mean of the points."""
        return float(np.mean(self.points))


def play_match(
    first: Player,
    second: Player,
    num_pairs: int = 10,
    *,
    seed: int = 0,
    num_opening_plies: int = 4,
    max_plies: int = 200,
) -> MatchResult:
    """Play games between two players, each opening twice with colours changed.

    Most players would play the same game over and over, so each pair begins with random moves.

    Args:
        first: Whose points are counted.
        second: The other.
        num_pairs: Half of the number of games.
        seed: Of the openings.
        num_opening_plies: Random half-moves at the beginning.
        max_plies: A game of so many half-moves is a draw, as are those that can be claimed.

    Raises:
        ValueError: If a number is out of range, or a player gives an illegal move.
    """
    check_int("num_pairs", num_pairs, low=1)
    check_int("num_opening_plies", num_opening_plies, low=0)
    check_int("max_plies", max_plies, low=1)
    points = []
    for pair in range(num_pairs):
        opening = _opening(num_opening_plies, derive(seed, "opening", pair))
        for color in chess.COLORS:
            white, black = (first, second) if color == chess.WHITE else (second, first)
            points.append(_points(_play(opening.copy(), white, black, max_plies), color))
    return MatchResult(tuple(points))


def _play(board: chess.Board, white: Player, black: Player, max_plies: int) -> chess.Outcome | None:
    """Return how a game ends; None if it is too long."""
    while board.ply() < max_plies:
        if outcome := board.outcome(claim_draw=True):
            return outcome
        player = white if board.turn == chess.WHITE else black
        move = player(board)
        if not board.is_legal(move):
            raise ValueError(f"{player!r} chose {move}, which is illegal in {board.fen()!r}.")
        board.push(move)
    return board.outcome(claim_draw=True)


def _points(outcome: chess.Outcome | None, color: chess.Color) -> float:
    if outcome is None or outcome.winner is None:
        return 0.5
    return float(outcome.winner == color)


def _opening(num_plies: int, seed: int) -> chess.Board:
    """Return a game that has begun and is not over."""
    rng = np.random.default_rng(seed)
    while True:
        board = chess.Board()
        for _ in range(num_plies):
            moves = sorted(board.legal_moves, key=chess.Move.uci)
            if moves:
                board.push(moves[rng.integers(len(moves))])
        if board.outcome() is None:
            return board
