"""The few system calls that Python 3.11 has no functions for."""

import ctypes
import os
from typing import Any

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP = 1, 4, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: Any) -> None:
    """Call a function of the C library.

    Raises:
        OSError: If it fails, or the library has no such function.
    """
    try:
        function = getattr(_libc, name)
    except AttributeError:
        raise OSError(38, f"the C library has no {name}") from None
    if function(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def raw_call(number: int, *args: Any) -> int:
    """Make a system call by its number and return its result.

    Raises:
        OSError: If it fails.
    """
    padded = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = _libc.syscall(ctypes.c_long(number), *padded)
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, f"system call {number}: {os.strerror(failed)}")
    return result


def prctl(option: int, *args: Any) -> None:
    """Call ``prctl`` with its unused arguments zero."""
    padded = [*args, *[0] * (4 - len(args))]
    call("prctl", option, *(a if not isinstance(a, int) else ctypes.c_ulong(a) for a in padded))


def give_up_privileges() -> None:
    """Give up all capabilities of this process, and the means to gain others, for good."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    call("capset", header, (ctypes.c_uint32 * 6)())
