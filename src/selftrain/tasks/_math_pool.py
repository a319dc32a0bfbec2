"""Processes that compare formulas and can be killed: started when needed, stopped for certain."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, Any, cast

from selftrain.errors import GradingError

_WORKER = Path(__file__).with_name("_math_worker.py")
_MEMORY = 4 * 2**30  # bytes of address space; the libraries alone map a quarter of a GiB
_START_SECONDS = 120.0
# The limit is processor time, so that a verdict does not depend on what else the machine does;
# a worker that makes no progress at all is killed after this many times as long.
_PATIENCE = 10.0
_SIGPROF = getattr(signal, "SIGPROF", None)


class LimitExceededError(Exception):
    """A request took too long; its worker was killed."""


class WorkerPool:
    """Answers requests in up to ``num_workers`` processes.

    A process is begun by exec of a fresh interpreter, not by a fork of this one, which may run
    threads; so it is safe to use next to a model.
    """

    def __init__(self, num_workers: int, timeout: float) -> None:
        workers = [_Worker(timeout) for _ in range(num_workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in workers:
            self._idle.put(worker)
        self._finalizer = weakref.finalize(self, _stop, workers)
        self._workers = workers

    def ask(self, request: dict[str, Any]) -> Any:
        """Return the result of a request.

        Raises:
            LimitExceededError: If it took too long.
            GradingError: If a worker cannot be started, or two died of it.
            ArithmeticError: If the libraries failed at it.
        """
        worker = self._idle.get()
        try:
            try:
                reply = worker.ask(request)
            except _WorkerDiedError:  # perhaps by somebody's kill: a fresh one decides
                reply = worker.ask(request)
        except _WorkerDiedError as error:
            raise GradingError(f"the process that compares formulas died twice: {error}") from error
        finally:
            self._idle.put(worker)
        if "error" in reply:
            raise ArithmeticError(reply["error"])
        return reply["result"]

    def close(self) -> None:
        """Stop all processes; another request would start them again."""
        _stop(self._workers)


class _WorkerDiedError(Exception):
    """A worker ended, and not by its time limit."""


class _Worker:
    """One process, and the pipes to it."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process or self._start()
        return self._exchange(process, json.dumps(request) + "\n", _PATIENCE * self._timeout)

    def stop(self) -> int:
        """Kill the process, wait for it, and return the signal that ended it, or 0."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what could not be flushed to the dead is lost
                cast(IO[str], pipe).close()
        return max(0, -process.wait())

    def _start(self) -> subprocess.Popen[str]:
        # -P: the folder of the worker's file holds modules named like some of the library's.
        command = [sys.executable, "-P", str(_WORKER), str(self._timeout), str(_MEMORY)]
        process = self._process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": "0"},  # sympy orders some things by hash
            start_new_session=True,  # an interrupt from the keyboard is for the parent
        )
        try:
            reply = self._exchange(process, "", _START_SECONDS)
        except (_WorkerDiedError, LimitExceededError) as error:
            reply = {"error": str(error)}
        if "error" in reply:
            self.stop()
            raise GradingError(
                f"the process that compares formulas could not be started: {reply['error']}. "
                "Try the import of math_verify in a fresh interpreter."
            )
        return process

    def _exchange(
        self, process: subprocess.Popen[str], line: str, seconds: float
    ) -> dict[str, Any]:
        """Send a line and return the reply to it; a process that gives none is stopped."""
        requests, replies = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, expire)
        timer.start()
        reply = ""
        try:
            with contextlib.suppress(BrokenPipeError):
                requests.write(line)
                requests.flush()
                reply = replies.readline()
        except BaseException:
            self.stop()  # a reply that nobody reads would be taken for the next one's
            raise
        finally:
            timer.cancel()
        if reply.endswith("\n"):
            return json.loads(reply)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1.0)  # its output is closed: it is about to end by itself
        if self.stop() == _SIGPROF or expired.is_set():
            raise LimitExceededError(f"no result after {self._timeout} s")
        raise _WorkerDiedError("it ended without a reply")


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.stop()
