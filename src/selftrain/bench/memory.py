"""The peak memory of a call on a CPU, where only a process of its own can tell."""

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def peak_memory(function: Callable[..., object], *arguments: Any) -> int:
    """Return the largest resident set, in bytes, of a fresh process that calls ``function``.

    That is all of it: interpreter, libraries and models included. ``function`` is found by its name
    there, so it has to be defined at the top of a module, and its arguments are copied.

    Raises:
        RuntimeError: If the process ended without an answer.
    """
    context = multiprocessing.get_context("spawn")  # a fork would begin with our own pages
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"the process that measures memory ended with exit code {process.exitcode}."
        ) from None
    finally:
        process.join()


def _report(pipe: Connection, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    function(*arguments)
    pipe.send(_own_peak())


def _own_peak() -> int:
    """Return this process's peak in bytes.

    Linux passes the peak of ``getrusage`` on from parent to child, whatever the child executes; the
    high-water mark of its own address space begins anew.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
