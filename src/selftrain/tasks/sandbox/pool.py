"""Runs programs that are not trusted, out of process, several at a time."""

import os
import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Self

from selftrain._core.checks import check_choice, check_int, check_range
from selftrain.errors import SandboxError
from selftrain.tasks.sandbox.launch import SCRATCH_MB, Launch, launches
from selftrain.tasks.sandbox.program import Outcome, Program, make_request, read_outcome
from selftrain.tasks.sandbox.worker import ServerLostError, Worker

Runner = Callable[[Sequence[Program]], Sequence[Outcome]]
"""What runs programs elsewhere: one outcome for each, in order."""

_MIN_COUNTED = 100


class Sandbox:
    """Runs Python programs in processes of their own, under limits, and returns what they compute.

    Level "L2" is a process in namespaces of its own: no network, no sight of other processes, no
    file but the standard library, only an empty folder in memory to write to. Level "L1" is a
    process with the same limits of time, memory, output and system calls among your files, which
    it is kept from only where the kernel has Landlock. Neither is a virtual machine: both trust the
    kernel. ``docs/security.md`` says what each level holds against.

    A server is started once for each worker, by ``exec``, and forks for every program. The result
    of a program depends on nothing that another one did.

    Args:
        level: "auto" takes L2 where it starts, else L1 if that is allowed.
        allow_code_execution: Accept L1, under which a program may get at your files.
        timeout: Seconds that a program may take, by the clock on the wall.
        memory_mb: Address space of a program in MiB, of which the interpreter takes about 30.
        output_limit: Bytes that a program may print, and bytes that it may return.
        num_workers: How many programs run at a time.
        retries: How often a program is run again when the sandbox, not the program, failed.
        max_error_fraction: Share of programs (of 100, while fewer were run) that may end as
            "sandbox_error" before ``run`` raises.
        runner: Runs the programs elsewhere, as level "L3"; the other settings do not concern it.

    Raises:
        ValueError: If a setting is out of range.
        SandboxError: If L1 is asked for and not allowed; on first use, if no level can be started.

    Example:
        >>> with Sandbox(allow_code_execution=True) as sandbox:
        ...     sandbox.run([Program(code="def f(x): return x * 2", calls=("f(21)",))])[0].results
        (Result(status='finished', value=42, detail=''),)
    """

    def __init__(
        self,
        *,
        level: Literal["auto", "L1", "L2"] = "auto",
        allow_code_execution: bool = False,
        timeout: float = 5.0,
        memory_mb: int = 512,
        output_limit: int = 1_000_000,
        num_workers: int = 2,
        retries: int = 2,
        max_error_fraction: float = 0.01,
        runner: Runner | None = None,
    ) -> None:
        check_choice("level", level, ("auto", "L1", "L2"))
        check_range("timeout", timeout, low=0.0, low_open=True, high=3600.0)
        check_int("memory_mb", memory_mb, low=64)
        check_int("output_limit", output_limit, low=1000)
        check_int("num_workers", num_workers, low=1)
        check_int("retries", retries, low=0)
        check_range("max_error_fraction", max_error_fraction, low=0.0, high=1.0)
        self._ways = launches(level, allow_code_execution=allow_code_execution)
        self._limits = {
            "timeout": timeout,
            "memory_mb": memory_mb,
            "output_limit": output_limit,
            "file_mb": SCRATCH_MB,
        }
        self._num_workers, self._retries = num_workers, retries
        self._max_error_fraction = max_error_fraction
        self._runner = runner
        self._lock = threading.Lock()
        self._num_run = self._num_errors = 0
        self._crew: _Crew | None = None

    def __enter__(self) -> Self:
        """Start the servers."""
        if self._runner is None:
            self._started()
        return self

    def __exit__(self, *_: object) -> None:
        """End the servers."""
        self.close()

    @property
    def level(self) -> str:
        """The level that programs run under; starts the servers if need be."""
        return "L3" if self._runner is not None else self._started().level

    def close(self) -> None:
        """End the servers; the next use starts them again."""
        with self._lock:
            crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    def run(self, programs: Sequence[Program]) -> list[Outcome]:
        """Run programs, each in a process of its own; return an outcome for each, in their order.

        Raises:
            SandboxError: If servers cannot be started, or too many outcomes are "sandbox_error".
        """
        if self._runner is not None:
            outcomes = list(self._runner(programs))
            if len(outcomes) != len(programs):
                raise SandboxError(
                    f"runner returned {len(outcomes)} outcomes for {len(programs)} programs; it "
                    "must return one for each, in order."
                )
            for outcome in outcomes:
                self._count(outcome)
            return outcomes
        return self._started().map(self._run_one, programs)

    def _started(self) -> "_Crew":
        with self._lock:
            if self._crew is None:
                self._crew = _Crew(self._ways, self._num_workers)
            return self._crew

    def _run_one(self, crew: "_Crew", program: Program) -> Outcome:
        request = make_request(program)
        num_lost = 0
        outcome = Outcome("sandbox_error", detail="never run")
        for _ in range(self._retries + 1):
            try:
                reply = crew.check({**request, **self._limits})
            except ServerLostError as error:
                num_lost += 1
                lost = f"the server was lost while the program ran: {error}"
                outcome = Outcome("sandbox_error", detail=lost, level=crew.level)
                continue
            outcome = read_outcome(request, *reply, crew.level)
            if outcome.status != "sandbox_error":
                break
        if num_lost > self._retries > 0:
            # Fresh servers do not fall over by themselves every time: it is the program's doing,
            # and must not be a way out of being judged.
            outcome = Outcome("forbidden", detail=outcome.detail, level=crew.level)
        self._count(outcome)
        return outcome

    def _count(self, outcome: Outcome) -> None:
        with self._lock:
            self._num_run += 1
            self._num_errors += outcome.status == "sandbox_error"
            allowed = self._max_error_fraction * max(self._num_run, _MIN_COUNTED)
            if outcome.status == "sandbox_error" and self._num_errors > allowed:
                raise SandboxError(
                    f"{self._num_errors} of {self._num_run} programs could not be run, more than "
                    f"max_error_fraction={self._max_error_fraction} allows; the last: "
                    f"{outcome.detail}."
                )


class _Crew:
    """The workers and the threads that wait for them."""

    def __init__(self, ways: Sequence[Launch], num_workers: int) -> None:
        workers = [_first_that_starts(ways)]
        self.level = workers[0].launch.level
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="sandbox")
        # Nobody may be left to call close.
        self._finalizer = weakref.finalize(self, _end, os.getpid(), self._threads, workers)
        while len(workers) < num_workers:
            workers.append(Worker(workers[0].launch))
        for worker in workers:
            self._idle.put(worker)

    def map(
        self, run: Callable[["_Crew", Program], Outcome], programs: Sequence[Program]
    ) -> list[Outcome]:
        return list(self._threads.map(lambda program: run(self, program), programs))

    def check(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes, bytes]:
        worker = self._idle.get()
        try:
            return worker.check(request)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        self._finalizer()


def _first_that_starts(ways: Sequence[Launch]) -> Worker:
    reasons = []
    for way in ways:
        try:
            return Worker(way)
        except SandboxError as error:
            reasons.append(str(error))
    told = "; ".join(reasons) or "namespaces are found on Linux only"
    raise SandboxError(
        f"no sandbox can be started here: {told}. Install bubblewrap or allow user namespaces; or "
        "pass allow_code_execution=True to run programs among your files, under limits only."
    )


def _end(owner: int, threads: ThreadPoolExecutor, workers: Sequence[Worker]) -> None:
    if os.getpid() != owner:
        return  # a fork of the process that started them, which may be running them
    threads.shutdown(cancel_futures=True)
    for worker in workers:
        worker.close()
