r"""Learn chess without search from Stockfish's values, once with each head, and play.

Stockfish plays games against itself and values every legal move of their positions. A small
transformer learns these values with a categorical head and by squared errors: the network, the
batches and the number of steps are the same. It prints the error, how often the best move is the
engine's, and Kendall's rank correlation on games that were not learned from, and the score of a
match against random moves. Networks of minutes like these learn what positions are worth, and
hardly to rank moves: they play no better than at random. Without Stockfish (apt install stockfish)
it takes a table of 600 positions that the tests use.

    python examples/learn_chess_values.py                    # about five minutes on one core
    python examples/learn_chess_values.py --num-positions 100000 --num-steps 50000 \
        --width 256 --num-layers 8 --num-heads 8 --device cuda --folder runs/chess
"""

from dataclasses import dataclass
from pathlib import Path

import datasets
import tyro

from selftrain.ops import HLGauss, OneHot, Support, TwoHot
from selftrain.rl.chess import ChessConfig, ChessPlayer, RandomPlayer, learn_chess, play_match
from selftrain.tasks.chess import (
    Engine,
    find_engine,
    label_games,
    load_positions,
    puzzles_from_labels,
    split_by_game,
)

TABLE = Path(__file__).parents[1] / "tests" / "fixtures" / "chess_positions.arrow"


@dataclass(frozen=True)
class Args:
    """Command line."""

    num_positions: int = 5000
    """Positions to label."""
    depth: int = 2
    """Depth of Stockfish's search."""
    folder: str | None = None
    """Where to keep the labels; the same command goes on there."""
    num_steps: int = 1000
    """Optimizer steps of each head."""
    width: int = 32
    """Features of a token."""
    num_layers: int = 2
    """Blocks of the transformer."""
    num_heads: int = 2
    """Heads of attention."""
    num_bins: int = 64
    """Bins on [0, 1] of the categorical heads."""
    num_pairs: int = 5
    """Pairs of games against random moves."""
    device: str = "cpu"
    """Where to train."""
    seed: int = 0
    """Of games, weights and batches."""
    quick: bool = False
    """A few positions and steps, to see that it runs."""


def positions(args: Args) -> datasets.Dataset:
    """Return labelled positions, from Stockfish where it is installed."""
    if find_engine() is None:
        print(f"no Stockfish: {TABLE.name} has 600 positions")
        return load_positions(TABLE)
    with Engine(depth=args.depth) as engine:
        num = 80 if args.quick else args.num_positions
        return label_games(
            engine, num, seed=args.seed, output_dir=args.folder, show_progress=not args.quick
        )


def main(args: Args) -> None:
    train, test = split_by_game(positions(args), 0.3 if args.quick else 0.1)
    puzzles = puzzles_from_labels(test)
    print(f"{len(train)} positions to learn, {len(test)} to test, {len(puzzles)} puzzles")
    support = Support(0.0, 1.0, args.num_bins)
    heads = {
        "HL-Gauss": HLGauss(support),
        "two-hot": TwoHot(support),
        "one-hot": OneHot(support),
        "squared error": None,
    }
    config = ChessConfig(
        num_layers=args.num_layers,
        width=args.width,
        num_heads=args.num_heads,
        num_steps=5 if args.quick else args.num_steps,
        seed=args.seed,
    )
    for name, transform in heads.items():
        result = learn_chess(
            train, transform, config, test_rows=test, puzzles=puzzles, device=args.device
        )
        match = play_match(
            ChessPlayer(result.network),
            RandomPlayer(args.seed),
            1 if args.quick else args.num_pairs,
            max_plies=20 if args.quick else 200,
        )
        print(
            f"{name + ':':15s} error {result.metrics['value_error']:.3f}, "
            f"best move {result.metrics['top_move_agreement']:.1%}, "
            f"tau {result.metrics['kendall_tau']:.3f}, "
            f"puzzles {result.metrics.get('puzzle_accuracy', float('nan')):.1%}, "
            f"against random moves {match.score:.2f}"
        )


if __name__ == "__main__":
    main(tyro.cli(Args))
