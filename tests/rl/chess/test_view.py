"""Positions from the side of the player to move, against python-chess's own mirror."""

import chess
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.rl.chess.view import MoverView
from selftrain.tasks.chess import MOVES, encode_fen, move_number


def board_after(seed: int, num_plies: int) -> chess.Board:
    rng = np.random.default_rng(seed)
    board = chess.Board()
    for _ in range(num_plies):
        moves = sorted(board.legal_moves, key=chess.Move.uci)
        if not moves:
            break
        board.push(moves[rng.integers(len(moves))])
    return board


@given(seed=st.integers(0, 2**32 - 1), num_plies=st.integers(0, 120))
@settings(max_examples=60, deadline=None)
def test_black_sees_the_mirrored_board_and_white_the_board(seed, num_plies):
    board = board_after(seed, num_plies)
    moves = sorted(move.uci() for move in board.legal_moves) or ["e2e4"]
    numbers = torch.tensor([move_number(move) for move in moves])
    tokens = torch.from_numpy(encode_fen(board.fen(en_passant="fen")))
    seen, seen_moves = MoverView()(tokens.expand(len(moves), -1), numbers)
    turned = board if board.turn == chess.WHITE else board.mirror()
    assert torch.equal(seen[0], torch.from_numpy(encode_fen(turned.fen(en_passant="fen"))).long())
    if board.legal_moves:
        legal = {move.uci() for move in turned.legal_moves}
        assert {MOVES[number] for number in seen_moves.tolist()} == legal


def test_without_moves_there_are_none():
    tokens = torch.from_numpy(encode_fen(chess.STARTING_FEN))[None]
    seen, moves = MoverView()(tokens, None)
    assert torch.equal(seen, tokens.long())
    assert moves is None
