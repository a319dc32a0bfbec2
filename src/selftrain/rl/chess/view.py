"""Positions as the player to move sees them: black's with colours and ranks exchanged.

Shape letters: B positions, T tokens.
"""

import torch
from torch import Tensor, nn

from selftrain.tasks.chess.tokens import FEN_SYMBOLS, MOVES, move_number

_RIGHTS = "KQkq."
_PLACES = {symbol: place for place, symbol in enumerate(FEN_SYMBOLS)}


def _table(swapped: str) -> Tensor:
    """Return for each symbol that of the other case if it is among ``swapped``, else itself."""
    other = [s.swapcase() if s in swapped else s for s in FEN_SYMBOLS]
    return torch.tensor([_PLACES[symbol] for symbol in other])


class MoverView(nn.Module):
    """Turns tokens and moves around where black is to move, as if it were always white's turn.

    The board is turned upside down and the colours are exchanged, which changes nothing in the
    game. A network need not learn everything twice then, and which pieces are its own is told by
    their case. The tables are buffers, so that a GPU is not sent them at every step.
    """

    colors: Tensor
    rights: Tensor
    order: Tensor
    ranks: Tensor
    moves: Tensor

    def __init__(self) -> None:
        super().__init__()
        rights = torch.tensor([_PLACES[symbol] for symbol in _RIGHTS])
        order = torch.zeros(len(FEN_SYMBOLS), dtype=torch.long)
        order[rights] = torch.arange(len(_RIGHTS))
        ranks = torch.arange(len(FEN_SYMBOLS))
        ranks[[_PLACES["3"], _PLACES["6"]]] = torch.tensor([_PLACES["6"], _PLACES["3"]])
        turned = [f"{m[0]}{9 - int(m[1])}{m[2]}{9 - int(m[3])}{m[4:]}" for m in MOVES]
        tables = {
            "colors": _table("pnbrqkPNBRQK"),
            "rights": rights,
            "order": order,
            "ranks": ranks,
            "moves": torch.tensor([move_number(move) for move in turned]),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, tokens: Tensor, moves: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return tokens ``[B, 77]``, int64, and moves ``[B]`` as the player to move sees them.

        Args:
            tokens: Of ``encode_fens``.
            moves: Numbers in ``MOVES``; None if there are none.
        """
        tokens = tokens.long()
        black_B1 = tokens[:, :1] == _PLACES["b"]
        squares = self.colors[tokens[:, 1:65].view(-1, 8, 8).flip(1).reshape(-1, 64)]
        # Rights stand in the order of a FEN, white's first.
        rights = self.rights[self.order[self.colors[tokens[:, 65:69]]].sort(-1).values]
        passing = self.ranks[tokens[:, 69:71]]
        white = tokens.new_full((len(tokens), 1), _PLACES["w"])
        turned = torch.cat([white, squares, rights, passing, tokens[:, 71:]], 1)
        if moves is not None:
            moves = torch.where(black_B1[:, 0], self.moves[moves], moves)
        return torch.where(black_B1, turned, tokens), moves
