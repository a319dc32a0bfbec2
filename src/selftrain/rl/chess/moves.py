"""Values that a network gives to the legal moves of positions.

Shape letters: M moves of all positions together.
"""

from collections.abc import Sequence

import chess
import torch
from torch import Tensor

from selftrain.rl.chess.network import ChessValueNet
from selftrain.tasks.chess.engine import check_board
from selftrain.tasks.chess.tokens import MOVES, encode_fens, move_number

_BATCH = 1024


def legal_moves(board: chess.Board) -> list[str]:
    """Return the legal moves in UCI notation, in the order of their numbers."""
    return sorted(move.uci() for move in board.legal_moves)


def score_moves(network: ChessValueNet, boards: Sequence[chess.Board]) -> list[dict[str, float]]:
    """Return the probability of winning behind each legal move, for the side that moves.

    A network of action values is asked for them. One of state values looks one move ahead, and a
    move is worth 1 less the opponent's value; there mate counts 1 and stalemate 0.5.

    Raises:
        ValueError: If a position is illegal or has no legal move.
    """
    for board in boards:
        check_board(board)
    moves = [legal_moves(board) for board in boards]
    owners = torch.tensor([i for i, own in enumerate(moves) for _ in own])
    numbers = torch.tensor([move_number(move) for own in moves for move in own])
    fens = [board.fen() for board in boards]
    scores = iter(score_pairs(network, fens, numbers, owners).tolist())
    return [{move: next(scores) for move in own} for own in moves]


def score_pairs(
    network: ChessValueNet, fens: Sequence[str], moves: Tensor, owners: Tensor
) -> Tensor:
    """Return the values ``[M]`` of moves of positions; see :func:`score_moves`.

    Args:
        network: Of either kind.
        fens: The positions.
        moves: Numbers of moves, ``[M]``.
        owners: The place in ``fens`` of each, ``[M]``.
    """
    if network.predicts == "action_value":
        tokens = torch.from_numpy(encode_fens(fens))
        return predict(network, tokens[owners], moves)
    boards = [chess.Board(fen) for fen in fens]
    after, known = [], torch.full((len(moves),), torch.nan)
    for pair, (move, owner) in enumerate(zip(moves.tolist(), owners.tolist(), strict=True)):
        board = boards[owner]
        board.push_uci(MOVES[move])
        after.append(board.fen())
        if not any(board.legal_moves):
            known[pair] = 1.0 if board.is_check() else 0.5
        board.pop()
    values = 1 - predict(network, torch.from_numpy(encode_fens(after)))
    return torch.where(known.isnan(), values, known)


@torch.no_grad()
def predict(network: ChessValueNet, tokens: Tensor, moves: Tensor | None = None) -> Tensor:
    """Return the network's values of positions, or of moves in them, on the host."""
    device = next(network.parameters()).device
    parts = []
    for start in range(0, len(tokens), _BATCH):
        part = slice(start, start + _BATCH)
        inputs = [tokens[part]] if moves is None else [tokens[part], moves[part]]
        logits = network(*(tensor.to(device) for tensor in inputs))
        parts.append(network.head.value(logits).cpu())
    return torch.cat(parts) if parts else torch.zeros(0)
