"""Puzzles from files and from labels."""

import datasets
import pytest

from selftrain.tasks.chess import (
    Engine,
    find_engine,
    label_positions,
    load_lichess_puzzles,
    move_number,
    puzzles_from_labels,
)

HEADER = "PuzzleId,FEN,Moves,Rating,RatingDeviation,Popularity,NbPlays,Themes,GameUrl\n"
# Black plays a move, then a rook mates on the last rank.
ROW = "x1,6k1/5ppp/8/8/8/8/7p/K2R4 b - - 0 1,h2h1q d1h1,800,75,90,10,short,url\n"


def write(tmp_path, *rows: str):
    path = tmp_path / "puzzles.csv"
    path.write_text(HEADER + "".join(rows))
    return path


def test_the_opponents_first_move_is_made(tmp_path):
    (puzzle,) = load_lichess_puzzles(write(tmp_path, ROW))
    assert puzzle.id == "x1"
    assert puzzle.fen == "6k1/5ppp/8/8/8/8/8/K2R3q w - - 0 2"
    assert puzzle.moves == ("d1h1",)
    assert puzzle.rating == 800


def test_so_many_puzzles_are_read_as_were_asked_for(tmp_path):
    path = write(tmp_path, *[ROW.replace("x1", f"x{i}") for i in range(5)])
    assert [p.id for p in load_lichess_puzzles(path, 2)] == ["x0", "x1"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (ROW.replace("d1h1", "d1d9"), "d1d9"),
        (ROW.replace("d1h1", "a1d8"), "illegal"),
        (ROW.replace(" d1h1", ""), "has 1 moves"),
        (ROW.replace("6k1", "7q"), "illegal"),
    ],
)
def test_a_bad_row_is_an_error_with_its_line(tmp_path, row, problem):
    with pytest.raises(ValueError, match=rf"puzzles\.csv:3: .*{problem}"):
        load_lichess_puzzles(write(tmp_path, ROW, row))


def test_a_file_without_the_columns_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("id,fen\n1,2\n")
    with pytest.raises(ValueError, match="lacks the columns FEN, Moves"):
        load_lichess_puzzles(path)


def labelled(*values: float) -> datasets.Dataset:
    moves = [move_number(move) for move in ("a1a2", "a1b1", "a1b2")]
    row = {"fen": "k7/8/8/8/8/8/8/K7 w - - 0 1", "moves": moves[: len(values)], "game": 4}
    return datasets.Dataset.from_list([{**row, "value": max(values), "move_values": list(values)}])


@pytest.mark.parametrize(
    ("values", "moves"),
    [
        ((0.2, 0.9, 0.6), ("a1b1",)),
        ((0.2, 0.9, 0.8), None),
        ((0.9, 0.9, 0.1), None),
        ((0.9,), None),
    ],
)
def test_a_puzzle_is_a_position_where_one_move_is_better_than_all_others(values, moves):
    puzzles = puzzles_from_labels(labelled(*values), margin=0.2)
    assert [p.moves for p in puzzles] == ([] if moves is None else [moves])


@pytest.mark.skipif(find_engine() is None, reason="no program 'stockfish'")
def test_an_engine_continues_the_line_while_one_move_is_best():
    # A ladder with two rooks: each check but the right one lets the king out.
    fen = "7k/8/8/8/8/8/1R6/R5K1 w - - 0 1"
    with Engine(depth=6) as engine:
        rows = label_positions(engine, ["6k1/5ppp/8/8/8/8/3q4/K2R4 w - - 0 1", fen])
        puzzles = puzzles_from_labels(rows, margin=0.3, judge=engine, max_moves=2)
    assert puzzles[0].moves[0] == "d1d2"
    assert all(len(p.moves) in (1, 3) for p in puzzles)
