"""How well a network judges positions: errors, agreement with the engine, puzzles."""

from collections.abc import Sequence

import chess
import datasets
import numpy as np
from torch import Tensor

from selftrain.nn.modes import training_mode
from selftrain.rl.chess.moves import predict, score_moves, score_pairs
from selftrain.rl.chess.network import ChessValueNet
from selftrain.tasks.chess.puzzles import Puzzle
from selftrain.tasks.chess.tensors import encode_positions


def measure_chess(
    network: ChessValueNet, rows: datasets.Dataset, *, puzzles: Sequence[Puzzle] = ()
) -> dict[str, float]:
    """Return the metrics of "Grandmaster-Level Chess Without Search" (arXiv 2402.04494, section 3).

    - "value_error": mean absolute error of what the network predicts (values of all legal moves, or
      of the positions), in probabilities of winning; "value_rmse": the root of its mean square.
    - "top_move_agreement": share of positions in which the network's best move is one of those that
      the engine values most.
    - "kendall_tau": mean over positions of Kendall's rank correlation (tau-b) between the
      network's and the engine's values of the legal moves; positions without an order (one move, or
      all values equal) are left out.
    - "puzzle_accuracy": share of the puzzles that are solved as a whole, if there are any.

    Args:
        network: Trained.
        rows: Labelled positions that it has not seen.
        puzzles: Puzzles to solve.

    Raises:
        ValueError: If there are no rows.
    """
    data = encode_positions(rows)
    with training_mode(False, network):
        scores = score_pairs(network, rows["fen"][:], data.moves, data.owners)
        if network.predicts == "action_value":
            error = scores - data.move_values
        else:
            error = predict(network, data.tokens) - data.values
        metrics = {
            "value_error": error.abs().mean().item(),
            "value_rmse": error.square().mean().sqrt().item(),
            **rank_moves(scores, data.move_values, data.num_moves),
        }
        if puzzles:
            metrics["puzzle_accuracy"] = float(np.mean(solve_puzzles(network, puzzles)))
    return metrics


def rank_moves(scores: Tensor, values: Tensor, num_moves: Tensor) -> dict[str, float]:
    """Return "top_move_agreement" and "kendall_tau" of scores of moves.

    Args:
        scores: Predicted, those of a position beside each other.
        values: The engine's.
        num_moves: How many moves each position has.
    """
    from scipy.stats import kendalltau

    counts = num_moves.tolist()
    agree, tau = [], []
    for own, true in zip(scores.split(counts), values.split(counts), strict=True):
        agree.append(bool(true[own.argmax()] == true.max()))
        if len(true) > 1 and true.min() < true.max():
            found = kendalltau(own.numpy(), true.numpy()).statistic
            tau.append(0.0 if np.isnan(found) else found)  # a network without any opinion
    return {
        "top_move_agreement": float(np.mean(agree)),
        "kendall_tau": float(np.mean(tau)) if tau else float("nan"),
    }


def solve_puzzles(network: ChessValueNet, puzzles: Sequence[Puzzle]) -> list[bool]:
    """Return which puzzles the network solves: every move of the line, or a mate instead.

    The network plays the move that it values most. As on Lichess another move that mates is right.

    Raises:
        ValueError: If a puzzle holds an illegal position or move.
    """
    with training_mode(False, network):
        return [_solves(network, puzzle) for puzzle in puzzles]


def _solves(network: ChessValueNet, puzzle: Puzzle) -> bool:
    board = chess.Board(puzzle.fen)
    for place, right in enumerate(puzzle.moves):
        if place % 2 == 0:
            (scores,) = score_moves(network, [board])
            found = max(scores, key=scores.__getitem__)
            if found != right:
                board.push_uci(found)
                return board.is_checkmate()
        board.push_uci(right)
    return True
