"""Engines: what Stockfish answers, and what becomes of engines that fail."""

import os
import subprocess
import sys
import time
from pathlib import Path

import chess
import pytest

from selftrain.errors import EngineError
from selftrain.tasks.chess import Engine, find_engine, read_board, win_probability
from selftrain.tasks.chess import engine as engine_module

FAKE = Path(__file__).with_name("fake_engine.py")
needs_stockfish = pytest.mark.skipif(
    find_engine() is None, reason="no program 'stockfish' on PATH or in /usr/games"
)


def children() -> set[int]:
    """Return our child processes, zombies included."""
    mine = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status = (path / "status").read_text()
        except OSError:
            continue
        if f"\nPPid:\t{os.getpid()}\n" in status:
            mine.add(int(path.name))
    return mine


def assert_no_more_children_than(before: set[int]) -> None:
    deadline = time.monotonic() + 60
    while children() - before:
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.02)


@pytest.fixture
def fake(tmp_path):
    """Return the path of a program that behaves as named."""

    def make(mode: str) -> Path:
        path = tmp_path / mode
        path.write_text(f"#!/bin/sh\nexec {sys.executable} {FAKE} {mode}\n")
        path.chmod(0o755)
        return path

    return make


@pytest.mark.parametrize("centipawns", [-20000, -350, 0, 17, 20000])
def test_the_two_sides_probabilities_sum_to_one(centipawns):
    both = win_probability(centipawns) + win_probability(-centipawns)
    assert both == pytest.approx(1, abs=1e-12)


def test_win_probability_is_the_published_one():
    # Lichess: 50 + 50 (2 / (1 + exp(-0.00368208 c)) - 1), in per cent
    assert win_probability(100) == pytest.approx(0.5 + 0.5 * (2 / (1 + 2.718281828**-0.368208) - 1))


@needs_stockfish
def test_a_mate_in_one_is_worth_one_and_to_be_mated_nothing():
    with Engine(depth=3) as engine:
        winning = engine.evaluate(chess.Board("6k1/5ppp/8/8/8/8/8/K2R4 w - - 0 1"))
        losing = engine.evaluate(chess.Board("7k/5ppp/8/8/8/8/7r/K5r1 w - - 0 1"))
    assert winning.best_move == "d1d8"
    assert winning.value == winning.move_values["d1d8"] == 1.0
    assert losing.value < 0.01


@needs_stockfish
def test_values_are_those_of_the_side_to_move():
    with Engine(depth=3) as engine:
        white = engine.evaluate(chess.Board("4k3/8/8/8/8/8/8/QQ2K3 w - - 0 1"))
        black = engine.evaluate(chess.Board("4k3/8/8/8/8/8/8/QQ2K3 b - - 0 1"))
    assert white.value > 0.95
    assert black.value < 0.05


@needs_stockfish
def test_every_legal_move_has_a_value_and_the_best_is_the_positions():
    board = chess.Board("r3k2r/pPppqpb1/bn2pnp1/3PN3/1p2P3/2N2Q1p/PPPBBPPP/R3K2R w KQkq - 0 1")
    with Engine(depth=2) as engine:
        found = engine.evaluate(board)
    assert list(found.move_values) == sorted(move.uci() for move in board.legal_moves)
    assert found.value == max(found.move_values.values()) == found.move_values[found.best_move]


@needs_stockfish
@pytest.mark.parametrize("limit", [{"depth": 3}, {"nodes": 4000}])
def test_an_evaluation_depends_on_the_position_only(limit):
    boards = [
        chess.Board(),
        chess.Board("r1bqkbnr/pppp1ppp/2n5/4p3/4P3/5N2/PPPP1PPP/RNBQKB1R w KQkq - 2 3"),
    ]
    with Engine(**limit) as engine, Engine(**limit) as other:
        forwards = [engine.evaluate(board) for board in boards]
        engine.choose(chess.Board())
        backwards = [other.evaluate(board) for board in reversed(boards)]
    assert forwards == backwards[::-1]


@needs_stockfish
def test_too_few_nodes_for_all_moves_are_an_error_that_says_so():
    with Engine(nodes=3) as engine, pytest.raises(EngineError, match=r"nodes=3 is too few"):
        engine.evaluate(chess.Board())


@needs_stockfish
def test_the_engines_move_is_legal_and_takes_what_hangs():
    with Engine(nodes=2000) as engine:
        move = engine.choose(chess.Board("4k3/8/8/3q4/8/8/8/3RK3 w - - 0 1"))
    assert move.uci() == "d1d5"


@needs_stockfish
def test_no_process_is_left_after_the_block_or_without_a_reference():
    before = children()
    with Engine(depth=1) as engine:
        assert children() - before
        engine.close()
        with pytest.raises(EngineError, match="was closed"):
            engine.evaluate(chess.Board())
    assert_no_more_children_than(before)
    engine = Engine(depth=1)
    del engine
    assert_no_more_children_than(before)


@needs_stockfish
def test_a_program_that_forgets_to_close_ends_and_so_does_its_engine():
    code = (
        "from selftrain.tasks.chess import Engine\n"
        "engine = Engine(depth=1)\n"
        "print(engine._engine.transport.get_pid(), flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    deadline = time.monotonic() + 60
    while Path(f"/proc/{int(done.stdout)}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert done.stderr == ""


@needs_stockfish
def test_an_unknown_option_is_an_error_and_leaves_no_process():
    before = children()
    with pytest.raises(EngineError, match="Strength"):
        Engine(depth=1, options={"Strength": 3})
    assert_no_more_children_than(before)


@pytest.mark.parametrize(
    ("mode", "timeout", "problem"),
    [
        ("hangs", 0.5, r"longer than 0\.5 s"),
        ("dies", 60, "failed while evaluating"),
        ("silent", 60, "no score"),
    ],
)
def test_an_engine_that_fails_is_an_error_with_the_position_and_leaves_no_process(
    fake, mode, timeout, problem
):
    before = children()
    engine = Engine(fake(mode), depth=1)
    engine.timeout = timeout
    with engine, pytest.raises(EngineError, match=problem) as caught:
        engine.evaluate(chess.Board())
    assert chess.STARTING_FEN in str(caught.value)
    assert_no_more_children_than(before)


def test_a_program_that_speaks_no_uci_is_an_error_and_leaves_no_process(fake):
    before = children()
    with pytest.raises(EngineError, match="could not be started"):
        Engine(fake("mute"), depth=1, timeout=0.5)
    assert_no_more_children_than(before)


def test_a_missing_engine_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(engine_module, "find_engine", lambda: None)
    with pytest.raises(EngineError, match="apt install stockfish"):
        Engine(depth=1)
    with pytest.raises(EngineError, match="no program"):
        Engine("/nowhere/engine", depth=1)


@pytest.mark.parametrize("limits", [{}, {"depth": 1, "nodes": 1}])
def test_exactly_one_limit_is_needed(limits):
    with pytest.raises(ValueError, match="either depth or nodes"):
        Engine(**limits)


@pytest.mark.parametrize(
    ("fen", "problem"),
    [
        ("no position", "no FEN"),
        ("8/8/8/8/8/8/8/K7 w - - 0 1", "no_black_king"),
        ("k7/8/8/8/8/8/8/KQ5R b - - 0 1", None),
        ("4k3/8/8/8/8/8/8/4R1K1 w - - 0 1", "opposite_check"),
        ("7k/5Q2/6K1/8/8/8/8/8 b - - 0 1", "the game is over"),
    ],
)
def test_an_illegal_position_is_an_error_with_the_reason(fen, problem):
    if problem is None:
        assert read_board(fen).fen() == fen
    else:
        with pytest.raises(ValueError, match=problem):
            read_board(fen)
