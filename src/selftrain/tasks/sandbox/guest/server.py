"""A process that forks for every program it is sent, watches it, and clears up after it.

Requests and replies are lengths followed by JSON and bytes, on what were standard input and output.
The server has one thread and few modules, so that forking it is safe and cheap. At level L2 it is
process 1 of its namespace: what runs inside cannot signal or trace it, and killing all that is left
of a program is one call.
"""

import gc
import importlib
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import time
from contextlib import suppress
from typing import Any

from . import folders, libraries, program

# What solutions import most: importing once is cheaper than in every fork.
PRELOADED = (
    "abc bisect cmath collections copy dataclasses datetime decimal enum fractions functools"
    " heapq inspect io itertools math numbers operator queue random re statistics string struct sys"
    " textwrap threading time traceback typing unicodedata"
)
_KEPT_OUTPUT = 4000
_SWEEP_SECONDS = 10.0
_HEADER = struct.Struct(">III")
_PID_TO_COME = 0x7EADBEEF  # beyond the largest number of a process


class _ParentGoneError(Exception):
    pass


class Server:
    """The loop; ``level`` is "L1" or "L2"."""

    def __init__(self, config: dict[str, Any], commands: int, replies: int) -> None:
        """Enter the namespaces, if asked to, and prepare what every fork inherits."""
        self.commands, self.replies = commands, replies
        self.level: str = config["level"]
        self.scratch: str = config["folder"]
        self.user: tuple[int, int] | None = None
        _preload()
        self.syscalls, self.seccomp = _optional("syscalls"), _optional("seccomp")
        self.landlock = _optional("landlock")
        if self.level == "L2":
            if config["enter"]:
                from . import namespaces

                self.user = namespaces.enter_namespaces(self.scratch, config["file_mb"])
            self.scratch = libraries.SCRATCH
            if os.getpid() != 1:
                raise OSError("not the first process of a namespace")
        self.filter = self._working_filter() if config["filter"] else None
        self.rules: int | None = None
        if self.level == "L1" and self.landlock and config["filter"]:
            self.rules = self.landlock.make_rules(self.scratch)
        if self.syscalls:
            with suppress(OSError):
                self.syscalls.prctl(self.syscalls.PR_SET_DUMPABLE, 0)
                self.syscalls.prctl(self.syscalls.PR_SET_CHILD_SUBREAPER, 1)
        self.woken, waker = os.pipe()
        os.set_blocking(self.woken, False)
        os.set_blocking(waker, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Answer requests until the parent closes its end."""
        self._reply(
            {
                "level": self.level,
                "filtered": self.filter is not None,
                "confined": self.level == "L2" or self.rules is not None,
            }
        )
        os.chdir(self.scratch)
        os.environ.clear()
        sys.path.pop(0)  # the folder that this package is in
        compile("x = 1", "", "exec")  # what the first call sets up, every fork would
        gc.collect()
        gc.freeze()  # a collection in a fork would copy every page
        while True:
            size = _read_exactly(self.commands, 4)
            request = json.loads(_read_exactly(self.commands, struct.unpack(">I", size)[0]))
            self._reply(*self._check(request))

    def _reply(self, head: dict[str, Any], result: bytes = b"", output: bytes = b"") -> None:
        text = json.dumps(head).encode()
        data = _HEADER.pack(len(text), len(result), len(output)) + text + result + output
        while data:
            data = data[os.write(self.replies, data) :]

    def _check(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes, bytes]:
        started = time.monotonic()
        result_r, result_w = os.pipe()
        output_r, output_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._run_fork(request, result_w, output_w)
        os.close(result_w)
        os.close(output_w)
        limits = {result_r: request["output_limit"], output_r: request["output_limit"]}
        texts = {result_r: bytearray(), output_r: bytearray()}
        try:
            end = self._watch(pid, texts, limits, started + request["timeout"])
            status = self._sweep(pid)
            for fd in texts:
                os.set_blocking(fd, False)
                while _take(fd, texts[fd]) and len(texts[fd]) <= limits[fd]:
                    pass
                if len(texts[fd]) > limits[fd] and end == "exit":
                    end = "output_limit"
        finally:
            os.close(result_r)
            os.close(output_r)
        folders.empty(self.scratch)
        head = {"end": end, "status": status, "milliseconds": 1e3 * (time.monotonic() - started)}
        result = bytes(texts[result_r][: limits[result_r]])
        return head, result, bytes(texts[output_r][:_KEPT_OUTPUT])

    def _watch(
        self, pid: int, texts: dict[int, bytearray], limits: dict[int, int], deadline: float
    ) -> str:
        """Read what the program writes until it ends or has to be ended; return why."""
        poll = select.poll()
        poll.register(self.woken, select.POLLIN)
        poll.register(self.commands, 0)  # only whether the parent is gone
        for fd in texts:
            poll.register(fd, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout"
            for fd, _ in poll.poll(math.ceil(1e3 * left)):
                if fd == self.commands:
                    self._sweep(pid)
                    raise _ParentGoneError
                if fd == self.woken:
                    os.read(self.woken, 4096)
                    # It stays a zombie until all is swept, so that its number is not reused.
                    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
                    if os.waitid(os.P_PID, pid, how) is not None:
                        return "exit"
                elif not _take(fd, texts[fd]):
                    poll.unregister(fd)
                elif len(texts[fd]) > limits[fd]:
                    return "output_limit"

    def _sweep(self, pid: int) -> int:
        """Kill and reap whatever the program left; return the status that it ended with itself."""
        deadline = time.monotonic() + _SWEEP_SECONDS
        status = 0
        while True:
            self._kill_all(pid)
            try:
                while True:
                    ended, its_status = os.waitpid(-1, os.WNOHANG)
                    if ended == 0:
                        break
                    if ended == pid:
                        status = its_status
            except ChildProcessError:
                return status
            if time.monotonic() > deadline:
                raise OSError("processes of a program could not be killed")
            time.sleep(0.0002)

    def _kill_all(self, pid: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if self.level == "L2":
                os.kill(-1, signal.SIGKILL)  # everything in the namespace but this process
                return
            os.killpg(pid, signal.SIGKILL)
        # Orphans that left the group have become children of this process.
        with suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
            for child in file.read().split():
                with suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)

    def _run_fork(self, request: dict[str, Any], result: int, output: int) -> None:
        """Become the process of a program; never returns."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # A group, and the server's session: Linux schedules sessions apart, and sets up slowly
            # what it needs for that.
            os.setpgid(0, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.dup2(result, 3)
            relax = _set_limits(request, count_processes=self.level == "L2")
            self._give_up_rights()
            os.closerange(4, 256)
            send = program.sender(3)
            send(["ready"])
            program.run_program(request, send, relax)
            sys.stdout.flush()
        finally:
            # Neither threads nor exit handlers of the program are waited for.
            os._exit(0)

    def _give_up_rights(self) -> None:
        if self.user:
            uid, gid = self.user
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        if self.syscalls:
            self.syscalls.give_up_privileges()
        if self.rules is not None:
            self.landlock.apply_rules(self.rules)
        if self.filter:
            own, place = struct.pack("=I", os.getpid()), struct.pack("=I", _PID_TO_COME)
            self.seccomp.apply_filter(self.filter.replace(place, own))

    def _working_filter(self) -> bytes | None:
        own_pid = _PID_TO_COME if self.level == "L1" else None
        code = self.seccomp.make_filter(own_pid=own_pid) if self.seccomp else None
        if code is None:
            return None
        pid = os.fork()
        if pid == 0:
            try:
                self.seccomp.apply_filter(code)
                os._exit(0)
            finally:
                os._exit(1)
        return code if os.waitpid(pid, 0)[1] == 0 else None


def _set_limits(request: dict[str, Any], *, count_processes: bool) -> Any:
    """Set the limits of this process; return a function that loosens that of memory a little."""
    seconds = math.ceil(request["timeout"]) + 1
    memory, spare = request["memory_mb"] << 20, 32 << 20
    size = request["file_mb"] << 20
    limits = {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_FSIZE: (size, size),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_AS: (memory, memory + spare),
    }
    if count_processes:  # elsewhere all processes of the user would count, whoever started them
        limits[resource.RLIMIT_NPROC] = (64, 64)
    for limit, pair in limits.items():
        resource.setrlimit(limit, pair)

    def relax() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory + spare, memory + spare))

    return relax


def _preload() -> None:
    """Import what programs may want, and have every fork start from one random state.

    Two modules ask to be told of forks: ``threading``, which has nothing to repair where there is
    one thread, and ``random``, which draws a new seed. That takes longer than the fork, and a
    program is to give the same result each time.
    """
    register, os.register_at_fork = os.register_at_fork, lambda **_: None
    try:
        for name in PRELOADED.split():
            importlib.import_module(name)
    finally:
        os.register_at_fork = register
    sys.modules["random"].seed(0)


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(f"{__package__}.{name}")
    except (ImportError, OSError):  # a Python without ctypes, a system without a shared C library
        return None


def _take(fd: int, text: bytearray) -> bool:
    """Move what can be read into ``text``; say whether more may come."""
    try:
        data = os.read(fd, 1 << 16)
    except BlockingIOError:
        return False
    text += data
    return bool(data)


def _read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            raise _ParentGoneError
        data += more
    return data


def main(config: str) -> None:
    """Serve on standard input and output, which programs find empty and discarded."""
    os.umask(0o022)
    commands, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    try:
        server = Server(json.loads(config), commands, replies)
    except (OSError, ImportError) as error:
        text = json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
        os.write(replies, _HEADER.pack(len(text), 0, 0) + text)
        return
    with suppress(_ParentGoneError, BrokenPipeError):
        server.serve()
    with suppress(OSError):
        folders.empty(server.scratch)
        os.rmdir(server.scratch)
