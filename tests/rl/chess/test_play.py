"""Players and matches."""

import chess
import pytest

from selftrain.rl.chess import ChessPlayer, RandomPlayer, play_match
from selftrain.tasks.chess import Engine, find_engine


def resigned(board: chess.Board) -> chess.Move:
    """Play the first legal move."""
    return next(iter(board.legal_moves))


def test_the_best_move_is_played(piece_counter):
    player = ChessPlayer(piece_counter("state_value"))
    assert player(chess.Board("4k3/8/8/3q4/8/8/8/3RK3 w - - 0 1")).uci() == "d1d5"


def test_a_third_repetition_is_worth_a_half(piece_counter):
    player = ChessPlayer(piece_counter("state_value"))
    board = chess.Board("7k/8/8/8/8/8/8/KQ6 w - - 0 1")
    *moves, last = ["b1b2", "h8g8", "b2b1", "g8h8"] * 2
    for move in moves:
        assert player.values(board)[move] != 0.5
        board.push_uci(move)
    # What is on the board behind this move was there at the beginning, and four moves ago.
    assert player.values(board)[last] == 0.5
    board.push_uci(last)
    assert player.values(board)["b1b2"] == 0.5
    assert player(board).uci() != "b1b2"


def test_scoring_moves_leaves_the_board_as_it_was(piece_counter):
    board = chess.Board()
    board.push_uci("e2e4")
    before = board.copy()
    ChessPlayer(piece_counter("state_value")).values(board)
    assert board == before
    assert board.move_stack == before.move_stack


def test_counting_pieces_beats_random_moves(piece_counter):
    player = ChessPlayer(piece_counter("state_value"))
    result = play_match(player, RandomPlayer(1), 2, max_plies=100)
    assert len(result.points) == 4
    assert result.score > 0.6


def test_a_match_of_a_player_with_itself_is_even():
    result = play_match(resigned, resigned, 3, max_plies=60)
    assert result.score == 0.5


def test_the_seed_determines_a_match():
    results = [
        play_match(RandomPlayer(1), RandomPlayer(2), 2, seed=seed, max_plies=60)
        for seed in (0, 0, 1)
    ]
    assert results[0] == results[1]
    assert all(point in (0.0, 0.5, 1.0) for point in results[2].points)


def test_an_illegal_move_is_an_error_that_names_the_player():
    with pytest.raises(ValueError, match=r"illegal in"):
        play_match(lambda board: chess.Move.from_uci("a1a8"), RandomPlayer(), 1)


@pytest.mark.skipif(find_engine() is None, reason="no program 'stockfish'")
def test_an_engine_wins_against_random_moves():
    with Engine(nodes=200) as engine:
        assert play_match(engine.choose, RandomPlayer(), 1).score == 1.0
