"""The ways to start a server at each level."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from selftrain.errors import SandboxError
from selftrain.tasks.sandbox.guest.libraries import SCRATCH, library_folders, package_folders

SCRATCH_MB = 16
_SANDBOX = Path(__file__).resolve().parent
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from guest.server import main; main(sys.argv[2])"
)


@dataclass(frozen=True, slots=True)
class Launch:
    """One way to start a server."""

    level: str
    """The isolation that it gives."""
    bubblewrap: str | None = None
    """The ``bwrap`` program that makes the namespaces; None where the server does so itself."""
    filtered: bool = True
    """Whether system calls are filtered too, where the kernel can."""

    def command(self, folder: str) -> list[str]:
        """Return the command that starts a server whose own folder is ``folder``."""
        python = os.path.realpath(sys.executable) if sys.executable else ""
        if not python:
            raise SandboxError("sys.executable is empty, so no interpreter can be started.")
        config = {
            "level": self.level,
            "folder": folder,
            "enter": self.bubblewrap is None,
            "filter": self.filtered,
            "file_mb": SCRATCH_MB,
        }
        # -I would be the short form, but it ignores PYTHONHASHSEED as well, and then the order of
        # sets, and so a grade, changes from run to run. The environment holds nothing else.
        start = [python, "-s", "-P", "-S", "-B", "-c", _START, str(_SANDBOX), json.dumps(config)]
        return [*_wrapped(self.bubblewrap, python), *start] if self.bubblewrap else start


def launches(level: str, *, allow_code_execution: bool) -> list[Launch]:
    """Return the ways to try for a level, best first.

    Raises:
        SandboxError: If the level is the weaker one and has not been allowed.
    """
    found = []
    if level in ("auto", "L2") and sys.platform == "linux":
        found.append(Launch("L2"))
        # It may be allowed namespaces where this process is not.
        if bubblewrap := shutil.which("bwrap"):
            found.append(Launch("L2", bubblewrap))
    if level == "L1" and not allow_code_execution:
        raise SandboxError(
            "level 'L1' keeps a program from running on, not from reading and writing your files. "
            "Pass allow_code_execution=True to accept that, or level='auto' for namespaces."
        )
    if level == "L1" or (level == "auto" and allow_code_execution):
        found.append(Launch("L1"))
    return found


def _wrapped(bubblewrap: str, python: str) -> list[str]:
    command = [bubblewrap, "--unshare-all", "--as-pid-1", "--die-with-parent", "--new-session"]
    command += ["--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    for path in library_folders():
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind", path, path]
    for path in package_folders():
        command += ["--tmpfs", path, "--remount-ro", path]
    command += ["--ro-bind", python, python, "--ro-bind", str(_SANDBOX), str(_SANDBOX)]
    for name in ("null", "zero", "urandom"):
        command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    size = str(SCRATCH_MB << 20)
    command += ["--perms", "0700", "--size", size, "--tmpfs", SCRATCH]
    return [*command, "--remount-ro", "/", "--chdir", "/", "--"]
