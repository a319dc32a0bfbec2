"""Tables of labelled positions."""

import chess
import numpy as np
import pytest

from selftrain.errors import EngineError, RunConflictError
from selftrain.tasks.chess import (
    MOVES,
    Engine,
    Evaluation,
    encode_fens,
    encode_positions,
    find_engine,
    label_games,
    label_positions,
    load_positions,
    save_positions,
    split_by_game,
)

needs_stockfish = pytest.mark.skipif(
    find_engine() is None, reason="no program 'stockfish' on PATH or in /usr/games"
)


WORTH = {"p": 1, "n": 3, "b": 3, "r": 5, "q": 9, "k": 0}


class Counter:
    """Values moves by the pieces that are left; in place of an engine, and as repeatable."""

    name = "Counter"

    def __init__(self, fails_at: int | None = None) -> None:
        self.num_calls, self.fails_at = 0, fails_at

    def evaluate(self, board: chess.Board) -> Evaluation:
        self.num_calls += 1
        if self.num_calls == self.fails_at:
            raise EngineError("it died")
        values = {}
        for move in sorted(board.legal_moves, key=chess.Move.uci):
            board.push(move)
            balance = sum(
                WORTH[p.symbol().lower()] * (1 if p.color != board.turn else -1)
                for p in board.piece_map().values()
            )
            board.pop()
            values[move.uci()] = 1 / (1 + np.exp(-0.3 * balance))
        return Evaluation(max(values.values()), values)

    def choose(self, board: chess.Board) -> chess.Move:
        return chess.Move.from_uci(self.evaluate(board).best_move)


def rows_of(dataset) -> list[dict]:
    return dataset.with_format(None)[:]


def keys_of(dataset) -> list[str]:
    return [" ".join(fen.split()[:4]) for fen in dataset["fen"]]


@pytest.fixture(scope="module")
def rows():
    return label_games(Counter(), 120, seed=3)


def test_rows_are_legal_positions_with_all_their_moves(rows):
    for row in rows:
        board = chess.Board(row["fen"])
        assert board.is_valid()
        assert {MOVES[m] for m in row["moves"]} == {move.uci() for move in board.legal_moves}
        assert row["value"] == max(row["move_values"])


def test_no_position_occurs_twice(rows):
    assert len(set(keys_of(rows))) == len(rows) == 120


def test_the_seed_determines_the_rows(rows):
    assert rows_of(label_games(Counter(), 120, seed=3)) == rows_of(rows)
    assert rows_of(label_games(Counter(), 120, seed=4)) != rows_of(rows)


def test_a_run_that_was_killed_goes_on_to_the_same_rows(tmp_path, rows):
    settings = {"seed": 3, "output_dir": tmp_path, "shard_size": 25}
    with pytest.raises(EngineError):
        label_games(Counter(fails_at=200), 120, **settings)
    assert list(tmp_path.glob("positions-*.arrow")), "something was kept"
    assert len(load_positions(tmp_path)) < 120
    assert rows_of(label_games(Counter(), 120, **settings)) == rows_of(rows)
    never = Counter(fails_at=1)
    assert rows_of(label_games(never, 100, **settings)) == {
        name: column[:100] for name, column in rows_of(rows).items()
    }


def test_more_positions_are_added_to_those_that_are_there(tmp_path, rows):
    label_games(Counter(), 40, seed=3, output_dir=tmp_path, shard_size=10)
    more = label_games(Counter(), 120, seed=3, output_dir=tmp_path, shard_size=10)
    assert rows_of(more) == rows_of(rows)


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    label_games(Counter(), 5, seed=3, output_dir=tmp_path, shard_size=5)
    with pytest.raises(RunConflictError, match="seed: 3 -> 4"):
        label_games(Counter(), 5, seed=4, output_dir=tmp_path, shard_size=5)


def test_a_saved_table_is_read_as_it_was(tmp_path, rows):
    save_positions(tmp_path / "a.arrow", rows)
    assert rows_of(load_positions(tmp_path / "a.arrow")) == rows_of(rows)
    assert rows_of(load_positions(*[tmp_path / "a.arrow"] * 2)) == rows_of(rows)


def test_a_selection_of_rows_is_saved_as_selected(tmp_path, rows):
    chosen = rows.select([5, 3, 9])
    save_positions(tmp_path / "a.arrow", chosen)
    assert rows_of(load_positions(tmp_path / "a.arrow")) == rows_of(chosen)


def test_the_split_has_no_game_in_common_and_stays_when_games_are_added(rows):
    train, test = split_by_game(rows, 0.3)
    assert len(train) + len(test) == len(rows)
    assert not set(train["game"]) & set(test["game"])
    assert not set(keys_of(train)) & set(keys_of(test))
    longer_train, longer_test = split_by_game(label_games(Counter(), 200, seed=3), 0.3)
    assert set(train["fen"]) <= set(longer_train["fen"])
    assert set(test["fen"]) <= set(longer_test["fen"])


def test_tensors_hold_what_the_rows_hold(rows):
    some = rows.select([7, 0, 30])
    data = encode_positions(some)
    assert np.array_equal(data.tokens.numpy(), encode_fens(some["fen"]))
    assert data.values.tolist() == some["value"][:]
    for place, row in enumerate(some):
        own = data.owners == place
        assert data.moves[own].tolist() == row["moves"]
        assert data.move_values[own].tolist() == row["move_values"]
        assert data.num_moves[place] == len(row["moves"])


@needs_stockfish
def test_stockfish_labels_given_positions_the_same_each_time():
    fens = [chess.STARTING_FEN, "4k3/8/8/8/8/8/8/QQ2K3 w - - 0 1"]
    with Engine(depth=2) as engine:
        rows = label_positions(engine, fens)
        again = label_positions(engine, fens[::-1])
        with pytest.raises(ValueError, match="opposite_check"):
            label_positions(engine, ["4k3/8/8/8/8/8/8/4R1K1 w - - 0 1"])
    assert rows["fen"][:] == fens
    assert rows["value"][1] > 0.95
    assert rows["move_values"][:] == again["move_values"][:][::-1]


@needs_stockfish
def test_stockfish_games_are_the_same_each_time():
    with Engine(depth=1) as engine:
        first = label_games(engine, 20, seed=1)
        assert rows_of(label_games(engine, 20, seed=1)) == rows_of(first)


def test_missing_and_damaged_files_are_errors_that_name_them(tmp_path, rows):
    with pytest.raises(FileNotFoundError, match="no folder of label_games"):
        load_positions(tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        load_positions()
    path = tmp_path / "bad.arrow"
    path.write_bytes(b"not arrow")
    with pytest.raises(ValueError, match=r"bad\.arrow is no Arrow file"):
        load_positions(path)


@pytest.mark.parametrize(
    "arguments", [{"num_positions": 0}, {"random_fraction": 1.5}, {"shard_size": 0}]
)
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        label_games(Counter(), **{"num_positions": 5, **arguments})


def test_a_split_with_an_empty_side_is_refused(rows):
    with pytest.raises(ValueError, match="all fall on one side"):
        split_by_game(rows.select(range(2)), 0.5)
