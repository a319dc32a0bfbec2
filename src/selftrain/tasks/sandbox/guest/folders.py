"""Empties folders that a program has written into, however it did that."""

import os


def empty(folder: str) -> None:
    """Remove everything inside ``folder``, without following links.

    Neither the depth of a tree nor the length of its paths matters: one folder is open at a time,
    and every name is relative to it. Nobody else may be writing there.
    """
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    way: list[str] = []
    todo = [_remove_files(here)]
    try:
        while True:
            if todo[-1]:
                name = todo[-1].pop()
                os.chmod(name, 0o700, dir_fd=here)
                here = _move(here, name)
                way.append(name)
                todo.append(_remove_files(here))
            elif way:
                here = _move(here, "..")
                os.rmdir(way.pop(), dir_fd=here)
                todo.pop()
            else:
                return
    finally:
        os.close(here)


def _move(here: int, name: str) -> int:
    there = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
    os.close(here)
    return there


def _remove_files(fd: int) -> list[str]:
    """Remove what is no folder, and return the names of the folders."""
    folders = []
    with os.scandir(fd) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=fd)
    return folders
