"""A UCI engine that says how good positions and moves are, and leaves no process behind.

Stockfish is a program of its own (Debian: ``apt install stockfish``), run out of process; nothing
of it is linked or copied.
"""

import asyncio
import math
import shutil
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import chess
import chess.engine

from selftrain._core.checks import check_int, check_range
from selftrain.errors import EngineError

_T = TypeVar("_T")
_SLOPE = 0.00368208
_ALL_MOVES = 256  # no position has more than 218
# One thread, or the search is not repeatable. The least hash table, for it is cleared every time.
_OPTIONS = {"Threads": 1, "Hash": 1}
_FOLDERS = ("/usr/games", "/usr/local/bin", "/opt/homebrew/bin")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an engine thinks of a position, in probabilities of winning of the side to move."""

    value: float
    """Of the best move."""
    move_values: dict[str, float]
    """Of every legal move in UCI notation, in alphabetical order."""

    @property
    def best_move(self) -> str:
        """The move of the highest value; of several, such as all that mate, the first by name."""
        return max(self.move_values, key=self.move_values.__getitem__)


def win_probability(centipawns: float) -> float:
    r"""Return :math:`1/(1 + e^{-0.00368208\,c})`, the convention of Lichess.

    Args:
        centipawns: An engine's score, in hundredths of a pawn.

    Example:
        >>> round(win_probability(100), 3)
        0.591
    """
    # The other form would overflow.
    x = _SLOPE * centipawns
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def find_engine(name: str = "stockfish") -> Path | None:
    """Return where a program is, on PATH or where packages put engines; None if nowhere."""
    found = shutil.which(name)
    for folder in _FOLDERS:
        found = found or shutil.which(name, path=folder)
    return Path(found) if found else None


class Engine:
    """A UCI engine at a fixed depth or number of nodes, which gives the same answer every time.

    It runs with one thread, and forgets what it knows before each position, so that an evaluation
    depends on the position only (its repetitions are not told). The process ends with
    :meth:`close`, with the ``with`` block, after any error, when the object goes out of use, and
    with this process, however that ends.

    Args:
        path: The program; None for Stockfish where :func:`find_engine` finds it.
        depth: Depth of the search in half-moves.
        nodes: Number of positions to look at; give either this or ``depth``.
        timeout: Seconds that the engine may take for one answer before it is killed.
        options: Further UCI options. Some, such as ``{"Skill Level": 0}``, make it random.

    Raises:
        EngineError: If there is no such program, it does not speak UCI, or refuses an option.
        ValueError: If not exactly one of ``depth`` and ``nodes`` is given, or a number is not
            positive.

    Example:
        >>> import chess
        >>> board = chess.Board("7k/8/6K1/8/8/8/8/R7 w - - 0 1")
        >>> if find_engine():
        ...     with Engine(depth=4) as engine:
        ...         assert engine.choose(board).uci() == "a1a8"
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        depth: int | None = None,
        nodes: int | None = None,
        timeout: float = 30.0,
        options: Mapping[str, str | int | bool] | None = None,
    ) -> None:
        if (depth is None) == (nodes is None):
            raise ValueError(
                f"give either depth or nodes, got depth={depth!r} and nodes={nodes!r}; depth=4 is "
                "a quick choice."
            )
        for name, number in (("depth", depth), ("nodes", nodes)):
            if number is not None:
                check_int(name, number, low=1)
        check_range("timeout", timeout, low=0.0, low_open=True)
        self.depth, self.nodes, self.timeout = depth, nodes, timeout
        self._path = _check_path(path)
        self._limit = chess.engine.Limit(depth=depth, nodes=nodes)
        self._engine = _start(self._path, timeout)
        self._closer = weakref.finalize(self, _stop, self._engine)
        self._ask("configuring it", lambda: self._configure(dict(options or {})))

    @property
    def name(self) -> str:
        """What the engine calls itself, with its limit and your options."""
        return self._name

    def evaluate(self, board: chess.Board) -> Evaluation:
        """Return the values of a position and of all its legal moves, by one search.

        Raises:
            EngineError: If the engine dies, takes too long, answers what cannot be understood, or
                has not looked at some move, for want of nodes.
            ValueError: If the position is illegal or has no legal move.
        """
        check_board(board)
        lines = self._ask(
            f"evaluating {board.fen()}",
            lambda: self._engine.analyse(
                # Without its history, of which a table of positions knows nothing.
                board.copy(stack=False),
                self._limit,
                multipv=_ALL_MOVES,
                game=object(),  # a new game: it forgets the last position
                info=chess.engine.INFO_SCORE | chess.engine.INFO_PV,
            ),
        )
        scored = {line["pv"][0].uci(): line for line in lines if line.get("pv") and "score" in line}
        legal = sorted(move.uci() for move in board.legal_moves)
        missing = [move for move in legal if move not in scored]
        if missing:
            raise EngineError(
                f"{self._path} gave no score for {len(missing)} of {len(legal)} moves of "
                f"{board.fen()} ({', '.join(missing[:3])}): nodes={self.nodes} is too few for all "
                "of them. Raise nodes, or give depth."
            )
        values = {move: _value(scored[move]["score"]) for move in legal}
        return Evaluation(max(values.values()), values)

    def choose(self, board: chess.Board) -> chess.Move:
        """Return the engine's move, by a search for the best one only.

        Raises:
            EngineError: As :meth:`evaluate`.
            ValueError: If the position is illegal or has no legal move.
        """
        check_board(board)
        played = self._ask(
            f"choosing a move in {board.fen()}",
            lambda: self._engine.play(board, self._limit, game=object()),
        )
        if played.move is None:
            raise EngineError(f"{self._path} chose no move in {board.fen()}.")
        return played.move

    def close(self) -> None:
        """End the process; nothing happens if it has ended."""
        self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _configure(self, options: dict[str, str | int | bool]) -> None:
        offered = self._engine.options
        limit = f"depth {self.depth}" if self.nodes is None else f"{self.nodes} nodes"
        given = [f"{name} {value}" for name, value in options.items()]
        self._name = ", ".join([self._engine.id.get("name", self._path.name), limit, *given])
        wanted = {name: value for name, value in _OPTIONS.items() if name in offered} | options
        self._engine.configure(wanted)

    def _ask(self, what: str, call: Callable[[], _T]) -> _T:
        """Return what a call returns, and kill the engine if it fails or takes too long."""
        if not self._closer.alive:
            raise EngineError(
                f"the engine {self._path} was closed, or ended by an earlier error; make a new one."
            )
        late = threading.Event()

        def kill() -> None:
            late.set()
            _kill(self._engine)

        # python-chess times out only where the engine itself has a limit of time.
        timer = threading.Timer(self.timeout, kill)
        timer.daemon = True
        timer.start()
        try:
            return call()
        except (chess.engine.EngineError, TimeoutError) as error:
            self.close()
            why = f"it took longer than {self.timeout:g} s" if late.is_set() else str(error)
            raise EngineError(
                f"the engine {self._path} failed while {what}: {why or type(error).__name__}. "
                "Its process was ended. Raise timeout if it is only slow."
            ) from error
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()


def check_board(board: chess.Board) -> None:
    """Raise ``ValueError`` unless a position is legal and has a legal move."""
    status = board.status()
    if status != chess.STATUS_VALID:
        reasons = [str(flag.name).lower() for flag in chess.Status if flag and flag in status]
        raise ValueError(f"the position {board.fen()!r} is illegal: {', '.join(reasons)}.")
    if not any(board.legal_moves):
        raise ValueError(
            f"the game is over in {board.fen()!r}: there is no move to give a value to. Leave such "
            "positions out."
        )


def read_board(fen: str) -> chess.Board:
    """Return the board of a FEN.

    Raises:
        ValueError: If it is no FEN, or the position is illegal or has no legal move.
    """
    try:
        board = chess.Board(fen)
    except ValueError as error:
        raise ValueError(f"{fen!r} is no FEN: {error}.") from error
    check_board(board)
    return board


def _check_path(path: str | Path | None) -> Path:
    if path is None:
        found = find_engine()
        if found is None:
            raise EngineError(
                "no program 'stockfish' was found on PATH or in "
                f"{', '.join(_FOLDERS)}. Install it (Debian and Ubuntu: apt install stockfish), "
                "or give the path of a UCI engine."
            )
        return found
    if shutil.which(str(path)) is None:
        raise EngineError(f"path is {str(path)!r}, which is no program that can be run.")
    return Path(path)


def _start(path: Path, timeout: float) -> chess.engine.SimpleEngine:
    """Return the running engine.

    python-chess runs it from a thread, which is a daemon if the thread is that starts it. Otherwise
    a program that forgets to close an engine would never end.
    """

    async def serve(ready: Future[chess.engine.SimpleEngine]) -> None:
        transport, protocol = await chess.engine.UciProtocol.popen(str(path))
        engine = chess.engine.SimpleEngine(transport, protocol, timeout=None)
        try:
            await asyncio.wait_for(protocol.initialize(), timeout)
            ready.set_result(engine)
        except BaseException:
            transport.close()  # kills
            raise
        finally:
            # SimpleEngine.popen_uci does not wait for a program that is no engine.
            engine.returncode.set_result(await protocol.returncode)
            engine.close()
        await engine.shutdown_event.wait()

    def start() -> None:
        try:
            started.set_result(chess.engine.run_in_background(serve, name=f"engine {path}"))
        except BaseException as error:
            started.set_exception(error)

    started: Future[chess.engine.SimpleEngine] = Future()
    threading.Thread(target=start, daemon=True).start()
    try:
        return started.result()
    except (OSError, chess.engine.EngineError, TimeoutError) as error:
        raise EngineError(
            f"{path} could not be started as a UCI engine within {timeout:g} s: "
            f"{str(error) or type(error).__name__}."
        ) from error


def _stop(engine: chess.engine.SimpleEngine) -> None:
    _kill(engine)
    engine.close()


def _kill(engine: chess.engine.SimpleEngine) -> None:
    # An engine keeps nothing that would be lost, and may not listen any more.
    if engine.transport.get_returncode() is None:
        try:
            engine.transport.kill()
        except ProcessLookupError:
            return


def _value(score: chess.engine.PovScore) -> float:
    mate, centipawns = score.relative.mate(), score.relative.score()
    if mate is not None:
        return 1.0 if mate > 0 else 0.0
    assert centipawns is not None  # noqa: S101 - a score is one of the two
    return win_probability(centipawns)
