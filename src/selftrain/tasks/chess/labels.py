"""Tables of positions with the values that an engine gives them, as Arrow files.

A row is one position: ``fen``, ``value`` (probability that the side to move wins), ``moves`` (the
legal ones, as numbers in ``MOVES``), ``move_values`` beside them, and ``game``, the number of the
game that it is from. Games are numbered, and each depends on the seed and its number only, so that
a run which was killed goes on where it was, and gives what it would have given.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import chess
import datasets
import numpy as np
import pyarrow as pa

from selftrain._core.checks import check_int, check_range
from selftrain._core.io import write_bytes
from selftrain._core.logging import progress
from selftrain._core.rng import derive
from selftrain._core.run import open_run
from selftrain.tasks.chess.engine import Evaluation, read_board
from selftrain.tasks.chess.tokens import move_number, position_key

_SCHEMA = pa.schema(
    [
        ("fen", pa.string()),
        ("value", pa.float32()),
        ("moves", pa.list_(pa.int16())),
        ("move_values", pa.list_(pa.float32())),
        ("game", pa.int32()),
    ]
)
_MAX_PLIES = 120
_MAX_OPENING_PLIES = 8
# Neighbours are much alike; a table of the same size with more games teaches more.
_KEEP_FRACTION = 0.25


class Judge(Protocol):
    """What labels positions and plays games: an :class:`Engine`, or an object of your own.

    Each answer must depend on the position only.
    """

    @property
    def name(self) -> str:
        """What it is, with its settings; rows of judges with other names are not mixed."""
        ...

    def evaluate(self, board: chess.Board) -> Evaluation:
        """Return the values of a position and of all its legal moves."""
        ...

    def choose(self, board: chess.Board) -> chess.Move:
        """Return the move that it plays."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What determines the rows of a folder."""

    judge: str
    seed: int
    random_fraction: float


def label_games(
    judge: Judge,
    num_positions: int,
    *,
    seed: int = 0,
    random_fraction: float = 0.3,
    output_dir: str | Path | None = None,
    shard_size: int = 1000,
    show_progress: bool = False,
) -> datasets.Dataset:
    """Return positions of games that a judge plays against itself, with its values.

    A game begins with up to eight random moves; then each move is a random one with probability
    ``random_fraction``, else the judge's, for at most 120 half-moves. A quarter of the positions
    from there on is labelled, each once: one that came up before, in whatever game, is left out.

    Args:
        judge: Labels, and plays.
        num_positions: How many rows.
        seed: Of the games.
        random_fraction: In [0, 1]; 1 for random games.
        output_dir: Where to keep the rows, in files of whole games which are either complete or
            absent; the same call goes on there, and more positions can be asked for. None keeps
            them in memory.
        shard_size: A file with so many rows is closed at the end of a game.
        show_progress: Whether to show a bar.

    Raises:
        EngineError: If an engine fails; the files written so far remain.
        RunConflictError: If the folder holds rows made with other settings.
        ValueError: If a number is out of range.
    """
    check_int("num_positions", num_positions, low=1)
    check_int("shard_size", shard_size, low=1)
    check_range("random_fraction", random_fraction, low=0.0, high=1.0)
    run = _Run(judge=judge.name, seed=seed, random_fraction=random_fraction)
    folder = None if output_dir is None else Path(output_dir)
    tables: list[pa.Table] = []
    if folder is not None:
        open_run(folder, run, seed=seed)
        tables = [_read(path) for path in _shards(folder)]
    count = sum(len(table) for table in tables)
    seen = {position_key(fen) for table in tables for fen in table["fen"].to_pylist()}
    game = 1 + tables[-1]["game"][-1].as_py() if tables else 0
    with progress("positions", num_positions, done=count, show=show_progress) as bar:
        while count < num_positions:
            rows: list[dict] = []
            while len(rows) < shard_size and count + len(rows) < num_positions:
                rows += _label_game(judge, run, game, seen)
                game += 1
                bar.update(min(count + len(rows), num_positions))
            tables.append(pa.Table.from_pylist(rows, schema=_SCHEMA))
            count += len(rows)
            if folder is not None:
                _write(folder / f"positions-{len(tables) - 1:05d}.arrow", tables[-1])
    return datasets.Dataset(pa.concat_tables(tables).slice(0, num_positions))


def label_positions(judge: Judge, fens: Iterable[str]) -> datasets.Dataset:
    """Return given positions with a judge's values; each counts as a game of its own.

    Raises:
        EngineError: If an engine fails.
        ValueError: If a position is no FEN, illegal or without a legal move; the message names it.
    """
    rows = []
    for number, fen in enumerate(fens):
        board = read_board(fen)
        rows.append(_row(board, judge.evaluate(board), number))
    return datasets.Dataset(pa.Table.from_pylist(rows, schema=_SCHEMA))


def save_positions(path: str | Path, rows: datasets.Dataset) -> None:
    """Write labelled positions to one compressed Arrow file, atomically."""
    _write(Path(path), _table(rows).cast(_SCHEMA))


def load_positions(*paths: str | Path) -> datasets.Dataset:
    """Read labelled positions from files, or folders of :func:`label_games`.

    A position that occurs again is left out, so that several runs can be put together.

    Raises:
        FileNotFoundError: If there is no such file, or none in the folder.
        ValueError: If a file is no table of labelled positions, or there is no path.
    """
    if not paths:
        raise ValueError("give at least one file or folder of labelled positions.")
    files = []
    for path in map(Path, paths):
        found = _shards(path) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            raise FileNotFoundError(f"{path} is no file, and no folder of label_games.")
        files += found
    table = pa.concat_tables([_read(path) for path in files])
    first: dict[str, int] = {}
    for number, fen in enumerate(table["fen"].to_pylist()):
        first.setdefault(position_key(fen), number)
    if len(first) < len(table):
        table = table.take(pa.array(first.values()))
    return datasets.Dataset(table)


def split_by_game(
    rows: datasets.Dataset, test_fraction: float = 0.1, *, seed: int = 0
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return rows to learn from and rows to test on, which have no game in common.

    A game goes by its number, and stays on its side when more are added.

    Args:
        rows: Labelled positions, each occurring once.
        test_fraction: About which part of the games is tested on, between 0 and 1.
        seed: Another seed, another choice.

    Raises:
        ValueError: If one of the two would be empty.
    """
    check_range("test_fraction", test_fraction, low=0.0, high=1.0, low_open=True, high_open=True)
    games = np.asarray(rows.with_format("numpy")["game"][:])
    tested = [g for g in np.unique(games) if derive(seed, "split", int(g)) < test_fraction * 2**63]
    is_test = np.isin(games, tested)
    if is_test.all() or not is_test.any():
        raise ValueError(
            f"of the {len(np.unique(games))} games all fall on one side at test_fraction="
            f"{test_fraction:g}; more games, or another fraction, are needed."
        )
    table = _table(rows)
    return datasets.Dataset(table.filter(~is_test)), datasets.Dataset(table.filter(is_test))


def _label_game(judge: Judge, run: _Run, game: int, seen: set[str]) -> Iterator[dict]:
    """Yield the rows of one game, those in ``seen`` left out, and add them there."""
    rng = np.random.default_rng(derive(run.seed, "game", game))
    board = chess.Board()
    for _ in range(int(rng.integers(_MAX_OPENING_PLIES + 1))):
        _push_random(board, rng)
    while board.outcome() is None and board.ply() < _MAX_PLIES:
        # Drawn whether they are used or not: the game must not depend on what was seen before.
        is_random, is_kept = rng.random(2) < (run.random_fraction, _KEEP_FRACTION)
        key = position_key(board.fen())
        if is_kept and key not in seen:
            seen.add(key)
            yield _row(board, judge.evaluate(board), game)
        if is_random:
            _push_random(board, rng)
        else:
            board.push(judge.choose(board))


def _push_random(board: chess.Board, rng: np.random.Generator) -> None:
    moves = sorted(board.legal_moves, key=chess.Move.uci)
    if moves:
        board.push(moves[rng.integers(len(moves))])


def _row(board: chess.Board, evaluation: Evaluation, game: int) -> dict:
    return {
        "fen": board.fen(),
        "value": evaluation.value,
        "moves": [move_number(move) for move in evaluation.move_values],
        "move_values": list(evaluation.move_values.values()),
        "game": game,
    }


def _table(rows: datasets.Dataset) -> pa.Table:
    """Return rows as one table, those that were left out of it left out."""
    table: Any = rows.with_format("arrow")[:]
    return table


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("positions-*.arrow"))


def _write(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, _SCHEMA, options=options) as writer:
        writer.write_table(table.combine_chunks())
    write_bytes(path, sink.getvalue().to_pybytes())


def _read(path: Path) -> pa.Table:
    try:
        with pa.ipc.open_stream(path.read_bytes()) as reader:
            table = reader.read_all()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Arrow file ({error}); delete it to make it again.") from (
            error
        )
    if not set(_SCHEMA.names) <= set(table.column_names):
        raise ValueError(
            f"{path} has the columns {', '.join(table.column_names)}; labelled positions have "
            f"{', '.join(_SCHEMA.names)}."
        )
    return table.select(_SCHEMA.names).cast(_SCHEMA)
