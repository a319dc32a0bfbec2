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


def scripted(white: list[str], black: list[str]):
    """Play moves by their number, whatever the other does."""

    def player(board: chess.Board) -> chess.Move:
        script = white if board.turn == chess.WHITE else black
        return chess.Move.from_uci(script[board.fullmove_number - 1])

    return player


def test_points_are_those_of_the_first_player_with_both_colours():
    wins = scripted(["e2e4", "d2d4", "d1h5"], ["e7e5", "d8h4"])  # two fool's mates
    loses = scripted(["f2f3", "g2g4"], ["f7f6", "g7g5"])
    draws = scripted(["f2f3", "a2a3"], ["f7f6", "a7a6"])
    assert play_match(wins, loses, 1, num_opening_plies=0).points == (1.0, 1.0)
    assert play_match(loses, wins, 1, num_opening_plies=0).points == (0.0, 0.0)
    # Cut off before anything has happened.
    assert play_match(wins, draws, 1, num_opening_plies=0, max_plies=3).points == (0.5, 0.5)


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
