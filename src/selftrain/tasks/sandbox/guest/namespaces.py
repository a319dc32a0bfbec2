"""Moves this process into namespaces of its own: no network, no other processes, no files of ours.

What is left of the file system is the standard library and the system's shared libraries,
read-only, three devices, and an empty ``/scratch`` in memory. There is no ``/proc``.
"""

import ctypes
import os
import signal
from contextlib import suppress

from .libraries import SCRATCH, library_folders, package_folders
from .syscalls import PR_SET_PDEATHSIG, call, prctl

_NEW_USER, _NEW_PID, _NEW_NET, _NEW_MOUNT = 0x10000000, 0x20000000, 0x40000000, 0x00020000
_NEW_IPC, _NEW_UTS = 0x08000000, 0x04000000
_READ_ONLY, _NO_SETUID, _NO_DEVICES, _NO_EXEC, _REMOUNT = 1, 2, 4, 8, 32
_BIND, _RECURSIVE, _PRIVATE = 4096, 16384, 1 << 18
_DETACH = 2
# statvfs and mount have different numbers for the times. Flags of mounts from outside are locked.
_TIME_FLAGS = {1024: 1024, 2048: 2048, 4096: 1 << 21}
_NOBODY = 65534


def enter_namespaces(empty_folder: str, scratch_mb: int) -> tuple[int, int] | None:
    """Become process 1 of new namespaces; the process that called this only waits from now on.

    Args:
        empty_folder: Where the new root is put together; outside it nothing changes.
        scratch_mb: Size of the only place that can be written, in MiB.

    Returns:
        User and group that programs should run as; None where the caller is not privileged: then
        the namespace has one user only.

    Raises:
        OSError: If the kernel does not let us.
    """
    uid, gid = _unshare()
    _become_init(empty_folder)
    _build_root(empty_folder, scratch_mb, uid, gid)
    return (uid, gid) if uid else None


def _unshare() -> tuple[int, int]:
    uid, gid = os.geteuid(), os.getegid()
    flags = _NEW_USER | _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS
    if uid != 0:
        call("unshare", flags)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {uid} 1")
        _write("/proc/self/gid_map", f"0 {gid} 1")
        return 0, 0
    # Only a process outside may map a second user, so a helper stays outside and does it.
    ready_r, ready_w = os.pipe()
    helper = os.fork()
    if helper == 0:
        code = 0
        try:
            os.close(ready_w)
            os.read(ready_r, 1)
            _write(f"/proc/{os.getppid()}/uid_map", f"0 0 1\n1 {_NOBODY} 1")
            _write(f"/proc/{os.getppid()}/gid_map", f"0 0 1\n1 {_NOBODY} 1")
        except OSError:
            code = 1
        os._exit(code)
    os.close(ready_r)
    try:
        call("unshare", flags)
    finally:
        os.close(ready_w)
        _, status = os.waitpid(helper, 0)
    if status != 0:
        raise OSError(1, "mapping the users of the namespace failed")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    return 1, 1


def _become_init(empty_folder: str) -> None:
    child = os.fork()
    if child == 0:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    # The channel must belong to the server alone, so that the parent sees its end.
    os.closerange(0, 64)
    os.waitpid(child, 0)
    with suppress(OSError):
        os.rmdir(empty_folder)
    os._exit(0)


def _build_root(root: str, scratch_mb: int, uid: int, gid: int) -> None:
    # Not before the fork: the waiting process has to find the folder again that it removes.
    call("unshare", _NEW_MOUNT)
    _mount("none", "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NO_SETUID | _NO_DEVICES, "size=1m,mode=755")
    for path in library_folders():
        _show(path, root)
    for path in package_folders():
        _mount("tmpfs", root + path, "tmpfs", _READ_ONLY | _NO_SETUID | _NO_DEVICES, "size=4k")
    os.mkdir(f"{root}/dev")
    for name in ("null", "zero", "urandom"):
        with open(f"{root}/dev/{name}", "wb"):
            pass
        _mount(f"/dev/{name}", f"{root}/dev/{name}", None, _BIND)
    os.mkdir(root + SCRATCH)
    options = f"size={scratch_mb}m,nr_inodes=4096,mode=700,uid={uid},gid={gid}"
    flags = _NO_SETUID | _NO_DEVICES | _NO_EXEC
    _mount("tmpfs", root + SCRATCH, "tmpfs", flags, options)
    os.chdir(root)
    call("pivot_root", b".", b".")
    call("umount2", b".", _DETACH)
    os.chdir("/")
    _mount("none", "/", None, _REMOUNT | _BIND | _READ_ONLY | _NO_SETUID | _NO_DEVICES)


def _show(path: str, root: str) -> None:
    """Make a folder visible under the new root at the same place, read-only."""
    if os.path.islink(path):  # /lib is often a link to usr/lib
        os.symlink(os.readlink(path), root + path)
        return
    os.makedirs(root + path, exist_ok=True)
    _mount(path, root + path, None, _BIND | _RECURSIVE)
    found = os.statvfs(root + path).f_flag
    flags = found & (_READ_ONLY | _NO_SETUID | _NO_DEVICES | _NO_EXEC)
    flags |= sum(to for bit, to in _TIME_FLAGS.items() if found & bit)
    flags |= _REMOUNT | _BIND | _READ_ONLY | _NO_SETUID | _NO_DEVICES
    _mount("none", root + path, None, flags)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if t is None else t.encode() for t in (source, target, kind, data)]
    call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
