"""Positions and moves as integers."""

import chess
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.tasks.chess import (
    FEN_SYMBOLS,
    MOVES,
    NUM_FEN_TOKENS,
    encode_fen,
    encode_fens,
    move_number,
)


def random_board(seed: int, num_plies: int) -> chess.Board:
    rng = np.random.default_rng(seed)
    board = chess.Board()
    for _ in range(num_plies):
        moves = sorted(board.legal_moves, key=chess.Move.uci)
        if not moves:
            break
        board.push(moves[rng.integers(len(moves))])
    return board


def decode(tokens: np.ndarray) -> str:
    """Return the FEN of tokens, read by their places alone."""
    text = "".join(FEN_SYMBOLS[token] for token in tokens)
    board = chess.BaseBoard.empty()
    for place, symbol in enumerate(text[1:65]):
        if symbol != ".":
            square = chess.square(place % 8, 7 - place // 8)
            board.set_piece_at(square, chess.Piece.from_symbol(symbol))
    rest = [text[65:69], text[69:71], text[71:74], text[74:77]]
    fields = [part.replace(".", "") or "-" for part in rest]
    return " ".join([board.board_fen(), text[0], *fields])


@given(seed=st.integers(0, 2**32 - 1), num_plies=st.integers(0, 150))
@settings(max_examples=40, deadline=None)
def test_a_position_can_be_read_back_from_its_tokens(seed, num_plies):
    fen = random_board(seed, num_plies).fen()
    tokens = encode_fen(fen)
    assert tokens.shape == (NUM_FEN_TOKENS,)
    assert tokens.dtype == np.uint8
    assert decode(tokens) == fen


@given(seed=st.integers(0, 2**32 - 1), num_plies=st.integers(0, 150))
@settings(max_examples=40, deadline=None)
def test_every_legal_move_has_a_number(seed, num_plies):
    for move in random_board(seed, num_plies).legal_moves:
        assert MOVES[move_number(move.uci())] == move.uci()


def test_the_symbols_and_moves_are_as_many_as_published():
    assert len(set(FEN_SYMBOLS)) == len(FEN_SYMBOLS) == 31
    assert len(set(MOVES)) == len(MOVES) == 1968


def test_the_moves_are_those_of_queens_and_knights_on_an_empty_board_and_promotions():
    expected = set()
    for square in chess.SQUARES:
        for piece in (chess.QUEEN, chess.KNIGHT):
            board = chess.BaseBoard.empty()
            board.set_piece_at(square, chess.Piece(piece, chess.WHITE))
            expected |= {chess.Move(square, end).uci() for end in board.attacks(square)}
    for color, start, end in ((chess.WHITE, 6, 7), (chess.BLACK, 1, 0)):
        for file in range(8):
            pawn = chess.square(file, start)
            ends = [chess.square(file, end)]
            ends += list(chess.SquareSet(chess.BB_PAWN_ATTACKS[color][pawn]))
            expected |= {
                chess.Move(pawn, square, piece).uci()
                for square in ends
                for piece in (chess.QUEEN, chess.ROOK, chess.BISHOP, chess.KNIGHT)
            }
    assert set(MOVES) == expected


def test_no_positions_are_an_empty_table():
    assert encode_fens([]).shape == (0, NUM_FEN_TOKENS)


@pytest.mark.parametrize(
    ("fen", "problem"),
    [
        ("", "fields"),
        (f"{chess.STARTING_BOARD_FEN} w KQkq -", "fields"),
        ("8/8/8/8/8/8/8 w - - 0 1", "eight ranks"),
        ("9/8/8/8/8/8/8/8 w - - 0 1", "eight ranks"),
        ("7x/8/8/8/8/8/8/8 w - - 0 1", "eight ranks"),
        ("8/8/8/8/8/8/8/8 x - - 0 1", "side to move"),
        ("8/8/8/8/8/8/8/8 w QQ - 0 1", "castling"),
        ("8/8/8/8/8/8/8/8 w - e4 0 1", "en passant"),
        ("8/8/8/8/8/8/8/8 w - - 0 1000", "three digits"),
        ("8/8/8/8/8/8/8/8 w - - -1 1", "three digits"),
    ],
)
def test_what_is_no_fen_is_refused_with_the_reason(fen, problem):
    with pytest.raises(ValueError, match=problem):
        encode_fen(fen)


@pytest.mark.parametrize("move", ["e2e5e", "e2e2", "a1b4", "a7a8k", "O-O", ""])
def test_what_is_no_move_is_refused(move):
    with pytest.raises(ValueError, match="UCI notation"):
        move_number(move)
