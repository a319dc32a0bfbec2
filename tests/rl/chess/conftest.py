"""Labelled positions, and a network that counts pieces."""

from pathlib import Path

import pytest
import torch
from torch import nn

from selftrain.nn import ScalarValueHead
from selftrain.tasks.chess import FEN_SYMBOLS, MOVES, load_positions

FIXTURE = Path(__file__).parents[2] / "fixtures" / "chess_positions.arrow"
WORTH = {"p": 1, "n": 3, "b": 3, "r": 5, "q": 9}


class PieceCounter(nn.Module):
    """A value network that is known: of positions by their pieces, or of moves by their number."""

    def __init__(self, predicts: str) -> None:
        super().__init__()
        self.predicts, self.head = predicts, ScalarValueHead(1)
        worth = [WORTH.get(s.lower(), 0) * (1 if s.isupper() else -1) for s in FEN_SYMBOLS]
        self.register_buffer("worth", torch.tensor(worth, dtype=torch.float32))

    def forward(self, tokens, moves=None):
        if moves is not None:
            return moves[:, None] / len(MOVES)
        tokens = tokens.long()
        balance = self.worth[tokens[:, 1:65]].sum(1)
        side = torch.where(tokens[:, 0] == FEN_SYMBOLS.index("w"), 1.0, -1.0)
        return torch.sigmoid(0.3 * side * balance)[:, None]


@pytest.fixture(scope="session")
def rows():
    """600 positions of 26 games, labelled by Stockfish 15.1 at depth 2."""
    return load_positions(FIXTURE)


@pytest.fixture
def piece_counter():
    return PieceCounter
