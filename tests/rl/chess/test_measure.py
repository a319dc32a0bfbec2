"""Scores of moves, and what is measured of them."""

import chess
import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from selftrain.rl.chess import measure_chess, rank_moves, score_moves, solve_puzzles
from selftrain.tasks.chess import MOVES, Puzzle, move_number

COUNTS = torch.tensor([4, 1, 3])
VALUES = torch.tensor([0.1, 0.4, 0.2, 0.9, 0.5, 0.3, 0.3, 0.3])
BACK_RANK = chess.Board("6k1/5ppp/8/8/8/8/8/K2R4 w - - 0 1")


def test_the_engines_own_values_agree_with_it_perfectly():
    assert rank_moves(VALUES, VALUES, COUNTS) == {"top_move_agreement": 1.0, "kendall_tau": 1.0}


def test_the_opposite_values_order_moves_the_other_way_round():
    found = rank_moves(-VALUES, VALUES, COUNTS)
    assert found["kendall_tau"] == -1.0
    # One move only, or all equal: any choice is one of the best.
    assert found["top_move_agreement"] == pytest.approx(2 / 3)


def test_tau_is_scipys_mean_over_positions_that_have_an_order():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=8))
    expected = kendalltau(scores[:4], VALUES[:4]).statistic
    assert rank_moves(scores, VALUES, COUNTS)["kendall_tau"] == pytest.approx(expected)


def test_a_network_without_an_opinion_has_no_correlation():
    assert rank_moves(torch.zeros(8), VALUES, COUNTS)["kendall_tau"] == 0.0


def test_action_values_are_asked_for_move_by_move(piece_counter):
    board = chess.Board()
    (scores,) = score_moves(piece_counter("action_value"), [board])
    expected = {move.uci(): move_number(move.uci()) / len(MOVES) for move in board.legal_moves}
    assert scores == pytest.approx(expected)


def test_state_values_are_the_opponents_one_move_ahead(piece_counter):
    board = chess.Board("4k3/8/8/3q4/8/8/8/3RK3 w - - 0 1")
    other = chess.Board("4k3/8/8/8/8/8/8/3QK3 b - - 0 1")
    scores, black = score_moves(piece_counter("state_value"), [board, other])
    assert scores["d1d5"] == pytest.approx(1 / (1 + np.exp(-0.3 * 5)))  # rook against nothing
    assert scores["e1e2"] == pytest.approx(1 / (1 + np.exp(0.3 * 4)))  # rook against queen
    expected = 1 / (1 + np.exp(0.3 * 9))
    assert list(black.values()) == pytest.approx([expected] * len(black))


def test_mate_and_stalemate_are_known_one_move_ahead(piece_counter):
    network = piece_counter("state_value")
    (scores,) = score_moves(network, [BACK_RANK])
    assert scores["d1d8"] == 1.0
    (scores,) = score_moves(network, [chess.Board("7k/8/5KQ1/8/8/8/8/8 w - - 0 1")])
    assert scores["g6g7"] == 1.0
    assert scores["f6f7"] == 0.5


@pytest.mark.parametrize(
    ("moves", "solved"),
    [
        (("d1d8",), True),
        (("d1d2",), True),  # mates instead
        (("d1d2", "g8f8", "d2d8"), True),
    ],
)
def test_a_mate_is_right_whatever_the_line_says(piece_counter, moves, solved):
    puzzle = Puzzle("0", BACK_RANK.fen(), moves)
    assert solve_puzzles(piece_counter("state_value"), [puzzle]) == [solved]


def test_a_puzzle_is_solved_only_if_every_move_is_found(piece_counter):
    # White takes the queen, black moves, white takes the rook: all by counting.
    fen = "4k3/8/8/3q4/8/8/7r/3RK1B1 w - - 0 1"
    network = piece_counter("state_value")
    assert solve_puzzles(network, [Puzzle("0", fen, ("d1d5", "e8e7", "g1h2"))]) == [True]
    assert solve_puzzles(network, [Puzzle("0", fen, ("d1d5", "h2h1", "e1f2"))]) == [False]
    assert solve_puzzles(network, [Puzzle("0", fen, ("g1h2",))]) == [False]


@pytest.mark.parametrize("predicts", ["action_value", "state_value"])
def test_errors_are_those_of_what_is_predicted(piece_counter, rows, predicts):
    some = rows.select(range(5))
    network = piece_counter(predicts)
    found = measure_chess(network, some, puzzles=[Puzzle("0", BACK_RANK.fen(), ("d1d8",))])
    errors = []
    for row in some:
        if predicts == "action_value":
            errors += [m / len(MOVES) - v for m, v in zip(*(row[k] for k in KEYS), strict=True)]
        else:
            board = chess.Board(row["fen"])
            worth = {1: 1, 2: 3, 3: 3, 4: 5, 5: 9, 6: 0}
            pieces = board.piece_map().values()
            balance = sum(
                worth[p.piece_type] * (1 if p.color == board.turn else -1) for p in pieces
            )
            errors.append(1 / (1 + np.exp(-0.3 * balance)) - row["value"])
    assert found["value_error"] == pytest.approx(np.abs(errors).mean(), rel=1e-4)
    assert found["value_rmse"] == pytest.approx(np.sqrt(np.square(errors).mean()), rel=1e-4)
    assert found["puzzle_accuracy"] == float(predicts == "state_value")


KEYS = ("moves", "move_values")


def test_a_finished_game_has_no_moves_to_score(piece_counter):
    board = chess.Board("7k/5Q2/6K1/8/8/8/8/8 b - - 0 1")
    with pytest.raises(ValueError, match="the game is over"):
        score_moves(piece_counter("action_value"), [board])
