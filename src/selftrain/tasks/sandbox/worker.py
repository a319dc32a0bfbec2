"""The parent's end of one server process."""

import json
import os
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from contextlib import suppress
from typing import Any

from selftrain.errors import SandboxError
from selftrain.tasks.sandbox.guest import folders
from selftrain.tasks.sandbox.launch import Launch

_START_SECONDS = 60.0
# Longer than the server itself takes to give up on a process that cannot be killed.
_GRACE_SECONDS = 15.0
_HEADER = struct.Struct(">III")


class ServerLostError(Exception):
    """The server ended or fell silent while a program ran."""


class Worker:
    """A server, started at once and again whenever it was lost.

    Raises:
        SandboxError: If the server does not start.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.filtered = self.confined = False
        self._folder: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def check(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes, bytes]:
        """Have one program run; return the reply's head, the program's messages and its output.

        Raises:
            ServerLostError: If there is no reply; the next call starts a new server.
            SandboxError: If that does not start.
        """
        process = self._process or self._start()
        data = json.dumps(request).encode()
        try:
            _write_all(process, struct.pack(">I", len(data)) + data)
            return self._read_reply(process, request["timeout"] + _GRACE_SECONDS)
        except (ServerLostError, OSError) as error:
            self.close()
            raise ServerLostError(str(error)) from error

    def close(self) -> None:
        """End the server and all that runs under it."""
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.0)  # it ends by itself when its input does
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        folder, self._folder = self._folder, None
        if folder is not None:
            with suppress(OSError):
                folders.empty(folder)
            shutil.rmtree(folder, ignore_errors=True)

    def _start(self) -> subprocess.Popen[bytes]:
        self._folder = tempfile.mkdtemp(prefix="selftrain-sandbox-")
        try:
            process = self._process = subprocess.Popen(  # noqa: S603 - an interpreter and our file
                self.launch.command(self._folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PYTHONHASHSEED": "0"},
                cwd="/",
                start_new_session=True,
            )
            hello, _, _ = self._read_reply(process, _START_SECONDS)
            if "error" in hello:
                raise ServerLostError(hello["error"])
        except (ServerLostError, OSError) as error:
            self.close()
            how = f" with {self.launch.bubblewrap}" if self.launch.bubblewrap else ""
            raise SandboxError(f"{self.launch.level}{how} did not start: {error}") from error
        self.filtered, self.confined = hello["filtered"], hello["confined"]
        return process

    def _read_reply(
        self, process: subprocess.Popen[bytes], seconds: float
    ) -> tuple[dict[str, Any], bytes, bytes]:
        deadline = time.monotonic() + seconds
        sizes = _HEADER.unpack(_read_exactly(process, _HEADER.size, deadline))
        head, result, output = (_read_exactly(process, size, deadline) for size in sizes)
        return json.loads(head), result, output


def _write_all(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    process.stdin.write(data)
    process.stdin.flush()


def _read_exactly(process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    fd = process.stdout.fileno()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = bytearray()
    while len(data) < size:
        if not poll.poll(max(0.0, 1e3 * (deadline - time.monotonic()))):
            raise ServerLostError("no reply in time")
        more = os.read(fd, size - len(data))
        if not more:
            raise ServerLostError("the server has ended")
        data += more
    return bytes(data)
