"""Chess puzzles: positions with one line of moves that has to be found."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chess
import datasets

from selftrain._core.checks import check_int, check_range
from selftrain.tasks.chess.engine import read_board
from selftrain.tasks.chess.labels import Judge
from selftrain.tasks.chess.tokens import MOVES


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A position, and the moves to find."""

    id: str
    """A name."""
    fen: str
    """The position, with the solver to move."""
    moves: tuple[str, ...]
    """The solver's moves in UCI notation, with the opponent's between them."""
    rating: int | None = None
    """How hard it is, on the scale of where it is from."""


def load_lichess_puzzles(path: str | Path, max_puzzles: int | None = None) -> tuple[Puzzle, ...]:
    """Read puzzles from a local CSV file in the form of the Lichess puzzle database.

    It has the columns PuzzleId, FEN, Moves and Rating, and others that are not looked at. The first
    of the moves is the opponent's: it is made, and the puzzle begins behind it.

    Args:
        path: The file, unpacked.
        max_puzzles: Read so many, from the beginning.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, or a row holds an illegal position or move; the message
            names the line.
    """
    if max_puzzles is not None:
        check_int("max_puzzles", max_puzzles, low=1)
    puzzles = []
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        missing = {"PuzzleId", "FEN", "Moves", "Rating"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(
                f"{path} lacks the columns {', '.join(sorted(missing))}; the first line of a file "
                "of Lichess puzzles names them."
            )
        for row in rows:
            if max_puzzles is not None and len(puzzles) == max_puzzles:
                break
            try:
                puzzles.append(_from_lichess(row))
            except ValueError as error:
                raise ValueError(f"{path}:{rows.line_num}: {error}") from error
    return tuple(puzzles)


def puzzles_from_labels(
    rows: datasets.Dataset,
    *,
    margin: float = 0.2,
    judge: Judge | None = None,
    max_moves: int = 3,
) -> tuple[Puzzle, ...]:
    """Return the positions in which one move is better than all others, as puzzles.

    Without a judge a puzzle is one move. With one the line goes on: the opponent's best answer,
    and the solver's next move as long as that one is the only good one, too.

    Args:
        rows: Labelled positions.
        margin: By how much the best move's value exceeds the second's.
        judge: Continues the lines.
        max_moves: Most moves of the solver.

    Raises:
        EngineError: If an engine fails.
        ValueError: If a number is out of range.
    """
    check_range("margin", margin, low=0.0, high=1.0, low_open=True)
    check_int("max_moves", max_moves, low=1)
    return tuple(_puzzles(rows, margin, judge, max_moves))


def _puzzles(
    rows: datasets.Dataset, margin: float, judge: Judge | None, max_moves: int
) -> Iterator[Puzzle]:
    plain: Iterable[Any] = rows.with_format(None)
    for number, row in enumerate(plain):
        named = {MOVES[m]: v for m, v in zip(row["moves"], row["move_values"], strict=True)}
        best = _only_move(named, margin)
        if best is None:
            continue
        line = [best]
        if judge is not None:
            line += _continue(row["fen"], best, margin, judge, max_moves - 1)
        yield Puzzle(f"{row['game']}/{number}", row["fen"], tuple(line))


def _only_move(values: dict[str, float], margin: float) -> str | None:
    """Return the move that is better than all others by a margin; None if there is none."""
    first, *others = sorted(values, key=values.__getitem__, reverse=True)
    if not others or values[first] - values[others[0]] < margin:
        return None
    return first


def _continue(fen: str, move: str, margin: float, judge: Judge, num_moves: int) -> list[str]:
    """Return the opponent's and the solver's moves that follow."""
    board = read_board(fen)
    board.push_uci(move)
    line: list[str] = []
    for _ in range(num_moves):
        if board.outcome() is not None:
            break
        answer = judge.evaluate(board).best_move
        board.push_uci(answer)
        if board.outcome() is not None:
            break
        only = _only_move(judge.evaluate(board).move_values, margin)
        if only is None:
            break
        line += [answer, only]
        board.push_uci(only)
    return line


def _from_lichess(row: dict[str, str]) -> Puzzle:
    first, *moves = row["Moves"].split()
    board = read_board(row["FEN"])
    board.push_uci(first)
    if not moves or len(moves) % 2 == 0:
        raise ValueError(
            f"the puzzle {row['PuzzleId']!r} has {len(moves) + 1} moves; there must be the "
            "opponent's, and then an odd number that ends with the solver's."
        )
    rest = chess.Board(board.fen())
    for move in moves:
        rest.push_uci(move)
    return Puzzle(row["PuzzleId"], board.fen(), tuple(moves), int(row["Rating"]))
