"""Chess without search: networks that learn an engine's values, are measured, and play."""

from selftrain.rl.chess.config import ChessConfig
from selftrain.rl.chess.learn import ChessResult, fit_chess, learn_chess
from selftrain.rl.chess.measure import measure_chess, rank_moves, solve_puzzles
from selftrain.rl.chess.moves import score_moves
from selftrain.rl.chess.network import ChessValueNet
from selftrain.rl.chess.play import ChessPlayer, MatchResult, RandomPlayer, play_match

__all__ = [
    "ChessConfig",
    "ChessPlayer",
    "ChessResult",
    "ChessValueNet",
    "MatchResult",
    "RandomPlayer",
    "fit_chess",
    "learn_chess",
    "measure_chess",
    "play_match",
    "rank_moves",
    "score_moves",
    "solve_puzzles",
]
