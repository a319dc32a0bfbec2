"""Positions as the player to move sees them: black's with colours and ranks exchanged.

Shape letters: B positions, T tokens.
"""

import torch
from torch import Tensor

from selftrain.tasks.chess.tokens import FEN_SYMBOLS, MOVES, move_number

_RIGHTS = "KQkq."
_PLACES = {symbol: place for place, symbol in enumerate(FEN_SYMBOLS)}


def _table(swapped: str) -> Tensor:
    """Return for each symbol that of the other case if it is among ``swapped``, else itself."""
    other = [s.swapcase() if s in swapped else s for s in FEN_SYMBOLS]
    return torch.tensor([_PLACES[symbol] for symbol in other])


_OTHER_COLOR = _table("pnbrqkPNBRQK")
_RIGHT_PLACES = torch.tensor([_PLACES[symbol] for symbol in _RIGHTS])
_ORDER = torch.zeros(len(FEN_SYMBOLS), dtype=torch.long)
_ORDER[_RIGHT_PLACES] = torch.arange(len(_RIGHTS))
_OTHER_RANK = torch.arange(len(FEN_SYMBOLS))
_OTHER_RANK[[_PLACES["3"], _PLACES["6"]]] = torch.tensor([_PLACES["6"], _PLACES["3"]])
_OTHER_MOVES = torch.tensor(
    [move_number(f"{m[0]}{9 - int(m[1])}{m[2]}{9 - int(m[3])}{m[4:]}") for m in MOVES]
)


def mover_view(tokens: Tensor, moves: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return tokens ``[B, 77]`` and moves ``[B]`` as if it were always white's turn.

    Where black is to move, the board is turned upside down and the colours are exchanged, which
    changes nothing in the game. A network need not learn everything twice then, and which pieces
    are its own is told by their case.

    Args:
        tokens: Of ``encode_fens``.
        moves: Numbers in ``MOVES``; None if there are none.
    """
    tokens, place = tokens.long(), tokens.device
    black_B1 = tokens[:, :1] == _PLACES["b"]
    colors = _OTHER_COLOR.to(place)
    squares = colors[tokens[:, 1:65].view(-1, 8, 8).flip(1).reshape(-1, 64)]
    rights = _RIGHT_PLACES.to(place)[_ORDER.to(place)[colors[tokens[:, 65:69]]].sort(-1).values]
    passing = _OTHER_RANK.to(place)[tokens[:, 69:71]]
    white = tokens.new_full((len(tokens), 1), _PLACES["w"])
    turned = torch.cat([white, squares, rights, passing, tokens[:, 71:]], 1)
    tokens = torch.where(black_B1, turned, tokens)
    if moves is not None:
        moves = torch.where(black_B1[:, 0], _OTHER_MOVES.to(place)[moves], moves)
    return tokens, moves
