"""Keeps a process from files without any privilege, on Linux 5.13 and later.

What level L2 gets from a root of its own, L1 gets from this where the kernel has it: only the
libraries can be read, only the program's folder can be written.
"""

import os
import struct

from .libraries import library_folders
from .syscalls import raw_call

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1, 2, 4, 8
# How many rights over files each version of the interface knows.
_NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_LATEST_NUM_RIGHTS = 16
_SCOPED_SIGNALS = 2


def make_rules(folder: str) -> int | None:
    """Return rules under which only ``folder`` can be written, as a file descriptor.

    None where the kernel has no Landlock.
    """
    try:
        version = raw_call(_CREATE, None, 0, 1)
        every_right = (1 << _NUM_RIGHTS.get(version, _LATEST_NUM_RIGHTS)) - 1
        # The kernel takes the longest structure that its version knows.
        handled = struct.pack("=QQQ", every_right, 0, _SCOPED_SIGNALS if version >= 6 else 0)
        handled = handled[: 24 if version >= 6 else 8]
        rules = raw_call(_CREATE, handled, len(handled), 0)
    except OSError:
        return None
    for path in library_folders():
        _allow(rules, path, _EXECUTE | _READ_FILE | _READ_FOLDER)
    _allow(rules, folder, every_right & ~_EXECUTE)
    for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
        _allow(rules, path, _READ_FILE | _WRITE_FILE)
    return rules


def apply_rules(rules: int) -> None:
    """Put this process under rules for good; it must not be able to gain privileges."""
    raw_call(_RESTRICT, rules, 0)


def _allow(rules: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        raw_call(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)
