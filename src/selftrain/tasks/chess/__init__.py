"""Chess positions with an engine's values, and how networks read them (extra ``chess``)."""

from selftrain._core.optional import require

require("chess", extra="chess")

from selftrain.tasks.chess.engine import (  # noqa: E402 - says first how to install what they need
    Engine,
    Evaluation,
    find_engine,
    read_board,
    win_probability,
)
from selftrain.tasks.chess.labels import (  # noqa: E402
    Judge,
    label_games,
    label_positions,
    load_positions,
    save_positions,
    split_by_game,
)
from selftrain.tasks.chess.puzzles import (  # noqa: E402
    Puzzle,
    load_lichess_puzzles,
    puzzles_from_labels,
)
from selftrain.tasks.chess.tensors import PositionTensors, encode_positions  # noqa: E402
from selftrain.tasks.chess.tokens import (  # noqa: E402
    FEN_SYMBOLS,
    MOVES,
    NUM_FEN_TOKENS,
    encode_fen,
    encode_fens,
    move_number,
)

__all__ = [
    "FEN_SYMBOLS",
    "MOVES",
    "NUM_FEN_TOKENS",
    "Engine",
    "Evaluation",
    "Judge",
    "PositionTensors",
    "Puzzle",
    "encode_fen",
    "encode_fens",
    "encode_positions",
    "find_engine",
    "label_games",
    "label_positions",
    "load_lichess_puzzles",
    "load_positions",
    "move_number",
    "puzzles_from_labels",
    "read_board",
    "save_positions",
    "split_by_game",
    "win_probability",
]
