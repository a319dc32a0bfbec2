"""Chess positions and moves as integers, for networks that read them as short texts.

A position becomes 77 tokens of 31 symbols, the fields of its FEN at fixed places: side to move 1,
squares 64 (from a8, rank by rank), castling 4, en passant 2, half-moves 3, moves 3. This is the
layout of "Grandmaster-Level Chess Without Search" (arXiv 2402.04494, section 2.1), on whose data
"Stop Regressing" trains. A move is one of the 1,968 that a queen or a knight could make on an empty
board, promotions apart. Shape letters: N positions, T tokens.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

FEN_SYMBOLS = "0123456789abcdefghpnrkqPBNRQKw."
"""The symbols; "b" is the black bishop, the b-file and black to move, "." what is empty."""
NUM_FEN_TOKENS = 77
"""Tokens of a position."""

_PLACES = {symbol: place for place, symbol in enumerate(FEN_SYMBOLS)}
_PIECES = frozenset("pnbrqkPNBRQK")


def _all_moves() -> tuple[str, ...]:
    files = "abcdefgh"
    knight = {(1, 2), (2, 1)}
    moves = []
    for start in range(64):
        for end in range(64):
            (x, y), (u, v) = divmod(start, 8), divmod(end, 8)
            across, along = abs(x - u), abs(y - v)
            if start == end or not (
                across == along or 0 in (across, along) or (across, along) in knight
            ):
                continue
            move = f"{files[x]}{y + 1}{files[u]}{v + 1}"
            moves.append(move)
            if (y, v) in ((6, 7), (1, 0)) and across <= 1:
                moves += [move + piece for piece in "bnqr"]
    return tuple(sorted(moves))


MOVES = _all_moves()
"""All moves in UCI notation, in alphabetical order; their places are the numbers of the moves."""

_NUMBERS = {move: number for number, move in enumerate(MOVES)}


def move_number(move: str) -> int:
    """Return the place of a move in :data:`MOVES`.

    Args:
        move: In UCI notation, as "e2e4" or "a7a8q"; castling is the king's move.

    Raises:
        ValueError: If no piece moves so.
    """
    try:
        return _NUMBERS[move]
    except KeyError:
        raise ValueError(
            f"{move!r} is no chess move in UCI notation, which is written as e2e4, or a7a8q for a "
            "promotion."
        ) from None


def encode_fen(fen: str) -> NDArray[np.uint8]:
    """Return the 77 tokens of a position.

    Args:
        fen: All six fields. Whether the position is legal is not looked at here.

    Raises:
        ValueError: If it is no FEN, or a counter has more than three digits.

    Example:
        >>> tokens = encode_fen("8/8/8/8/8/k7/8/K6R w - - 12 60")
        >>> "".join(FEN_SYMBOLS[token] for token in tokens)[-13:]
        'R......12.60.'
    """
    return np.array([_PLACES[symbol] for symbol in _spell(fen)], dtype=np.uint8)


def encode_fens(fens: Iterable[str]) -> NDArray[np.uint8]:
    """Return tokens ``[N, 77]`` of positions; see :func:`encode_fen`."""
    tokens = [encode_fen(fen) for fen in fens]
    return np.stack(tokens) if tokens else np.zeros((0, NUM_FEN_TOKENS), dtype=np.uint8)


def position_key(fen: str) -> str:
    """Return a FEN without its counters: positions that are equal have the same."""
    return " ".join(fen.split(" ")[:4])


def _spell(fen: str) -> str:
    """Return the 77 symbols of a FEN."""
    fields = fen.split(" ")
    if len(fields) != 6:
        raise _bad(fen, f"it has {len(fields)} fields, not 6")
    placement, side, castling, en_passant, half_moves, moves = fields
    squares = "".join("." * int(c) if c in "12345678" else c for c in placement if c != "/")
    ranks = placement.split("/")
    if len(ranks) != 8 or any(_rank_length(rank) != 8 for rank in ranks):
        raise _bad(fen, "its placement is not eight ranks of eight squares")
    if side not in ("w", "b"):
        raise _bad(fen, f"the side to move is {side!r}, not w or b")
    if castling != "-" and (set(castling) - set("KQkq") or len(set(castling)) != len(castling)):
        raise _bad(fen, f"the castling rights are {castling!r}, not some of KQkq or -")
    if en_passant != "-" and not (
        len(en_passant) == 2 and en_passant[0] in "abcdefgh" and en_passant[1] in "36"
    ):
        raise _bad(fen, f"the en passant square is {en_passant!r}")
    for counter in (half_moves, moves):
        if not (counter.isascii() and counter.isdigit() and len(counter) <= 3):
            raise _bad(fen, f"the counter {counter!r} is no number of at most three digits")
    fixed = [(castling, 4), (en_passant, 2), (half_moves, 3), (moves, 3)]
    return side + squares + "".join(text.replace("-", "").ljust(n, ".") for text, n in fixed)


def _rank_length(rank: str) -> int:
    """Return the number of squares of a rank; -1 if there is something else in it."""
    if not all(c in _PIECES or c in "12345678" for c in rank):
        return -1
    return sum(int(c) if c.isdigit() else 1 for c in rank)


def _bad(fen: str, why: str) -> ValueError:
    return ValueError(
        f"{fen!r} is no FEN: {why}. One reads, for example, "
        "'rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w KQkq - 0 1'."
    )
