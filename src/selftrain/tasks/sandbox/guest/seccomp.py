"""A filter of system calls: what no program that computes something needs.

It is one more wall, not the only one. Programs may start threads but no processes, execute no file,
open no socket, trace nobody, and at level L1, where they share the process numbers of their user,
send signals to themselves only.
"""

import ctypes
import errno
import platform
import struct

from .syscalls import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, prctl

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers of each call on x86_64 and aarch64; -1 where there is none.
_DENIED = {
    "fork": (57, -1),
    "vfork": (58, -1),
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "tkill": (200, 130),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "personality": (135, 92),
}
_CLONE, _CLONE3, _KILL, _TGKILL, _PRLIMIT = (56, 220), (435, 435), (62, 129), (234, 131), (302, 261)
_CLONE_THREAD = 0x10000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_REFUSE = _ERRNO | errno.EPERM


def _step(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, k & 0xFFFFFFFF)


def _refuse_unless(first_argument: list[int], *, bits: bool = False) -> bytes:
    """Allow a call only if its first argument is one of these (or has one of these bits)."""
    test = _ANY_BIT if bits else _EQUAL
    code = _step(_LOAD, _FIRST_ARGUMENT)
    for place, value in enumerate(first_argument):
        code += _step(test, value, len(first_argument) - place)
    return code + _step(_RETURN, _REFUSE) + _step(_RETURN, _ALLOW)


def _search(actions: list[tuple[int, bytes]]) -> bytes:
    """Return code that does what is listed for a call, and allows the others, by binary search.

    The kernel tries every number of a call when a filter is installed: a linear search made that
    the greater part of starting a program.
    """
    if len(actions) == 1:
        number, action = actions[0]
        return _step(_EQUAL, number, 0, len(action) // 8) + action + _step(_RETURN, _ALLOW)
    middle = len(actions) // 2
    low, high = _search(actions[:middle]), _search(actions[middle:])
    return _step(_AT_LEAST, actions[middle][0], len(low) // 8) + low + high


def make_filter(*, own_pid: int | None = None) -> bytes | None:
    """Return a filter as BPF code, or None on machines whose calls we have no numbers for.

    Args:
        own_pid: The only process, besides its own group, that may be sent signals; None if all may.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return None
    column = list(_ARCHITECTURES).index(machine)
    actions = {n[column]: _step(_RETURN, _REFUSE) for n in _DENIED.values() if n[column] >= 0}
    # The flags of clone3 lie in memory, where a filter cannot look; without it clone is used.
    actions[_CLONE3[column]] = _step(_RETURN, _ERRNO | errno.ENOSYS)
    actions[_CLONE[column]] = _refuse_unless([_CLONE_THREAD], bits=True)
    actions[_PRLIMIT[column]] = _refuse_unless([0])
    if own_pid is not None:
        actions[_KILL[column]] = _refuse_unless([own_pid, 0])
        actions[_TGKILL[column]] = _refuse_unless([own_pid])
    code = _step(_LOAD, _ARCHITECTURE) + _step(_EQUAL, _ARCHITECTURES[machine], 1)
    code += _step(_RETURN, _KILL_PROCESS) + _step(_LOAD, _NUMBER)
    if machine == "x86_64":  # a second set of numbers for the same calls
        code += _step(_AT_LEAST, 0x40000000, 0, 1) + _step(_RETURN, _REFUSE)
    return code + _search(sorted(actions.items()))


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def apply_filter(code: bytes) -> None:
    """Put this process under a filter for good.

    Raises:
        OSError: If the kernel has no filters.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    program = _Program(len(code) // 8, code)
    prctl(PR_SET_SECCOMP, 2, ctypes.byref(program))
